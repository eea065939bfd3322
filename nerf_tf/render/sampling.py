"""Sampling along rays: stratified (paper, section 4, equation 2) and by importance (section 5.2)."""

from __future__ import annotations

import tensorflow as tf

# Added to each weight, as in the original: a ray without weight is sampled uniformly instead of dividing by zero.
MIN_WEIGHT = 1e-5
# Smaller steps of the cdf count as 1, as in the original: dividing by them would amplify rounding.
MIN_CDF_STEP = 1e-5


def stratified_t_vals(
    near: tf.Tensor, far: tf.Tensor, N_samples: int, lindisp: bool = False, u: tf.Tensor | None = None
) -> tf.Tensor:
    """Samples t once in each of N_samples strata (paper, equation 2).

    As the original: the strata's bounds are the midpoints of evenly spaced values, so the first and the last stratum
    are half as wide as the others.

    Args:
        near, far: [R, 1] range of t.
        N_samples: number S of samples per ray.
        lindisp: space samples evenly in 1/t instead of t.
        u: [R, S] in [0, 1), position within each stratum; None: the evenly spaced values, without jitter.

    Returns:
        [R, S], ascending.
    """
    s = tf.linspace(0.0, 1.0, N_samples)
    t_vals = 1.0 / (1.0 / near * (1.0 - s) + 1.0 / far * s) if lindisp else near * (1.0 - s) + far * s
    if u is None:
        return t_vals
    middle = midpoints(t_vals)
    lower = tf.concat([t_vals[..., :1], middle], axis=-1)
    upper = tf.concat([middle, t_vals[..., -1:]], axis=-1)
    return lower + (upper - lower) * u


def midpoints(t_vals: tf.Tensor) -> tf.Tensor:
    """Returns the midpoints [R, S-1] between neighbours of `t_vals` [R, S]."""
    return 0.5 * (t_vals[..., 1:] + t_vals[..., :-1])


def add_fine_samples(t_vals: tf.Tensor, weights: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Adds samples where the weights of the coarse ones are large (paper, section 5.2).

    The bins are bounded by the midpoints of the coarse samples, so the first and the last weight do not count.

    Args:
        t_vals: [R, S] the coarse samples, ascending; S >= 3.
        weights: [R, S] their weights. No gradient flows back to them.
        u: [R, N] in [0, 1], the quantiles to take.

    Returns:
        [R, S+N] all samples, ascending, and [R, N] the new ones in the order of u.
    """
    new_t_vals = tf.stop_gradient(sample_pdf(midpoints(t_vals), weights[..., 1:-1], u))
    return tf.sort(tf.concat([t_vals, new_t_vals], axis=-1), axis=-1), new_t_vals


def sample_pdf(bins: tf.Tensor, weights: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """Samples a piecewise constant density by inverting its cdf (paper, section 5.2).

    Args:
        bins: [R, M] edges, ascending.
        weights: [R, M-1] unnormalised weight of each bin, >= 0.
        u: [R, N] in [0, 1], the quantiles to take.

    Returns:
        [R, N] samples in the order of u.
    """
    weights = weights + MIN_WEIGHT
    pdf = weights / tf.reduce_sum(weights, axis=-1, keepdims=True)
    cdf = tf.cumsum(pdf, axis=-1)
    cdf = tf.concat([tf.zeros_like(cdf[..., :1]), cdf], axis=-1)  # [R, M]
    above = tf.searchsorted(cdf, u, side="right")  # [R, N]
    below = tf.maximum(above - 1, 0)
    above = tf.minimum(above, cdf.shape[-1] - 1)
    cdf_below, cdf_above = tf.gather(cdf, below, batch_dims=1), tf.gather(cdf, above, batch_dims=1)
    bin_below, bin_above = tf.gather(bins, below, batch_dims=1), tf.gather(bins, above, batch_dims=1)
    step = cdf_above - cdf_below
    step = tf.where(step < MIN_CDF_STEP, tf.ones_like(step), step)
    return bin_below + (u - cdf_below) / step * (bin_above - bin_below)
