"""Poses: closed forms, invariants and axis conventions. The loaders' tests compare with the original's output."""

from __future__ import annotations

import numpy as np
import pytest

from nerf_tf.geometry import poses as pose_maths

IDENTITY = np.eye(4)[:3]


def random_poses(count: int, seed: int = 0) -> np.ndarray:
    """Cameras near the origin that look roughly along -z, [count, 3, 4]."""
    rng = np.random.default_rng(seed)
    back = np.array([0.0, 0.0, 1.0]) + 0.2 * rng.normal(size=(count, 3))
    return np.stack([pose_maths.look_at(b, [0.0, 1.0, 0.0], rng.normal(size=3)) for b in back])


def ring_poses(count: int, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """Cameras on a tilted ring that all look at `centre`."""
    theta = np.linspace(0.0, 2.0 * np.pi, count, endpoint=False)
    offsets = radius * np.stack([np.cos(theta), np.sin(theta), np.full(count, 0.5)], axis=-1)
    return np.stack([pose_maths.look_at(o, [0.0, 0.0, 1.0], o + np.array(centre)) for o in offsets])


def assert_rotations(poses: np.ndarray) -> None:
    rotations = poses[..., :3, :3]
    np.testing.assert_allclose(
        rotations @ np.swapaxes(rotations, -1, -2), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, atol=1e-12)


def test_normalise_gives_unit_vectors_and_refuses_zero():
    np.testing.assert_allclose(pose_maths.normalise([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]]), [[0.6, 0, 0.8], [0, 1, 0]])
    with pytest.raises(ValueError, match="length zero"):
        pose_maths.normalise([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_look_at_along_minus_z_is_the_identity_moved():
    pose = pose_maths.look_at([0, 0, 5], [0, 2, 1], [1, 2, 3])
    np.testing.assert_allclose(pose, [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3]], atol=1e-15)


def test_invert_undoes_compose():
    outer, inner = random_poses(5), random_poses(5, seed=1)
    product = pose_maths.compose(outer, inner)
    np.testing.assert_allclose(pose_maths.compose(pose_maths.invert(outer), product), inner, atol=1e-12)


def test_average_of_one_pose_is_that_pose():
    pose = random_poses(1)
    np.testing.assert_allclose(pose_maths.average_pose(pose), pose[0], atol=1e-12)


def test_recentred_poses_average_to_the_identity_and_keep_their_relations():
    poses = random_poses(9)
    moved = pose_maths.recenter(poses)
    np.testing.assert_allclose(pose_maths.average_pose(moved), IDENTITY, atol=1e-12)
    relative = [pose_maths.compose(pose_maths.invert(p[0]), p) for p in (poses, moved)]
    np.testing.assert_allclose(relative[1], relative[0], atol=1e-12)


def test_recentre_of_one_pose_is_the_identity():
    np.testing.assert_allclose(pose_maths.recenter(random_poses(1))[0], IDENTITY, atol=1e-12)


def test_spherify_brings_the_common_point_to_the_origin_at_rms_distance_one():
    poses = ring_poses(12, centre=(3.0, -2.0, 1.0), radius=4.0)
    moved, scale = pose_maths.spherify(poses)
    assert_rotations(moved)
    distances = np.linalg.norm(moved[:, :, 3], axis=-1)
    np.testing.assert_allclose(np.sqrt(np.mean(distances**2)), 1.0, atol=1e-12)
    np.testing.assert_allclose(scale, 1.0 / (4.0 * np.sqrt(1.25)))
    # Every camera sits on its own back axis as seen from the origin, and above it.
    np.testing.assert_allclose(moved[:, :, 3], distances[:, None] * moved[:, :, 2], atol=1e-12)
    np.testing.assert_allclose(moved[:, 2, 3], 0.5 / np.sqrt(1.25))


def test_spherify_of_unequal_distances_has_rms_one():
    poses = ring_poses(7, centre=(0.0, 1.0, 0.0), radius=1.0)
    poses[:3, :, 3] += 2.5 * poses[:3, :, 2]
    moved, _ = pose_maths.spherify(poses)
    np.testing.assert_allclose(np.mean(np.sum(moved[:, :, 3] ** 2, axis=-1)), 1.0)


@pytest.mark.parametrize("count", [1, 4])
def test_spherify_refuses_parallel_axes(count):
    poses = np.stack([pose_maths.look_at([0, 0.6, 0.8], [0, 1, 0], [i, 0, 0]) for i in range(count)])
    with pytest.raises(ValueError, match="parallel"):
        pose_maths.spherify(poses)


@pytest.mark.parametrize("rows", [3, 4])
def test_axis_conversions_round_trip_and_keep_rotations(rows):
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, :3] = random_poses(6)
    poses = poses[:, :rows]
    for there, back in (
        (pose_maths.opengl_to_llff, pose_maths.llff_to_opengl),
        (pose_maths.opengl_to_opencv, pose_maths.opencv_to_opengl),
    ):
        converted = there(poses)
        assert_rotations(converted)
        assert not np.allclose(converted, poses)
        np.testing.assert_array_equal(converted[..., 3], poses[..., 3])
        np.testing.assert_array_equal(back(converted), poses)


def test_axis_conversions_closed_form():
    right, up, back, centre = np.array([1, 0, 0]), np.array([0, 1, 0]), np.array([0, 0, 1]), np.array([7, 8, 9])
    opengl = np.stack([right, up, back, centre], axis=-1)
    np.testing.assert_array_equal(pose_maths.opengl_to_opencv(opengl), np.stack([right, -up, -back, centre], axis=-1))
    np.testing.assert_array_equal(pose_maths.opengl_to_llff(opengl), np.stack([-up, right, back, centre], axis=-1))


def test_functions_leave_their_arguments_alone():
    poses = ring_poses(5, centre=(1.0, 0.0, 0.0), radius=2.0)
    before = poses.copy()
    pose_maths.recenter(poses)
    pose_maths.spherify(poses)
    pose_maths.llff_to_opengl(poses)
    np.testing.assert_array_equal(poses, before)
