"""Ray batches: their rays, each with the colour of its own pixel."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from nerf_tf.data.pipeline import BatchSettings, ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.geometry.camera import Camera

# Colours count (image, row, column) in this step, which float32 holds exactly.
UNIT = 2.0**-12


def turned_pose(angle: float, centre: tuple[float, float, float]) -> np.ndarray:
    """A camera turned around y and then x by the same angle."""
    c, s = np.cos(angle), np.sin(angle)
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return np.column_stack([about_x @ about_y, centre]).astype(np.float32)


def make_scene(images: int = 3, height: int = 5, width: int = 7, i_train: list[int] | None = None) -> Scene:
    """Photos whose colours tell image, row and column; each camera has a place, a turn and intrinsics of its own."""
    grid = np.stack(np.meshgrid(*map(np.arange, (images, height, width)), indexing="ij"), axis=-1)
    indices = np.arange(images)
    return Scene(
        images=(grid * UNIT).astype(np.float32),
        poses=np.stack([turned_pose(0.3 * i, (i + 1, 2 * i, 3 - i)) for i in indices]),
        cameras=tuple(Camera(height, width, 5 + i, 6 + 2 * i, width / 2 + i, height / 2 - i) for i in indices),
        near=2.0,
        far=6.0,
        ndc=False,
        i_train=indices if i_train is None else np.array(i_train),
        i_val=indices[:1],
        i_test=indices[:1],
        render_poses=np.zeros([0, 3, 4], np.float32),
    )


def take(scene: Scene, settings: BatchSettings, count: int, seed: int = 0, first_step: int = 0) -> list:
    return list(ray_batches(scene, settings, seed, first_step).take(count).as_numpy_iterator())


def pixels_of(batch) -> np.ndarray:
    """[N_rand, 3] image, row and column that a batch's colours tell."""
    return np.rint(batch.rgb / UNIT).astype(int)


def unique(pixels: np.ndarray) -> np.ndarray:
    return np.unique(pixels, axis=0)


def all_pixels(scene: Scene) -> np.ndarray:
    return np.array(list(itertools.product(*map(range, scene.images.shape[:3]))))


MODES = [BatchSettings(N_rand=8), BatchSettings(N_rand=8, no_batching=True, precrop_iters=2, precrop_frac=1.0)]


# Rays and colours


@pytest.mark.parametrize("settings", MODES)
@pytest.mark.parametrize(("height", "width"), [(5, 7), (4, 6), (3, 9), (8, 1)])
def test_colours_belong_to_their_rays(settings, height, width):
    scene = make_scene(height=height, width=width)
    settings = dataclasses.replace(settings, precrop_iters=0)
    for batch in take(scene, settings, 4):
        image, row, col = pixels_of(batch).T
        assert row.max() < height
        assert col.max() < width
        cameras = [scene.cameras[i] for i in image]
        fx, fy, cx, cy = (np.array([getattr(c, name) for c in cameras]) for name in ("fx", "fy", "cx", "cy"))
        in_camera = np.stack([(col - cx) / fx, -(row - cy) / fy, -np.ones(len(col))], axis=-1)
        directions = np.einsum("rij,rj->ri", scene.poses[image, :, :3], in_camera)
        np.testing.assert_array_equal(batch.rays.origins, scene.poses[image, :, 3])
        np.testing.assert_allclose(batch.rays.directions, directions, atol=1e-5)
        np.testing.assert_allclose(
            batch.rays.viewdirs, directions / np.linalg.norm(directions, axis=-1, keepdims=True), atol=1e-6
        )
        assert np.unique(batch.rays.near) == scene.near
        assert np.unique(batch.rays.far) == scene.far


@pytest.mark.parametrize("no_batching", [False, True])
def test_ndc_rays_run_from_the_near_plane_to_infinity(no_batching):
    scene = make_scene(images=2)
    scene = dataclasses.replace(
        scene, near=0.0, far=1.0, ndc=True, poses=np.stack([turned_pose(0.1 * i, (i, 0.2, 0.5)) for i in range(2)])
    )
    (batch,) = take(scene, BatchSettings(N_rand=30, no_batching=no_batching), 1)
    image, row, col = pixels_of(batch).T
    height, width = scene.images.shape[1:3]
    fx, fy, cx, cy = (np.array([getattr(scene.cameras[i], name) for i in image]) for name in ("fx", "fy", "cx", "cy"))
    in_camera = np.stack([(col - cx) / fx, -(row - cy) / fy, -np.ones(len(col))], axis=-1)
    d = np.einsum("rij,rj->ri", scene.poses[image, :, :3], in_camera)
    o = scene.poses[image, :, 3]
    p = o + ((-1 - o[:, 2]) / d[:, 2])[:, None] * d  # where the ray crosses the plane z = -1
    start = np.stack([-2 * fx / width * p[:, 0] / p[:, 2], -2 * fy / height * p[:, 1] / p[:, 2], 1 + 2 / p[:, 2]], -1)
    end = np.stack([-2 * fx / width * d[:, 0] / d[:, 2], -2 * fy / height * d[:, 1] / d[:, 2], np.ones(len(d))], -1)
    np.testing.assert_allclose(batch.rays.origins, start, atol=1e-5)
    np.testing.assert_allclose(batch.rays.origins + batch.rays.directions, end, atol=1e-5)
    np.testing.assert_allclose(batch.rays.viewdirs, d / np.linalg.norm(d, axis=-1, keepdims=True), atol=1e-6)
    assert np.unique(batch.rays.near) == 0
    assert np.unique(batch.rays.far) == 1


