"""Rays from pixels, and NDC."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import NDC_NEAR, finish_rays, image_rays, ndc_rays, pixel_rays

IDENTITY = np.eye(3, 4, dtype=np.float32)
CAMERA = Camera(6, 8, 10.0, 12.0, 3.5, 2.5)


def random_pose(seed: int) -> np.ndarray:
    """A rotation and a centre, [3, 4]."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation[:, 2] *= np.linalg.det(rotation)
    return np.concatenate([rotation, rng.normal(size=(3, 1))], axis=-1).astype(np.float32)


def forward_rays(count: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """World rays that look roughly along -z from around z = 0."""
    rng = np.random.default_rng(seed)
    origins = rng.uniform(-0.5, 0.5, (count, 3))
    directions = np.concatenate([rng.uniform(-0.6, 0.6, (count, 2)), rng.uniform(-2.0, -0.5, (count, 1))], axis=-1)
    return origins.astype(np.float32), directions.astype(np.float32)


def project(camera: Camera, near: float, points: np.ndarray) -> np.ndarray:
    """NDC of points [..., 3] (OpenGL's perspective projection with the far plane at infinity)."""
    x, y, z = np.moveaxis(points.astype(np.float64), -1, 0)
    return np.stack(
        [-2 * camera.fx / camera.width * x / z, -2 * camera.fy / camera.height * y / z, 1 + 2 * near / z], -1
    )


def test_a_pixel_is_its_top_left_corner():
    _, directions = pixel_rays(CAMERA, IDENTITY, tf.constant([0, 5, 2]), tf.constant([0, 1, 7]))
    expected = [[-0.35, 2.5 / 12, -1.0], [-0.25, -2.5 / 12, -1.0], [0.35, 0.5 / 12, -1.0]]
    np.testing.assert_allclose(directions, expected, atol=1e-7)


def test_the_ray_through_the_principal_point_looks_along_minus_z():
    _, direction = pixel_rays(CAMERA, IDENTITY, tf.constant([2.5]), tf.constant([3.5]))
    np.testing.assert_array_equal(direction, [[0.0, 0.0, -1.0]])


def test_directions_are_rotated_not_normalised_and_origins_are_the_centre():
    c2w = random_pose(1)
    rows, cols = tf.range(6), tf.range(6)
    origins, directions = pixel_rays(CAMERA, c2w, rows, cols)
    _, in_camera = pixel_rays(CAMERA, IDENTITY, rows, cols)
    np.testing.assert_allclose(directions, in_camera.numpy() @ c2w[:, :3].T, atol=1e-6)
    np.testing.assert_allclose(directions.numpy() @ c2w[:, 2], -np.ones(6), atol=1e-6)
    assert np.all(np.linalg.norm(directions, axis=-1) > 1.0)
    np.testing.assert_array_equal(origins, np.tile(c2w[:, 3], (6, 1)))


def test_a_square_pose_means_the_same():
    c2w = random_pose(2)
    square = np.concatenate([c2w, [[0, 0, 0, 1]]]).astype(np.float32)
    rows, cols = tf.constant([1, 2]), tf.constant([3, 4])
    for a, b in zip(pixel_rays(CAMERA, c2w, rows, cols), pixel_rays(CAMERA, square, rows, cols), strict=True):
        np.testing.assert_array_equal(a, b)


def test_cameras_and_poses_of_single_rays_mean_the_same_as_shared_ones():
    rows, cols = tf.constant([0, 1, 5]), tf.constant([7, 3, 2], tf.int64)
    cameras = [CAMERA, Camera(6, 8, 20.0, 21.0, 4.0, 3.0), Camera(6, 8, 5.0, 6.0, 1.0, 0.0)]
    poses = np.stack([random_pose(seed) for seed in range(3)])
    each = Camera(6, 8, *(tf.constant([getattr(c, name) for c in cameras]) for name in ("fx", "fy", "cx", "cy")))
    together = pixel_rays(each, poses, rows, cols)
    for i, camera in enumerate(cameras):
        alone = pixel_rays(camera, poses[i], rows[i : i + 1], cols[i : i + 1])
        np.testing.assert_array_equal(together[0][i], alone[0][0])
        np.testing.assert_allclose(together[1][i], alone[1][0], rtol=1e-6)


def test_whole_image_runs_along_rows():
    rays = image_rays(CAMERA, random_pose(3), 2.0, 6.0, False)
    rows, cols = np.divmod(np.arange(48), 8)
    origins, directions = pixel_rays(CAMERA, random_pose(3), tf.constant(rows), tf.constant(cols))
    np.testing.assert_array_equal(rays.origins, origins)
    np.testing.assert_array_equal(rays.directions, directions)
    assert rays.near.shape == rays.far.shape == [48, 1]
    assert np.all(rays.near.numpy() == 2.0)
    assert np.all(rays.far.numpy() == 6.0)


def test_pixels_pick_rays_of_the_image():
    whole = image_rays(CAMERA, random_pose(3), 2.0, 6.0, True)
    some = image_rays(CAMERA, random_pose(3), 2.0, 6.0, True, pixels=tf.constant([47, 0, 13]))
    for a, b in zip(some, whole, strict=True):
        np.testing.assert_allclose(a, tf.gather(b, [47, 0, 13]), rtol=1e-6)


@pytest.mark.parametrize("ndc", [False, True])
def test_viewdirs_are_unit_and_of_the_world_even_under_ndc(ndc):
    rays = image_rays(CAMERA, IDENTITY, 0.0, 1.0, ndc)
    _, directions = pixel_rays(CAMERA, IDENTITY, *(tf.constant(i) for i in np.divmod(np.arange(48), 8)))
    expected = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    np.testing.assert_allclose(rays.viewdirs, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rays.viewdirs, axis=-1), 1.0, atol=1e-6)
    assert np.allclose(rays.directions, directions) is not ndc


