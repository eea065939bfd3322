"""Positional encoding (paper, section 5.1, equation 4)."""

from __future__ import annotations

import tensorflow as tf


def positional_encoding(x: tf.Tensor, num_freqs: int) -> tf.Tensor:
    """Encodes each coordinate as itself and sines and cosines of rising frequency.

    The paper's equation 4 has sin(2^k pi x); the original code, and so every published set of weights, has sin(2^k x).

    Args:
        x: [..., C].
        num_freqs: number of octaves; 0 returns x unchanged.

    Returns:
        [..., C * (1 + 2 * num_freqs)] in the order x, sin(x), cos(x), sin(2x), cos(2x), sin(4x), ...
    """
    parts = [x]
    for octave in range(num_freqs):
        angle = x * 2.0**octave
        parts += [tf.sin(angle), tf.cos(angle)]
    return tf.concat(parts, axis=-1)


def encoded_width(channels: int, num_freqs: int) -> int:
    """Returns the number of values that `positional_encoding` makes of `channels` coordinates."""
    return channels * (1 + 2 * num_freqs)