@pytest.mark.parametrize("settings", MODES)
def test_only_training_images_are_used(settings):
    scene = make_scene(images=5, i_train=[4, 1])
    batches = take(scene, settings, 20)
    assert set(np.concatenate([pixels_of(batch)[:, 0] for batch in batches])) == {1, 4}
    for batch in batches:  # images are renumbered inside; poses have to follow
        np.testing.assert_array_equal(batch.rays.origins, scene.poses[pixels_of(batch)[:, 0], :, 3])


@pytest.mark.parametrize("settings", MODES)
def test_shapes_are_static(settings):
    spec = ray_batches(make_scene(), settings, seed=0).element_spec
    assert [tuple(field.shape) for field in (*spec.rays, spec.rgb)] == [(8, 3), (8, 3), (8, 3), (8, 1), (8, 1), (8, 3)]
    assert {field.dtype.name for field in (*spec.rays, spec.rgb)} == {"float32"}


# A pure function of (seed, step)


@pytest.mark.parametrize("settings", MODES)
def test_a_stream_can_start_anywhere(settings):
    scene = make_scene()  # 105 rays: 13 batches in an epoch, so this crosses into the third
    whole = take(scene, settings, 30, seed=3)
    for first_step in (1, 2, 12, 13, 14, 26, 29):
        for expected, batch in zip(whole[first_step:], take(scene, settings, 4, 3, first_step), strict=False):
            np.testing.assert_array_equal(batch.rgb, expected.rgb)
            for a, b in zip(batch.rays, expected.rays, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("settings", MODES)
def test_seeds_give_different_streams(settings):
    scene = make_scene()
    streams = [np.stack([batch.rgb for batch in take(scene, settings, 4, seed)]) for seed in (0, 1, 2**31, 2**32 - 1)]
    for a, b in itertools.combinations(streams, 2):
        assert (a != b).any(axis=(1, 2)).all()


@pytest.mark.parametrize("settings", MODES)
def test_a_large_seed_draws_as_well_as_any(settings):
    scene = make_scene()
    pixels = np.concatenate([pixels_of(batch) for batch in take(scene, settings, 100, seed=2**32 - 1)])
    np.testing.assert_array_equal(unique(pixels), all_pixels(scene))


# Batches from all images


def test_an_epoch_holds_every_ray_once():
    scene = make_scene()
    batches = [pixels_of(batch) for batch in take(scene, BatchSettings(N_rand=15), 14)]
    for epoch in (batches[:7], batches[7:]):
        np.testing.assert_array_equal(unique(np.concatenate(epoch)), all_pixels(scene))


def test_the_short_last_batch_is_dropped():
    scene = make_scene()
    batches = [pixels_of(batch) for batch in take(scene, BatchSettings(N_rand=50), 40)]
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert len(unique(np.concatenate([first, second]))) == 100
    # Which five rays an epoch leaves out changes, so none is left out for good.
    np.testing.assert_array_equal(unique(np.concatenate(batches)), all_pixels(scene))


def test_one_batch_may_be_a_whole_epoch():
    scene = make_scene()
    for batch in take(scene, BatchSettings(N_rand=105), 2):
        np.testing.assert_array_equal(unique(pixels_of(batch)), all_pixels(scene))


def test_epochs_come_in_different_orders():
    batches = [pixels_of(batch) for batch in take(make_scene(), BatchSettings(N_rand=105), 4)]
    for a, b in itertools.combinations(batches, 2):
        assert (a != b).any(axis=1).mean() > 0.9


def test_neighbours_in_the_shuffled_order_are_unrelated():
    # As many rays as a real scene has: the shuffle's default of 4 rounds shows at this size, 20 to 40 sigma.
    scene = make_scene(images=4, height=1024, width=1024)
    (batch,) = take(scene, BatchSettings(N_rand=8192), 1)
    image, row, col = pixels_of(batch).T
    index = (image * 1024 + row) * 1024.0 + col
    for lag in (1, 2, 4, 256):
        correlation = np.corrcoef(index[:-lag], index[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(len(index)), lag
    per_image = np.bincount(image, minlength=4)
    assert np.abs(per_image - 2048).max() < 5 * np.sqrt(2048)


# Batches from one image


def test_a_batch_holds_different_pixels_of_one_image():
    for batch in take(make_scene(), BatchSettings(N_rand=35, no_batching=True), 10):
        pixels = pixels_of(batch)
        assert len(set(pixels[:, 0])) == 1
        assert len(unique(pixels)) == 35


def test_images_are_chosen_evenly():
    scene = make_scene(images=4, height=2, width=2)
    settings = BatchSettings(N_rand=1, no_batching=True)
    chosen = np.array([pixels_of(batch)[0, 0] for batch in take(scene, settings, 1000)])
    counts = np.bincount(chosen, minlength=4)
    assert ((counts - 250) ** 2 / 250).sum() < 16.3  # chi squared, 3 degrees of freedom, 0.1 %
    # The next image does not depend on this one.
    pairs = np.bincount(4 * chosen[:-1] + chosen[1:], minlength=16)
    assert ((pairs - 999 / 16) ** 2 / (999 / 16)).sum() < 37.7  # 15 degrees


def test_pixels_are_drawn_evenly():
    scene = make_scene(images=1, height=6, width=7)
    settings = BatchSettings(N_rand=5, no_batching=True)
    pixels = np.concatenate([pixels_of(batch) for batch in take(scene, settings, 1000)])
    counts = np.bincount(pixels[:, 1] * 7 + pixels[:, 2], minlength=42)
    expected = 5000 / 42
    assert ((counts - expected) ** 2 / expected).sum() < 74.7  # 41 degrees, 0.1 %


@pytest.mark.parametrize(
    ("height", "width", "frac", "rows", "cols"),
    [
        (10, 12, 0.5, range(3, 7), range(3, 9)),
        (9, 13, 0.5, range(2, 6), range(3, 9)),
        (9, 7, 0.7, range(2, 6), range(1, 5)),
        (8, 8, 1.0, range(8), range(8)),
        (9, 9, 1.0, range(8), range(8)),
    ],
)
def test_first_steps_see_the_centre_only(height, width, frac, rows, cols):
    scene = make_scene(images=2, height=height, width=width)
    window = np.array(list(itertools.product(rows, cols)))
    settings = BatchSettings(N_rand=len(window), no_batching=True, precrop_iters=3, precrop_frac=frac)
    batches = [pixels_of(batch)[:, 1:] for batch in take(scene, settings, 60)]
    for batch in batches[:3]:  # as many rays as the centre has pixels, so each comes once
        np.testing.assert_array_equal(unique(batch), window)
    later = np.concatenate(batches[3:])
    np.testing.assert_array_equal(unique(later), list(itertools.product(range(height), range(width))))


def test_the_centre_is_drawn_from_at_random():
    settings = BatchSettings(N_rand=4, no_batching=True, precrop_iters=1000, precrop_frac=0.5)
    scene = make_scene(images=1, height=8, width=8)
    batches = [pixels_of(batch)[:, 1:] for batch in take(scene, settings, 60)]
    assert all(len(unique(batch)) == 4 for batch in batches)
    np.testing.assert_array_equal(unique(np.concatenate(batches)), list(itertools.product(range(2, 6), range(2, 6))))


def test_the_crop_only_counts_without_batching():
    settings = BatchSettings(N_rand=105, precrop_iters=10, precrop_frac=0.2)
    (batch,) = take(make_scene(), settings, 1)
    assert len(unique(pixels_of(batch))) == 105


def test_resuming_after_the_crop_sees_whole_images():
    settings = BatchSettings(N_rand=16, no_batching=True, precrop_iters=5, precrop_frac=0.5)
    scene = make_scene(images=1, height=8, width=8)
    pixels = np.concatenate([pixels_of(batch) for batch in take(scene, settings, 30, first_step=5)])
    assert len(unique(pixels)) == 64


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BatchSettings(N_rand=106), "N_rand 106 .* 105 rays"),
        (BatchSettings(N_rand=36, no_batching=True), "N_rand 36 .* 35 pixels of an image"),
        (
            BatchSettings(N_rand=9, no_batching=True, precrop_iters=1, precrop_frac=0.5),
            "N_rand 9 .* 4 pixels of the centre crop.* precrop_frac",
        ),
    ],
)
def test_too_many_rays_in_a_batch(settings, message):
    with pytest.raises(ValueError, match=message):
        ray_batches(make_scene(), settings, seed=0)


@pytest.mark.parametrize("settings", MODES)
def test_no_training_images(settings):
    with pytest.raises(ValueError, match="no training images"):
        ray_batches(make_scene(i_train=[]), settings, seed=0)
