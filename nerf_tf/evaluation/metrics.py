"""Image metrics that need no weights: PSNR and SSIM."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from nerf_tf import tensor_float

SSIM_WINDOW = 11  # pixels; images with a smaller side have no SSIM


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """PSNR in dB of two images [H, W, 3], 8-bit or in [0, 1]; infinite for equal images."""
    error = np.mean(np.square(to_unit_range(image) - to_unit_range(reference)))
    return float("inf") if error == 0 else float(-10.0 * np.log10(error))


@tensor_float.turned_off()  # so that scores are comparable, whatever precision views were rendered in
def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two images [H, W, 3], 8-bit or in [0, 1].

    The mean over channels and over all positions of a Gaussian window of 11 pixels (sigma 1.5).

    Raises:
        ValueError: a side has fewer than 11 pixels.
    """
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} pixels a side, found {list(image.shape[:2])}")
    pair = (tf.constant(to_unit_range(x), tf.float32) for x in (image, reference))
    return float(tf.image.ssim(*pair, max_val=1.0, filter_size=SSIM_WINDOW))


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """Converts an image to float64, and 8-bit values to [0, 1]."""
    return image / np.float64(255.0) if image.dtype == np.uint8 else np.float64(image)


def round_to_8bit(photo: np.ndarray) -> np.ndarray:
    """Rounds a photo in [0, 1] to 8 bits."""
    return np.rint(255.0 * np.clip(photo, 0.0, 1.0)).astype(np.uint8)
