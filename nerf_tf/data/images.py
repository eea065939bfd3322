"""Operations of the loaders on photos: white background, resizing, smaller copies."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from nerf_tf.storage import image_reader
from nerf_tf.storage.atomic import complete_folder
from nerf_tf.storage.image_folders import list_images


def composite_white(images: np.ndarray) -> np.ndarray:
    """Composites images [..., 4] on white: [..., 3]. Alpha is straight, that is, not premultiplied.

    Images [..., 3] are returned as they are.
    """
    if images.shape[-1] == 3:
        return images
    alpha = images[..., 3:]
    return images[..., :3] * alpha + (1.0 - alpha)


def area_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image [H, W, C] to float32 [height, width, C] by area means.

    Bit for bit what `tf.image.resize_area` of TF1 gave the original's `half_res`.
    """
    # This op has no GPU kernel, and photos should not pass through GPU memory anyway.
    with tf.device("CPU:0"):
        return tf.image.resize(image, [height, width], method="area").numpy()


def shrink(image: np.ndarray, height: int, width: int, white_bkgd: bool, keep_alpha: bool = False) -> np.ndarray:
    """Shrinks an image [H, W, 3 or 4] to [height, width, 3], on white by its alpha or without alpha.

    As in the original's `half_res`, alpha is resized with the colours before it is used. With white_bkgd and keep_alpha
    an image that has alpha keeps it: [height, width, 4].
    """
    if image.shape[:2] != (height, width):
        image = area_resize(image, height, width)
    if white_bkgd and keep_alpha and image.shape[-1] == 4:
        return np.concatenate([composite_white(image), image[..., 3:]], axis=-1)
    return composite_white(image) if white_bkgd else image[..., :3]


def read_photos(
    paths: Sequence[Path], fit: Callable[[np.ndarray], np.ndarray], white_bkgd: bool, one_size: bool = True
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads images, and changes each by `fit` as it is read.

    `one_size` and errors are those of `image_reader.read_arrays`.

    Args:
        fit: makes images of one size, [height, width, 3 or 4], as `shrink` does.
        white_bkgd: whether it puts them on white; otherwise it drops their alpha.

    Returns:
        Colours [N, height, width, 3]; and alphas [N, height, width] if `fit` keeps them, otherwise None.
    """

    def split(image: np.ndarray) -> list[np.ndarray]:
        image = fit(image)
        return [image[..., :3], image[..., 3]] if image.shape[-1] == 4 else [image]

    remedy = "" if white_bkgd else "add --white_bkgd to put them on white"
    colours, *alphas = image_reader.read_arrays(paths, split, transparency_remedy=remedy, one_size=one_size)
    return colours, alphas[0] if alphas else None


def minify(datadir: str | os.PathLike[str], factor: int) -> Path:
    """Makes smaller PNG copies of `datadir`/images, unless they exist; the original runs mogrify.

    Lanczos is the filter closest to `mogrify -resize`: copies match mogrify's with a PSNR of 51 dB; with area means it
    is 35 to 38 dB. The new folder appears under its name only when it is complete.

    Args:
        factor: divides both sides, which are rounded to the nearest pixel; the folder is images_{factor}.

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

    def copy(path: Path, folder: Path) -> None:
        image = image_reader.decode(path)
        size = tuple(max(1, int(side / factor + 0.5)) for side in image.size)
        image.resize(size, Image.Resampling.LANCZOS).save(folder / f"{path.stem}.png")

    try:
        with complete_folder(target) as unfinished:
            image_reader.run_parallel(lambda index: copy(paths[index], unfinished), len(paths), f"Making {target.name}")
    except OSError:
        if not target.is_dir():  # else another process has made it meanwhile
            raise
    return target
