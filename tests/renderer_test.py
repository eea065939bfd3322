"""Coarse and fine passes, whole images and paths, with fields that are formulas."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.paths import spherical_pose
from nerf_tf.geometry.rays import Rays, image_rays
from nerf_tf.render.passes import RenderSettings, coarse_pass, fine_pass, make_draws, render_rays
from nerf_tf.render.renderer import Renderer

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
    """A field that remembers the points it was asked for, and the densities above which they are seen."""

    def __init__(self, field):
        self.field, self.points, self.visible_above = field, [], []

    def __call__(self, points, viewdirs, visible_above=None):
        self.points.append(points.numpy())
        self.visible_above.append(None if visible_above is None else visible_above.numpy())
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
    for a, b in zip(image[: len(expected)], expected, strict=True):
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


@pytest.mark.parametrize(("N_samples", "N_importance", "least"), [(0, 0, 1), (1, 1, 3), (2, 4, 3)])
def test_too_few_samples_are_refused(N_samples, N_importance, least):
    """A fine pass draws by the weights of samples with neighbours; TensorFlow would fail somewhere within."""
    with pytest.raises(
        ValueError, match=f"N_samples {N_samples}, N_importance {N_importance}: expected {least} or more"
    ):
        RenderSettings(N_samples, N_importance)
    assert (
        render_rays(sphere, None, some_rays(), RenderSettings(least, N_importance, perturb=0.0)).fine.rgb.shape[1] == 3
    )


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


SEED = tf.constant([3, 1])


def draws(settings: RenderSettings, rays: Rays, first_ray: int | tf.Tensor = 0, seed=SEED) -> dict[str, np.ndarray]:
    """Everything random about both passes over some rays: samples of t, and noise."""
    recorder = Recorder(fog)
    made = make_draws(settings, seed, rays.near.shape[0], first_ray)
    first = coarse_pass(recorder, rays, settings, made.coarse)
    final, _ = fine_pass(recorder, rays, first, settings, made.fine)
    coarse_noise, fine_noise = (-limits for limits in recorder.visible_above)
    return {
        "jitter": first.t_vals.numpy(),
        "importance": final.t_vals.numpy(),
        "coarse noise": coarse_noise,
        "fine noise": fine_noise,
    }


@pytest.mark.parametrize(("N_samples", "N_importance"), [(8, 4), (7, 6), (9, 2), (6, 7), (4, 1), (3, 3), (5, 128)])
@pytest.mark.parametrize(("first", "last"), [(5, 10), (0, 1), (19, 20), (3, 20)])
def test_a_rays_draws_do_not_depend_on_its_chunk(N_samples, N_importance, first, last):
    settings = RenderSettings(N_samples, N_importance, perturb=1.0, raw_noise_std=0.7)
    rays = some_rays(20)
    together = draws(settings, rays)
    assert together["coarse noise"].shape == (20, N_samples)
    assert together["fine noise"].shape == together["importance"].shape == (20, N_samples + N_importance)
    chunk = tf.nest.map_structure(lambda x: x[first:last], rays)
    for name, values in draws(settings, chunk, first).items():
        # A sample's place also comes out of sums, whose rounding may depend on the number of rays.
        tolerance = 1e-5 if name == "importance" else 0.0
        np.testing.assert_allclose(values, together[name][first:last], rtol=tolerance, err_msg=name)


def test_a_chunks_first_ray_may_be_known_only_to_tensorflow():
    rays = tf.nest.map_structure(lambda x: x[:4], some_rays())
    settings = RenderSettings(7, 5, perturb=1.0, raw_noise_std=1.0)

    @tf.function
    def render_from(first_ray):
        made = make_draws(settings, SEED, 4, first_ray)
        first = coarse_pass(fog, rays, settings, made.coarse)
        return first.t_vals, fine_pass(fog, rays, first, settings, made.fine)[0].rendering.weights

    for first_ray in (0, 11):
        expected = render_from.python_function(first_ray)
        for a, b in zip(render_from(tf.constant(first_ray)), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert render_from.experimental_get_tracing_count() == 1


def many_rays(count: int) -> Rays:
    """One ray, many times, with t from 0 to 1."""
    rays = tf.nest.map_structure(lambda x: tf.repeat(x[:1], count, axis=0), some_rays())
    return rays._replace(near=0.0 * rays.near, far=rays.far / rays.far)


def assert_independent(values: np.ndarray) -> None:
    """Neither samples of a ray nor neighbouring rays have to do with each other; `values` [R, S]."""
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    bound = 5.0 / np.sqrt(len(values))
    correlation = np.corrcoef(values.T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < bound
    for lag in (1, 2, 3, 4):
        assert np.abs(np.mean(values[lag:] * values[:-lag], axis=0)).max() < bound
        # Blocks that overlap would give a ray the next one's numbers, shifted.
        for shift in range(1, values.shape[1]):
            assert np.abs(np.mean(values[lag:, :-shift] * values[:-lag, shift:], axis=0)).max() < bound


@pytest.mark.parametrize(("N_samples", "first_ray"), [(7, 0), (8, 1000)])
def test_jitter_is_uniform_within_each_stratum(N_samples, first_ray):
    count = 8000
    t_vals = draws(RenderSettings(N_samples, 1, 1.0, 1.0), many_rays(count), first_ray)["jitter"]
    edges = np.linspace(0, 1, N_samples)
    middle = 0.5 * (edges[1:] + edges[:-1])
    lower, upper = np.append(0, middle), np.append(middle, 1)
    u = (t_vals - lower) / (upper - lower)
    assert u.min() >= -1e-5
    assert u.max() <= 1 + 1e-5
    for column in u.T:
        counts = np.histogram(column, bins=10, range=(0, 1))[0]
        assert np.sum((counts - count / 10) ** 2 / (count / 10)) < 35  # chi-square of 9 degrees: once in 10,000
    assert_independent(u)


def test_importance_samples_are_uniform_where_weights_are():
    count = 8000
    settings = RenderSettings(N_samples=34, N_importance=7, perturb=1.0)

    def even(points, *_):
        return 1e-6 * tf.ones([*points.shape[:2], 4])  # so thin that all samples weigh the same

    rays = many_rays(count)
    made = make_draws(settings, SEED, rays.near.shape[0])
    first = coarse_pass(even, rays, settings, made.coarse)
    t_vals = fine_pass(even, rays, first, settings, made.fine)[0].t_vals.numpy()
    new = np.concatenate([np.setdiff1d(a, b) for a, b in zip(t_vals, first.t_vals.numpy(), strict=True)])
    assert len(new) > 0.99 * count * 7
    counts = np.histogram(new, bins=8, range=(0.1, 0.9))[0]
    np.testing.assert_allclose(counts, counts.mean(), rtol=0.06)


@pytest.mark.parametrize(("N_samples", "first_ray"), [(7, 0), (6, 1000)])
def test_noise_is_normal_and_of_its_own_in_each_pass(N_samples, first_ray):
    # Both passes' samples fill two blocks of four numbers: were they from one stream, they would be the same.
    drawn = draws(RenderSettings(N_samples, 1, 1.0, 0.5), many_rays(8000), first_ray)
    for name in ("coarse noise", "fine noise"):
        noise = drawn[name] / 0.5
        np.testing.assert_allclose(noise.mean(axis=0), 0.0, atol=0.05)
        np.testing.assert_allclose(noise.std(axis=0), 1.0, atol=0.04)
        np.testing.assert_allclose(np.mean(np.abs(noise) > 1.0, axis=0), 0.3173, atol=0.025)
        np.testing.assert_allclose(np.mean(np.abs(noise) > 2.0, axis=0), 0.0455, atol=0.012)
        assert_independent(noise)
    both = np.concatenate([drawn["coarse noise"], drawn["fine noise"], drawn["jitter"]], axis=-1)
    assert_independent(both)


def test_another_seed_draws_anew():
    one, other = (draws(RANDOM, many_rays(2000), seed=tf.constant([3, n])) for n in (1, 2))
    for name in ("jitter", "coarse noise", "fine noise"):
        for a, b in zip(one[name].T, other[name].T, strict=True):
            assert np.abs(np.corrcoef(a, b)[0, 1]) < 0.12, name


# What fields are told of what is seen


@pytest.mark.parametrize("N_importance", [0, 8])
def test_without_noise_a_sample_is_seen_when_it_has_density(N_importance):
    recorder = Recorder(fog)
    render_rays(recorder, None, some_rays(), RenderSettings(8, N_importance, perturb=0.0))
    assert recorder.visible_above == [0.0] * (2 if N_importance else 1)


def test_with_noise_a_sample_is_seen_when_density_and_noise_make_more_than_nothing():
    recorder = Recorder(fog)
    result = render_rays(recorder, None, some_rays(), RANDOM, SEED)
    assert [limits.shape for limits in recorder.visible_above] == [(40, 8), (40, 16)]
    for limits, points, rendering in zip(recorder.visible_above, recorder.points, result[1::-1], strict=True):
        sigma = fog(tf.constant(points), some_rays().viewdirs)[..., 3].numpy()
        seen = sigma > limits
        assert 0.2 < seen.mean() < 0.9
        np.testing.assert_array_equal(rendering.weights[~seen], 0.0)
        assert np.mean(rendering.weights.numpy()[seen] > 0.0) > 0.99


@pytest.mark.parametrize("settings", [RANDOM, RANDOM.deterministic()], ids=["noise", "no noise"])
def test_colours_that_are_not_seen_do_not_show(settings):
    def lazy(points, viewdirs, visible_above):
        raw = fog(points, viewdirs) - [0.0, 0.0, 0.0, 0.3]
        assert visible_above is not None
        seen = raw[..., 3] > visible_above
        return tf.concat([tf.where(seen[..., None], raw[..., :3], 50.0), raw[..., 3:]], axis=-1)

    def diligent(points, viewdirs, _):
        return fog(points, viewdirs) - [0.0, 0.0, 0.0, 0.3]

    expected = render_rays(diligent, None, some_rays(), settings, SEED)
    result = render_rays(lazy, None, some_rays(), settings, SEED)
    for a, b in zip([*result.fine, *result.coarse], [*expected.fine, *expected.coarse], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("settings", [RANDOM, BOTH, COARSE_ONLY], ids=["random", "both", "coarse"])
def test_raw_that_is_kept_has_all_its_colours(settings):
    recorder = Recorder(fog)
    kept = render_rays(recorder, None, some_rays(), settings, SEED, keep_raw=True)
    assert recorder.visible_above[-1] is None
    plain = render_rays(fog, None, some_rays(), settings, SEED)
    for a, b in zip(kept.fine, plain.fine, strict=True):
        np.testing.assert_array_equal(a, b)


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


def test_a_view_goes_on_with_less_when_memory_runs_out():
    camera = Camera.centred(6, 7, 6.0)
    expected, asked = render(camera, POSE, BOTH), []

    def greedy(points, viewdirs, _):
        # The first chunks go through, as when something else on the machine takes memory meanwhile.
        asked.append(points.shape[0])
        if points.shape[0] > 5 and len(asked) > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        return fog(points, viewdirs)

    errors, chunks = [], []

    def on_out_of_memory(error):
        errors.append(error)
        return greedy, None, dataclasses.replace(BOTH, chunk=renderer.settings.chunk // 2)

    renderer = Renderer(greedy, None, dataclasses.replace(BOTH, chunk=16), NEAR, FAR, False, on_out_of_memory)
    tf.config.run_functions_eagerly(True)
    try:
        image = renderer.image(camera, POSE, progress=chunks.append)
    finally:
        tf.config.run_functions_eagerly(False)
    assert [type(error) for error in errors] == [tf.errors.ResourceExhaustedError] * 2
    assert renderer.settings.chunk == 4
    assert sum(chunks) == 42
    assert chunks[0] == 14
    assert max(chunks[1:]) <= 4
    for a, b in zip(image[: len(expected)], expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_preparing_a_view_gives_way_too_when_memory_runs_out():
    prepared = []

    def prepare():
        prepared.append(renderer.settings.chunk)
        if renderer.settings.chunk > 8:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    def on_out_of_memory(error):
        return fog, None, dataclasses.replace(BOTH, chunk=renderer.settings.chunk // 2)

    renderer = Renderer(fog, None, dataclasses.replace(BOTH, chunk=16), NEAR, FAR, False, on_out_of_memory, prepare)
    for _ in range(2):
        renderer.image(Camera.centred(6, 7, 6.0), POSE)
    assert prepared == [16, 8, 8]  # once for a view that goes well


def test_memory_that_runs_out_is_an_error_when_nothing_gives_way():
    def greedy(points, viewdirs, _):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    with pytest.raises(tf.errors.ResourceExhaustedError):
        render(Camera.centred(2, 2, 6.0), POSE, BOTH, greedy)


@pytest.mark.optimised_graphs
def test_memory_does_not_grow_with_the_image(peak_memory):
    renderer = Renderer(fog, None, RenderSettings(16, 16, chunk=1024), NEAR, FAR, False)
    peaks = {}
    for side in (32, 128):
        view = functools.partial(renderer.image, Camera.centred(side, side, 30.0), POSE)
        view()
        peaks[side] = peak_memory(view)
    # A picture of 16 times as many rays; TensorFlow counts memory in pieces of 256 KiB.
    assert peaks[128] < 1.5 * peaks[32], peaks
