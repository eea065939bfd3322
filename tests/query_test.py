"""Evaluating a network tile by tile: its result, gradient and memory."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.compaction import compact
from nerf_tf.data import blender, llff
from nerf_tf.data.images import composite_white
from nerf_tf.data.pipeline import RayBatch
from nerf_tf.field.encoding import positional_encoding
from nerf_tf.field.mlp import FieldSettings, build_mlp
from nerf_tf.field.query import Field
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import image_rays
from nerf_tf.render.passes import RenderSettings, coarse_pass, fine_pass, make_draws
from nerf_tf.storage import tf1_weights, transforms_files
from nerf_tf.storage.image_reader import read_images

VIEWS, NO_VIEWS = FieldSettings(6, 24, 5, 3, True), FieldSettings(3, 24, 5, 3, False)
RAYS, SAMPLES = 13, 7


@pytest.fixture(scope="module", params=[VIEWS, NO_VIEWS], ids=["views", "no views"])
def field(request):
    return Field(build_mlp(request.param, 1), request.param, 16)


@pytest.fixture(scope="module")
def batch() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Points [R, S, 3], view directions [R, 3] and the loss's gradient [R, S, 4], a part of its rows zero."""
    rng = np.random.default_rng(0)
    viewdirs = rng.normal(size=(RAYS, 3))
    upstream = rng.normal(size=(RAYS, SAMPLES, 4)) * (rng.random((RAYS, SAMPLES, 1)) < 0.4)
    # A training run's are of any size down to next to nothing, and each of them counts.
    upstream *= 10.0 ** -rng.uniform(0, 12, (RAYS, SAMPLES, 1))
    arrays = rng.normal(size=(RAYS, SAMPLES, 3)), viewdirs / np.linalg.norm(viewdirs, axis=-1, keepdims=True), upstream
    return tuple(tf.constant(array, tf.float32) for array in arrays)


def dense(field: Field, points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
    """The network on all points at once, as plain as can be."""
    inputs = [positional_encoding(tf.reshape(points, [-1, 3]), field.settings.multires)]
    if field.settings.use_viewdirs:
        each = tf.repeat(viewdirs, points.shape[1], axis=0)
        inputs.append(positional_encoding(each, field.settings.multires_views))
    return tf.reshape(field.mlp(inputs), [*points.shape[:2], 4])


def evaluate(function, field: Field, points, viewdirs, upstream) -> tuple[tf.Tensor, list[tf.Tensor | None]]:
    """Raw, and the gradient of sum(raw * upstream) with respect to the weights."""
    with tf.GradientTape() as tape:
        raw = function(points, viewdirs)
        loss = tf.reduce_sum(raw * upstream)
    return raw, tape.gradient(loss, [v.value for v in field.mlp.trainable_variables])


def assert_close(actual: list[tf.Tensor], expected: list[tf.Tensor], relative: float = 1e-5) -> None:
    """Every array within `relative` of the expected one's norm."""
    for a, b in zip(actual, expected, strict=True):
        assert np.linalg.norm(np.subtract(a, b)) <= relative * np.linalg.norm(b)


def expected_of(field: Field, points, viewdirs, upstream) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """What `evaluate` should return: all points at once, under one tape."""
    raw, gradients = evaluate(functools.partial(dense, field), field, points, viewdirs, upstream)
    variables = field.mlp.trainable_variables
    return raw, [tf.zeros(v.shape) if g is None else g for g, v in zip(gradients, variables, strict=True)]


@pytest.fixture
def tile_sizes(monkeypatch) -> list[int]:
    """Numbers of points that go through the network together, one for each time that some do."""
    sizes, forward = [], Field._forward

    def spy(self, variables, points, *args):
        sizes.append(points.shape[0])
        return forward(self, variables, points, *args)

    monkeypatch.setattr(Field, "_forward", spy)
    return sizes


# netchunk, and whether in a graph.
WAYS = [(1, True), (5, False), (45, True), (RAYS * SAMPLES - 1, False), (RAYS * SAMPLES, False), (10**9, True)]


@pytest.mark.parametrize(("netchunk", "graph"), WAYS)
def test_result_and_gradient_do_not_depend_on_netchunk(field, batch, netchunk, graph):
    tiled = dataclasses.replace(field, netchunk=netchunk)
    run = tf.function(evaluate) if graph else evaluate
    raw, gradients = run(tiled, tiled, *batch)
    expected_raw, expected_gradients = expected_of(field, *batch)
    assert raw.shape == (RAYS, SAMPLES, 4)
    assert_close([raw, *gradients], [expected_raw, *expected_gradients])


@pytest.mark.parametrize("netchunk", [20, 10**9])
def test_the_number_of_rays_may_be_unknown(field, batch, netchunk):
    tiled = dataclasses.replace(field, netchunk=netchunk)
    shapes = [tf.TensorSpec([None, *tensor.shape[1:]]) for tensor in batch]
    run = tf.function(functools.partial(evaluate, tiled, tiled), input_signature=shapes)
    for rays in (RAYS, 4):
        part = [tensor[:rays] for tensor in batch]
        raw, gradients = run(*part)
        expected_raw, expected_gradients = expected_of(field, *part)
        assert_close([raw, *gradients], [expected_raw, *expected_gradients])


# What is evaluated


def active_rows(upstream: tf.Tensor, row_tolerance: float) -> int:
    """Number of rows that a backward pass has to do with."""
    sizes = np.abs(upstream).max(axis=-1)
    return int(np.sum(sizes > row_tolerance * sizes.max()))


@pytest.mark.parametrize("netchunk", [20, 33, RAYS * SAMPLES - 1])
@pytest.mark.parametrize("kwargs", [{}, {"row_tolerance": 0.0}], ids=["default", "exact"])
def test_no_tile_exceeds_netchunk_and_only_rows_with_a_gradient_come_again(field, batch, netchunk, kwargs, tile_sizes):
    active = active_rows(batch[2], kwargs.get("row_tolerance", 1e-8))
    assert 0.1 < active / active_rows(batch[2], 0.0) <= 1.0 - 0.1 * (not kwargs)
    tiled = dataclasses.replace(field, netchunk=netchunk, **kwargs)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tiled(*batch[:2]) * batch[2])
    forward = tile_sizes.copy()
    tape.gradient(loss, field.mlp.trainable_variables[0].value)
    for sizes, points in ((forward, RAYS * SAMPLES), (tile_sizes[len(forward) :], active)):
        assert max(sizes) <= netchunk
        assert len(sizes) == -(-points // netchunk)
        # Tiles are of one size, and padded by fewer points than there are tiles.
        assert len(set(sizes)) == 1
        assert points <= sum(sizes) < points + len(sizes)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-8), ("bfloat16", 1e-5), ("float16", 1e-5)])
