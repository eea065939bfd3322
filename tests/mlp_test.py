"""The network's shape, order of weights and initial values."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.field.mlp import FieldSettings, build_mlp


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
