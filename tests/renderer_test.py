"""Coarse and fine passes, whole images and paths, with fields that are formulas."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.poses import spherical_pose
from nerf_tf.geometry.rays import Rays, image_rays
from nerf_tf.render.renderer import Renderer, RenderSettings, render_rays

RADIUS, DISTANCE, NEAR, FAR = 1.0, 4.0, 2.0, 6.0
CAMERA = Camera.centred(17, 23, 20.0)
POSE = spherical_pose(30.0, -20.0, DISTANCE).astype(np.float32)
OTHER_POSE = spherical_pose(-70.0, -50.0, DISTANCE).astype(np.float32)
COARSE_ONLY = RenderSettings(N_samples=32, perturb=0.0)
BOTH = RenderSettings(N_samples=24, N_importance=24, perturb=0.0)
RANDOM = RenderSettings(N_samples=8, N_importance=8, perturb=1.0, raw_noise_std=1.0)


def sphere(points: tf.Tensor, viewdirs: tf.Tensor, *_) -> tf.Tensor:
    """An opaque ball around the origin, coloured by where one looks at it from."""
    inside = tf.norm(points, axis=-1, keepdims=True) < RADIUS
    colour = tf.broadcast_to(2.0 * viewdirs[:, None, :], tf.shape(points))
    return tf.concat([colour, tf.where(inside, 1e4, 0.0)], axis=-1)


def fog(points: tf.Tensor, viewdirs: tf.Tensor, *_) -> tf.Tensor:
    """Something everywhere, different everywhere."""
    sigma = 0.4 + 0.3 * tf.sin(3.0 * tf.reduce_sum(points, axis=-1, keepdims=True))
    return tf.concat([tf.sin(points + viewdirs[:, None, :]), sigma], axis=-1)


def render(camera: Camera, c2w: np.ndarray, settings: RenderSettings, field=fog, fine=None, **kwargs):
    """One view."""
    return Renderer(field, fine, settings, NEAR, FAR, False).image(camera, c2w, **kwargs)


def some_rays(count: int = 40) -> Rays:
    return image_rays(CAMERA, POSE, NEAR, FAR, False, tf.range(count) * 9)


class Recorder:
    """A field that remembers the points it was asked for."""

    def __init__(self, field):
        self.field, self.points = field, []

    def __call__(self, points, viewdirs, visible_above=None):
        self.points.append(points.numpy())
        return self.field(points, viewdirs)

    def t_vals(self, rays: Rays) -> list[np.ndarray]:
        """Ray parameters of the points, one array [R, S] for each time it was asked."""
        directions = rays.directions.numpy()[:, None]
        scale = np.sum(directions**2, -1)
        return [np.sum((points - rays.origins.numpy()[:, None]) * directions, -1) / scale for points in self.points]


def hit(camera: Camera, c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ray parameter [H, W] where rays enter the ball, NaN for a miss, and distance [H, W] of rays from its centre."""
    rays = image_rays(camera, c2w, NEAR, FAR, False)
    o, d = rays.origins.numpy().astype(np.float64), rays.directions.numpy().astype(np.float64)
    a, b, c = np.sum(d * d, -1), np.sum(o * d, -1), np.sum(o * o, -1) - RADIUS**2
    with np.errstate(invalid="ignore"):
        t = (-b - np.sqrt(b * b - a * c)) / a
    offset = np.sqrt(np.maximum(np.sum(o * o, -1) - b * b / a, 0.0))
    return tuple(x.reshape(camera.height, camera.width) for x in (t, offset))


