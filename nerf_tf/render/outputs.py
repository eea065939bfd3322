"""Rendered views as files: PNG, float arrays, video, TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
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


@contextlib.contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, which becomes `path` if the block ends well and vanishes if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
    with complete_file(path) as temporary:
        imageio.imwrite(temporary, image)


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_arrays(path: Path, image: Image) -> None:
    """Writes a view's rgb [H, W, 3] and its disp, acc, depth, depth_ray, depth_z [H, W] as float32 arrays in an npz."""
    arrays = {name: getattr(image, name) for name in ("rgb", "disp", "acc", "depth", "depth_ray", "depth_z")}
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})


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
                temporary, format="FFMPEG", fps=fps, quality=VIDEO_QUALITY, macro_block_size=1
            ) as writer,
        ):
            for frame in frames:
                odd_sides = [(0, side % 2) for side in frame.shape[:2]]
                writer.append_data(np.pad(frame, odd_sides + [(0, 0)] * (frame.ndim - 2), mode="edge"))
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        folder = path.with_suffix("")
        try:
            for i, frame in enumerate(frames):
                write_png(folder / f"{i:03d}.png", frame)
            logger.warning("%s: no video (%s); its frames are in %s", path, reason, folder)
        except OSError as frame_error:
            logger.warning("%s: no video (%s), nor its frames (%s)", path, reason, frame_error)


class Summaries:
    """TensorBoard's view of a run, under the original's tags."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = tf.summary.create_file_writer(str(folder))

    def scalars(self, step: int, **values: tf.Tensor | float | None) -> None:
        """Writes scalars, leaving out those that are None."""
        with self._writer.as_default(step=step):
            for tag, value in values.items():
                if value is not None:
                    tf.summary.scalar(tag, value)
        self._writer.flush()

    def histogram(self, step: int, tag: str, values: tf.Tensor) -> None:
        """Writes a histogram of values, or of evenly spaced ones where they are very many."""
        flat = values.numpy().ravel()
        # TensorBoard takes 240 bytes a value to sort them; on a GPU that would be more than a training step takes.
        with tf.device("CPU:0"), self._writer.as_default(step=step):
            tf.summary.histogram(tag, flat[:: -(-flat.size // MAX_HISTOGRAM_VALUES)])

    def view(self, step: int, image: Image, photo: np.ndarray) -> None:
        """Writes a rendered view beside its photo [H, W, 3]."""
        tiles = {"rgb": to_8bit(image.rgb), "disp": normalised_disparity([image.disp])[0], "acc": to_8bit(image.acc)}
        tiles["rgb_holdout"] = to_8bit(photo)
        if image.rgb0 is not None:
            tiles["rgb0"] = to_8bit(image.rgb0)
            tiles["disp0"] = normalised_disparity([image.disp0])[0]
            tiles["z_std"] = normalised_disparity([image.z_std])[0]
        with self._writer.as_default(step=step):
            for tag, tile in tiles.items():
                tf.summary.image(tag, tile[None, ..., None] if tile.ndim == 2 else tile[None])
        self._writer.flush()
