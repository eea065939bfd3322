"""The network's shape, order of weights and initial values, and its passes written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.field.backprop import backward, forward
from nerf_tf.field.mlp import FieldSettings, build_mlp, group_by_layer, precision


def layer_names(model) -> list[str]:
    """Names of the layers that have weights, in the order of `get_weights()`."""
    return [layer.name for layer in model.layers if layer.get_weights()]


def kernel_shapes(model) -> list[tuple[int, int]]:
    """Shapes of the kernels in the order of `get_weights()`, having checked that biases lie between them."""
    weights = model.get_weights()
    assert [bias.shape for bias in weights[1::2]] == [kernel.shape[1:] for kernel in weights[::2]]
    return [kernel.shape for kernel in weights[::2]]


def inputs_for(settings: FieldSettings, count: int = 6) -> list[tf.Tensor]:
    """Random inputs of the right widths."""
    rng = np.random.default_rng(0)
    widths = [3 * (1 + 2 * settings.multires)]
    widths += [3 * (1 + 2 * settings.multires_views)] if settings.use_viewdirs else []
    return [tf.constant(rng.normal(size=(count, width)), tf.float32) for width in widths]


def test_weights_of_the_paper_network_are_in_the_order_of_the_original_files():
    model = build_mlp(FieldSettings(8, 256, use_viewdirs=True), 0)
    assert layer_names(model) == [f"trunk_{i}" for i in range(8)] + ["bottleneck", "views", "rgb", "alpha"]
    trunk = [(63, 256)] + [(256, 256)] * 4 + [(319, 256)] + [(256, 256)] * 2
    assert kernel_shapes(model) == [*trunk, (256, 256), (283, 128), (128, 3), (256, 1)]


def test_weights_without_viewdirs_end_in_one_layer_of_four():
    model = build_mlp(FieldSettings(6, 32, multires=6), 0)
    assert layer_names(model) == [f"trunk_{i}" for i in range(6)] + ["raw"]
    assert kernel_shapes(model) == [(39, 32)] + [(32, 32)] * 4 + [(71, 32), (32, 4)]


def test_a_skip_behind_the_last_layer_reaches_the_heads():
    views = build_mlp(FieldSettings(5, 32, use_viewdirs=True), 0)
    assert kernel_shapes(views) == [(63, 32)] + [(32, 32)] * 4 + [(95, 256), (283, 16), (16, 3), (95, 1)]
    assert kernel_shapes(build_mlp(FieldSettings(5, 32), 0))[-1] == (95, 4)


def test_a_trunk_that_ends_before_the_skip_has_none():
    assert kernel_shapes(build_mlp(FieldSettings(4, 32), 0)) == [(63, 32)] + [(32, 32)] * 3 + [(32, 4)]


@pytest.mark.parametrize(("width", "views_width"), [(8, 4), (33, 16), (300, 150)])
def test_the_bottleneck_has_256_units_whatever_the_width(width, views_width):
    shapes = kernel_shapes(build_mlp(FieldSettings(2, width, use_viewdirs=True), 0))
    assert shapes[2:] == [(width, 256), (283, views_width), (views_width, 3), (width, 1)]


def test_no_encoding_takes_plain_coordinates():
    shapes = kernel_shapes(build_mlp(FieldSettings(2, 8, multires=0, multires_views=0, use_viewdirs=True), 0))
    assert (shapes[0], shapes[3]) == ((3, 8), (259, 4))


@pytest.mark.parametrize("use_viewdirs", [True, False])
def test_output_is_the_formula(use_viewdirs):
    settings = FieldSettings(7, 16, 2, 1, use_viewdirs)
    model = build_mlp(settings, 3)
    rng = np.random.default_rng(1)
    # Biases start at 0, where a network that forgets them looks right.
    model.set_weights([rng.normal(size=w.shape) * 0.3 for w in model.get_weights()])
    inputs = inputs_for(settings)
    layers = iter(zip(*[iter(model.get_weights())] * 2, strict=True))

    def dense(x):
        kernel, bias = next(layers)
        return x @ kernel + bias

    h = points = inputs[0].numpy()
    for i in range(7):
        h = np.maximum(dense(h), 0.0)
        h = np.concatenate([points, h], -1) if i == 4 else h
    if use_viewdirs:
        trunk, h = h, np.concatenate([dense(h), inputs[1]], -1)
        rgb = dense(np.maximum(dense(h), 0.0))
        h = trunk
        expected = np.concatenate([rgb, dense(h)], -1)
    else:
        expected = dense(h)
    np.testing.assert_allclose(model(inputs), expected, rtol=1e-4, atol=1e-4)


def test_density_does_not_depend_on_the_view_and_colour_does():
    settings = FieldSettings(3, 16, 2, 2, True)
    model = build_mlp(settings, 0)
    points, viewdirs = inputs_for(settings)
    one, other = model([points, viewdirs]).numpy(), model([points, -viewdirs]).numpy()
    np.testing.assert_array_equal(one[:, 3], other[:, 3])
    assert np.all(np.any(one[:, :3] != other[:, :3], axis=-1))


def test_kernels_are_glorot_uniform_and_biases_zero():
    weights = build_mlp(FieldSettings(8, 256, use_viewdirs=True), 5).get_weights()
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        limit = np.sqrt(6.0 / sum(kernel.shape))
        assert np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=5 / np.sqrt(kernel.size))
        np.testing.assert_array_equal(bias, 0.0)


def test_the_seed_decides_the_weights():
    settings = FieldSettings(3, 16, use_viewdirs=True)
    first, again = build_mlp(settings, [7, 0]).get_weights(), build_mlp(settings, [7, 0]).get_weights()
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for seed in ([7, 1], [8, 0], [0, 7]):
        kernels = build_mlp(settings, seed).get_weights()[::2]
        assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(first[::2], kernels, strict=True)), seed


def test_layers_of_one_shape_start_differently():
    kernels = build_mlp(FieldSettings(4, 32), 0).get_weights()[2:8:2]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    assert np.abs(kernels[1] - kernels[2]).max() > 1e-3


# The two passes written out

POINTS, VIEWS = 60, 9
SHAPES = [(depth, use_viewdirs) for depth in range(1, 7) for use_viewdirs in (True, False)]
# No trunk kernel but the first; a trunk that ends before the skip, at it, and behind it.
CHOSEN_SHAPES = [(1, True), (4, True), (5, True), (5, False), (6, True), (6, False)]


def make_mlp(depth: int, use_viewdirs: bool, width: int = 13, seed: int = 0):
    """A network with biases, and of a width that no size of a tile divides."""
    model = build_mlp(FieldSettings(depth, width, 2, 1, use_viewdirs), seed)
    rng = np.random.default_rng(seed)
    model.set_weights([w if w.ndim == 2 else 0.3 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def make_inputs(points: int = POINTS) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Encoded points [B, 15], encoded view directions [R, 9], and which of these is a point's [B]."""
    rng = np.random.default_rng(7)
    arrays = rng.normal(size=(points, 15)), rng.normal(size=(VIEWS, 9))
    return *(tf.constant(array, tf.float32) for array in arrays), tf.constant(rng.integers(0, VIEWS, points))