@pytest.mark.parametrize("settings", [RenderSettings(N_samples=129), BOTH], ids=["coarse", "both"])
def test_a_ball_has_the_right_outline_depth_and_colour(settings):
    image = render(CAMERA, POSE, settings, sphere)
    t, offset = hit(CAMERA, POSE)
    # At the rim the chord is shorter than the samples' distance.
    solid, clear = offset < 0.9 * RADIUS, offset > RADIUS
    assert solid.sum() > 40
    assert clear.sum() > 100
    np.testing.assert_allclose(image.acc[solid], 1.0, atol=1e-5)
    np.testing.assert_array_equal(image.acc[clear], 0.0)
    np.testing.assert_array_equal(image.disp[clear], 0.0)
    np.testing.assert_array_equal(image.rgb[clear], 0.0)
    # The first sample inside is at most one interval behind the surface, the fine pass's at most a few.
    behind = image.depth[solid] - t[solid]
    interval = (FAR - NEAR) / (settings.N_samples - 1)
    assert behind.min() >= -1e-4
    assert behind.max() <= interval + 1e-4
    np.testing.assert_allclose(image.disp[solid], 1.0 / image.depth[solid], rtol=1e-4)
    viewdirs = image_rays(CAMERA, POSE, NEAR, FAR, False).viewdirs.numpy().reshape(17, 23, 3)
    np.testing.assert_allclose(image.rgb[solid], 1 / (1 + np.exp(-2.0 * viewdirs[solid])), atol=1e-5)


def test_the_fine_pass_finds_the_surface_better_than_the_coarse_one():
    t, offset = hit(CAMERA, POSE)
    solid = offset < 0.9 * RADIUS
    settings = RenderSettings(N_samples=24, N_importance=64)
    both = render(CAMERA, POSE, settings, sphere).depth
    coarse = render(CAMERA, POSE, RenderSettings(N_samples=24), sphere).depth
    assert np.mean((both - t)[solid]) < 0.25 * np.mean((coarse - t)[solid])


def test_white_background():
    image = render(CAMERA, POSE, RenderSettings(N_samples=32, white_bkgd=True), sphere)
    _, offset = hit(CAMERA, POSE)
    np.testing.assert_array_equal(image.rgb[offset > RADIUS], 1.0)
    assert np.all(image.rgb[offset < 0.9 * RADIUS] < 0.95)


def test_lindisp_reaches_the_sampling():
    recorder = Recorder(fog)
    rays = some_rays()
    render_rays(recorder, None, rays, RenderSettings(N_samples=5, perturb=0.0, lindisp=True))
    expected = 1.0 / np.linspace(1 / NEAR, 1 / FAR, 5)
    np.testing.assert_allclose(recorder.t_vals(rays)[0], np.tile(expected, (40, 1)), rtol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "chunk"), [(3, 5, 1), (3, 5, 4), (3, 5, 15), (3, 5, 10**6), (4, 7, 9), (1, 1, 1)]
)
def test_an_image_is_what_render_rays_says_of_its_pixels_whatever_the_chunk(height, width, chunk):
    camera = Camera.centred(height, width, 5.0)
    settings = RenderSettings(N_samples=8, N_importance=8, chunk=chunk)
    chunks = []
    image = render(camera, POSE, settings, progress=chunks.append)
    rays = image_rays(camera, POSE, NEAR, FAR, False)
    fine, coarse, z_std, _ = render_rays(fog, None, rays, settings.deterministic())
    expected = [fine.rgb, fine.disp, fine.acc, fine.depth, coarse.rgb, coarse.disp, coarse.acc, z_std]
    for a, b in zip(image, expected, strict=True):
        assert a.dtype == np.float32
        assert a.shape[:2] == (height, width)
        np.testing.assert_allclose(a.reshape(b.shape), b, atol=1e-5)
    assert sum(chunks) == height * width
    assert max(chunks) <= chunk


def test_without_importance_samples_there_is_one_pass():
    recorder = Recorder(fog)
    result = render_rays(recorder, None, some_rays(), COARSE_ONLY)
    assert (result.coarse, result.z_std, result.raw) == (None, None, None)
    assert [points.shape for points in recorder.points] == [(40, 32, 3)]
    image = render(CAMERA, POSE, COARSE_ONLY)
    assert (image.rgb0, image.disp0, image.acc0, image.z_std) == (None,) * 4


