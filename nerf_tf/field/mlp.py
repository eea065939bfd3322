"""The NeRF network (paper, figure 7) as a Keras functional model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from nerf_tf.field.encoding import encoded_width

# The encoded point is concatenated to the output of this trunk layer, counted from 0 (paper, figure 7).
SKIP_AFTER = 4
# The original's bottleneck has this width for every netwidth, and so have its weight files.
BOTTLENECK_WIDTH = 256


@dataclasses.dataclass(frozen=True)
class FieldSettings:
    """Shape of one network.

    Attributes:
        depth, width: number of trunk layers, and units of each.
        multires, multires_views: octaves of positional encoding for points and view directions; 0: none.
        use_viewdirs: whether colour depends on the view direction.
    """

    depth: int = 8
    width: int = 256
    multires: int = 10
    multires_views: int = 4
    use_viewdirs: bool = False


def build_mlp(settings: FieldSettings, seed: int | Sequence[int], precision: str = "float32") -> keras.Model:
    """Builds the network with Glorot-uniform kernels and zero biases.

    With view directions, density is a linear layer on the trunk, so it cannot depend on the view; colour comes from a
    linear bottleneck, the encoded view direction and one more layer. Without, one linear layer gives all four values.

    Args:
        seed: one or more whole numbers >= 0 that determine the initial weights.
        precision: float32, bfloat16 or float16: the type that layers compute in. Weights are always float32.

    Returns:
        A model from encoded points [B, 3 * (1 + 2 * multires)] and, with `use_viewdirs`, encoded view directions
        [B, 3 * (1 + 2 * multires_views)] to raw [B, 4]: colour before the sigmoid, density before the ReLU. Its weights
        are in the order of the original's files: trunk, bottleneck, views, rgb, alpha.
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


def precision(mlp: keras.Model) -> str:
    """Returns the type that the network's layers compute in: float32, bfloat16 or float16."""
    return mlp.layers[-1].compute_dtype


def group_by_layer(mlp: keras.Model, tensors: Sequence[tf.Tensor]) -> dict[str, Sequence[tf.Tensor]]:
    """Groups tensors in the order of `mlp.trainable_variables` into {layer name: [kernel's, bias's]}."""
    names = [layer.name for layer in mlp.layers if layer.weights]
    return {name: tensors[2 * i : 2 * i + 2] for i, name in enumerate(names)}