def make_upstream(points: int = POINTS) -> tf.Tensor:
    return tf.constant(np.random.default_rng(8).normal(size=(points, 4)), tf.float32)


def layer_weights(model, dtype: tf.DType = tf.float32):
    return group_by_layer(model, [tf.cast(v.value, dtype) for v in model.trainable_variables])


def call(model, points: tf.Tensor, viewdirs: tf.Tensor, rays: tf.Tensor) -> tf.Tensor:
    """The Keras model itself."""
    return model([points, tf.gather(viewdirs, rays)] if len(model.inputs) == 2 else points)


def in_file_order(model, gradients: dict[str, list[tf.Tensor]]) -> list[tf.Tensor]:
    assert set(gradients) == set(layer_names(model))
    return [tensor for name in layer_names(model) for tensor in gradients[name]]


def taped_gradients(model, inputs, upstream: tf.Tensor) -> list[tf.Tensor]:
    """What automatic differentiation says the gradients of sum(raw * upstream) are."""
    variables = [v.value for layer in model.layers for v in layer.trainable_variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(call(model, *inputs), tf.float32) * upstream)
    return tape.gradient(loss, variables, unconnected_gradients="zero")


def assert_close(actual: list[tf.Tensor], expected: list[tf.Tensor], relative: float) -> None:
    """Every array within `relative` of the expected one's norm: one that should be zero is."""
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape
        assert np.linalg.norm(np.subtract(a, b)) <= relative * np.linalg.norm(b), i


