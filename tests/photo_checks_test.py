"""Exposure and sharpness of photos: warnings where they are bad, none where they are good."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scene_checks_test import a_scene, one, ring

from nerf_tf.captures import scene_points
from nerf_tf.data import blender, deepvoxels, llff
from nerf_tf.safety import photo_checks

NAMES = [f"{i:03d}.png" for i in range(30)]


@pytest.fixture
def photos() -> np.ndarray:
    """Photos [30, 40, 50, 3] of noise whose light differs by a tenth of a stop."""
    rng = np.random.default_rng(0)
    light = np.exp2(0.1 * rng.normal(size=30)) ** (1 / 2.2)
    return np.float32(light[:, None, None, None] * rng.uniform(0.1, 0.6, (30, 40, 50, 3)))


def exposed(photos: np.ndarray, stops: np.ndarray) -> list[str]:
    images = np.clip(photos * np.exp2(stops / 2.2)[:, None, None, None].astype(np.float32), 0, 1)
    return photo_checks.check_exposure(photo_checks.brightness_stops(images), NAMES)


def test_stops_are_of_light(photos):
    stops = photo_checks.brightness_stops(np.stack([photos[0] * np.float32(2 ** (k / 2.2)) for k in (-1, 0, 1)]))
    np.testing.assert_allclose(stops, [-1, 0, 1], atol=1e-4)


def test_photos_that_get_darker(photos):
    assert not exposed(photos, np.zeros(30))
    message = one(exposed(photos, np.linspace(0, -1.5, 30)))
    assert message.startswith("the last third of the photos is 1.")
    assert " stops darker than the first" in message
    assert "brighter" in one(exposed(photos, np.where(np.arange(30) < 15, 0.0, 0.8)))
    assert not exposed(photos, np.linspace(0, 0.3, 30))


def test_exposure_is_told_by_points_where_photos_show_different_things():
    """A walk around a room that is bright on one side; in the second half the camera lets in a stop less."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(900, 3)) * [3.0, 3.0, 1.0]
    points *= 3.0 / np.linalg.norm(points[:, :2], axis=-1, keepdims=True)
    light = 0.1 * np.exp2(1.5 * points[:, 0] / 3.0 + rng.normal(size=900) * 0.2)
    poses = ring(5.0, 0.5, 24)
    poses[:, :, [0, 2]] *= -1  # from the middle outwards
    scene = a_scene(poses, 0.1, 10.0)
    exposure = np.where(np.arange(24) < 12, 0.0, -1.0)
    for view, image in enumerate(scene.images):
        rows, cols, _ = scene_points.pixels_in_image(scene.cameras[view], scene.poses[view], points)
        seen = np.flatnonzero(np.isfinite(rows))
        values = (light[seen] * np.exp2(exposure[view])) ** (1 / 2.2)
        image[rows[seen].astype(int), cols[seen].astype(int)] = values[:, None]
    stops = photo_checks.exposure_of_points(scene, points)
    np.testing.assert_allclose(stops - stops[0], exposure, atol=0.1)
    assert "1.0 stops darker" in one(photo_checks.check_exposure(stops, NAMES[:24]))
    assert np.isnan(photo_checks.exposure_of_points(scene, points[:5])).all()
    assert photo_checks.check_exposure(np.full(24, np.nan), NAMES[:24]) == []


def test_one_photo_of_another_exposure_is_named(photos):
    stops = np.zeros(30)
    stops[[0, 17]] = [1.0, -1.2]
    assert one(exposed(photos, stops)).startswith("000.png and 017.png: exposed otherwise than the photos before")


def test_few_photos_show_no_drift():
    assert photo_checks.check_exposure(np.array([0.0, 1.0, 2.0]), NAMES) == []


def blurred(photos: np.ndarray, chosen: list[int], radius: float) -> np.ndarray:
    images = photos.copy()
    for i in chosen:
        image = Image.fromarray(np.uint8(255 * images[i])).filter(ImageFilter.GaussianBlur(radius))
        images[i] = np.float32(np.asarray(image)) / 255
    return images


def test_blurred_photos_are_named(photos):
    images = blurred(photos, [3, 8], 1.0)
    relative = photo_checks.relative_sharpness(images)
    message = one(photo_checks.check_sharpness(relative, NAMES))
    assert message.startswith("003.png and 008.png: are blurred (sharpness 0.0")
    assert not photo_checks.check_sharpness(photo_checks.relative_sharpness(photos), NAMES)
    # All blurred alike: nothing tells that there could be more.
    assert not photo_checks.check_sharpness(photo_checks.relative_sharpness(blurred(photos, [*range(30)], 1.0)), NAMES)
    assert (photo_checks.relative_sharpness(np.zeros([3, 5, 5, 3], np.float32)) == 1).all()


def test_sharpness_of_bytes_is_that_of_floats(photos):
    pixels = np.uint8(255 * photos[0])
    assert photo_checks.sharpness(pixels) == pytest.approx(255**2 * photo_checks.sharpness(pixels / 255.0))


def test_the_authors_photos_are_all_right(real_data):
    data = real_data / "data"
    for scene in (
        llff.load(data / "nerf_llff_data" / "fern", factor=8),
        blender.load(data / "nerf_synthetic" / "lego", half_res=True, testskip=96, white_bkgd=True),
    ):
        stops, relative = photo_checks.brightness_stops(scene.images), photo_checks.relative_sharpness(scene.images)
        assert photo_checks.check_exposure(stops, scene.names) == []
        assert photo_checks.check_sharpness(relative, scene.names) == []


def test_the_built_in_scene_is_all_right(tool, tmp_path):
    still_life = tool("still_life")
    scenes = [
        blender.load(still_life.write_blender(tmp_path / "blender", 16, 16, 16, 2, 2), white_bkgd=True),
        llff.load(still_life.write_llff(tmp_path / "llff", 16, 20, 12), 1),
        deepvoxels.load(still_life.write_deepvoxels(tmp_path / "deepvoxels", "greek", 12, 2, 2, side=16), "greek"),
    ]
    for scene in scenes:
        stops, relative = photo_checks.brightness_stops(scene.images), photo_checks.relative_sharpness(scene.images)
        assert photo_checks.check_exposure(stops, scene.names) == []
        assert photo_checks.check_sharpness(relative, scene.names) == []