def test_what_rounding_would_lose_is_left_out(batch, precision, tolerance, tile_sizes):
    field = Field(build_mlp(VIEWS, 1, precision), VIEWS, 1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(field(*batch[:2]) * batch[2])
    tile_sizes.clear()
    tape.gradient(loss, field.mlp.trainable_variables[0].value)
    assert sum(tile_sizes) == active_rows(batch[2], tolerance)
    assert active_rows(batch[2], 1e-5) < active_rows(batch[2], 1e-8)


@pytest.mark.parametrize("netchunk", [RAYS * SAMPLES, 10**9])
def test_where_all_points_fit_nothing_is_evaluated_again(field, batch, netchunk, tile_sizes):
    tiled = dataclasses.replace(field, netchunk=netchunk)
    evaluate(tiled, tiled, *batch)
    assert tile_sizes == [RAYS * SAMPLES]


@pytest.mark.parametrize("netchunk", [20, 10**9])
def test_rows_below_the_tolerance_and_only_those_are_left_out(field, batch, netchunk):
    points, viewdirs, _ = batch
    rng = np.random.default_rng(3)
    kept = rng.random((RAYS, SAMPLES, 1)) < 0.5
    sizes = np.where(kept, 11.0, 9.0)
    sizes[4, 4], kept[4, 4] = 100.0, True
    # The largest of a row's four gradients counts, whichever it is and whatever its sign.
    upstream = rng.uniform(-0.8, 0.8, (RAYS, SAMPLES, 4)) * sizes
    peaks = np.eye(4, dtype=bool)[rng.integers(0, 4, (RAYS, SAMPLES))]
    upstream = np.where(peaks, sizes * rng.choice([-1, 1], (RAYS, SAMPLES, 1)), upstream)
    tolerant = dataclasses.replace(field, netchunk=netchunk, row_tolerance=0.1)
    _, gradients = evaluate(tolerant, field, points, viewdirs, tf.constant(upstream, tf.float32))
    _, expected = expected_of(field, points, viewdirs, tf.constant(np.where(kept, upstream, 0), tf.float32))
    assert_close(gradients, expected)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("netchunk", [20, 10**9])
def test_a_gradient_that_is_no_number_shows(field, batch, netchunk, graph):
    points, viewdirs, upstream = batch
    tiled = dataclasses.replace(field, netchunk=netchunk)
    run = tf.function(evaluate) if graph else evaluate
    for value in (np.nan, np.inf, -np.inf):
        spoilt = upstream.numpy()
        spoilt[3, 2] = value
        _, gradients = run(tiled, tiled, points, viewdirs, tf.constant(spoilt))
        assert not np.isfinite(gradients[-1]).any(), value  # the bias of the last layer: the sum of its rows
        assert not np.isfinite(gradients[0]).all(), value


@pytest.mark.parametrize(("scalar", "graph"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("netchunk", [20, 10**9])
def test_the_colour_of_what_is_not_seen_does_not_matter(field, batch, netchunk, scalar, graph):
    points, viewdirs, _ = batch
    expected_raw = dense(field, points, viewdirs)
    rng = np.random.default_rng(5)
    sigma = expected_raw[..., 3].numpy()
    limits = np.median(sigma) + (0.0 if scalar else rng.normal(size=(RAYS, SAMPLES)) * sigma.std())
    limits = tf.constant(limits, tf.float32)
    seen = sigma > limits.numpy()
    assert 0.1 < seen.mean() < 0.9
    # As compositing does: no gradient for colours that are not seen, and some densities have one all the same.
    upstream = rng.normal(size=(RAYS, SAMPLES, 4)) * np.stack([seen] * 3 + [rng.random(seen.shape) < 0.7], axis=-1)
    upstream = tf.constant(upstream, tf.float32)
    tiled = dataclasses.replace(field, netchunk=netchunk)

    def run(points, viewdirs, upstream, limits):
        return evaluate(lambda *args: tiled(*args, limits), field, points, viewdirs, upstream)

    raw, gradients = (tf.function(run) if graph else run)(points, viewdirs, upstream, limits)
    _, expected_gradients = expected_of(field, points, viewdirs, upstream)
    assert_close([raw[..., 3], raw[seen]], [expected_raw[..., 3], expected_raw[seen]])
    assert_close(gradients, expected_gradients)
    if field.settings.use_viewdirs:
        np.testing.assert_array_equal(raw[..., :3][~seen], 0.0)  # no work was done for it


@pytest.mark.parametrize("channel", range(4))
def test_a_row_counts_when_any_of_its_four_gradients_is_not_zero(field, batch, channel):
    points, viewdirs, _ = batch
    upstream = tf.constant(np.eye(4, dtype=np.float32)[channel] * np.ones((RAYS, SAMPLES, 1), np.float32))
    _, gradients = evaluate(field, field, points, viewdirs, upstream)
    _, expected = expected_of(field, points, viewdirs, upstream)
    assert_close(gradients, expected)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("netchunk", [16, 10**9])
def test_a_loss_that_depends_on_nothing_has_zero_gradients(field, batch, netchunk, graph):
    points, viewdirs, upstream = batch
    tiled = dataclasses.replace(field, netchunk=netchunk)
    run = tf.function(evaluate) if graph else evaluate
    _, gradients = run(tiled, tiled, points, viewdirs, tf.zeros_like(upstream))
    for gradient, variable in zip(gradients, field.mlp.trainable_variables, strict=True):
        np.testing.assert_array_equal(gradient, np.zeros(variable.shape))


def test_points_and_view_directions_get_no_gradient(field, batch):
    points, viewdirs, _ = batch
    with tf.GradientTape() as tape:
        tape.watch([points, viewdirs])
        loss = tf.reduce_sum(field(points, viewdirs))
    assert tape.gradient(loss, [points, viewdirs]) == [None, None]


def test_two_evaluations_add_their_gradients(field, batch):
    # As the coarse network's when there is no fine one.
    _, once = evaluate(field, field, *batch)
    _, twice = evaluate(lambda *args: field(*args) + field(*args), field, *batch)
    assert_close(twice, [2.0 * gradient for gradient in once])


def test_a_traced_function_sees_weights_that_change(batch):
    field = Field(build_mlp(VIEWS, 1), VIEWS, 16)
    run = tf.function(field)
    before = run(*batch[:2]).numpy()
    field.mlp.set_weights([2.0 * weight for weight in field.mlp.get_weights()])
    after = run(*batch[:2])
    assert np.abs(after - before).max() > 1e-3
    assert_close([after], [dense(field, *batch[:2])])


def test_a_network_without_view_directions_ignores_them(batch):
    field = Field(build_mlp(NO_VIEWS, 1), NO_VIEWS, 16)
    points, viewdirs, _ = batch
    np.testing.assert_array_equal(field(points, viewdirs), field(points, -viewdirs))


@pytest.mark.optimised_graphs
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_netchunk_bounds_memory(peak_memory, backward):
    rng = np.random.default_rng(0)
    shapes = (512, 32, 3), (512, 3), (512, 32, 4)
    many = [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]
    settings = FieldSettings(2, 128, 10, 4, True)
    mlp = build_mlp(settings, 0)
    peaks = {}
    for netchunk in (16384, 1024):
        field = Field(mlp, settings, netchunk)
        run = tf.function(lambda *batch, field=field: evaluate(field, field, *batch) if backward else field(*batch[:2]))
        run(*many)
        peaks[netchunk] = peak_memory(lambda run=run: run(*many))
    # The result, and the weights' gradients, do not shrink, so it is less than the factor of 16.
    assert peaks[1024] < peaks[16384] / 4, peaks


# Precision and XLA


@pytest.mark.parametrize(("netchunk", "compiled"), [(1000, False), (10**9, False), (1000, True)])
@pytest.mark.parametrize(("precision", "relative"), [("bfloat16", 4e-2), ("float16", 1.5e-2)])
def test_half_size_values_stay_inside(netchunk, compiled, precision, relative):
    rng = np.random.default_rng(2)
    viewdirs, upstream = rng.normal(size=(64, 3)), rng.uniform(0, 1, (64, 64, 4))
    arrays = rng.normal(size=(64, 64, 3)), viewdirs / np.linalg.norm(viewdirs, axis=-1, keepdims=True), upstream
    many = [tf.constant(array, tf.float32) for array in arrays]
    half = Field(build_mlp(VIEWS, 1, precision), VIEWS, netchunk, compiled=compiled)
    exact = Field(build_mlp(VIEWS, 1), VIEWS, netchunk)
    raw, gradients = tf.function(evaluate)(half, half, *many)
    expected_raw, expected_gradients = expected_of(exact, *many)
    assert {tensor.dtype for tensor in (raw, *gradients)} == {tf.float32}
    assert_close([raw, *gradients], [expected_raw, *expected_gradients], relative)
    assert np.linalg.norm(raw - expected_raw) > 1e-4 * np.linalg.norm(expected_raw), "computed in float32"


@pytest.mark.parametrize("netchunk", [17, 10**9], ids=["tiles", "one tile"])
def test_a_compiled_program_computes_the_same_for_all_upstreams(field, batch, netchunk):
    compiled = dataclasses.replace(field, netchunk=netchunk, compiled=True)
    run = tf.function(evaluate, jit_compile=True, autograph=False)
    one_point = np.zeros(batch[2].shape, np.float32)
    one_point[3, 2] = 1.0
    # However many points have a gradient.
    for upstream in (batch[2], batch[2][..., ::-1] ** 2, tf.constant(one_point), tf.zeros_like(batch[2])):
        expected_raw, expected_gradients = expected_of(field, *batch[:2], upstream)
        raw, gradients = run(compiled, compiled, *batch[:2], upstream)
        assert_close([raw], [expected_raw])
        if np.any(upstream):
            assert_close(gradients, expected_gradients)
        else:
            assert all(np.all(gradient == 0.0) for gradient in gradients)
    assert run.experimental_get_tracing_count() == 1


def test_compact_lists_what_is_true():
    for flags in ([True, False, True, True, False], [False] * 4, [True] * 3):
        rows, count = tf.function(compact, jit_compile=True)(tf.constant(flags))
        expected = np.flatnonzero(flags)
        np.testing.assert_array_equal(rows, np.pad(expected, (0, len(flags) - len(expected))))
        assert count == len(expected)


# Weights that know something


def lego_batch(datadir: Path, white_bkgd: bool) -> RayBatch:
    """Rays of a training photo, most of them of the model."""
    split = transforms_files.read_split(datadir / "transforms_train.json")
    photo = read_images(split.paths[:1])[0]
    photo = composite_white(photo) if white_bkgd else photo[..., :3]
    side = len(photo)
    camera = Camera.centred(side, side, split.focal(side, side))
    rows, cols = np.random.default_rng(0).integers(side // 4, side * 3 // 4, (2, 24))
    pixels = tf.constant(rows * side + cols)
    rays = image_rays(camera, np.float32(split.poses[0]), blender.NEAR, blender.FAR, False, pixels)
    return RayBatch(rays, tf.constant(photo[rows, cols]))


def fern_batch(datadir: Path) -> RayBatch:
    """Rays of a training photo."""
    scene = llff.load(datadir)
    view = scene.i_train[0]
    pixels = np.random.default_rng(0).integers(0, scene.images[view][..., 0].size, 24)
    rays = image_rays(scene.cameras[view], scene.poses[view], scene.near, scene.far, scene.ndc, tf.constant(pixels))
    return RayBatch(rays, tf.constant(scene.images[view].reshape(-1, 3)[pixels]))


def load_field(path: Path) -> Field:
    settings = FieldSettings(use_viewdirs=True)
    mlp = build_mlp(settings, 0)
    tf1_weights.assign(mlp, tf1_weights.load(path), path)
    return Field(mlp, settings, 10**6)


def assert_gradients_are_exact(fields: list[Field], batch: RayBatch, settings: RenderSettings, netchunks) -> None:
    """Both passes' parameter gradients are those of one tape over the plain networks, whatever netchunk is."""
    draws = make_draws(settings, tf.constant([1, 2]), batch.rgb.shape[0])

    def gradients(function, field, first) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            if first is None:
                result = coarse_pass(function, batch.rays, settings, draws.coarse)
            else:
                result, _ = fine_pass(function, batch.rays, first, settings, draws.fine)
            loss = tf.reduce_mean(tf.square(result.rendering.rgb - batch.rgb))
        return tape.gradient(loss, [v.value for v in field.mlp.trainable_variables])

    first = coarse_pass(fields[0], batch.rays, settings, draws.coarse)
    for field, coarse in zip(fields, (None, first), strict=True):
        expected = gradients(lambda points, viewdirs, _, field=field: dense(field, points, viewdirs), field, coarse)
        assert all(np.linalg.norm(gradient) > 0 for gradient in expected)
        for netchunk in netchunks:
            assert_close(gradients(dataclasses.replace(field, netchunk=netchunk), field, coarse), expected)


BACKGROUNDS_AND_NOISE = [(False, 0.0), (False, 1.0), (True, 0.0), (True, 1.0)]


@pytest.mark.parametrize(("white_bkgd", "noise"), BACKGROUNDS_AND_NOISE)
@pytest.mark.parametrize("settings", [VIEWS, NO_VIEWS], ids=["views", "no views"])
def test_gradients_at_random_weights_are_exact(settings, white_bkgd, noise):
    rng = np.random.default_rng(4)
    camera, c2w = Camera.centred(20, 20, 25.0), np.float32(np.c_[np.eye(3), [0, 0, 4]])
    rays = image_rays(camera, c2w, 2.0, 6.0, False, tf.constant(rng.integers(0, 400, 6)))
    batch = RayBatch(rays, tf.constant(rng.random((6, 3)), tf.float32))
    fields = [Field(build_mlp(settings, seed), settings, 10**6) for seed in (1, 2)]
    rendering = RenderSettings(8, 6, perturb=1.0, raw_noise_std=noise, white_bkgd=white_bkgd)
    assert_gradients_are_exact(fields, batch, rendering, (1 if white_bkgd and noise else 77, 10**6))


@pytest.mark.parametrize("scene", ["lego", "fern"])
def test_gradients_at_the_authors_weights_are_exact(real_data, scene):
    path = real_data / "weights" / f"{scene}_example" / "model_200000.npy"
    fields = [load_field(p) for p in (path, tf1_weights.fine_path(path))]
    lego, fern = real_data / "data" / "nerf_synthetic" / "lego", real_data / "data" / "nerf_llff_data" / "fern"
    photo_of_fern = fern_batch(fern) if scene == "fern" else None
    for white_bkgd, noise in BACKGROUNDS_AND_NOISE:
        batch = photo_of_fern or lego_batch(lego, white_bkgd)
        settings = RenderSettings(64, 64, perturb=1.0, raw_noise_std=noise, white_bkgd=white_bkgd)
        assert_gradients_are_exact(fields, batch, settings, (10**6, 777))
