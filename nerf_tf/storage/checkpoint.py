"""Checkpoints: the whole training state on disk, so that a run resumes exactly where it stopped.

A checkpoint is a folder `ckpt-N` with TensorFlow's two files and their SHA-256 sums; it gets its name only when it is
complete. Versions before 0.3.0 wrote the two files as `ckpt-N.index` and `ckpt-N.data-00000-of-00001`, without folder
and sums; `restore` reads these too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from nerf_tf.storage import tf1_weights
from nerf_tf.storage.atomic import UNFINISHED, complete_file, complete_folder

logger = logging.getLogger(__name__)

# The second newest is the fallback when the newest is damaged.
MAX_CHECKPOINTS = 2
STATE = "state"
STATE_FILES = (f"{STATE}.index", f"{STATE}.data-00000-of-00001")
OLD_ENDINGS = (".index", ".data-00000-of-00001")
# In the format of the program sha256sum.
CHECKSUM_FILE = "sha256.txt"
# An empty file in the checkpoint's folder: all outputs due at its step have been written.
COMMITTED = "settled"


class CheckpointStore:
    """The checkpoints of one run.

    Attributes:
        path: the checkpoint saved or restored last; None before the first.
        step: the step that training takes next from it.
    """

    def __init__(self, state: Mapping[str, Any], folder: Path):
        """Prepares the state for saving and restoring.

        Args:
            state: networks, optimizer and variables by name (`Trainer.state`), among them the variable `step`.
            folder: the folder of all checkpoints of the run.
        """
        self._state, self._folder = state, folder
        self._checkpoint = tf.train.Checkpoint(**{name: part for name, part in state.items() if name != "counts"})
        self.path: Path | None = None
        self.step: int | None = None

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint, damaged or not; None if there is none."""
        return next(iter(self._newest_first()), None)

    @property
    def uncommitted(self) -> bool:
        """Whether the run ended before all outputs due at the checkpoint's step were written."""
        return self.path is not None and self.path.is_dir() and not (self.path / COMMITTED).exists()

    def _newest_first(self) -> list[Path]:
        names = (path.name for path in self._folder.iterdir()) if self._folder.is_dir() else ()
        matches = (re.fullmatch(r"ckpt-(\d+)(\.index|\.data-\d+-of-\d+)?", name) for name in names)
        numbers = {int(match[1]) for match in matches if match}
        return [self._folder / f"ckpt-{number}" for number in sorted(numbers, reverse=True)]

    def save(self) -> None:
        """Writes a checkpoint, and removes all intact ones but the newest `MAX_CHECKPOINTS`.

        Raises:
            OSError: it cannot be written; earlier checkpoints are unchanged.
        """
        last = self.newest
        path = self._folder / f"ckpt-{int(last.name.removeprefix('ckpt-')) + 1 if last else 1}"
        self._checkpoint.counts = self._state["counts"]
        try:
            with complete_folder(path) as temporary:
                self._checkpoint.write(str(temporary / STATE))
                sums = "".join(f"{line}\n" for line in _checksums(temporary))
                (temporary / CHECKSUM_FILE).write_text(sums, encoding="utf-8")
        except (OSError, tf.errors.OpError) as error:
            reason = getattr(error.__cause__ or error, "strerror", None) or _write_failure(error)
            raise OSError(f"{path}: cannot be written ({reason}); earlier checkpoints are unchanged") from error
        self.path, self.step = path, int(self._state["step"].numpy())
        intact = [path for path in self._newest_first() if _find_damage(path) is None]
        for path in intact[MAX_CHECKPOINTS:]:
            with contextlib.suppress(OSError):  # a surplus checkpoint does no harm
                self._remove(path)

    def commit(self) -> None:
        """Marks the current checkpoint: all outputs due at its step have been written.

        Raises:
            OSError: the mark cannot be written.
        """
        if self.uncommitted:
            with complete_file(self.path / COMMITTED):
                pass

    def _remove(self, path: Path) -> None:
        if path.is_dir():
            # Renamed first: a checkpoint removed only in part would look damaged.
            renamed = path.rename(path.with_name(f"{UNFINISHED}{path.name}"))
            shutil.rmtree(renamed, ignore_errors=True)
        else:
            for ending in OLD_ENDINGS:
                path.with_name(path.name + ending).unlink(missing_ok=True)

    def restore(self) -> Path:
        """Restores the newest intact checkpoint and returns its path.

        Raises:
            ValueError: there is no checkpoint, all are damaged, or it does not fit the networks.
        """
        paths = self._newest_first()
        if not paths:
            raise ValueError(f"{self._folder}: no checkpoint; train first, or give --ft_path")
        for path, older in zip(paths, [*paths[1:], None], strict=True):
            damage = _find_damage(path) or self._read(path)
            if damage is None:
                self.path, self.step = path, int(self._state["step"].numpy())
                return path
            if older is not None:
                logger.warning("%s: damaged (%s); going back to %s", path, damage, older.name)
        newest = tf1_weights.newest(self._folder.parent)
        weights = "" if newest is None else f"continue from weights with --ft_path {newest}, or "
        raise ValueError(
            f"{path}: damaged ({damage}), and there is no older checkpoint; {weights}start over with --no_reload"
        )

    def _read(self, path: Path) -> str | None:
        """Restores a checkpoint; returns TensorFlow's message if it finds damage that `_find_damage` did not."""
        prefix = str(path / STATE if path.is_dir() else path)
        try:
            self._check_parts(path, prefix)
            self._checkpoint.read(prefix).assert_existing_objects_matched()
            # Attached after the check, as version 0.2.0 saved no counts; where there are some, this restores them.
            self._checkpoint.counts = self._state["counts"]
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"{path}: does not fit the networks ({_first_line(error)}); use the run's own args.txt as "
                "--config, its weights alone as --ft_path, another expname, or --no_reload to start over"
            ) from error
        # What TensorFlow raises over a truncated or overwritten file.
        except (tf.errors.OpError, RuntimeError, LookupError, DecodeError) as error:
            return _first_line(error)
        return None

    def _check_parts(self, path: Path, prefix: str) -> None:
        """Raises ValueError unless checkpoint and run agree in --field, fine network and loss scale."""
        graph = tf.train.load_checkpoint(prefix).get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
        nodes = TrackableObjectGraph.FromString(graph).nodes
        parts = {
            child.local_name: {part.local_name for part in nodes[child.node_id].children} for child in nodes[0].children
        }
        if ("hash_grid" in parts) != ("hash_grid" in self._state):
            kind, other = ("hash_grid", "mlp") if "hash_grid" in parts else ("mlp", "hash_grid")
            raise ValueError(f"it is of --field={kind}, and this run is of --field={other}")
        if ("fine" in parts) != ("fine" in self._state):
            article, flag = ("a", "is 0") if "fine" in parts else ("no", "is not 0")
            raise ValueError(f"it has {article} fine network, and --N_importance {flag}")
        scaled = isinstance(self._state["optimizer"], keras.optimizers.LossScaleOptimizer)
        if ("inner_optimizer" in parts.get("optimizer", ())) != scaled:
            article, negation = ("no", "") if scaled else ("a", "not ")
            raise ValueError(f"it has {article} loss scale, and --mixed_precision is {negation}float16")


def _find_damage(path: Path) -> str | None:
    """Describes the damage of a checkpoint's files, or returns None; old checkpoints have no sums."""
    if not path.is_dir():
        files = [path.with_name(path.name + ending) for ending in OLD_ENDINGS]
        return next((f"{file.name} is missing" for file in files if not file.is_file()), None)
    missing = [name for name in (*STATE_FILES, CHECKSUM_FILE) if not (path / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    try:
        expected = (path / CHECKSUM_FILE).read_bytes().splitlines()
        found = zip(STATE_FILES, _checksums(path), strict=True)
        wrong = [name for name, line in found if line.encode() not in expected]
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return f"{wrong[0]} differs from its SHA-256 in {CHECKSUM_FILE}" if wrong else None


def _checksums(folder: Path) -> list[str]:
    """Lines of SHA-256 and file name, one for each of `STATE_FILES`."""
    return [f"{_sha256(folder / name)}  {name}" for name in STATE_FILES]


def _sha256(path: Path) -> str:
    """SHA-256 of a file, which may be too large to hold in memory beside training."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _write_failure(error: Exception) -> str:
    """The disk error within TensorFlow's long message, or else the message's first line."""
    reasons = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS))
    return next((reason for reason in reasons if reason in str(error)), _first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]