def test_without_a_fine_network_the_coarse_one_is_asked_twice():
    recorder = Recorder(fog)
    result = render_rays(recorder, None, some_rays(), BOTH)
    assert [points.shape[1] for points in recorder.points] == [24, 48]
    both = render_rays(fog, fog, some_rays(), BOTH)
    np.testing.assert_array_equal(result.fine.rgb, both.fine.rgb)


def test_with_a_fine_network_each_is_asked_once():
    coarse, fine = Recorder(sphere), Recorder(fog)
    result = render_rays(coarse, fine, some_rays(), BOTH, keep_raw=True)
    assert [points.shape[1] for points in coarse.points + fine.points] == [24, 48]
    np.testing.assert_allclose(
        result.coarse.rgb, render_rays(sphere, None, some_rays(), RenderSettings(24, perturb=0.0)).fine.rgb, atol=1e-6
    )
    np.testing.assert_array_equal(result.raw, fog(tf.constant(fine.points[0]), some_rays().viewdirs))


def test_fine_samples_join_the_coarse_ones_in_order():
    rays = some_rays()
    coarse, fine = Recorder(sphere), Recorder(sphere)
    result = render_rays(coarse, fine, rays, BOTH)
    (first,), (merged,) = coarse.t_vals(rays), fine.t_vals(rays)
    assert np.all(np.diff(merged) >= -1e-5)
    for ray in range(40):
        nearest = np.abs(first[ray][:, None] - merged[ray]).argmin(axis=1)
        np.testing.assert_allclose(merged[ray][nearest], first[ray], atol=1e-5)
        new = np.delete(merged[ray], nearest)
        np.testing.assert_allclose(result.z_std[ray], new.std(), atol=1e-4)


def test_fine_samples_follow_the_inner_weights_of_the_coarse_pass():
    # The weights of the first and last samples have no bin, as in the original: all of them between the midpoints.
    rays = some_rays()
    coarse, fine = Recorder(lambda points, *_: tf.ones([*points.shape[:2], 4])), Recorder(fog)
    settings = RenderSettings(N_samples=16, N_importance=400, perturb=0.0)
    weights = render_rays(coarse, fine, rays, settings).coarse.weights.numpy()[:, 1:-1] + 1e-5
    (first,), (merged,) = coarse.t_vals(rays), fine.t_vals(rays)
    middle = 0.5 * (first[:, 1:] + first[:, :-1])
    for ray in range(0, 40, 7):
        counts = np.histogram(merged[ray], bins=middle[ray])[0] - 1  # but for the coarse sample in each
        np.testing.assert_allclose(counts, 400 * weights[ray] / weights[ray].sum(), atol=2.5)


def test_the_fine_loss_does_not_reach_the_coarse_network():
    density = {"coarse": tf.Variable(0.5), "fine": tf.Variable(0.7)}

    def field(name: str, points: tf.Tensor, viewdirs: tf.Tensor, _) -> tf.Tensor:
        return fog(points, viewdirs) * density[name]

    with tf.GradientTape(persistent=True) as tape:
        result = render_rays(*(functools.partial(field, name) for name in density), some_rays(), BOTH)
        fine_loss, coarse_loss = tf.reduce_sum(result.fine.rgb), tf.reduce_sum(result.coarse.rgb)
    assert tape.gradient(fine_loss, density["coarse"]) is None
    assert tape.gradient(coarse_loss, density["fine"]) is None
    assert np.abs(tape.gradient(fine_loss, density["fine"])) > 0
    assert np.abs(tape.gradient(coarse_loss, density["coarse"])) > 0


def test_raw_is_kept_only_when_asked_for():
    rays = some_rays()
    assert render_rays(fog, None, rays, BOTH).raw is None
    assert render_rays(fog, None, rays, BOTH, keep_raw=True).raw.shape == (40, 48, 4)
    recorder = Recorder(fog)
    raw = render_rays(recorder, None, rays, COARSE_ONLY, keep_raw=True).raw
    np.testing.assert_array_equal(raw, fog(tf.constant(recorder.points[0]), rays.viewdirs))


