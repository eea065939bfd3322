"""The pinhole camera."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nerf_tf.geometry import poses
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import pixel_rays


def test_centred_camera_has_square_pixels_and_its_principal_point_in_the_middle():
    assert Camera.centred(6, 9, 7.5) == Camera(6, 9, 7.5, 7.5, 4.5, 3.0)


def test_camera_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Camera.centred(6, 9, 7.5).fx = 1.0


def test_factor_one_changes_nothing():
    camera = Camera(6, 9, 7.5, 7.0, 4.1, 3.2)
    assert dataclasses.astuple(camera.downscaled(1)) == pytest.approx(dataclasses.astuple(camera))


def test_downscaled_sides_round_down_and_focal_does_not():
    # The fern's test views under --factor 8 --render_factor 4.
    small = Camera.centred(378, 504, 407.5658).downscaled(4)
    assert (small.height, small.width) == (94, 126)
    assert small.fx == small.fy == 407.5658 / 4


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_downscaled_centred_camera_stays_centred(factor):
    small = Camera.centred(30, 41, 50.0).downscaled(factor)
    assert (small.cx, small.cy) == pytest.approx((small.width / 2, small.height / 2))


def test_downscaled_keeps_unequal_focals_and_the_place_of_the_principal_point():
    small = Camera(40, 80, 100.0, 90.0, 20.0, 30.0).downscaled(4)
    assert small == Camera(10, 20, 25.0, 22.5, 5.0, 7.5)


def test_largest_factor_leaves_one_pixel_in_the_smaller_side():
    assert (Camera.centred(6, 9, 7.5).downscaled(6).height, Camera.centred(6, 9, 7.5).downscaled(6).width) == (1, 1)


@pytest.mark.parametrize("factor", [-1, 0, 7])
def test_a_factor_that_leaves_no_pixels_says_what_would_do(factor):
    with pytest.raises(ValueError, match=f"render_factor {factor} leaves no pixels of a 9x6 image.*from 1 to 6"):
        Camera.centred(6, 9, 7.5).downscaled(factor)


@pytest.mark.parametrize("width", [1, 17, 504, 1000, 1001])
def test_resized_camera_sees_the_same_to_the_edges(width):
    camera = Camera(378, 504, 407.0, 400.0, 250.0, 190.0)
    other = camera.resized(width)
    assert (other.width, other.height) == (width, max(1, round(378 * width / 504)))
    # The image's corners, and where NDC puts them, are those of the photo.
    for first, second in (("cx", "width"), ("fx", "width"), ("cy", "height"), ("fy", "height")):
        expected = getattr(camera, first) / getattr(camera, second)
        assert getattr(other, first) / getattr(other, second) == pytest.approx(expected)
    assert camera.resized(504) == camera


def test_rays_on_the_host_are_those_that_are_trained_on_and_a_point_on_one_appears_in_its_pixel():
    camera = Camera(6, 9, 7.5, 7.0, 4.1, 3.2)
    c2w = poses.look_at(np.array([3.0, 2.0, 1.0]), np.array([0.0, 0.0, 1.0]), np.array([3.0, 2.0, 1.5]))
    rows, cols = (x.ravel() for x in np.mgrid[: camera.height, : camera.width])
    rays = camera.rays(c2w, rows, cols)
    for ours, trained in zip(rays, pixel_rays(camera, c2w, rows, cols), strict=True):
        np.testing.assert_allclose(ours, trained, atol=1e-6)
    t = np.linspace(0.5, 8.0, len(rows))
    found = camera.project(c2w, rays[0] + t[:, None] * rays[1])
    for value, expected in zip(found, (rows, cols, -t), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-9)
