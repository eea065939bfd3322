"""Rendered views as files: PNG, float arrays, video, TensorBoard."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import imageio.v2 as imageio
import numpy as np
import tensorflow as tf

from nerf_tf.render.renderer import Image

logger = logging.getLogger(__name__)

# imageio-ffmpeg's scale of 0 to 10; the original's choice.
VIDEO_QUALITY = 8
MAX_HISTOGRAM_VALUES = 2**16
# What names of temporary files begin with.
UNFINISHED = ".unfinished-"
UNFINISHED_SECONDS = 3600


@contextlib.contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, which becomes `path` if the block ends well and vanishes if not.

    It becomes `path` only once it is on the disk, so a machine that dies leaves the old file or the new one, whole.

    Raises:
        OSError: naming `path`, where it cannot be written.
    """
    try:
        make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=f"{UNFINISHED}{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            sync_file(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, unless they are there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Waits until a file's contents are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system knows how to."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # said by file systems that know no such thing
            raise
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Removes temporary files that a killed process left below a folder, once they are an hour old."""
    for path in folder.rglob(f"{UNFINISHED}*"):
        # A younger one may be somebody's who renders into the folder now.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > UNFINISHED_SECONDS:
                path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def to_8bit(values: np.ndarray) -> np.ndarray:
    """Maps [0, 1] to 0 .. 255 by cutting off decimals, as the original does."""
    return (255 * np.clip(values, 0, 1)).astype(np.uint8)


def normalised_disparity(disps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """8-bit disparity maps, scaled together so that the largest finite value is white.

    Args:
        disps: maps [H, W]; values that are not finite become black.
    """
    largest = max((disp[np.isfinite(disp)].max(initial=0.0) for disp in disps), default=0.0)
    divisor = largest if largest > 0 else 1.0
    return [to_8bit(np.where(np.isfinite(disp), disp, 0.0) / divisor) for disp in disps]


class Frames(NamedTuple):
    """Views that were written.

    Attributes:
        rgb: 8-bit images [H, W, 3].
        disp: float32 disparity maps [H, W].
    """

    rgb: list[np.ndarray]
    disp: list[np.ndarray]


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes an 8-bit image [H, W] or [H, W, 3]."""
    data = imageio.imwrite("<bytes>", image, format="png")
    with complete_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_arrays(path: Path, image: Image) -> None:
    """Writes a view's rgb [H, W, 3], disp, acc and depth [H, W] as float32 arrays in one npz file."""
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, rgb=image.rgb, disp=image.disp, acc=image.acc, depth=image.depth)


