"""Volume rendering: samples along rays to pixels (paper, section 4, equation 3)."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# Length of the last sample's interval, as good as infinite (the original's).
LAST_INTERVAL = 1e10
# Added to each factor of the transmittance, as in the original: at zero all samples behind would have no gradient.
TRANSMITTANCE_FLOOR = 1e-10


class Rendering(NamedTuple):
    """The pixels of R rays.

    Attributes:
        rgb: [R, 3] colour, in [0, 1] up to rounding.
        disp: [R] disparity, 1 / expected t; 0 where a ray meets nothing.
        acc: [R] accumulated opacity, the sum of weights.
        depth: [R] sum of weight times t: the expected t where acc is 1.
        weights: [R, S] contribution of each sample to its pixel.
    """

    rgb: tf.Tensor
    disp: tf.Tensor
    acc: tf.Tensor
    depth: tf.Tensor
    weights: tf.Tensor


def volume_render(
    raw: tf.Tensor,
    t_vals: tf.Tensor,
    directions: tf.Tensor,
    noise: tf.Tensor | None = None,
    white_bkgd: bool = False,
) -> Rendering:
    """Composites samples along rays (paper, equation 3).

    Args:
        raw: [R, S, 4] colour before the sigmoid, density before the ReLU.
        t_vals: [R, S] ray parameters, ascending.
        directions: [R, 3], not unit: an interval's length is its length in t times |direction|.
        noise: [R, S] added to density before the ReLU; None: no noise.
        white_bkgd: white instead of black background.
    """
    intervals = t_vals[..., 1:] - t_vals[..., :-1]
    intervals = tf.concat([intervals, tf.fill(tf.shape(t_vals[..., :1]), LAST_INTERVAL)], axis=-1)
    intervals = intervals * tf.linalg.norm(directions, axis=-1, keepdims=True)  # [R, S]

    sigma = raw[..., 3] if noise is None else raw[..., 3] + noise
    alpha = 1.0 - tf.exp(-tf.nn.relu(sigma) * intervals)
    transmittance = tf.math.cumprod(1.0 - alpha + TRANSMITTANCE_FLOOR, axis=-1, exclusive=True)
    weights = alpha * transmittance

    rgb = tf.reduce_sum(weights[..., None] * tf.sigmoid(raw[..., :3]), axis=-2)
    depth = tf.reduce_sum(weights * t_vals, axis=-1)
    acc = tf.reduce_sum(weights, axis=-1)
    # The original divides 0 by 0 where a ray meets nothing, and its videos show the NaN.
    disp = 1.0 / tf.maximum(1e-10, tf.math.divide_no_nan(depth, acc))
    disp = tf.where(acc > 0.0, disp, tf.zeros_like(disp))
    if white_bkgd:
        rgb = rgb + (1.0 - acc[..., None])
    return Rendering(rgb, disp, acc, depth, weights)
