"""Compositing, against closed forms and at extremes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.render.volume import volume_render

UNIT = tf.constant([[0.0, 0.0, -1.0]])


def make_raw(sigma: np.ndarray, rgb: tuple[float, float, float] = (0.5, 0.5, 0.5)) -> tf.Tensor:
    """Raw [1, S, 4] that the sigmoid turns into `rgb`."""
    logits = np.log(np.array(rgb) / (1 - np.array(rgb)))
    return tf.constant(np.concatenate([np.tile(logits, (len(sigma), 1)), sigma[:, None]], -1)[None], tf.float32)


def slab(sigma: float, length: float, samples: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Constant density for t in [0, length], nothing behind: raw [1, S, 4] and t_vals [1, S]."""
    density = np.full(samples, sigma)
    density[-1] = 0.0  # its interval is endless
    return make_raw(density, (0.2, 0.5, 0.9)), tf.linspace(0.0, length, samples)[None]


@pytest.mark.parametrize("sigma", [0.0, 1e-3, 0.7, 20.0])
@pytest.mark.parametrize("samples", [2, 65])
def test_opacity_of_a_slab_is_the_closed_form_for_any_number_of_samples(sigma, samples):
    raw, t_vals = slab(sigma, 1.5, samples)
    result = volume_render(raw, t_vals, UNIT)
    opacity = 1.0 - np.exp(-sigma * 1.5)
    np.testing.assert_allclose(result.acc, [opacity], atol=1e-6)
    np.testing.assert_allclose(result.rgb, [opacity * np.array([0.2, 0.5, 0.9])], atol=1e-6)
    edges = np.exp(-sigma * t_vals.numpy()[0])
    np.testing.assert_allclose(result.weights[0, :-1], edges[:-1] - edges[1:], atol=1e-6)
    assert result.weights[0, -1] == 0.0


def test_depth_of_a_slab_converges_to_the_closed_form():
    sigma, length = 2.0, 1.5
    raw, t_vals = slab(sigma, length, 4001)
    result = volume_render(raw, t_vals, UNIT)
    # The integral of t sigma exp(-sigma t).
    expected = 1 / sigma - np.exp(-sigma * length) * (length + 1 / sigma)
    np.testing.assert_allclose(result.depth, [expected], rtol=2e-3)
    np.testing.assert_allclose(result.disp, result.acc / result.depth, rtol=1e-5)


def test_intervals_scale_with_the_length_of_the_direction():
    raw, t_vals = slab(0.5, 1.0, 33)
    lengths = [0.5, 1.0, 3.0]
    directions = tf.constant([[0.0, length, 0.0] for length in lengths])
    result = volume_render(tf.repeat(raw, 3, 0), tf.repeat(t_vals, 3, 0), directions)
    np.testing.assert_allclose(result.acc, 1.0 - np.exp(-0.5 * np.array(lengths)), atol=1e-6)


