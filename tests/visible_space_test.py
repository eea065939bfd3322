"""Which part of space the views of a scene see, by near and by alpha; and how alpha comes into batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nerf_tf.data import blender
from nerf_tf.data.pipeline import AlphaRayBatch, BatchSettings, RayBatch, ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.paths import spherical_pose
from nerf_tf.marching.visible_space import Box, seen_box, seen_cells

SIZE, RADIUS = 60, 0.5


def make_scene(with_alphas: bool) -> Scene:
    """Cameras at distance 4 from a ball of radius 0.5 about the origin, which is all that their alphas show."""
    camera = Camera.centred(SIZE, SIZE, 1.2 * SIZE)
    angles = [(theta, phi) for phi in (-20.0, -60.0) for theta in range(0, 360, 45)]
    poses = np.stack([spherical_pose(theta, phi, 4.0)[:3] for theta, phi in angles]).astype(np.float32)
    rows, cols = np.mgrid[:SIZE, :SIZE]
    alphas = []
    for pose in poses:
        origins, directions = camera.rays(pose, rows, cols)
        across = np.cross(origins, directions / np.linalg.norm(directions, axis=-1, keepdims=True))
        alphas.append(np.linalg.norm(across, axis=-1) < RADIUS)
    return Scene(
        images=np.zeros([len(poses), SIZE, SIZE, 3], np.float32),
        alphas=np.stack(alphas).astype(np.float32) if with_alphas else None,
        poses=poses,
        cameras=(camera,) * len(poses),
        near=2.0,
        far=6.0,
        ndc=False,
        i_train=np.arange(len(poses)),
        i_val=np.arange(0),
        i_test=np.arange(0),
        render_poses=poses[:0],
    )


def test_alphas_leave_the_visual_hull():
    scene, count = make_scene(True), 24
    cells = seen_cells(scene, Box(np.full(3, -1.2), np.full(3, 1.2)), count)
    centres = (np.stack(np.meshgrid(*[np.arange(count) + 0.5] * 3, indexing="ij"), axis=-1) / count - 0.5) * 2.4
    distances = np.linalg.norm(centres, axis=-1)
    assert cells[distances < RADIUS].all()
    assert not cells[distances > 2 * RADIUS].any()


def test_the_box_of_a_scene_with_alphas_is_tight_and_without_them_near_bounds_it():
    tight, loose = seen_box(make_scene(True)), seen_box(make_scene(False))
    assert np.all(tight.lower < -RADIUS + 0.05)
    assert np.all(tight.upper > RADIUS - 0.05)
    assert np.all(tight.upper - tight.lower < 3 * RADIUS)
    assert np.all(loose.upper - loose.lower > tight.upper - tight.lower)
    closer = seen_box(dataclasses.replace(make_scene(False), near=3.2))
    assert np.prod(closer.upper - closer.lower) < np.prod(loose.upper - loose.lower)


@pytest.mark.parametrize("keep_alpha", [True, False])
def test_batches_hold_alpha_where_the_loader_kept_it(portable, keep_alpha):
    scene = blender.load(portable / "scenes" / "blender", white_bkgd=True, keep_alpha=keep_alpha)
    plain = blender.load(portable / "scenes" / "blender", white_bkgd=True)
    np.testing.assert_array_equal(scene.images, plain.images)
    batch = next(iter(ray_batches(scene, BatchSettings(N_rand=64), seed=0)))
    assert isinstance(batch, AlphaRayBatch if keep_alpha else RayBatch)
    if keep_alpha:
        assert np.all(batch.rgb.numpy()[batch.alpha.numpy()[:, 0] == 0] == 1), "white shows through"
        assert 0 < batch.alpha.numpy().mean() < 1
