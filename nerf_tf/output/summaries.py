"""TensorBoard summaries of a training run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from nerf_tf.output.view_files import normalised_disparity, to_8bit
from nerf_tf.render.renderer import Image
from nerf_tf.storage.atomic import complete_file, make_folder

MAX_HISTOGRAM_VALUES = 2**16  # TensorBoard then needs 16 MB, see `write_histogram`


class Summaries:
    """Writes summaries under the original's tags.

    All methods raise OSError, which names the folder, if TensorBoard's files cannot be written.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        """Makes the folder; TensorBoard drops what a killed run wrote from the run's next step, `first_step`, on."""
        make_folder(folder)
        self._folder, self._first_step = folder, first_step
        self._started = False
        self._writer: tf.summary.SummaryWriter | None = None

    @contextlib.contextmanager
    def _step_writer(self, step: int) -> Iterator[None]:
        """Writes the summaries of a block under `step` and flushes them to the file."""
        try:
            if not self._started:
                self._write_start()
            if self._writer is None:
                self._writer = tf.summary.create_file_writer(str(self._folder))
            with self._writer.as_default(step=step):
                yield
            self._writer.flush()
        except tf.errors.OpError as error:
            self._writer = None  # nothing after a truncated record is read, so a new file is needed
            for path in self._folder.glob("events.out.tfevents.*"):
                if not path.stat().st_size:  # each attempt on a full disk leaves an empty one
                    path.unlink()
            reason = str(error).strip().partition("\n")[0].rpartition("}} ")[2]
            raise OSError(f"{self._folder}: TensorBoard's file cannot be written ({reason})") from error

    def _write_start(self) -> None:
        """Writes the event that makes TensorBoard drop the steps that a killed run did and this run repeats.

        TensorBoard takes the first such event for the start of the run, so a new run writes one, too.
        """
        # TensorBoard reads files by name: this one comes after the killed run's and before this run's. Names count in
        # whole seconds, so a run that continues within the second of the other's death waits for the next.
        while list(self._folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.1)
        now = time.time()
        started = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        events = [
            tf.compat.v1.Event(wall_time=now, file_version="brain.Event:2"),
            tf.compat.v1.Event(wall_time=now, step=self._first_step, session_log=started),
        ]
        with (
            complete_file(self._folder / f"events.out.tfevents.{int(now):010d}.0.start") as temporary,
            tf.io.TFRecordWriter(str(temporary)) as writer,
        ):
            for event in events:
                writer.write(event.SerializeToString())
        self._started = True

    def write_scalars(self, step: int, **values: tf.Tensor | float | None) -> None:
        """Writes the scalars that are not None."""
        with self._step_writer(step):
            for tag, value in values.items():
                if value is not None:
                    tf.summary.scalar(tag, value)

    def write_histogram(self, step: int, tag: str, values: tf.Tensor) -> None:
        """Writes a histogram of at most `MAX_HISTOGRAM_VALUES` of the values, evenly spaced."""
        flat = values.numpy().ravel()
        # TensorBoard needs 240 bytes a value to sort them, on a GPU more than a training step needs.
        with tf.device("CPU:0"), self._step_writer(step):
            tf.summary.histogram(tag, flat[:: -(-flat.size // MAX_HISTOGRAM_VALUES)])

    def write_view(self, step: int, image: Image, photo: np.ndarray) -> None:
        """Writes a rendered view beside its photo [H, W, 3]."""
        tiles = {"rgb": to_8bit(image.rgb), "disp": normalised_disparity([image.disp])[0], "acc": to_8bit(image.acc)}
        tiles["rgb_holdout"] = to_8bit(photo)
        if image.rgb0 is not None:
            tiles["rgb0"] = to_8bit(image.rgb0)
            tiles["disp0"] = normalised_disparity([image.disp0])[0]
            tiles["z_std"] = normalised_disparity([image.z_std])[0]
        with self._step_writer(step):
            for tag, tile in tiles.items():
                tf.summary.image(tag, tile[None, ..., None] if tile.ndim == 2 else tile[None])
