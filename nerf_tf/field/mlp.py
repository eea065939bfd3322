"""The NeRF network (paper, figure 7) as a Keras functional model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from nerf_tf.field.encoding import encoded_width

# The encoded point joins the trunk again behind this layer (counted from 0).
SKIP_AFTER = 4
# The original fixes the bottleneck's width whatever netwidth is; its weight files depend on that.
BOTTLENECK_WIDTH = 256


@dataclasses.dataclass(frozen=True)
class FieldSettings:
    """Shape of one network.

    Attributes:
        depth, width: layers of the trunk and units in each.
        multires, multires_views: octaves of positional encoding of points and of view directions; 0 for none.
        use_viewdirs: whether colour depends on the view direction.
    """

    depth: int = 8
    width: int = 256
    multires: int = 10
    multires_views: int = 4
    use_viewdirs: bool = False


def build_mlp(settings: FieldSettings, seed: int | Sequence[int], precision: str = "float32") -> keras.Model:
    """Builds the network, Glorot-uniform kernels and zero biases.

    Density is read off the trunk, so it cannot depend on the view; colour is read off a linear bottleneck joined with
    the encoded view direction and one more layer. Without view directions a single linear layer gives all four.

    Args:
        settings: the network's shape.
        seed: one or more whole numbers >= 0 that decide the initial weights.
        precision: float32, bfloat16 or float16: what layers compute in. Weights are float32 all the same.

    Returns:
        A model from encoded points [B, 3 * (1 + 2 * multires)], and with `use_viewdirs` encoded view directions
        [B, 3 * (1 + 2 * multires_views)], to raw [B, 4]: colour before the sigmoid, density before the ReLU. Its
        `get_weights()` is in the order of the original's weight files: trunk, bottleneck, views, rgb, alpha.
    """
    policy = keras.DTypePolicy(precision if precision == "float32" else f"mixed_{precision}")
    seeds = iter(np.random.SeedSequence(seed).generate_state(settings.depth + 4).tolist())

    def dense(units: int, name: str, activation: str | None = None) -> keras.layers.Dense:
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        return keras.layers.Dense(units, activation=activation, kernel_initializer=initializer, dtype=policy, name=name)

    def concatenate(name: str) -> keras.layers.Concatenate:
        return keras.layers.Concatenate(dtype=policy, name=name)

    points = keras.Input((encoded_width(3, settings.multires),), name="encoded_points")
    inputs = [points]
    h = points
    for layer in range(settings.depth):
        h = dense(settings.width, f"trunk_{layer}", "relu")(h)
        if layer == SKIP_AFTER:
            h = concatenate("skip")([points, h])
    if settings.use_viewdirs:
        viewdirs = keras.Input((encoded_width(3, settings.multires_views),), name="encoded_viewdirs")
        inputs.append(viewdirs)
        alpha = dense(1, "alpha")(h)
        h = dense(BOTTLENECK_WIDTH, "bottleneck")(h)
        h = concatenate("with_viewdirs")([h, viewdirs])
        h = dense(settings.width // 2, "views", "relu")(h)
        raw = concatenate("raw")([dense(3, "rgb")(h), alpha])
    else:
        raw = dense(4, "raw")(h)
    return keras.Model(inputs, raw)


class Activations(NamedTuple):
    """What the backward pass over B points needs of the forward pass, in the type that layers compute in.

    Attributes:
        points: [B, 3 * (1 + 2 * multires)] encoded points.
        trunk: [B, width] the output of each layer of the trunk.
        coloured: [V] numbers of the points that went on into the view branch, ascending; None: all did.
        viewdirs: [V, 3 * (1 + 2 * multires_views)] encoded view directions.
        views: [V, width // 2] the output of this layer. Without view directions these two are None.
    """

    points: tf.Tensor
    trunk: list[tf.Tensor]
    coloured: tf.Tensor | None = None
    viewdirs: tf.Tensor | None = None
    views: tf.Tensor | None = None


# Kernel and bias of each layer, by its name.
Weights = dict[str, Sequence[tf.Tensor]]


def precision(mlp: keras.Model) -> str:
    """What the network's layers compute in: float32, bfloat16 or float16."""
    return mlp.layers[-1].compute_dtype


def by_layer(mlp: keras.Model, tensors: Sequence[tf.Tensor]) -> Weights:
    """Sorts tensors that are in the order of `mlp.trainable_variables`."""
    names = [layer.name for layer in mlp.layers if layer.weights]
    return {name: tensors[2 * i : 2 * i + 2] for i, name in enumerate(names)}


def _view_branch(weights: Weights) -> tuple[tf.Tensor, tf.Tensor]:
    """Kernel [width + viewdirs, width // 2] and bias of bottleneck and views in one.

    The bottleneck has no activation: it and what the next layer makes of it are one matrix, with half the products.
    """
    (bottleneck, bottleneck_bias), (views, views_bias) = _in_float32(weights["bottleneck"], weights["views"])
    of_bottleneck, of_viewdirs = tf.split(views, [BOTTLENECK_WIDTH, -1])
    kernel = tf.concat([tf.matmul(bottleneck, of_bottleneck), of_viewdirs], axis=0)
    bias = tf.linalg.matvec(of_bottleneck, bottleneck_bias, transpose_a=True) + views_bias
    dtype = weights["views"][0].dtype
    return tf.cast(kernel, dtype), tf.cast(bias, dtype)


def _view_branch_gradients(weights: Weights, of_kernel: tf.Tensor, of_bias: tf.Tensor) -> dict[str, list[tf.Tensor]]:
    """Gradients of both layers, from those of the kernel and bias that `_view_branch` makes of them."""
    (bottleneck, bottleneck_bias), (views, _) = _in_float32(weights["bottleneck"], weights["views"])
    of_product, of_viewdirs = tf.split(of_kernel, [tf.shape(bottleneck)[0], -1])
    through = views[:BOTTLENECK_WIDTH]
    of_through = tf.matmul(bottleneck, of_product, transpose_a=True) + bottleneck_bias[:, None] * of_bias
    return {
        "bottleneck": [tf.matmul(of_product, through, transpose_b=True), tf.linalg.matvec(through, of_bias)],
        "views": [tf.concat([of_through, of_viewdirs], axis=0), of_bias],
    }


def _in_float32(*layers: Sequence[tf.Tensor]) -> list[list[tf.Tensor]]:
    return [[tf.cast(tensor, tf.float32) for tensor in layer] for layer in layers]


def forward(
    mlp: keras.Model,
    weights: Weights,
    points: tf.Tensor,
    viewdirs: tf.Tensor,
    rays: tf.Tensor,
    visible_above: tf.Tensor | None,
) -> tuple[tf.Tensor, Activations]:
    """Runs the network as calling it would, but for the colour of what nobody sees, and in 16 bits for rounding.

    Args:
        mlp: the network.
        weights: what to run it with, in the type to compute in.
        points: [B, 3 * (1 + 2 * multires)] encoded points.
        viewdirs: [R, 3 * (1 + 2 * multires_views)] encoded view directions.
        rays: [B] which of these is a point's.
        visible_above: scalar or [B]; a point whose density is not above it gets no colour, but zeros. None: all get
            theirs.

    Returns:
        raw [B, 4] float32, and what `backward` needs.
    """

    def dense(name: str, x: tf.Tensor, joined: Sequence[tf.Tensor] | None = None) -> tf.Tensor:
        kernel, bias = weights[name] if joined is None else joined
        return mlp.get_layer(name).activation(tf.nn.bias_add(tf.matmul(x, kernel), bias))

    dtype = weights["trunk_0"][0].dtype
    points = tf.cast(points, dtype)
    h, trunk = points, []
    for layer in range(sum(name.startswith("trunk_") for name in weights)):
        trunk.append(dense(f"trunk_{layer}", h))
        h = tf.concat([points, trunk[layer]], axis=-1) if layer == SKIP_AFTER else trunk[layer]
    if "raw" in weights:
        return tf.cast(dense("raw", h), tf.float32), Activations(points, trunk)

    sigma, coloured = tf.cast(dense("alpha", h), tf.float32), None
    if visible_above is not None:
        coloured = tf.where(sigma[:, 0] > visible_above)[:, 0]
        h, rays = tf.gather(h, coloured), tf.gather(rays, coloured)
    viewdirs = tf.gather(tf.cast(viewdirs, dtype), rays)
    joined = None
    if dtype == tf.float32:
        # As rounding opens or shuts a ReLU here and there, only the same products give the same gradients to 1e-5.
        h = dense("bottleneck", h)
    else:
        joined = _view_branch(weights)
    views = dense("views", tf.concat([h, viewdirs], axis=-1), joined)
    rgb = tf.cast(dense("rgb", views), tf.float32)
    if coloured is not None:
        rgb = tf.scatter_nd(coloured[:, None], rgb, tf.stack([tf.shape(sigma, tf.int64)[0], 3]))
    return tf.concat([rgb, sigma], axis=-1), Activations(points, trunk, coloured, viewdirs, views)


def backward(
    weights: Weights, activations: Activations, upstream: tf.Tensor, active: tf.Tensor | None
) -> dict[str, list[tf.Tensor]]:
    """Gradients with respect to the weights, from those points only that matter.

    A gradient tape would run all points through the gradient of every layer. Written out, it is two products for each
    layer, of the rows that matter.

    Args:
        weights: what `forward` ran with.
        activations: what it kept.
        upstream: [B, 4] the gradient with respect to raw.
        active: [B] whether a point matters; None: all do, and all have a colour.

    Returns:
        By layer the gradients of kernel and bias, float32.
    """
    gradients = {}
    points, trunk, coloured = activations.points, activations.trunk, activations.coloured
    inner = slice(-trunk[0].shape[-1], None)  # where the skip joins, encoded points stand before the layer's output
    rows = None if active is None else tf.where(active)[:, 0]

    def of_weights(x: tf.Tensor, g: tf.Tensor) -> list[tf.Tensor]:
        """The gradients of the kernel and bias of a layer with inputs x and gradient g of its outputs."""
        # Not BiasAddGrad: on a CPU it adds up bfloat16 in bfloat16, and loses most of the sum. Products do not.
        of_bias = tf.matmul(tf.ones([1, tf.shape(g)[0]], g.dtype), g)[0]
        return [tf.cast(tf.matmul(x, g, transpose_a=True), tf.float32), tf.cast(of_bias, tf.float32)]

    def dense(name: str, x: tf.Tensor, g: tf.Tensor, wanted: slice | None) -> tf.Tensor | None:
        """Files the gradients of a layer with inputs x; returns that of the wanted part of them."""
        gradients[name] = of_weights(x, g)
        return None if wanted is None else tf.matmul(g, weights[name][0][wanted], transpose_b=True)

    def relu(g: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.ReluGrad(gradients=g, features=output)

    def take(x: tf.Tensor, which: tf.Tensor | None, g: tf.Tensor) -> tf.Tensor:
        # Not before the gradient got there: the rows of all layers at once would double the memory.
        with tf.control_dependencies([g]):
            return x if which is None else tf.gather(x, which)

    def joined(layer: int, h: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        """What a layer behind trunk layer `layer`, with outputs h, saw."""
        return tf.concat([take(points, rows, g), h], axis=-1) if layer == SKIP_AFTER else h

    last = len(trunk) - 1
    g = tf.cast(upstream if rows is None else tf.gather(upstream, rows), points.dtype)
    h = take(trunk[last], rows, g)
    x = joined(last, h, g)
    if "raw" in weights:
        g = dense("raw", x, g, inner)
    else:
        g, of_sigma = g[:, :3], dense("alpha", x, g[:, 3:], inner)
        seen, places = rows, None  # those of the coloured points that matter, and where they stand among all that do
        if coloured is not None:
            seen = tf.where(tf.gather(active, coloured))[:, 0]
            places = tf.gather(tf.cumsum(tf.cast(active, tf.int64)) - 1, tf.gather(coloured, seen))
            g, x = tf.gather(g, places), tf.gather(x, places)
        views = take(activations.views, seen, g)
        g = relu(dense("rgb", views, g, slice(None)), views)
        kernel = _view_branch(weights)[0]
        of_branch = of_weights(tf.concat([x, take(activations.viewdirs, seen, g)], axis=-1), g)
        gradients |= _view_branch_gradients(weights, *of_branch)
        of_points = kernel[: -activations.viewdirs.shape[-1]]
        g = tf.matmul(g, of_points[inner], transpose_b=True)
        g = of_sigma + g if places is None else tf.tensor_scatter_nd_add(of_sigma, places[:, None], g)
    for layer in range(last, 0, -1):
        g = relu(g, h)
        h = take(trunk[layer - 1], rows, g)
        g = dense(f"trunk_{layer}", joined(layer - 1, h, g), g, inner)
    g = relu(g, h)
    dense("trunk_0", take(points, rows, g), g, None)
    return gradients
