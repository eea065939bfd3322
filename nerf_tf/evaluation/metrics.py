"""How close a render is to a photo: PSNR, SSIM. (LPIPS, which needs weights, is in `lpips`.)"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

SSIM_WINDOW = 11  # pixels; images with a smaller side have no SSIM


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """PSNR in dB of two images [H, W, 3]; 8-bit ones count as values of 0 to 1, equal ones as infinite."""
    error = np.mean(np.square(unit_range(image) - unit_range(reference)))
    return float("inf") if error == 0 else float(-10.0 * np.log10(error))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two images [H, W, 3]; 8-bit ones count as values of 0 to 1.

    With a Gaussian window of 11 pixels (sigma 1.5), the mean over channels and over all places where it fits.

    Raises:
        ValueError: a side is less than 11 pixels.
    """
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} pixels a side, found {list(image.shape[:2])}")
    pair = (tf.constant(unit_range(x), tf.float32) for x in (image, reference))
    return float(tf.image.ssim(*pair, max_val=1.0, filter_size=SSIM_WINDOW))


def unit_range(image: np.ndarray) -> np.ndarray:
    """An image as float64; bytes become values of 0 to 1."""
    return image / np.float64(255.0) if image.dtype == np.uint8 else np.float64(image)


def photo_8bit(photo: np.ndarray) -> np.ndarray:
    """A photo in [0, 1] as the nearest 8-bit image, as a file would hold it."""
    return np.rint(255.0 * np.clip(photo, 0.0, 1.0)).astype(np.uint8)
