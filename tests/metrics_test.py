"""PSNR and SSIM, in closed form and against scikit-image."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.evaluation.metrics import psnr, round_to_8bit, ssim
from nerf_tf.train.step import mse_to_psnr


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


def test_a_photo_becomes_the_nearest_bytes():
    photo = np.float32([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 254.4 / 255, 1.0, 1.2])
    np.testing.assert_array_equal(round_to_8bit(photo), np.uint8([0, 0, 0, 1, 254, 255, 255]))
    every_byte = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(round_to_8bit(every_byte / np.float32(255)), every_byte)


def test_ssim_of_flat_images_is_their_luminance_term():
    """Without variance only (2ab + c1) / (a^2 + b^2 + c1) is left, with c1 = 0.01^2."""
    a, b = np.full([12, 13, 3], 51, np.uint8), np.full([12, 13, 3], 153, np.uint8)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-4)
    assert ssim(np.float32(a / 255), np.float32(b / 255)) == pytest.approx(ssim(a, b), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("noise", [4.0, 40.0])
def test_ssim_is_that_of_scikit_image(noise):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(40)[:, None, None] / [3.0, 5.0, 7.0] + np.arange(52)[:, None] / 9.0)
    a = np.uint8(127 + 100 * waves)
    b = np.uint8(np.clip(a + rng.normal(0.0, noise, a.shape), 0, 255))
    expected = structural_similarity(
        a, b, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert expected < 0.99
    # TensorFlow's is a difference of float32 means, divided by what may be as little as 0.03^2.
    assert ssim(a, b) == pytest.approx(expected, abs=2e-4)


def test_ssim_needs_its_window():
    with pytest.raises(ValueError, match=r"11 pixels a side, found \[10, 40\]"):
        ssim(np.zeros([10, 40, 3], np.uint8), np.zeros([10, 40, 3], np.uint8))
