"""Positional encoding."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.field.encoding import encoded_width, positional_encoding


def test_order_is_identity_then_sine_and_cosine_of_each_octave():
    x = np.array([[0.3, -1.2]], np.float32)
    expected = np.concatenate([x, np.sin(x), np.cos(x), np.sin(2 * x), np.cos(2 * x), np.sin(4 * x), np.cos(4 * x)], -1)
    np.testing.assert_allclose(positional_encoding(tf.constant(x), 3), expected, atol=1e-6)


def test_there_is_no_pi_in_it():
    # With the paper's sin(pi x) this would be 0.
    encoded = positional_encoding(tf.ones([1, 1]), 1)
    np.testing.assert_allclose(encoded, [[1.0, np.sin(1.0), np.cos(1.0)]], atol=1e-6)


def test_no_frequencies_is_the_identity():
    x = tf.constant([[0.5, -2.0, 7.0]])
    np.testing.assert_array_equal(positional_encoding(x, 0), x)


@pytest.mark.parametrize(("shape", "num_freqs"), [([4, 3], 10), ([2, 5, 3], 4), ([0, 3], 2), ([3], 1)])
def test_any_batch_shape_gets_the_announced_width(shape, num_freqs):
    encoded = positional_encoding(tf.zeros(shape), num_freqs)
    assert encoded.shape == [*shape[:-1], encoded_width(shape[-1], num_freqs)]


def test_widths_of_the_original_networks():
    assert (encoded_width(3, 10), encoded_width(3, 4), encoded_width(3, 0)) == (63, 27, 3)


def test_zero_encodes_as_zeros_and_ones():
    encoded = positional_encoding(tf.zeros([1, 3]), 2).numpy()[0]
    np.testing.assert_array_equal(encoded, [0, 0, 0] + 2 * [0, 0, 0, 1, 1, 1])


def test_octaves_double():
    x = tf.constant([[0.1, 0.2, 0.3]])
    np.testing.assert_allclose(
        positional_encoding(x, 6)[:, 3 + 5 * 6 :], positional_encoding(32.0 * x, 1)[:, 3:], atol=1e-5
    )


def test_far_points_stay_bounded():
    encoded = positional_encoding(tf.constant([[1e6, -1e6, 3e7]]), 10).numpy()
    assert np.all(np.abs(encoded[:, 3:]) <= 1.0)
