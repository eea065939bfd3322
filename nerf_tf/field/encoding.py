"""Positional encoding (paper, section 5.1, equation 4)."""

from __future__ import annotations

import tensorflow as tf


def positional_encoding(x: tf.Tensor, num_freqs: int) -> tf.Tensor:
    """Maps each coordinate to itself and to sines and cosines of rising frequency.

    Equation 4 of the paper has sin(2^k pi x). The original code, and so every set of weights in circulation, has
    sin(2^k x): a factor pi would only shift all octaves by log2(pi) = 1.65, and break those weights.

    Args:
        x: [..., C].
        num_freqs: number L of octaves; 0 returns x as it is.

    Returns:
        [..., C * (1 + 2 * num_freqs)] in the order x, sin(x), cos(x), sin(2x), cos(2x), sin(4x), ...
    """
    parts = [x]
    for octave in range(num_freqs):
        angle = x * 2.0**octave
        parts += [tf.sin(angle), tf.cos(angle)]
    return tf.concat(parts, axis=-1)


def encoded_width(channels: int, num_freqs: int) -> int:
    """Width of `positional_encoding` of `channels` coordinates."""
    return channels * (1 + 2 * num_freqs)
