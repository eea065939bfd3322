"""The network's forward and backward pass, written out to leave out points that do not matter.

Colours are computed only where a point can be seen, and gradients only from points that the loss depends on; Keras and
a gradient tape would run all points through every layer. B points, V of them in the view branch, R rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from nerf_tf.field.mlp import BOTTLENECK_WIDTH, SKIP_AFTER

# {layer name: (kernel, bias)}
Weights = dict[str, Sequence[tf.Tensor]]


class Activations(NamedTuple):
    """The intermediate results that `backward` needs, in the type that layers compute in.

    Attributes:
        points: [B, 3 * (1 + 2 * multires)] encoded points.
        trunk: [B, width] the output of each trunk layer.
        colour_rows: [V] numbers of the points whose colour was computed, ascending; None: all were.
        viewdirs: [V, 3 * (1 + 2 * multires_views)] encoded view directions; None without view directions.
        views: [V, width // 2] the output of layer `views`; None without view directions.
    """

    points: tf.Tensor
    trunk: list[tf.Tensor]
    colour_rows: tf.Tensor | None = None
    viewdirs: tf.Tensor | None = None
    views: tf.Tensor | None = None


def forward(
    mlp: keras.Model,
    weights: Weights,
    points: tf.Tensor,
    viewdirs: tf.Tensor,
    rays: tf.Tensor,
    visible_above: tf.Tensor | None,
) -> tuple[tf.Tensor, Activations]:
    """Evaluates the network as calling it would, but without the colours of points that cannot be seen.

    Args:
        mlp: the network.
        weights: its weights, in the type to compute in.
        points: [B, 3 * (1 + 2 * multires)] encoded points.
        viewdirs: [R, 3 * (1 + 2 * multires_views)] encoded view directions.
        rays: [B] the row of `viewdirs` that belongs to each point.
        visible_above: scalar or [B]; colours of points whose density is not above it are 0. None: compute all, as a
            network without view directions always does.

    Returns:
        raw [B, 4] float32, and the activations for `backward`.
    """

    def dense(name: str, x: tf.Tensor) -> tf.Tensor:
        return activate(name, x, *weights[name])

    def activate(name: str, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return mlp.get_layer(name).activation(tf.nn.bias_add(tf.matmul(x, kernel), bias))

    dtype = weights["trunk_0"][0].dtype
    points = tf.cast(points, dtype)
    h, trunk = points, []
    for layer in range(sum(name.startswith("trunk_") for name in weights)):
        trunk.append(dense(f"trunk_{layer}", h))
        h = tf.concat([points, trunk[layer]], axis=-1) if layer == SKIP_AFTER else trunk[layer]
    if "raw" in weights:
        return tf.cast(dense("raw", h), tf.float32), Activations(points, trunk)

    sigma, colour_rows = tf.cast(dense("alpha", h), tf.float32), None
    if visible_above is not None:
        colour_rows = tf.where(sigma[:, 0] > visible_above)[:, 0]
        h, rays = tf.gather(h, colour_rows), tf.gather(rays, colour_rows)
    viewdirs = tf.gather(tf.cast(viewdirs, dtype), rays)
    if dtype == tf.float32:
        # Not fused: a different rounding switches some ReLUs, and gradients would differ from Keras' by more than 1e-5.
        views = dense("views", tf.concat([dense("bottleneck", h), viewdirs], axis=-1))
    else:
        views = activate("views", tf.concat([h, viewdirs], axis=-1), *_fuse_view_branch(weights))
    rgb = tf.cast(dense("rgb", views), tf.float32)
    if colour_rows is not None:
        rgb = tf.scatter_nd(colour_rows[:, None], rgb, tf.stack([tf.shape(sigma, tf.int64)[0], 3]))
    return tf.concat([rgb, sigma], axis=-1), Activations(points, trunk, colour_rows, viewdirs, views)


def backward(
    weights: Weights, activations: Activations, upstream: tf.Tensor, active: tf.Tensor | None
) -> dict[str, list[tf.Tensor]]:
    """Computes the gradients of the weights from the active points: two matrix products per layer.

    Args:
        weights: the weights that `forward` was called with.
        activations: the activations that it returned.
        upstream: [B, 4] the gradient of raw.
        active: [B] bool, the points that contribute. None: all do, and all have a colour.

    Returns:
        The gradients of kernel and bias by layer, float32.
    """
    points, trunk = activations.points, activations.trunk
    rows = None if active is None else tf.where(active)[:, 0]
    gradients = {}

    def layer_input(layer: int, output: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        """The input of what follows a trunk layer, whose output at the active points is given."""
        return tf.concat([_gather_rows(points, rows, g), output], axis=-1) if layer == SKIP_AFTER else output

    def dense_backward(name: str, x: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        """Stores a layer's gradients and returns the trunk output's, from input x and gradient g."""
        gradients[name] = _dense_gradients(x, g)
        return tf.matmul(g, _trunk_rows(weights[name][0], trunk), transpose_b=True)

    last = len(trunk) - 1
    g = tf.cast(upstream if rows is None else tf.gather(upstream, rows), points.dtype)
    h = _gather_rows(trunk[last], rows, g)
    x = layer_input(last, h, g)
    if "raw" in weights:
        g = dense_backward("raw", x, g)
    else:
        rgb_g, g = g[:, :3], dense_backward("alpha", x, g[:, 3:])
        view_gradients, g = _view_branch_backward(weights, activations, x, rgb_g, g, active, rows)
        gradients |= view_gradients
    for layer in range(last, 0, -1):
        g = _relu_gradient(g, h)
        h = _gather_rows(trunk[layer - 1], rows, g)
        g = dense_backward(f"trunk_{layer}", layer_input(layer - 1, h, g), g)
    g = _relu_gradient(g, h)
    gradients["trunk_0"] = _dense_gradients(_gather_rows(points, rows, g), g)
    return gradients


def _view_branch_backward(
    weights: Weights,
    activations: Activations,
    x: tf.Tensor,
    rgb_g: tf.Tensor,
    trunk_g: tf.Tensor,
    active: tf.Tensor | None,
    rows: tf.Tensor | None,
) -> tuple[dict[str, list[tf.Tensor]], tf.Tensor]:
    """Computes the gradients of bottleneck, views and rgb, and that of the trunk's output.

    Args:
        weights, activations, active: as in `backward`.
        x: [A, ...] the branch's input at the A active points.
        rgb_g: [A, 3] the gradient of colour.
        trunk_g: [A, width] the gradient of the trunk's output that comes from density.
        rows: [A] numbers of the active points; None: all are.

    Returns:
        The gradients by layer, and `trunk_g` with the branch's part added.
    """
    view_rows, positions = rows, None
    if activations.colour_rows is not None:
        # Active points with a colour: their rows in the view branch's activations, and among the active points.
        view_rows = tf.where(tf.gather(active, activations.colour_rows))[:, 0]
        positions = tf.gather(tf.cumsum(tf.cast(active, tf.int64)) - 1, tf.gather(activations.colour_rows, view_rows))
        rgb_g, x = tf.gather(rgb_g, positions), tf.gather(x, positions)
    views = _gather_rows(activations.views, view_rows, rgb_g)
    gradients = {"rgb": _dense_gradients(views, rgb_g)}
    g = _relu_gradient(tf.matmul(rgb_g, weights["rgb"][0], transpose_b=True), views)
    viewdirs = _gather_rows(activations.viewdirs, view_rows, g)
    gradients |= _unfuse_gradients(weights, *_dense_gradients(tf.concat([x, viewdirs], axis=-1), g))
    point_kernel = _fuse_view_branch(weights)[0][: -viewdirs.shape[-1]]
    g = tf.matmul(g, _trunk_rows(point_kernel, activations.trunk), transpose_b=True)
    if positions is None:
        return gradients, trunk_g + g
    return gradients, tf.tensor_scatter_nd_add(trunk_g, positions[:, None], g)


def _dense_gradients(x: tf.Tensor, g: tf.Tensor) -> list[tf.Tensor]:
    """Gradients of a layer's kernel and bias, float32, from input x and the output's gradient g."""
    # Not BiasAddGrad: on a CPU it adds up bfloat16 in bfloat16 and loses most of the sum; matrix products do not.
    bias_gradient = tf.matmul(tf.ones([1, tf.shape(g)[0]], g.dtype), g)[0]
    return [tf.cast(tf.matmul(x, g, transpose_a=True), tf.float32), tf.cast(bias_gradient, tf.float32)]


def _relu_gradient(g: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    """Gradient of a ReLU's input, from its output and the output's gradient g."""
    return tf.raw_ops.ReluGrad(gradients=g, features=output)


def _gather_rows(x: tf.Tensor, rows: tf.Tensor | None, after: tf.Tensor) -> tf.Tensor:
    """Gathers rows of x, or all if None, but not before `after` is computed."""
    # The rows of all layers at once would double the memory.
    with tf.control_dependencies([after]):
        return x if rows is None else tf.gather(x, rows)


def _trunk_rows(kernel: tf.Tensor, trunk: list[tf.Tensor]) -> tf.Tensor:
    """The rows of a kernel that multiply the trunk's output; those of encoded points come first."""
    return kernel[-trunk[0].shape[-1] :]


def _fuse_view_branch(weights: Weights) -> tuple[tf.Tensor, tf.Tensor]:
    """Fuses bottleneck and views: kernel [width + viewdirs, width // 2] and bias [width // 2].

    The bottleneck has no activation, so both layers are one matrix, with half the multiplications.
    """
    (bottleneck, bottleneck_bias), (views, views_bias) = _as_float32(weights["bottleneck"], weights["views"])
    bottleneck_part, viewdirs_part = tf.split(views, [BOTTLENECK_WIDTH, -1])
    kernel = tf.concat([tf.matmul(bottleneck, bottleneck_part), viewdirs_part], axis=0)
    bias = tf.linalg.matvec(bottleneck_part, bottleneck_bias, transpose_a=True) + views_bias
    dtype = weights["views"][0].dtype
    return tf.cast(kernel, dtype), tf.cast(bias, dtype)


def _unfuse_gradients(weights: Weights, kernel_g: tf.Tensor, bias_g: tf.Tensor) -> dict[str, list[tf.Tensor]]:
    """Computes the gradients of bottleneck and views from those of the fused layer."""
    (bottleneck, bottleneck_bias), (views, _) = _as_float32(weights["bottleneck"], weights["views"])
    bottleneck_part = views[:BOTTLENECK_WIDTH]
    product_g, viewdirs_g = tf.split(kernel_g, [tf.shape(bottleneck)[0], -1])
    part_g = tf.matmul(bottleneck, product_g, transpose_a=True) + bottleneck_bias[:, None] * bias_g
    bottleneck_g = tf.matmul(product_g, bottleneck_part, transpose_b=True)
    return {
        "bottleneck": [bottleneck_g, tf.linalg.matvec(bottleneck_part, bias_g)],
        "views": [tf.concat([part_g, viewdirs_g], axis=0), bias_g],
    }


def _as_float32(*layers: Sequence[tf.Tensor]) -> list[list[tf.Tensor]]:
    return [[tf.cast(tensor, tf.float32) for tensor in layer] for layer in layers]
