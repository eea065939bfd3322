"""Stratified and inverse transform sampling."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.render.sampling import add_fine_samples, midpoints, sample_pdf, stratified_t_vals

NEAR, FAR = tf.constant([[2.0], [0.5]]), tf.constant([[6.0], [8.0]])
# The largest float32 below 1: as far as a uniform draw goes.
ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))


def spread(low: float, high: float, count: int, rays: int = 1) -> tf.Tensor:
    """Evenly spaced u [rays, count]."""
    return tf.tile(tf.linspace(low, high, count)[None], [rays, 1])


def strata(t_vals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the strata around unjittered samples [R, S]."""
    middle = 0.5 * (t_vals[:, 1:] + t_vals[:, :-1])
    return np.concatenate([t_vals[:, :1], middle], -1), np.concatenate([middle, t_vals[:, -1:]], -1)


def test_without_jitter_samples_are_even_from_near_to_far():
    t_vals = stratified_t_vals(NEAR, FAR, 5)
    np.testing.assert_allclose(t_vals, [[2, 3, 4, 5, 6], [0.5, 2.375, 4.25, 6.125, 8]], rtol=1e-6)


def test_lindisp_is_even_in_inverse_t():
    t_vals = stratified_t_vals(NEAR, FAR, 9, lindisp=True).numpy()
    np.testing.assert_allclose(t_vals[:, [0, -1]], [[2, 6], [0.5, 8]], rtol=1e-6)
    steps = np.diff(1.0 / t_vals, axis=-1)
    np.testing.assert_allclose(steps, np.broadcast_to((1 / FAR - 1 / NEAR) / 8, steps.shape), rtol=1e-4)


@pytest.mark.parametrize("lindisp", [False, True])
def test_jittered_samples_stay_in_their_strata_and_reach_both_ends(lindisp):
    even = stratified_t_vals(NEAR, FAR, 16, lindisp).numpy()
    lower, upper = strata(even)
    np.testing.assert_allclose(stratified_t_vals(NEAR, FAR, 16, lindisp, tf.zeros([2, 16])), lower, rtol=1e-6)
    ends = stratified_t_vals(NEAR, FAR, 16, lindisp, tf.fill([2, 16], ALMOST_ONE))
    np.testing.assert_allclose(ends, upper, rtol=1e-6)
    u = np.random.default_rng(0).random((2, 16), np.float32)
    t_vals = stratified_t_vals(NEAR, FAR, 16, lindisp, tf.constant(u)).numpy()
    np.testing.assert_allclose((t_vals - lower) / (upper - lower), u, atol=1e-4)
    assert np.all(np.diff(t_vals) >= 0)


def test_jitter_fills_the_whole_range_evenly():
    u = tf.constant(np.random.default_rng(1).random((4000, 8), np.float32))
    t_vals = stratified_t_vals(tf.fill([4000, 1], 2.0), tf.fill([4000, 1], 6.0), 8, u=u).numpy()
    # The outer strata are half as wide as the others but hold as many samples, so those are twice as dense.
    expected = np.full(14, 1 / 16)
    expected[[0, -1]] = 1 / 8
    frequencies = np.histogram(t_vals, bins=np.linspace(2, 6, 15))[0] / t_vals.size
    np.testing.assert_allclose(frequencies, expected, atol=5 * np.sqrt(0.125 / t_vals.size))


def test_two_samples_are_the_ends():
    np.testing.assert_array_equal(stratified_t_vals(NEAR, FAR, 2), [[2, 6], [0.5, 8]])


def test_uniform_weights_give_the_quantiles_of_the_range():
    u = spread(0.0, 1.0, 11)
    bins = tf.linspace(2.0, 6.0, 33)[None]
    np.testing.assert_allclose(sample_pdf(bins, tf.ones([1, 32]), u), 2.0 + 4.0 * u, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8])
def test_vanishing_weights_count_as_uniform(scale):
    u = spread(0.0, 1.0, 11)
    weights = scale * tf.one_hot([3], 8)
    np.testing.assert_allclose(sample_pdf(tf.linspace(0.0, 1.0, 9)[None], weights, u), u, atol=2e-3)


@pytest.mark.parametrize("hot", [0, 5, 29])
def test_one_hot_weights_put_every_sample_into_that_bin(hot):
    bins = np.sort(np.random.default_rng(2).uniform(2.0, 6.0, (1, 31))).astype(np.float32)
    u = spread(0.001, 0.999, 50)
    samples = sample_pdf(tf.constant(bins), tf.one_hot([hot], 30), u).numpy()
    assert np.all((bins[0, hot] <= samples) & (samples <= bins[0, hot + 1]))
    np.testing.assert_allclose(
        samples, bins[0, hot] + u * (bins[0, hot + 1] - bins[0, hot]), atol=5e-4 * (bins[0, hot + 1] - bins[0, hot])
    )