def write_views(folder: Path, images: Iterable[Image], save_arrays: bool) -> Frames:
    """Writes each view as `NNN.png` as soon as it is there, and with `save_arrays` as `NNN.npz` too."""
    frames = Frames([], [])
    for i, image in enumerate(images):
        rgb = to_8bit(image.rgb)
        write_png(folder / f"{i:03d}.png", rgb)
        if save_arrays:
            write_arrays(folder / f"{i:03d}.npz", image)
        frames.rgb.append(rgb)
        frames.disp.append(image.disp)
    return frames


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Writes 8-bit frames [H, W] or [H, W, 3] as an mp4 file.

    Frames keep their size, but for a last row or column repeated where a side is odd: the codec takes even sides only.
    A video that cannot be written does not end a training run: the frames are kept as PNG in a folder beside it, and a
    warning says so.
    """
    try:
        with (
            complete_file(path) as temporary,
            imageio.get_writer(
                temporary, format="FFMPEG", fps=fps, quality=VIDEO_QUALITY, macro_block_size=1, ffmpeg_log_level="quiet"
            ) as writer,
        ):
            for frame in frames:
                odd_sides = [(0, side % 2) for side in frame.shape[:2]]
                writer.append_data(np.pad(frame, odd_sides + [(0, 0)] * (frame.ndim - 2), mode="edge"))
            writer.close()
            _check_video(temporary, len(frames))
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[-1]
        folder = path.with_suffix("")
        try:
            for i, frame in enumerate(frames):
                write_png(folder / f"{i:03d}.png", frame)
            logger.warning("%s: no video (%s); its frames are in %s", path, reason, folder)
        except OSError as frame_error:
            logger.warning("%s: no video (%s), nor its frames (%s)", path, reason, frame_error)


def _check_video(path: Path, frames: int) -> None:
    """Raises OSError unless a video has that many frames: nobody else asks ffmpeg whether it could write them."""
    import imageio_ffmpeg

    try:
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        written = 0
    if written != frames:
        raise OSError(f"ffmpeg wrote {written} of {frames} frames; is the disk full?")


class Summaries:
    """TensorBoard's view of a run, under the original's tags.

    All of its methods raise OSError, naming the folder, where TensorBoard's files cannot be written.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        """Makes the folder.

        Args:
            folder: where the files go.
            first_step: the step with which a run goes on; what a killed run wrote from there on no longer counts.
        """
        make_folder(folder)
        self._folder, self._first_step = folder, first_step
        self._started = False
        self._writer: tf.summary.SummaryWriter | None = None

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Writes what the block says about a step, and waits until it is in the file."""
        try:
            if not self._started:
                self._start()
            if self._writer is None:
                self._writer = tf.summary.create_file_writer(str(self._folder))
            with self._writer.as_default(step=step):
                yield
            self._writer.flush()
        except tf.errors.OpError as error:
            self._writer = None  # what comes after half a record is not read, so the next goes to another file
            reason = str(error).strip().partition("\n")[0]
            raise OSError(f"{self._folder}: TensorBoard's file cannot be written ({reason})") from error

    def _start(self) -> None:
        """Writes the event that has TensorBoard forget steps that a killed run had done and this one does again.

        TensorBoard takes the first one that it finds for the start of a run, so that comes with one, too.
        """
        now = time.time()
        started = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        events = [
            tf.compat.v1.Event(wall_time=now, file_version="brain.Event:2"),
            tf.compat.v1.Event(wall_time=now, step=self._first_step, session_log=started),
        ]
        # TensorBoard reads files in the order of their names: this one after the killed run's, and before our own.
        with (
            complete_file(self._folder / f"events.out.tfevents.{int(now):010d}.0.start") as temporary,
            tf.io.TFRecordWriter(str(temporary)) as writer,
        ):
            for event in events:
                writer.write(event.SerializeToString())
        self._started = True

    def scalars(self, step: int, **values: tf.Tensor | float | None) -> None:
        """Writes scalars, leaving out those that are None."""
        with self._writing(step):
            for tag, value in values.items():
                if value is not None:
                    tf.summary.scalar(tag, value)

    def histogram(self, step: int, tag: str, values: tf.Tensor) -> None:
        """Writes a histogram of values, or of evenly spaced ones where they are very many."""
        flat = values.numpy().ravel()
        # TensorBoard takes 240 bytes a value to sort them; on a GPU that would be more than a training step takes.
        with tf.device("CPU:0"), self._writing(step):
            tf.summary.histogram(tag, flat[:: -(-flat.size // MAX_HISTOGRAM_VALUES)])

    def view(self, step: int, image: Image, photo: np.ndarray) -> None:
        """Writes a rendered view beside its photo [H, W, 3]."""
        tiles = {"rgb": to_8bit(image.rgb), "disp": normalised_disparity([image.disp])[0], "acc": to_8bit(image.acc)}
        tiles["rgb_holdout"] = to_8bit(photo)
        if image.rgb0 is not None:
            tiles["rgb0"] = to_8bit(image.rgb0)
            tiles["disp0"] = normalised_disparity([image.disp0])[0]
            tiles["z_std"] = normalised_disparity([image.z_std])[0]
        with self._writing(step):
            for tag, tile in tiles.items():
                tf.summary.image(tag, tile[None, ..., None] if tile.ndim == 2 else tile[None])
