"""What loaders do to photos: lay them on white, resize them, make smaller copies."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from nerf_tf.storage import image_reader
from nerf_tf.storage.atomic import complete_folder
from nerf_tf.storage.image_folders import list_images


def composite_white(images: np.ndarray) -> np.ndarray:
    """Lays [..., 4] images, alpha not multiplied in, on white: [..., 3]. Those of 3 channels have no alpha and stay."""
    if images.shape[-1] == 3:
        return images
    alpha = images[..., 3:]
    return images[..., :3] * alpha + (1.0 - alpha)


def area_resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mean over each new pixel's area, float32 [..., H, W, C] -> [..., height, width, C]; sizes need not divide.

    Bit for bit what `tf.image.resize_area` of TF1 gave the original's `half_res`.
    """
    *batch, old_height, old_width, channels = images.shape
    # This op has no GPU kernel, and photos should not pass through GPU memory anyway.
    with tf.device("CPU:0"):
        resized = tf.image.resize(images.reshape(-1, old_height, old_width, channels), [height, width], method="area")
    return resized.numpy().reshape(*batch, height, width, channels)


def minify(datadir: str | os.PathLike[str], factor: int) -> Path:
    """Makes smaller PNG copies of `datadir`/images, unless they are there; the original calls mogrify for this.

    Lanczos is the filter that comes nearest to `mogrify -resize`: 51 dB, where an area mean reaches 35 to 38 dB. The
    new folder appears under its name only when it is complete, so an interrupted run leaves nothing that looks done.

    Args:
        datadir: the scene's folder.
        factor: divides both sides, rounded to the nearest pixel; the folder is images_{factor}.

    Returns:
        The folder of the smaller images.

    Raises:
        FileNotFoundError: there is nothing to shrink.
        OSError: the folder cannot be written.
        ValueError: the factor is not positive, an image cannot be read, or two images differ in their ending only.
    """
    if factor <= 0:
        raise ValueError(f"factor {factor}: images can be shrunk by a positive number only")
    source = Path(datadir) / "images"
    target = Path(datadir) / f"images_{factor}"
    if target.is_dir():
        return target
    if not source.is_dir():
        raise FileNotFoundError(f"{target}: no such folder, and no images/ beside it to make it from")
    paths = list_images(source)
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"{source}: two images differ only in their ending, so their PNG copies would share a name")

    def shrink(path: Path, folder: Path) -> None:
        image = image_reader.decode(path)
        size = tuple(max(1, int(side / factor + 0.5)) for side in image.size)
        image.resize(size, Image.Resampling.LANCZOS).save(folder / f"{path.stem}.png")

    try:
        with complete_folder(target) as unfinished:
            image_reader.run_parallel(
                lambda index: shrink(paths[index], unfinished), len(paths), f"Making {target.name}"
            )
    except OSError:
        if not target.is_dir():  # by another process, which was faster
            raise
    return target