def test_samples_are_the_interpolated_inverse_of_the_cdf():
    rng = np.random.default_rng(3)
    bins = np.sort(rng.uniform(2.0, 6.0, (20, 17)), axis=-1).astype(np.float32)
    weights = rng.uniform(0.1, 1.0, (20, 16)).astype(np.float32)
    u = rng.random((20, 40), np.float32)
    samples = sample_pdf(*map(tf.constant, (bins, weights, u)))
    floored = weights.astype(np.float64) + 1e-5
    cdf = np.concatenate([np.zeros((20, 1)), np.cumsum(floored / floored.sum(-1, keepdims=True), -1)], -1)
    expected = np.stack([np.interp(u[i], cdf[i], bins[i]) for i in range(20)])
    np.testing.assert_allclose(samples, expected, atol=2e-5)


def test_histogram_of_many_samples_follows_the_weights():
    weights = np.array([0.05, 0.4, 0.0, 0.15, 0.3, 0.1], np.float32)
    bins = np.array([2.0, 2.5, 2.6, 4.0, 4.5, 5.5, 6.0], np.float32)
    u = np.random.default_rng(4).random((1, 100_000), np.float32)
    samples = sample_pdf(tf.constant(bins[None]), tf.constant(weights[None]), tf.constant(u)).numpy()
    frequencies = np.histogram(samples, bins=bins)[0] / samples.size
    np.testing.assert_allclose(frequencies, weights, atol=5 * np.sqrt(0.25 / samples.size))


def test_extreme_quantiles_stay_within_the_bins():
    rng = np.random.default_rng(5)
    bins = np.sort(rng.uniform(0.0, 1.0, (200, 63)), axis=-1).astype(np.float32)
    # Some rays with one bin, some with all, so that sums round to just under and just over 1.
    weights = (rng.random((200, 62)) ** rng.uniform(0, 20, (200, 1))).astype(np.float32)
    u = tf.tile(tf.constant([[0.0, 1e-38, 1e-7, ALMOST_ONE, 1.0]]), [200, 1])
    samples = sample_pdf(tf.constant(bins), tf.constant(weights), u).numpy()
    assert np.all(samples >= bins[:, :1])
    assert np.all(samples <= bins[:, -1:] * (1 + 1e-6))
    np.testing.assert_array_equal(samples[:, 0], bins[:, 0])
    # A last bin that is next to weightless counts as flat, and its end may then be out of reach.
    weighty = weights[:, -1] > 1e-3 * weights.sum(-1)
    assert weighty.sum() > 20
    np.testing.assert_allclose(samples[weighty, -1], bins[weighty, -1], atol=1e-4)


def test_samples_come_in_the_order_of_u():
    u = tf.constant([[0.9, 0.1, 0.5, 0.5, 0.0]])
    np.testing.assert_allclose(sample_pdf(tf.linspace(0.0, 1.0, 5)[None], tf.ones([1, 4]), u), u, atol=1e-6)


def test_bins_of_no_width_do_no_harm():
    bins = tf.constant([[1.0, 1.0, 1.0, 2.0]])
    samples = sample_pdf(bins, tf.constant([[0.5, 0.5, 0.0]]), spread(0.0, 0.99, 7)).numpy()
    np.testing.assert_allclose(samples, 1.0, atol=1e-5)


def test_a_quantile_on_the_edge_of_a_gap_belongs_behind_the_gap():
    # The floor is lost beside such weights, so the cdf is flat over two bins.
    bins, weights = tf.constant([[0.0, 1.0, 2.0, 3.0, 4.0]]), tf.constant([[1e9, 0.0, 0.0, 1e9]])
    np.testing.assert_allclose(sample_pdf(bins, weights, tf.constant([[0.25, 0.5, 0.75]])), [[0.5, 3.0, 3.5]])


def test_fine_samples_join_the_coarse_ones_in_order_and_carry_no_gradient():
    t_vals, weights, u = (
        stratified_t_vals(NEAR, FAR, 9),
        tf.random.stateless_uniform([2, 9], [1, 2]),
        spread(1.0, 0.0, 7, 2),
    )
    with tf.GradientTape() as tape:
        tape.watch(weights)
        merged, new = add_fine_samples(t_vals, weights, u)
    assert tape.gradient([merged, new], weights) is None
    np.testing.assert_array_equal(new, sample_pdf(midpoints(t_vals), weights[:, 1:-1], u))
    np.testing.assert_array_equal(merged, np.sort(np.concatenate([t_vals, new], axis=-1), axis=-1))
    # What the first and the last coarse sample weigh says nothing about where to look.
    ends = tf.constant([[100.0, *[0.0] * 7, 100.0]])
    np.testing.assert_array_equal(new, add_fine_samples(t_vals, weights + ends, u)[1])
