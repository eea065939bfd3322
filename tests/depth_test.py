"""Rendered t to depth and points: closed forms, the way through NDC and back, and photos with known points."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.captures.worlds import transform_points
from nerf_tf.data import llff
from nerf_tf.field.mlp import FieldSettings, build_mlp
from nerf_tf.field.query import Field
from nerf_tf.geometry import depth
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import NDC_NEAR, ndc_rays, pixel_rays
from nerf_tf.render.passes import RenderSettings
from nerf_tf.render.renderer import Renderer
from nerf_tf.storage import tf1_weights

CAMERA = Camera.centred(6, 8, 7.0)
# Turned and moved, but still looking into the half space that NDC holds.
POSE = pose_maths.look_at([0.1, -0.05, 1.0], [0.1, 1.0, 0.0], [0.3, -0.2, 0.1]).astype(np.float32)
WALL = 5.0  # z = -WALL
ONES = np.ones([6, 8])


def to_wall() -> tuple[np.ndarray, np.ndarray]:
    """Distances from the camera to the wall for each pixel: along the ray, and along the optical axis."""
    rows, cols = np.mgrid[:6, :8]
    _, directions = (rays.numpy() for rays in pixel_rays(CAMERA, POSE, rows, cols))
    t = (-WALL - POSE[2, 3]) / directions[..., 2]
    points = POSE[:, 3] + t[..., None] * directions
    return np.linalg.norm(points - POSE[:, 3], axis=-1), (POSE[:, 3] - points) @ POSE[:, 2]


def test_ndc_to_world_undoes_ndc_rays():
    rows, cols = np.mgrid[:6, :8]
    origins, directions = pixel_rays(CAMERA, POSE, rows, cols)
    ndc_origins, ndc_directions = ndc_rays(CAMERA, NDC_NEAR, origins, directions)
    for t in (0.0, 0.25, 0.9):
        back = depth.ndc_to_world(CAMERA, ndc_origins + t * ndc_directions)
        metric = depth.ndc_to_metric_t(origins.numpy(), directions.numpy(), np.full([6, 8], t))
        expected = origins + metric[..., None] * directions
        np.testing.assert_allclose(back, expected, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(back[..., 2], -1.0 / (1.0 - t), rtol=1e-4)


def test_under_ndc_a_t_of_1_is_infinitely_far():
    origins, directions = np.array([[0.3, 0.0, 0.5]] * 2), np.array([[0.1, 0.0, -1.0]] * 2)
    t = depth.ndc_to_metric_t(origins, directions, np.array([1.0, 1.0 + 1e-6]))
    np.testing.assert_array_equal(t, [np.inf, np.inf])


def test_metric_t_is_depth_along_the_axis_and_longer_along_the_ray():
    seen = depth.find_surface(CAMERA, POSE, 3.0 * ONES, ONES, ndc=False)
    np.testing.assert_allclose(seen.along_z, 3.0)
    np.testing.assert_allclose(seen.along_ray[3, 4], 3.0)  # the middle: cx = 4, cy = 3
    np.testing.assert_allclose(seen.along_ray[0, 0], 3.0 * np.sqrt(1 + (4 / 7) ** 2 + (3 / 7) ** 2))
    np.testing.assert_allclose(np.linalg.norm(seen.points - POSE[:, 3], axis=-1), seen.along_ray, rtol=1e-6)


def test_depth_through_ndc_counts_from_the_camera_itself():
    t = 1.0 - 1.0 / WALL
    seen = depth.find_surface(CAMERA, POSE, t * ONES, ONES, ndc=True)
    along_ray, along_z = to_wall()
    np.testing.assert_allclose(seen.along_ray, along_ray, rtol=1e-5)
    np.testing.assert_allclose(seen.along_z, along_z, rtol=1e-5)
    np.testing.assert_allclose(seen.points[..., 2], -WALL, rtol=1e-6)


def test_depth_is_a_mean_over_what_stops_the_ray_and_nan_where_little_does():
    acc = np.tile([0.0, 0.25, 0.49, 0.5, 0.75, 0.9, 1.0, 1.0], [6, 1])
    seen = depth.find_surface(CAMERA, POSE, 4.0 * acc, acc, ndc=False)
    np.testing.assert_array_equal(np.isnan(seen.along_z[0]), [True, True, True, False, False, False, False, False])
    np.testing.assert_allclose(seen.along_z[:, 3:], 4.0)
    assert np.isnan(seen.along_ray[:, :3]).all()
    assert np.isnan(seen.points[:, :3]).all()
    everything = depth.find_surface(CAMERA, POSE, 4.0 * acc, acc, ndc=False, min_acc=0.0)
    np.testing.assert_array_equal(np.isnan(everything.along_z[0]), [True, *[False] * 7])


@pytest.mark.parametrize("ndc", [False, True])
def test_rendered_wall_is_where_it_is_in_ndc_and_in_space(ndc):
    def wall(points: tf.Tensor, *_: object) -> tf.Tensor:
        z = 2.0 / (points[..., 2:] - 1.0) if ndc else points[..., 2:]
        return tf.concat([tf.zeros_like(points), tf.where(z < -WALL, 1e6, 0.0)], axis=-1)

    near, far = (0.0, 1.0) if ndc else (1.0, 9.0)
    renderer = Renderer(wall, None, RenderSettings(N_samples=2000), near, far, ndc, unit=3.0)
    image = renderer.image(CAMERA, POSE)
    along_ray, along_z = to_wall()
    np.testing.assert_allclose(image.depth_ray, 3.0 * along_ray, rtol=5e-3)
    np.testing.assert_allclose(image.depth_z, 3.0 * along_z, rtol=5e-3)
    assert image.depth_ray.dtype == image.depth_z.dtype == np.float32


def test_transform_moves_points():
    similarity = np.array([[0, -2, 0, 1], [2, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(transform_points(similarity, [[[1, 10, 100]]]), [[[-19, 4, 203]]])


def sparse_points(path) -> np.ndarray:
    """Points [P, 3] of COLMAP's points3D.bin that were seen in three photos or more, within a pixel."""
    data, offset, points = path.read_bytes(), 8, []
    for _ in range(struct.unpack_from("<Q", data)[0]):
        *position, error, length = struct.unpack_from("<8x3d3xdQ", data, offset)
        offset += 51 + 8 * length
        if error < 1 and length >= 3:
            points.append(position)
    return np.array(points)


