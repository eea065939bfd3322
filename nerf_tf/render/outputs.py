"""Rendered views as files: PNG, float arrays, video, TensorBoard."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import tensorflow as tf

from nerf_tf.render import pictures
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


def grey_disparity(disp: np.ndarray, largest: float) -> np.ndarray:
    """An 8-bit disparity map [H, W] on which `largest` is white; values that are not finite become black."""
    return to_8bit(np.where(np.isfinite(disp), disp, 0.0) / (largest if largest > 0 else 1.0))


def largest_disparity(disp: np.ndarray) -> float:
    """The largest finite value of a map, 0 where there is none above it."""
    return disp[np.isfinite(disp)].max(initial=0.0)


def normalised_disparity(disps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """8-bit disparity maps, scaled together so that the largest finite value is white.

    Args:
        disps: maps [H, W]; values that are not finite become black.
    """
    largest = max(map(largest_disparity, disps), default=0.0)
    return [grey_disparity(disp, largest) for disp in disps]


class Frames(Sequence[np.ndarray]):
    """Frames that are made when they are asked for."""

    def __init__(self, count: Callable[[], int], make: Callable[[int], np.ndarray]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count()

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._make(i)


class Film:
    """Rendered views on their way to videos, in a file without a name: 12 bytes a pixel on disk, few in memory.

    Disparity and depth are scaled over all views, so no frame can be drawn before the last view is there.
    """

    PIXEL = np.dtype([("rgb", np.uint8, 3), ("acc", np.uint8), ("disp", np.float32), ("depth", np.float32)])
    SAMPLES = 2**12  # depths of a view, evenly spread, that count for the range of colours

    def __init__(self, folder: Path):
        """Makes the file in `folder`, where there is room for frames; it is gone with this object."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._shapes: list[tuple[int, tuple[int, ...]]] = []
        self._largest_disparity, self._depths = 0.0, []

    def append(self, image: Image) -> np.ndarray:
        """Keeps a view, and returns its colours in 8 bits [H, W, 3]."""
        pixels = np.empty(image.acc.shape, self.PIXEL)
        pixels["rgb"], pixels["acc"] = to_8bit(image.rgb), to_8bit(image.acc)
        pixels["disp"], pixels["depth"] = image.disp, pictures.expected_depth(image.depth, image.acc)
        self._shapes.append((self._file.seek(0, os.SEEK_END), pixels.shape))
        self._file.write(pixels.tobytes())
        self._largest_disparity = max(self._largest_disparity, largest_disparity(image.disp))
        depths = pictures.solid_values(pixels["depth"], image.acc)
        self._depths.append(depths[:: -(-depths.size // self.SAMPLES) or 1].copy())
        return pixels["rgb"]

    def _pixels(self, i: int) -> np.ndarray:
        place, shape = self._shapes[i]
        self._file.seek(place)
        return np.frombuffer(self._file.read(math.prod(shape) * self.PIXEL.itemsize), self.PIXEL).reshape(shape)

    def _frames(self, draw: Callable[[np.ndarray], np.ndarray]) -> Frames:
        return Frames(lambda: len(self._shapes), lambda i: draw(self._pixels(i)))

    @property
    def rgb(self) -> Frames:
        """8-bit images [H, W, 3]."""
        return self._frames(lambda pixels: pixels["rgb"])

    @property
    def grey_disp(self) -> Frames:
        """8-bit disparity maps [H, W], scaled together as by `normalised_disparity`."""
        return self._frames(lambda pixels: grey_disparity(pixels["disp"], self._largest_disparity))

    @property
    def depth(self) -> Frames:
        """8-bit colours [H, W, 3] of depth: light is near, black is empty, see `pictures.false_colours`."""
        near, far = pictures.shown_range(self._depths)
        return self._frames(
            lambda pixels: pictures.false_colours(pixels["depth"], pixels["acc"] / 255.0, dark=far, light=near)
        )

    @property
    def acc(self) -> Frames:
        """8-bit colours [H, W, 3] of opacity: light is solid, black is empty."""
        return self._frames(lambda pixels: pictures.coloured(pixels["acc"] / 255.0))


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
    """Writes a view's rgb [H, W, 3] and its disp, acc, depth, depth_ray, depth_z [H, W] as float32 arrays in an npz."""
    arrays = {name: getattr(image, name) for name in ("rgb", "disp", "acc", "depth", "depth_ray", "depth_z")}
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})


def write_views(folder: Path, images: Iterable[Image], save_arrays: bool) -> Film:
    """Writes each view as `NNN.png` as soon as it is there, and with `save_arrays` as `NNN.npz` too."""
    film = Film(folder)
    for i, image in enumerate(images):
        write_png(folder / f"{i:03d}.png", film.append(image))
        if save_arrays:
            write_arrays(folder / f"{i:03d}.npz", image)
    return film


def write_side_by_side(path: Path, photo: np.ndarray, image: Image, caption: str) -> None:
    """Writes a photo [H, W, 3], its render, disparity and opacity in a row, as a PNG."""
    low, high = pictures.shown_range([pictures.solid_values(image.disp, image.acc)])
    tiles = {
        "photo": to_8bit(photo),
        "render": to_8bit(image.rgb),
        "disparity": pictures.false_colours(image.disp, image.acc, dark=low, light=high),
        "opacity": pictures.coloured(image.acc),
    }
    write_png(path, pictures.side_by_side(tiles, caption))


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
