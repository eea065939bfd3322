"""Stages of a long job that is started again: what is finished is skipped, what has other inputs is done anew."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nerf_tf.storage import atomic, readers

RECORD = "stages.json"
# Characters of the record: some paths and times of some hundred photos.
_LARGEST_RECORD = 2**24


class Stages:
    """Runs the stages of a job in a folder, in their order, and keeps a record of them there.

    Each stage depends on its inputs and on the stages before it. If these are not what they were when it was started
    before, its outputs are moved to a folder `earlier_N`, and it begins anew. Otherwise it is skipped if it was
    finished, and continues if it was not.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        """Reads the record of an earlier call.

        Args:
            folder: of the job; made if it is missing.
            names: of all stages, in their order.

        Raises:
            OSError: the folder cannot be made.
            ValueError: the record is damaged.
        """
        self._folder, self._names, self._before, self._earlier = folder, list(names), "", None
        atomic.make_folder(folder)
        self._record: dict[str, dict] = {}
        if (folder / RECORD).is_file():
            record = readers.read_json(folder / RECORD, _LARGEST_RECORD)
            if not (isinstance(record, dict) and all(isinstance(stage, dict) for stage in record.values())):
                raise ValueError(f"{folder / RECORD}: not the record of this program; delete it, and all begins anew")
            self._record = record

    def run(
        self,
        name: str,
        inputs: Mapping[str, object],
        outputs: Sequence[str],
        action: Callable[[], None],
        extent: Mapping[str, object] | None = None,
    ) -> None:
        """Runs a stage, unless it is finished; prints how it went.

        Args:
            name: of the stage.
            inputs: what its outputs depend on, in values that JSON can hold.
            outputs: names of the files and folders that it makes in the job's folder.
            action: does it; what it raises passes through.
            extent: how far the action is to go: with another extent the stage continues, rather than begin anew.
        """
        inputs, extent = _as_json(dict(inputs) | {"after": self._before}), _as_json(dict(extent or {}))
        title = f"{self._names.index(name) + 1}/{len(self._names)} {name}"
        known = self._record.get(name, {})
        paths = [self._folder / output for output in outputs]
        if known.get("inputs") != inputs:
            self._move_aside([path for path in paths if path.exists()], title)
            known = {"seconds": 0.0}
        if known.get("finished") == extent and all(path.exists() for path in paths):
            print(f"{title}: finished before, in {known['seconds']:.0f} s", flush=True)
        else:
            self._write(name, {"inputs": inputs, "seconds": known["seconds"]})
            print(f"{title} ...", flush=True)
            start = time.monotonic()
            action()
            seconds = time.monotonic() - start + known["seconds"]
            self._write(name, {"inputs": inputs, "finished": extent, "seconds": round(seconds, 1)})
            print(f"{title}: {seconds:.0f} s", flush=True)
        self._before = hashlib.sha256(json.dumps([inputs, extent], sort_keys=True).encode()).hexdigest()

    def seconds(self) -> float:
        """Seconds that all stages took together, with those of earlier calls."""
        return sum(self._record[name]["seconds"] for name in self._names if name in self._record)

    def _write(self, name: str, record: dict) -> None:
        self._record[name] = record
        atomic.write_text(self._folder / RECORD, json.dumps(self._record, indent=1) + "\n")

    def _move_aside(self, paths: Sequence[Path], title: str) -> None:
        if not paths:
            return
        if self._earlier is None:
            numbers = (i for i in range(1, sys.maxsize) if not (self._folder / f"earlier_{i}").exists())
            self._earlier = self._folder / f"earlier_{next(numbers)}"
            self._earlier.mkdir()
        for path in paths:
            path.rename(self._earlier / path.name)
        print(f"{title}: its inputs have changed; what was made of the others is in {self._earlier}", flush=True)


def _as_json(values: dict[str, object]) -> dict[str, object]:
    """The values as they come back from a file."""
    return json.loads(json.dumps(values))