def test_fern_is_as_deep_as_colmap_found_it(real_data):
    folder = real_data / "data" / "nerf_llff_data" / "fern"
    scene = llff.load(folder, factor=8)
    weights = real_data / "weights" / "fern_example" / "model_200000.npy"
    settings, fields = FieldSettings(use_viewdirs=True), []
    for path in (weights, tf1_weights.fine_path(weights)):
        mlp = build_mlp(settings, 0, "bfloat16")
        tf1_weights.assign(mlp, tf1_weights.load(path), path)
        fields.append(Field(mlp, settings, 16384))
    camera, c2w = scene.cameras[0].downscaled(12), scene.poses[0]
    image = Renderer(*fields, RenderSettings(64, 64), 0.0, 1.0, True, unit=scene.unit).image(camera, c2w)
    points = transform_points(np.linalg.inv(scene.to_dataset), sparse_points(folder / "sparse" / "0" / "points3D.bin"))
    x, y, z = ((points - c2w[:, 3]) @ c2w[:, :3]).T
    cols, rows = (camera.cx - camera.fx * x / z).round(), (camera.cy + camera.fy * y / z).round()
    inside = (z < 0) & (cols >= 0) & (cols < camera.width) & (rows >= 0) & (rows < camera.height)
    rendered = image.depth_z[rows[inside].astype(int), cols[inside].astype(int)]
    ratio = rendered / (-z[inside] * scene.unit)
    assert inside.sum() > 1000
    # Many of the points are behind leaves in this view, or share a pixel with one.
    assert abs(np.nanmedian(ratio) - 1) < 0.03
    assert np.nanmean(abs(ratio - 1) < 0.1) > 0.6
    bounds = np.load(folder / "poses_bounds.npy")[0, 15:]
    assert bounds[0] * 0.9 < np.nanmin(image.depth_z) < np.nanmax(image.depth_z) < bounds[1] * 1.5