@pytest.mark.parametrize("settings", [RenderSettings(perturb=1.0), RenderSettings(perturb=0.0, raw_noise_std=0.5)])
def test_randomness_wants_a_seed(settings):
    with pytest.raises(ValueError, match="without a seed"):
        render_rays(fog, None, some_rays(), settings)
    assert render_rays(fog, None, some_rays(), settings.deterministic()).fine.rgb.shape == (40, 3)


@pytest.mark.parametrize(
    "settings",
    [RenderSettings(8, 0, 1.0), RenderSettings(8, 0, 0.0, 1.0), RANDOM],
    ids=["jitter", "noise", "all of it"],
)
def test_the_seed_decides_the_result(settings):
    one, again, other = (render_rays(fog, None, some_rays(), settings, tf.constant([3, n])).fine for n in (1, 1, 2))
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(one.rgb - other.rgb).max() > 1e-3


def test_every_ray_and_sample_has_its_own_draw():
    recorder = Recorder(fog)
    rays = some_rays()
    render_rays(recorder, None, rays, RANDOM, tf.constant([3, 1]))
    first, merged = recorder.t_vals(rays)
    assert len(np.unique(first.round(5))) > 0.99 * first.size
    assert len(np.unique(merged.round(5))) > 0.95 * merged.size
    assert np.all(np.diff(merged) >= -1e-5)


def test_noise_leaves_the_jitter_as_it_is():
    quiet, noisy = Recorder(fog), Recorder(fog)
    render_rays(quiet, None, some_rays(), RenderSettings(8, 0, 1.0, 0.0), tf.constant([3, 1]))
    render_rays(noisy, None, some_rays(), RenderSettings(8, 8, 1.0, 1.0), tf.constant([3, 1]))
    np.testing.assert_array_equal(quiet.points[0], noisy.points[0])


def test_noise_has_the_given_deviation_and_differs_between_passes():
    rays = tf.nest.map_structure(lambda x: tf.repeat(x[:1], 4000, axis=0), some_rays())
    rays = rays._replace(near=0.0 * rays.near, far=rays.far / rays.far)
    settings = RenderSettings(N_samples=3, N_importance=2, perturb=0.0, raw_noise_std=0.5)
    result = render_rays(
        lambda points, *_: 3.0 * tf.ones([*points.shape[:2], 4]), None, rays, settings, tf.constant([3, 1])
    )
    length = np.linalg.norm(rays.directions[0])
    # Samples lie at 0, .5, 1, and in the fine pass at .25 and .75 too: the first alpha tells the first density.
    coarse = -np.log(1.0 - result.coarse.weights[:, 0].numpy()) / (0.5 * length)
    fine = -np.log(1.0 - result.fine.weights[:, 0].numpy()) / (0.25 * length)
    for sigma in (coarse, fine):
        np.testing.assert_allclose([sigma.mean(), sigma.std()], [3.0, 0.5], atol=0.04)
    # One stream cut into 3 a ray and into 5 a ray would give the same draw to the rays 5n and 3n.
    assert np.abs(np.corrcoef(coarse[::5], fine[::3][:800])[0, 1]) < 0.15


def test_deterministic_settings_keep_everything_but_randomness():
    settings = RenderSettings(5, 6, 1.0, 2.0, True, True, 7)
    assert settings.deterministic() == RenderSettings(5, 6, 0.0, 0.0, True, True, 7)


def test_images_have_no_randomness_whatever_the_settings():
    camera = Camera.centred(4, 5, 5.0)
    quiet = render(camera, POSE, RANDOM.deterministic())
    for _ in range(2):
        for a, b in zip(render(camera, POSE, RANDOM), quiet, strict=True):
            np.testing.assert_array_equal(a, b)