def test_given_viewdirs_are_normalised():
    origins, directions = forward_rays(4)
    rays = finish_rays(CAMERA, origins, directions, 0.0, 1.0, False, viewdirs=tf.constant([[0.0, 3.0, -4.0]] * 4))
    np.testing.assert_allclose(rays.viewdirs, [[0.0, 0.6, -0.8]] * 4, atol=1e-6)
    np.testing.assert_array_equal(rays.directions, directions)


def test_another_pose_for_viewdirs_changes_nothing_else():
    plain = image_rays(CAMERA, random_pose(4), 2.0, 6.0, False)
    still = image_rays(CAMERA, random_pose(4), 2.0, 6.0, False, c2w_viewdirs=random_pose(5))
    moving = image_rays(CAMERA, random_pose(5), 2.0, 6.0, False)
    np.testing.assert_array_equal(still.viewdirs, moving.viewdirs)
    for name in ("origins", "directions", "near", "far"):
        np.testing.assert_array_equal(getattr(still, name), getattr(plain, name))


def test_finish_rays_uses_the_near_plane_of_ndc():
    origins, directions = forward_rays()
    rays = finish_rays(CAMERA, origins, directions, 0.0, 1.0, True)
    expected = ndc_rays(CAMERA, NDC_NEAR, origins, directions)
    np.testing.assert_array_equal(rays.origins, expected[0])
    np.testing.assert_array_equal(rays.directions, expected[1])


@pytest.mark.parametrize("near", [0.25, 1.0, 3.0])
def test_ndc_starts_on_the_near_plane_and_ends_at_infinity(near):
    origins, directions = forward_rays()
    ndc_origins, ndc_directions = ndc_rays(CAMERA, near, origins, directions)
    np.testing.assert_allclose(ndc_origins[:, 2], -1.0, atol=1e-6)
    np.testing.assert_allclose(ndc_origins[:, 2] + ndc_directions[:, 2], 1.0, atol=1e-5)
    # All rays of one direction meet at infinity.
    at_infinity = project(CAMERA, near, 1e9 * directions)
    np.testing.assert_allclose(ndc_origins + ndc_directions, at_infinity, atol=1e-5)


@pytest.mark.parametrize("near", [0.25, 1.0])
def test_a_point_at_some_depth_lies_on_its_ndc_ray_at_one_minus_near_over_depth(near):
    origins, directions = forward_rays()
    ndc_origins, ndc_directions = ndc_rays(CAMERA, near, origins, directions)
    for depth in (near, 1.5 * near, 4.0, 1000.0):
        s = -(depth + origins[:, 2:]) / directions[:, 2:]
        points = origins + s * directions  # [50, 3], all with z = -depth
        expected = project(CAMERA, near, points)
        np.testing.assert_allclose(expected[:, 2], 1.0 - 2.0 * near / depth, atol=1e-5)
        np.testing.assert_allclose(ndc_origins + (1.0 - near / depth) * ndc_directions, expected, atol=1e-4)


def test_the_frustum_becomes_a_cube():
    camera = Camera.centred(6, 8, 10.0)
    corners = pixel_rays(camera, IDENTITY, tf.constant([0, 0, 6, 6]), tf.constant([0, 8, 0, 8]))
    ndc_origins, ndc_directions = ndc_rays(camera, 1.0, *corners)
    np.testing.assert_allclose(ndc_origins, [[-1, 1, -1], [1, 1, -1], [-1, -1, -1], [1, -1, -1]], atol=1e-6)
    np.testing.assert_allclose(ndc_directions, [[0, 0, 2]] * 4, atol=1e-6)
