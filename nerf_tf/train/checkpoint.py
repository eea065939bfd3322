"""Everything that training changes, on disk, so that a run goes on exactly where it stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from nerf_tf.train.trainer import Trainer

# The one before the newest is a way back when a machine dies and takes the newest with it.
KEPT = 2


class CheckpointStore:
    """The checkpoints of one run: networks, optimizer, step, seed and counts of trouble."""

    def __init__(self, trainer: Trainer, folder: Path):
        fine = {"fine": trainer.fine.mlp} if trainer.fine else {}
        self._checkpoint = tf.train.Checkpoint(
            coarse=trainer.coarse.mlp, optimizer=trainer.optimizer, step=trainer.step, seed=trainer.seed, **fine
        )
        self._counts = trainer.counts
        self._folder = folder
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(folder), max_to_keep=KEPT)

    @property
    def newest(self) -> str | None:
        """Path prefix of the newest checkpoint."""
        return self._manager.latest_checkpoint

    def save(self) -> None:
        """Writes a checkpoint, and removes all but the newest few.

        Raises:
            OSError: it cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._checkpoint.counts = self._counts
        try:
            self._manager.save()
        except tf.errors.OpError as error:
            raise OSError(f"{self._folder}: no checkpoint ({_first_line(error)})") from error

    def restore(self) -> None:
        """Restores the newest checkpoint.

        Raises:
            ValueError: it does not fit the networks, or cannot be read.
        """
        with self._readable():
            try:
                self._checkpoint.restore(self.newest).assert_existing_objects_matched()
            except (AssertionError, ValueError) as error:
                raise ValueError(
                    f"{self.newest}: does not fit the networks ({_first_line(error)}); use the run's own args.txt "
                    "as --config, another expname, or --no_reload to start over"
                ) from error
            # Only now, because those of version 0.2.0 have none; where there are some, this restores them.
            self._checkpoint.counts = self._counts

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        # What TensorFlow makes of a missing, cut off or overwritten piece.
        except (tf.errors.OpError, RuntimeError, IndexError) as error:
            raise ValueError(f"{self.newest}: cannot be read, it is damaged ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]
