"""How close a render is to a photo."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def mse(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Mean squared error over all elements."""
    return tf.reduce_mean(tf.square(a - b))


def mse_to_psnr(error: tf.Tensor) -> tf.Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1] with that mean squared error."""
    return -10.0 * tf.math.log(error) / tf.math.log(tf.constant(10.0, error.dtype))


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """PSNR in dB of two images [H, W, 3]; 8-bit ones count as values of 0 to 1, equal ones as infinite."""
    image, reference = (x / np.float64(255.0) if x.dtype == np.uint8 else np.float64(x) for x in (image, reference))
    error = np.mean(np.square(image - reference))
    return float("inf") if error == 0 else float(-10.0 * np.log10(error))


def psnr_8bit(image: np.ndarray, photo: np.ndarray) -> float:
    """PSNR in dB of an 8-bit image [H, W, 3], as saved, and a photo in [0, 1], rounded to 8 bits as a file would be."""
    return psnr(image, np.rint(255.0 * np.clip(photo, 0.0, 1.0)).astype(np.uint8))
