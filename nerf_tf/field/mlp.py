"""The NeRF network (paper, figure 7) as a Keras functional model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

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


def build_mlp(settings: FieldSettings, seed: int | Sequence[int]) -> keras.Model:
    """Builds the network, Glorot-uniform kernels and zero biases.

    Density is read off the trunk, so it cannot depend on the view; colour is read off a linear bottleneck joined with
    the encoded view direction and one more layer. Without view directions a single linear layer gives all four.

    Args:
        settings: the network's shape.
        seed: one or more whole numbers >= 0 that decide the initial weights.

    Returns:
        A model from encoded points [B, 3 * (1 + 2 * multires)], and with `use_viewdirs` encoded view directions
        [B, 3 * (1 + 2 * multires_views)], to raw [B, 4]: colour before the sigmoid, density before the ReLU. Its
        `get_weights()` is in the order of the original's weight files: trunk, bottleneck, views, rgb, alpha.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(settings.depth + 4).tolist())

    def dense(units: int, name: str, activation: str | None = None) -> keras.layers.Dense:
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        return keras.layers.Dense(units, activation=activation, kernel_initializer=initializer, name=name)

    points = keras.Input((encoded_width(3, settings.multires),), name="encoded_points")
    inputs = [points]
    h = points
    for layer in range(settings.depth):
        h = dense(settings.width, f"trunk_{layer}", "relu")(h)
        if layer == SKIP_AFTER:
            h = keras.layers.Concatenate(name="skip")([points, h])
    if settings.use_viewdirs:
        viewdirs = keras.Input((encoded_width(3, settings.multires_views),), name="encoded_viewdirs")
        inputs.append(viewdirs)
        alpha = dense(1, "alpha")(h)
        h = dense(BOTTLENECK_WIDTH, "bottleneck")(h)
        h = keras.layers.Concatenate(name="with_viewdirs")([h, viewdirs])
        h = dense(settings.width // 2, "views", "relu")(h)
        raw = keras.layers.Concatenate(name="raw")([dense(3, "rgb")(h), alpha])
    else:
        raw = dense(4, "raw")(h)
    return keras.Model(inputs, raw)
