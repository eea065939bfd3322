"""Everything that training changes, on disk, so that a run goes on exactly where it stopped.

A checkpoint is a folder `ckpt-N`, which gets this name only when all of it is on the disk: TensorFlow's two files, and
their SHA-256. Versions before 0.3.0 wrote TensorFlow's files `ckpt-N.index` and `ckpt-N.data-00000-of-00001`, without
folder and sums; these are read too.
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

from nerf_tf.storage.atomic import UNFINISHED, complete_file, complete_folder

logger = logging.getLogger(__name__)

# The one before the newest is a way back when a disk damages the newest.
KEPT = 2
STATE = "state"
PIECES = (f"{STATE}.index", f"{STATE}.data-00000-of-00001")
# Parts that older checkpoints lack: versions before 0.3.0 kept no counts.
OPTIONAL = ("counts",)
OLD_ENDINGS = (".index", ".data-00000-of-00001")
# As `sha256sum` writes and checks it.
SUMS = "sha256.txt"
# An empty file beside them: everything that was due at the checkpoint's step has been written.
SETTLED = "settled"


class CheckpointStore:
    """The checkpoints of one run: networks, optimizer, step, seed and counts of trouble.

    Attributes:
        path: the checkpoint that was saved or restored last; None before.
        step: the step that it goes on with.
    """

    def __init__(self, state: Mapping[str, Any], folder: Path):
        """Takes what is to be saved, and the folder of all checkpoints.

        Args:
            state: networks, optimizer and variables by name (`Trainer.state`); one is the variable `step`.
            folder: where the checkpoints are.
        """
        self._state, self._folder = state, folder
        required = {name: part for name, part in state.items() if name not in OPTIONAL}
        self._checkpoint = tf.train.Checkpoint(**required)
        self.path: Path | None = None
        self.step: int | None = None

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint, whole or not."""
        return next(iter(self._newest_first()), None)

    @property
    def unsettled(self) -> bool:
        """Whether a run died, or stopped, before it had written all that was due at the checkpoint's step."""
        return self.path is not None and self.path.is_dir() and not (self.path / SETTLED).exists()

    def _newest_first(self) -> list[Path]:
        names = (path.name for path in self._folder.iterdir()) if self._folder.is_dir() else ()
        matches = (re.fullmatch(r"ckpt-(\d+)(\.index|\.data-\d+-of-\d+)?", name) for name in names)
        numbers = {int(match[1]) for match in matches if match}
        return [self._folder / f"ckpt-{number}" for number in sorted(numbers, reverse=True)]

    def _attach_optional(self) -> None:
        for name in OPTIONAL:
            setattr(self._checkpoint, name, self._state[name])

    def save(self) -> None:
        """Writes a checkpoint, and removes all whole ones but the newest few.

        Raises:
            OSError: it cannot be written. What was there before is still there.
        """
        last = self.newest
        path = self._folder / f"ckpt-{int(last.name.removeprefix('ckpt-')) + 1 if last else 1}"
        self._attach_optional()
        try:
            with complete_folder(path) as unfinished:
                self._checkpoint.write(str(unfinished / STATE))
                (unfinished / SUMS).write_text("".join(f"{line}\n" for line in _sums(unfinished)), encoding="utf-8")
        except (OSError, tf.errors.OpError) as error:
            reason = getattr(error.__cause__ or error, "strerror", None) or _reason(error)
            raise OSError(f"{path}: no checkpoint ({reason}); those before it are as they were") from error
        self.path, self.step = path, int(self._state["step"].numpy())
        whole = [path for path in self._newest_first() if _damage(path) is None]
        for path in whole[KEPT:]:
            with contextlib.suppress(OSError):  # one too many does no harm
                self._remove(path)

    def settle(self) -> None:
        """Notes with the checkpoint that was saved or restored last that all due at its step has been written.

        Raises:
            OSError: it cannot be written.
        """
        if self.unsettled:
            with complete_file(self.path / SETTLED):
                pass

    def _remove(self, path: Path) -> None:
        if path.is_dir():
            # At one go: half a checkpoint would pass for a damage.
            gone = path.rename(path.with_name(f"{UNFINISHED}{path.name}"))
            shutil.rmtree(gone, ignore_errors=True)
        else:
            for ending in OLD_ENDINGS:
                path.with_name(path.name + ending).unlink(missing_ok=True)

    def restore(self) -> Path:
        """Restores the newest checkpoint, or the one before where that is damaged, and returns its path.

        Raises:
            ValueError: it does not fit the networks, or there is none, or none that can be read.
        """
        paths = self._newest_first()
        if not paths:
            raise ValueError(f"{self._folder}: no checkpoint; train first, or give --ft_path")
        for path, older in zip(paths, [*paths[1:], None], strict=True):
            damage = _damage(path) or self._read(path)
            if damage is None:
                self.path, self.step = path, int(self._state["step"].numpy())
                return path
            if older is not None:
                logger.warning("%s: damaged (%s); going back to %s", path, damage, older.name)
        raise ValueError(
            f"{path}: damaged ({damage}), and there is no older checkpoint; start from weights with "
            "--ft_path model_000000.npy, or over with --no_reload"
        )

    def _read(self, path: Path) -> str | None:
        """Restores a checkpoint; returns what TensorFlow says of a damage that `_damage` did not find."""
        prefix = str(path / STATE if path.is_dir() else path)
        try:
            self._check_parts(path, prefix)
            self._checkpoint.read(prefix).assert_existing_objects_matched()
            # Only now, because those of version 0.2.0 have none; where there are some, this restores them.
            self._attach_optional()
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"{path}: does not fit the networks ({_first_line(error)}); use the run's own args.txt as "
                "--config, its weights alone as --ft_path, another expname, or --no_reload to start over"
            ) from error
        # What TensorFlow makes of a cut off or overwritten piece.
        except (tf.errors.OpError, RuntimeError, LookupError, DecodeError) as error:
            return _first_line(error)
        return None

    def _check_parts(self, path: Path, prefix: str) -> None:
        """Raises ValueError where a checkpoint has a part that this run lacks, or the other way round."""
        graph = tf.train.load_checkpoint(prefix).get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
        nodes = TrackableObjectGraph.FromString(graph).nodes
        parts = {
            child.local_name: {part.local_name for part in nodes[child.node_id].children} for child in nodes[0].children
        }
        if ("fine" in parts) != ("fine" in self._state):
            has, given = ("a", "is 0") if "fine" in parts else ("no", "is not 0")
            raise ValueError(f"it has {has} fine network, and --N_importance {given}")
        scaled = isinstance(self._state["optimizer"], keras.optimizers.LossScaleOptimizer)
        if ("inner_optimizer" in parts.get("optimizer", ())) != scaled:
            has, given = ("no", "") if scaled else ("a", "not ")
            raise ValueError(f"it has {has} loss scale, and --mixed_precision is {given}float16")


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing is, or without sums, if none is missing."""
    if not path.is_dir():
        files = [path.with_name(path.name + ending) for ending in OLD_ENDINGS]
        return next((f"{file.name} is missing" for file in files if not file.is_file()), None)
    missing = [name for name in (*PIECES, SUMS) if not (path / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    try:
        expected = (path / SUMS).read_bytes().splitlines()
        wrong = [piece for piece, line in zip(PIECES, _sums(path), strict=True) if line.encode() not in expected]
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return f"{wrong[0]} differs from its SHA-256 in {SUMS}" if wrong else None


def _sums(folder: Path) -> list[str]:
    """The SHA-256 of each piece, with its name."""
    return [f"{hashlib.sha256((folder / piece).read_bytes()).hexdigest()}  {piece}" for piece in PIECES]


def _reason(error: Exception) -> str:
    """Why TensorFlow could not write, which it says behind all that it tried."""
    reasons = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS))
    return next((reason for reason in reasons if reason in str(error)), _first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]
