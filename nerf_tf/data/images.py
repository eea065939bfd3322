"""Operations of the loaders on photos: white background and resizing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from nerf_tf.storage import image_reader


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
