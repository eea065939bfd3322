"""Where along a ray to sample (paper, section 4, equation 2, and section 5.2)."""

from __future__ import annotations

import tensorflow as tf

# Keeps a ray without any weight from dividing by zero: its distribution becomes uniform.
MIN_WEIGHT = 1e-5
# Flatter stretches of the cdf hold no sample worth interpolating; the original treats their slope as 1.
MIN_CDF_STEP = 1e-5


def stratified_t_vals(
    near: tf.Tensor, far: tf.Tensor, N_samples: int, lindisp: bool = False, u: tf.Tensor | None = None
) -> tf.Tensor:
    """Samples of t, one in each of N_samples strata (paper, equation 2).

    The strata are the original's: bounded by the midpoints between evenly spaced values, so the first and the last
    are half as wide as the others.

    Args:
        near, far: [R, 1] range of t.
        N_samples: number S of samples on a ray.
        lindisp: space samples evenly in 1/t rather than in t.
        u: [R, S] in [0, 1), position within each stratum; None: the evenly spaced values themselves.

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
    """What lies half way between neighbours of samples [R, S]: [R, S-1]."""
    return 0.5 * (t_vals[..., 1:] + t_vals[..., :-1])


def add_fine_samples(t_vals: tf.Tensor, weights: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Adds samples where the coarse ones found something (paper, section 5.2).

    The bins to draw from lie between the midpoints of the coarse samples, so the first and the last weight count for
    nothing.

    Args:
        t_vals: [R, S] the coarse samples, ascending; S >= 3.
        weights: [R, S] what each contributes to its pixel. No gradient flows back to them.
        u: [R, N] in [0, 1]: which quantiles to take.

    Returns:
        [R, S+N] all samples, ascending, and [R, N] the new ones, in the order of u.
    """
    new_t_vals = tf.stop_gradient(sample_pdf(midpoints(t_vals), weights[..., 1:-1], u))
    return tf.sort(tf.concat([t_vals, new_t_vals], axis=-1), axis=-1), new_t_vals


def sample_pdf(bins: tf.Tensor, weights: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """Inverse transform sampling of a piecewise constant density (paper, section 5.2).

    Args:
        bins: [R, M] edges, ascending.
        weights: [R, M-1] unnormalised weight of each bin, >= 0.
        u: [R, N] in [0, 1]: which quantiles to take.

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