def test_any_density_in_the_last_sample_is_opaque():
    result = volume_render(make_raw(np.array([0.0, 0.0, 1e-6])), tf.constant([[1.0, 2.0, 4.0]]), UNIT)
    np.testing.assert_allclose(result.weights, [[0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose([result.depth[0], result.disp[0]], [4.0, 0.25], rtol=1e-6)


def test_an_opaque_first_sample_hides_the_rest():
    raw = tf.concat([make_raw(np.array([1e6]), (0.9, 0.1, 0.3)), make_raw(np.full(7, 1e6), (0.5, 0.9, 0.9))], axis=1)
    result = volume_render(raw, tf.linspace(2.0, 6.0, 8)[None], UNIT, white_bkgd=True)
    np.testing.assert_allclose(result.rgb, [[0.9, 0.1, 0.3]], atol=1e-6)
    np.testing.assert_allclose([result.acc[0], result.depth[0], result.disp[0]], [1.0, 2.0, 0.5], rtol=1e-6)
    assert np.all(result.weights[0, 1:].numpy() < 1e-9)


@pytest.mark.parametrize(("white_bkgd", "background"), [(False, 0.0), (True, 1.0)])
def test_an_empty_ray_sees_the_background_at_no_disparity(white_bkgd, background):
    result = volume_render(make_raw(np.full(8, -5.0)), tf.linspace(2.0, 6.0, 8)[None], UNIT, white_bkgd=white_bkgd)
    np.testing.assert_array_equal(result.rgb, np.full((1, 3), background))
    np.testing.assert_array_equal([result.disp[0], result.acc[0], result.depth[0]], np.zeros(3))


def test_white_background_shows_through_by_what_is_not_covered():
    raw, t_vals = slab(0.8, 1.0, 9)
    black, white = (volume_render(raw, t_vals, UNIT, white_bkgd=on) for on in (False, True))
    np.testing.assert_allclose(white.rgb - black.rgb, np.full((1, 3), np.exp(-0.8)), atol=1e-6)
    for name in ("disp", "acc", "depth", "weights"):
        np.testing.assert_array_equal(getattr(white, name), getattr(black, name))


def test_a_step_behind_another_is_dimmed_by_it():
    # Two half-opaque sheets, red then green, before an opaque blue one.
    half = np.log(2.0)
    raw = tf.concat(
        [make_raw(np.array([sigma]), rgb) for sigma, rgb in ((half, (0.99, 0.01, 0.01)), (half, (0.01, 0.99, 0.01)))]
        + [make_raw(np.array([1.0]), (0.01, 0.01, 0.99))],
        axis=1,
    )
    result = volume_render(raw, tf.constant([[1.0, 2.0, 3.0]]), UNIT)
    np.testing.assert_allclose(result.weights, [[0.5, 0.25, 0.25]], atol=1e-6)
    np.testing.assert_allclose(result.rgb, [[0.5, 0.255, 0.255]], atol=1e-6)


def test_noise_is_added_to_the_density_before_the_relu():
    t_vals = tf.linspace(2.0, 6.0, 8)[None]
    rng = np.random.default_rng(0)
    density, noise = rng.normal(size=8), rng.normal(size=8)
    noisy = volume_render(make_raw(density), t_vals, UNIT, noise=tf.constant(noise[None], tf.float32))
    summed = volume_render(make_raw(density + noise), t_vals, UNIT)
    np.testing.assert_allclose(noisy.weights, summed.weights, atol=1e-6)
    assert not np.allclose(noisy.weights, volume_render(make_raw(density), t_vals, UNIT).weights, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3, 1e10, 1e35])
def test_weights_are_a_distribution_whatever_the_densities(scale):
    rng = np.random.default_rng(1)
    raw = tf.constant(rng.normal(size=(64, 48, 4)) * [10, 10, 10, scale], tf.float32)
    t_vals = tf.constant(np.sort(rng.uniform(2, 6, (64, 48)), -1), tf.float32)
    directions = tf.constant(rng.normal(size=(64, 3)), tf.float32)
    result = volume_render(raw, t_vals, directions)
    assert all(np.all(np.isfinite(value)) for value in result)
    assert np.all(result.weights.numpy() >= 0.0)
    np.testing.assert_allclose(tf.reduce_sum(result.weights, -1), result.acc, rtol=1e-6)
    assert np.all(result.acc.numpy() <= 1.0 + 1e-5)
    assert np.all((result.rgb.numpy() >= 0.0) & (result.rgb.numpy() <= 1.0 + 1e-5))
    assert np.all(result.disp.numpy() <= 1 / 2.0 + 1e-3)


def test_samples_in_the_same_place_carry_no_weight():
    result = volume_render(make_raw(np.full(4, 3.0)), tf.constant([[2.0, 2.0, 2.0, 3.0]]), UNIT)
    np.testing.assert_allclose(result.weights, [[0, 0, 1 - np.exp(-3.0), np.exp(-3.0)]], atol=1e-6)


@pytest.mark.parametrize("sigma", [-1e30, -1.0, 0.0, 1e-30, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("logit", [-1e30, 0.0, 1e30])
def test_gradients_are_finite_at_extremes(sigma, logit):
    raw = tf.constant(np.tile([logit, logit, logit, sigma], (1, 8, 1)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(raw)
        result = volume_render(raw, tf.linspace(2.0, 6.0, 8)[None], UNIT, white_bkgd=True)
        total = tf.add_n([tf.reduce_sum(value) for value in result])
    gradient = tape.gradient(total, raw)
    assert np.isfinite(total)
    assert np.all(np.isfinite(gradient))


def test_density_that_the_relu_clips_has_no_gradient_at_all():
    # What lets the network's backward pass leave such samples out.
    rng = np.random.default_rng(2)
    raw = tf.constant(rng.normal(size=(16, 12, 4)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(raw)
        rgb = volume_render(raw, tf.tile(tf.linspace(2.0, 6.0, 12)[None], [16, 1]), tf.tile(UNIT, [16, 1])).rgb
        loss = tf.reduce_sum(tf.square(rgb - 0.3))
    gradient = tape.gradient(loss, raw).numpy()
    clipped = raw.numpy()[..., 3] <= 0.0
    np.testing.assert_array_equal(gradient[clipped], 0.0)
    assert np.all(np.any(gradient[:, 0][~clipped[:, 0]] != 0.0, axis=-1))