def test_eager_equals_graph():
    camera = Camera.centred(5, 7, 6.0)
    graph = render(camera, POSE, BOTH)
    tf.config.run_functions_eagerly(True)
    try:
        eager = render(camera, POSE, BOTH)
    finally:
        tf.config.run_functions_eagerly(False)
    for a, b in zip(graph, eager, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_images_of_one_shape_share_one_trace():
    renderer = Renderer(fog, None, RenderSettings(N_samples=4, N_importance=4, chunk=10), NEAR, FAR, False)
    renderer.image(Camera.centred(5, 7, 6.0), POSE)
    renderer.image(Camera(5, 7, 9.0, 8.0, 3.0, 2.0), OTHER_POSE)
    renderer.image(Camera.centred(5, 7, 6.0), POSE, c2w_viewdirs=OTHER_POSE)
    assert renderer._render_chunk.experimental_get_tracing_count() == 1


def test_another_pose_for_viewdirs_changes_colour_only():
    plain = render(CAMERA, POSE, BOTH, sphere)
    still = render(CAMERA, POSE, BOTH, sphere, c2w_viewdirs=OTHER_POSE)
    for name in ("disp", "acc", "depth", "disp0", "acc0", "z_std"):
        np.testing.assert_array_equal(getattr(still, name), getattr(plain, name))
    _, offset = hit(CAMERA, POSE)
    solid = offset < 0.9 * RADIUS
    viewdirs = image_rays(CAMERA, OTHER_POSE, NEAR, FAR, False).viewdirs.numpy().reshape(17, 23, 3)
    np.testing.assert_allclose(still.rgb[solid], 1 / (1 + np.exp(-2.0 * viewdirs[solid])), atol=1e-5)
    assert np.abs(still.rgb - plain.rgb)[solid].max() > 0.1
    np.testing.assert_array_equal(still.rgb[offset > RADIUS], plain.rgb[offset > RADIUS])


def test_ndc_rays_reach_the_field():
    # All samples lie in the cube that NDC makes of the frustum.
    seen = Recorder(fog)
    camera = Camera.centred(4, 6, 5.0)
    rays = image_rays(camera, np.eye(3, 4, dtype=np.float32), 0.0, 1.0, True)
    expected = render_rays(seen, None, rays, COARSE_ONLY)
    assert np.abs(seen.points[0]).max() <= 1.0 + 1e-5
    image = Renderer(fog, None, COARSE_ONLY, 0.0, 1.0, True).image(camera, np.eye(3, 4, dtype=np.float32))
    np.testing.assert_allclose(image.rgb.reshape(-1, 3), expected.fine.rgb, atol=1e-5)


def test_a_path_renders_every_view_with_its_own_camera_and_pose():
    cameras = [Camera.centred(3, 4, 5.0), Camera.centred(5, 2, 6.0)]
    poses = np.stack([POSE, OTHER_POSE])
    renderer = Renderer(fog, None, COARSE_ONLY, NEAR, FAR, False)
    images = list(renderer.path(cameras, poses))
    for image, camera, pose in zip(images, cameras, poses, strict=True):
        np.testing.assert_allclose(image.rgb, renderer.image(camera, pose).rgb, atol=1e-6)
    still = list(renderer.path(cameras, poses[[0, 0]], poses))[1]
    expected = renderer.image(cameras[1], POSE, c2w_viewdirs=OTHER_POSE)
    np.testing.assert_allclose(still.rgb, expected.rgb, atol=1e-6)


def test_a_path_renders_views_only_when_they_are_taken():
    asked = []

    def counting(points, viewdirs, _):
        tf.py_function(lambda: asked.append(1), [], [])
        return fog(points, viewdirs)

    views = Renderer(counting, None, COARSE_ONLY, NEAR, FAR, False).path([Camera.centred(2, 2, 5.0)] * 3, [POSE] * 3)
    next(views)
    assert len(asked) == 1
    views.close()


def test_memory_does_not_grow_with_the_image(peak_memory):
    renderer = Renderer(fog, None, RenderSettings(16, 16, chunk=1024), NEAR, FAR, False)
    peaks = {}
    for side in (32, 128):
        view = functools.partial(renderer.image, Camera.centred(side, side, 30.0), POSE)
        view()
        peaks[side] = peak_memory(view)
    assert peaks[128] < 1.2 * peaks[32], peaks
