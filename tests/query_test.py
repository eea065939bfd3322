"""Evaluating a network tile by tile: what it returns, its gradient, its memory."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.field.encoding import positional_encoding
from nerf_tf.field.mlp import FieldSettings, build_mlp
from nerf_tf.field.query import Field

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


def with_netchunk(field: Field, netchunk: int) -> Field:
    return Field(field.mlp, field.settings, netchunk)


@pytest.mark.parametrize(
    ("netchunk", "graph"),
    [(5, False), (45, False), (RAYS * SAMPLES, False), (10**9, False), (17, True), (10**9, True)],
)
def test_result_and_gradient_do_not_depend_on_netchunk(field, batch, netchunk, graph):
    tiled = with_netchunk(field, netchunk)
    run = tf.function(evaluate) if graph else evaluate
    raw, gradients = run(tiled, tiled, *batch)
    expected_raw, expected_gradients = evaluate(lambda *args: dense(field, *args), field, *batch)
    assert raw.shape == (RAYS, SAMPLES, 4)
    assert_close([raw, *gradients], [expected_raw, *expected_gradients])


def test_tiles_of_a_single_point_will_do(field, batch):
    few = [tensor[:2] for tensor in batch]
    few[0], few[2] = few[0][:, :3], few[2][:, :3]
    raw, gradients = evaluate(with_netchunk(field, 1), field, *few)
    expected_raw, expected_gradients = evaluate(lambda *args: dense(field, *args), field, *few)
    assert_close([raw, *gradients], [expected_raw, *expected_gradients])


@pytest.mark.parametrize("netchunk", [20, 90, 91, 92])
def test_no_tile_exceeds_netchunk_and_only_rows_with_a_gradient_come_again(field, batch, netchunk, monkeypatch):
    sizes = []
    tile = Field._tile

    def spy(self, points, viewdirs, weights):
        sizes.append(len(points))
        return tile(self, points, viewdirs, weights)

    monkeypatch.setattr(Field, "_tile", spy)
    tiled = with_netchunk(field, netchunk)
    evaluate(tiled, tiled, *batch)
    assert max(sizes) <= netchunk
    active = int(np.sum(np.any(batch[2].numpy() != 0.0, axis=-1)))
    assert 0 < active < RAYS * SAMPLES
    assert sum(sizes) == RAYS * SAMPLES + active


@pytest.mark.parametrize("channel", range(4))
def test_a_row_counts_when_any_of_its_four_gradients_is_not_zero(field, batch, channel):
    points, viewdirs, _ = batch
    upstream = tf.constant(np.eye(4, dtype=np.float32)[channel] * np.ones((RAYS, SAMPLES, 1), np.float32))
    _, gradients = evaluate(field, field, points, viewdirs, upstream)
    _, expected = evaluate(lambda *args: dense(field, *args), field, points, viewdirs, upstream)
    expected = [tf.zeros_like(a) if b is None else b for a, b in zip(gradients, expected, strict=True)]
    assert_close(gradients, expected)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_a_loss_that_depends_on_nothing_has_zero_gradients(field, batch, graph):
    points, viewdirs, upstream = batch
    run = tf.function(evaluate) if graph else evaluate
    _, gradients = run(field, field, points, viewdirs, tf.zeros_like(upstream))
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