@pytest.mark.parametrize(("depth", "use_viewdirs"), [(6, True), (5, False)])
def test_tensors_are_sorted_by_layer(depth, use_viewdirs):
    model = make_mlp(depth, use_viewdirs)
    weights = layer_weights(model)
    assert set(weights) == set(layer_names(model))
    for name, (kernel, bias) in weights.items():
        np.testing.assert_array_equal(kernel, model.get_layer(name).kernel)
        np.testing.assert_array_equal(bias, model.get_layer(name).bias)


@pytest.mark.parametrize(("depth", "use_viewdirs"), SHAPES)
def test_forward_equals_calling_the_model(depth, use_viewdirs):
    model, inputs = make_mlp(depth, use_viewdirs), make_inputs()
    raw, activations = forward(model, layer_weights(model), *inputs, None)
    np.testing.assert_allclose(raw, call(model, *inputs), rtol=1e-5, atol=1e-6)
    assert raw.shape == (POINTS, 4)
    assert len(activations.trunk) == depth
    assert activations.colour_rows is None


def test_forward_runs_with_the_weights_that_it_is_given():
    model, inputs = make_mlp(5, True), make_inputs()
    doubled = group_by_layer(model, [2.0 * v.value for v in model.trainable_variables])
    raw, _ = forward(model, doubled, *inputs, None)
    model.set_weights([2.0 * w for w in model.get_weights()])
    np.testing.assert_allclose(raw, call(model, *inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["one for all", "one for each", "nothing is seen", "all is seen"])
def test_points_whose_density_is_not_above_the_limit_have_no_colour(kind):
    model, inputs = make_mlp(6, True), make_inputs()
    expected, _ = forward(model, layer_weights(model), *inputs, None)
    sigma = expected[:, 3].numpy()
    middle = np.float32(np.sort(sigma)[POINTS // 2])  # that of a point, which is not above it
    each = np.where(np.arange(POINTS) % 3 == 0, sigma, middle + 0.1 * np.random.default_rng(0).normal(size=POINTS))
    limits = {"one for all": middle, "one for each": np.float32(each), "nothing is seen": 1e9, "all is seen": -1e9}
    seen = sigma > limits[kind]
    count = {"nothing is seen": 0, "all is seen": POINTS}.get(kind, seen.sum())
    assert seen.sum() == count
    assert kind not in ("one for all", "one for each") or 0.2 * POINTS < count < 0.8 * POINTS

    raw, activations = forward(model, layer_weights(model), *inputs, tf.constant(limits[kind]))
    np.testing.assert_array_equal(raw[:, 3], sigma)
    np.testing.assert_array_equal(raw[:, :3][~seen], 0.0)
    np.testing.assert_allclose(raw[:, :3][seen], expected[:, :3][seen], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(activations.colour_rows, np.flatnonzero(seen))
    assert [x.shape[0] for x in (activations.viewdirs, activations.views)] == [count] * 2


def test_without_view_directions_all_points_have_a_colour():
    model, inputs = make_mlp(3, False), make_inputs()
    raw, _ = forward(model, layer_weights(model), *inputs, tf.constant(1e9))
    np.testing.assert_allclose(raw, call(model, *inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("depth", "use_viewdirs"), CHOSEN_SHAPES)
@pytest.mark.parametrize("matter", ["all", "some", "one", "none"])
def test_backward_is_the_gradient_of_the_points_that_matter(depth, use_viewdirs, matter):
    model, inputs, upstream = make_mlp(depth, use_viewdirs), make_inputs(), make_upstream()
    numbers = np.arange(POINTS)
    active = {"all": None, "some": numbers % 3 != 1, "one": numbers == 41, "none": numbers < 0}[matter]
    weights = layer_weights(model)
    _, activations = forward(model, weights, *inputs, None)
    gradients = backward(weights, activations, upstream, None if active is None else tf.constant(active))
    if active is not None:
        upstream *= np.float32(active)[:, None]
    assert_close(in_file_order(model, gradients), taped_gradients(model, inputs, upstream), 1e-5)


@pytest.mark.parametrize("depth", [1, 5, 6])
@pytest.mark.parametrize("matter", ["some", "all", "only coloured", "only others", "none"])
@pytest.mark.parametrize("seen_above", ["the median", "everything"])
def test_backward_with_colour_where_there_is_density(depth, matter, seen_above):
    model, inputs, upstream = make_mlp(depth, True), make_inputs(), make_upstream()
    weights = layer_weights(model)
    sigma = call(model, *inputs)[:, 3].numpy()
    limit = {"the median": np.median(sigma), "everything": np.float32(1e9)}[seen_above]
    coloured, numbers = sigma > limit, np.arange(POINTS)
    active = {"some": numbers % 3 != 1, "all": numbers >= 0, "only coloured": coloured & (numbers % 2 == 0)}
    active = active.get(matter, ~coloured & (numbers % 2 == 0) if matter == "only others" else numbers < 0)

    _, activations = forward(model, weights, *inputs, tf.constant(limit))
    gradients = backward(weights, activations, upstream, tf.constant(active))
    # Where there is no colour but zeros, density alone has a gradient.
    counts = np.float32(np.stack([active & coloured] * 3 + [active], axis=-1))
    assert_close(in_file_order(model, gradients), taped_gradients(model, inputs, upstream * counts), 1e-5)


# Precision

# Name, type, and how far from float32's results may be.
HALF_SIZES = [("bfloat16", tf.bfloat16, 2e-2), ("float16", tf.float16, 6e-3)]


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("use_viewdirs", [True, False])
def test_weights_are_float32_and_the_same_in_every_precision(name, use_viewdirs):
    settings = FieldSettings(3, 16, 2, 1, use_viewdirs)
    model = build_mlp(settings, 4, name)
    assert precision(model) == name
    assert {v.dtype for v in model.weights} == {"float32"}
    for a, b in zip(model.get_weights(), build_mlp(settings, 4).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("name", "dtype", "relative"), HALF_SIZES)
@pytest.mark.parametrize("use_viewdirs", [True, False])
def test_forward_computes_in_the_type_of_the_weights(name, dtype, relative, use_viewdirs):
    model, inputs = make_mlp(6, use_viewdirs, 64), make_inputs(500)
    exact = call(model, *inputs)
    raw, activations = forward(model, layer_weights(model, dtype), *inputs, tf.constant(0.0))
    kept = [x for x in tf.nest.flatten(activations) if x is not None and x is not activations.colour_rows]
    assert {x.dtype for x in kept} == {dtype}
    assert raw.dtype == tf.float32
    seen = exact[:, 3].numpy() > 0.05 if use_viewdirs else np.ones(500, bool)
    error = np.linalg.norm((raw - exact)[seen], axis=0) / np.linalg.norm(exact[seen], axis=0)
    assert np.all(error < relative)
    assert np.all(error > 1e-5), "these are float32's"

    half = build_mlp(FieldSettings(6, 64, 2, 1, use_viewdirs), 0, name)
    half.set_weights(model.get_weights())
    same, _ = forward(half, layer_weights(half, dtype), *inputs, None)
    # The model's own result is rounded once more.
    np.testing.assert_allclose(same, tf.cast(call(half, *inputs), tf.float32), rtol=relative, atol=relative)


CPU_INFO = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "avx512"


@pytest.mark.parametrize(("name", "dtype", "relative"), HALF_SIZES)
@pytest.mark.parametrize("use_viewdirs", [True, False])
@pytest.mark.parametrize("matter", ["all", "some"])
def test_gradients_of_half_size_are_nearly_those_of_float32(name, dtype, relative, use_viewdirs, matter):
    count = 6000
    model, inputs = make_mlp(6, use_viewdirs, 64), make_inputs(count)
    # All of one sign, so that sums grow: adding them up in bfloat16 loses most of them. That was so for biases.
    upstream = tf.abs(make_upstream(count))
    active = tf.constant(np.arange(count) % 4 != 3) if matter == "some" else None

    def gradients(weights, activations) -> list[tf.Tensor]:
        return in_file_order(model, backward(weights, activations, upstream, active))

    def in_float32(structure):
        return tf.nest.map_structure(lambda x: None if x is None else tf.cast(x, tf.float32), structure)

    weights, exact_weights = layer_weights(model, dtype), layer_weights(model)
    activations, exact_activations = (forward(model, w, *inputs, None)[1] for w in (weights, exact_weights))
    half = gradients(weights, activations)
    assert {x.dtype for x in half} == {tf.float32}
    # The passes' rounding, which opens or shuts a ReLU here and there, and then the backward pass's alone.
    assert_close(half, gradients(exact_weights, exact_activations), 2 * relative)
    # A processor without AVX-512 adds products of bfloat16 up in blocks, whose sums it rounds.
    rounds_sums = name == "bfloat16" and "avx512" not in CPU_INFO
    own = 2 * relative if rounds_sums else relative / 4
    assert_close(half, gradients(in_float32(weights), in_float32(activations)), own)
