"""Camera paths: closed forms and invariants. The loaders' tests compare with the original's output."""

from __future__ import annotations

import numpy as np
import pytest
from poses_test import IDENTITY, assert_rotations, random_poses, ring_poses

from nerf_tf.camera_paths import around_cameras
from nerf_tf.geometry import paths
from nerf_tf.geometry import poses as pose_maths


def test_spiral_looks_at_one_point_from_within_its_radii():
    poses = pose_maths.recenter(random_poses(20))
    path = paths.spiral_path(poses, near=1.0, far=10.0)
    assert path.shape == (120, 3, 4)
    assert_rotations(path)
    focus = 1.0 / (0.25 / 0.9 + 0.75 / 50.0)
    to_target = np.array([0.0, 0.0, -focus]) - path[:, :, 3]
    np.testing.assert_allclose(pose_maths.normalise(to_target), -path[:, :, 2], atol=1e-12)
    radii = np.percentile(np.abs(poses[:, :, 3]), 90, axis=0)
    np.testing.assert_allclose(np.abs(path[:, :, 3]).max(axis=0), radii, rtol=1e-12)


def test_spiral_of_one_pose_stands_still():
    path = paths.spiral_path(pose_maths.recenter(random_poses(1)), near=1.0, far=2.0, frames=7)
    np.testing.assert_allclose(path, np.broadcast_to(IDENTITY, (7, 3, 4)), atol=1e-12)


def test_circle_runs_on_the_unit_sphere_and_closes():
    poses, _ = pose_maths.spherify(ring_poses(12, centre=(0.0, 0.0, 0.0), radius=2.0))
    path = paths.circle_path(poses)
    assert path.shape == (120, 3, 4)
    assert_rotations(path)
    np.testing.assert_allclose(path[:, :, 3], path[:, :, 2], atol=1e-12)
    np.testing.assert_allclose(path[:, 2, 3], poses[:, 2, 3].mean())
    np.testing.assert_allclose(path[0], path[-1], atol=1e-12)
    assert np.all(path[:, 2, 1] > 0), "its up points to z"


def test_spherical_pose_closed_form():
    np.testing.assert_allclose(
        paths.spherical_pose(0.0, 0.0, 4.0), [[-1, 0, 0, 0], [0, 0, 1, 4], [0, 1, 0, 0]], atol=1e-15
    )
    above = paths.spherical_pose(0.0, -90.0, 2.0)
    np.testing.assert_allclose(above[:, 3], [0, 0, 2], atol=1e-15)


def test_orbit_looks_at_the_origin_from_its_radius():
    path = paths.orbit_path(frames=9, phi=-20.0, radius=3.0)
    assert path.shape == (9, 3, 4)
    assert_rotations(path)
    np.testing.assert_allclose(path[:, :, 3], 3.0 * path[:, :, 2], atol=1e-12)
    np.testing.assert_allclose(path[:, 2, 3], 3.0 * np.sin(np.deg2rad(20.0)))
    assert np.all(path[:, 2, 1] > 0), "its up points to z"


def test_an_orbit_goes_around_what_cameras_look_at():
    """Cameras of one elevation in a world whose up is not an axis: the orbit is their own circle."""
    tilt, centre = pose_maths.look_at([1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [5.0, -1.0, 2.0]), np.array([5.0, -1.0, 2.0])
    cameras = pose_maths.compose(tilt, paths.orbit_path(frames=9, phi=-20.0, radius=3.0))
    path = around_cameras.orbit_around(cameras, frames=9)
    assert_rotations(path)
    np.testing.assert_allclose(path, cameras, atol=1e-9)
    np.testing.assert_allclose(around_cameras.orbit_around(cameras, 90)[::10], cameras, atol=1e-9)
    np.testing.assert_allclose(path[:, :, 3], centre + 3.0 * path[:, :, 2], atol=1e-9)


def test_an_orbit_needs_something_that_cameras_look_at():
    with pytest.raises(ValueError, match="parallel"):
        around_cameras.orbit_around(np.tile(np.eye(4)[:3], [3, 1, 1]))


def test_functions_leave_their_arguments_alone():
    poses = ring_poses(5, centre=(1.0, 0.0, 0.0), radius=2.0)
    before = poses.copy()
    paths.spiral_path(poses, 1.0, 2.0)
    around_cameras.orbit_around(poses)
    np.testing.assert_array_equal(poses, before)
