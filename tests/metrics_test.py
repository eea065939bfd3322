"""MSE and PSNR, in closed form."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.train.metrics import mse, mse_to_psnr, psnr


def test_mse_is_the_mean_over_all_elements():
    a, b = tf.zeros([2, 3]), tf.constant([[0.0, 0.0, 3.0], [0.0, -3.0, 0.0]])
    assert float(mse(a, b)) == 3.0


@pytest.mark.parametrize(("error", "expected"), [(1.0, 0.0), (0.1, 10.0), (1e-4, 40.0), (0.25, 6.0206)])
def test_mse_to_psnr(error, expected):
    assert float(mse_to_psnr(tf.constant(error))) == pytest.approx(expected, abs=1e-4)


def test_mse_to_psnr_keeps_double_precision():
    value = mse_to_psnr(tf.constant(2e-7, tf.float64))
    assert value.dtype == tf.float64
    assert float(value) == pytest.approx(-10 * np.log10(2e-7), abs=1e-12)


def test_psnr_of_a_constant_offset():
    image = np.full([4, 5, 3], 0.5, np.float32)
    assert psnr(image + np.float32(0.125), image) == pytest.approx(-20 * np.log10(0.125), abs=1e-9)


def test_psnr_is_of_the_mean_error_not_a_mean_of_psnrs():
    a = np.zeros([2, 1, 3])
    b = np.array([0.1, 0.3])[:, None, None] * np.ones(3)
    assert psnr(a, b) == pytest.approx(-10 * np.log10((0.01 + 0.09) / 2), abs=1e-9)


def test_8bit_images_count_as_0_to_1():
    a, b = np.zeros([3, 3, 3], np.uint8), np.full([3, 3, 3], 51, np.uint8)
    assert psnr(a, b) == pytest.approx(-20 * np.log10(0.2), abs=1e-9)
    assert psnr(b, a) == psnr(a, b)  # no wrap-around below zero
    assert psnr(b, np.zeros([3, 3, 3], np.float32)) == pytest.approx(psnr(b, a), abs=1e-9)
    assert psnr(np.zeros([1, 1, 3], np.uint8), np.full([1, 1, 3], 255, np.uint8)) == 0.0


def test_equal_images_have_infinite_psnr():
    image = np.full([2, 2, 3], 7, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert psnr(image, image.copy()) == float("inf")
