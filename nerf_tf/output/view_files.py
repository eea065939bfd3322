"""Rendered views as files: PNG images, float arrays and videos."""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from nerf_tf.output import pictures
from nerf_tf.render.renderer import Image
from nerf_tf.storage.atomic import complete_file, make_folder, path_in_write_errors

logger = logging.getLogger(__name__)

VIDEO_QUALITY = 8  # of imageio-ffmpeg, from 0 to 10; as the original


def to_8bit(values: np.ndarray) -> np.ndarray:
    """Maps [0, 1] to 0 .. 255 by truncation, as the original does."""
    return (255 * np.clip(values, 0, 1)).astype(np.uint8)


def grey_disparity(disp: np.ndarray, largest: float) -> np.ndarray:
    """An 8-bit grey image [H, W] of disparity: `largest` is white, values that are not finite are black."""
    return to_8bit(np.where(np.isfinite(disp), disp, 0.0) / (largest if largest > 0 else 1.0))


def largest_disparity(disp: np.ndarray) -> float:
    """The largest finite value of a disparity map, and at least 0."""
    return disp[np.isfinite(disp)].max(initial=0.0)


def normalised_disparity(disps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """8-bit grey images [H, W] of disparity maps [H, W]; the largest finite value of all is white."""
    largest = max(map(largest_disparity, disps), default=0.0)
    return [grey_disparity(disp, largest) for disp in disps]


def colour_disparity(image: Image) -> np.ndarray:
    """Draws a view's disparity in 8-bit colours [H, W, 3]: near is light, empty is black."""
    far, near = pictures.display_range([pictures.opaque_values(image.disp, image.acc)])
    return pictures.false_colours(image.disp, image.acc, dark=far, light=near)


class LazyFrames(Sequence[np.ndarray]):
    """A sequence of video frames, each drawn when it is accessed."""

    def __init__(self, count: Callable[[], int], draw: Callable[[int], np.ndarray]):
        self._count, self._draw = count, draw

    def __len__(self) -> int:
        return self._count()

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._draw(i)


class VideoBuffer:
    """Collects rendered views for videos in an unnamed temporary file, at 12 bytes a pixel.

    Videos of disparity and depth have one scale for all frames, so they can be drawn only after the last view.
    """

    PIXEL = np.dtype([("rgb", np.uint8, 3), ("acc", np.uint8), ("disp", np.float32), ("depth", np.float32)])
    SAMPLES = 2**12  # evenly spaced pixels of a view that determine the colour range

    def __init__(self, folder: Path):
        """Makes the temporary file in `folder`; it is deleted with this object.

        Raises:
            OSError: the folder cannot be written; the message names it.
        """
        with path_in_write_errors(folder):
            make_folder(folder)
            # Unbuffered, as closing a buffered file writes again, which fails again on a full disk.
            self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115
        self._folder = folder
        weakref.finalize(self, self._file.close)
        self._views: list[tuple[int, tuple[int, ...]]] = []
        self._largest_disparity, self._disparities, self._depths = 0.0, [], []

    def append(self, image: Image) -> np.ndarray:
        """Adds a view; returns its 8-bit rgb [H, W, 3].

        Raises:
            OSError: the folder cannot be written; the message names it.
        """
        pixels = np.empty(image.acc.shape, self.PIXEL)
        pixels["rgb"], pixels["acc"] = to_8bit(image.rgb), to_8bit(image.acc)
        pixels["disp"], pixels["depth"] = image.disp, pictures.expected_depth(image.depth, image.acc)
        with path_in_write_errors(self._folder):
            offset, unwritten = self._file.seek(0, os.SEEK_END), memoryview(pixels.tobytes())
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
        self._views.append((offset, pixels.shape))
        self._largest_disparity = max(self._largest_disparity, largest_disparity(image.disp))
        for values, samples in ((pixels["disp"], self._disparities), (pixels["depth"], self._depths)):
            opaque = pictures.opaque_values(values, image.acc)
            samples.append(opaque[:: -(-opaque.size // self.SAMPLES) or 1].copy())
        return pixels["rgb"]

    def _pixels(self, i: int) -> np.ndarray:
        offset, shape = self._views[i]
        self._file.seek(offset)
        return np.frombuffer(self._file.read(math.prod(shape) * self.PIXEL.itemsize), self.PIXEL).reshape(shape)

    def _frames(self, draw: Callable[[np.ndarray], np.ndarray]) -> LazyFrames:
        return LazyFrames(lambda: len(self._views), lambda i: draw(self._pixels(i)))

    @property
    def rgb(self) -> LazyFrames:
        """8-bit images [H, W, 3]."""
        return self._frames(lambda pixels: pixels["rgb"])

    @property
    def grey_disp(self) -> LazyFrames:
        """8-bit grey disparity [H, W] on one scale, as in the original's videos."""
        return self._frames(lambda pixels: grey_disparity(pixels["disp"], self._largest_disparity))

    @property
    def disp(self) -> LazyFrames:
        """Disparity in 8-bit colours [H, W, 3]: near is light, empty is black."""
        far, near = pictures.display_range(self._disparities)
        return self._frames(
            lambda pixels: pictures.false_colours(pixels["disp"], pixels["acc"] / 255.0, dark=far, light=near)
        )

    @property
    def depth(self) -> LazyFrames:
        """Depth in 8-bit colours [H, W, 3]: near is light, empty is black."""
        near, far = pictures.display_range(self._depths)
        return self._frames(
            lambda pixels: pictures.false_colours(pixels["depth"], pixels["acc"] / 255.0, dark=far, light=near)
        )

    @property
    def acc(self) -> LazyFrames:
        """Opacity in 8-bit colours [H, W, 3]: opaque is light, empty is black."""
        return self._frames(lambda pixels: pictures.apply_colour_map(pixels["acc"] / 255.0))


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes an 8-bit image [H, W] or [H, W, 3]."""
    data = imageio.imwrite("<bytes>", image, format="png")
    with complete_file(path) as temporary:
        temporary.write_bytes(data)


def write_arrays(path: Path, image: Image) -> None:
    """Writes a view's rgb [H, W, 3] and its maps [H, W] to an npz file, as float32."""
    arrays = {name: getattr(image, name) for name in ("rgb", "disp", "acc", "depth", "depth_ray", "depth_z")}
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})


def write_views(folder: Path, images: Iterable[Image], save_arrays: bool) -> VideoBuffer:
    """Writes each view as `NNN.png` as soon as it is rendered, and with `save_arrays` also as `NNN.npz`.

    After the last view, removes further views and arrays that an earlier rendering left in the folder. Returns the
    views for videos.

    Raises:
        OSError: a file cannot be written.
    """
    video, written = VideoBuffer(folder), set()
    for i, image in enumerate(images):
        path = folder / f"{i:03d}.png"
        write_png(path, video.append(image))
        written.add(path)
        if save_arrays:
            write_arrays(path.with_suffix(".npz"), image)
            written.add(path.with_suffix(".npz"))
    for path in set(folder.iterdir()) - written:
        if re.fullmatch(r"\d{3,}\.(png|npz)", path.name):
            path.unlink()
    return video


def write_side_by_side(path: Path, photo: np.ndarray, image: Image, caption: str) -> None:
    """Writes a PNG with a photo [H, W, 3] and the view, its disparity and its opacity beside it."""
    tiles = {
        "photo": to_8bit(photo),
        "render": to_8bit(image.rgb),
        "disparity": colour_disparity(image),
        "opacity": pictures.apply_colour_map(image.acc),
    }
    write_png(path, pictures.side_by_side(tiles, caption))


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Writes 8-bit frames [H, W] or [H, W, 3] as an mp4 file.

    The codec needs even sides, so the last row or column of an odd one is repeated. If the video cannot be written,
    the frames are written as PNG to a folder of its name, with a warning, so that training continues.
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
    # LookupError: imageio_ffmpeg searches ffmpeg's output for the encoder; another program prints none.
    except (OSError, RuntimeError, ValueError, ImportError, LookupError) as error:
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
    """Raises OSError unless a video has that many frames, as imageio ignores ffmpeg's errors."""
    import imageio_ffmpeg

    try:
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        written = 0
    if written != frames:
        raise OSError(f"ffmpeg wrote {written} of {frames} frames; is the disk full?")
