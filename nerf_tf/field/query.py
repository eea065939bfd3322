"""Evaluates a network on any number of points, `netchunk` of them at a time, forward and backward.

This is the one place that decides how much memory a network takes. The original encodes all points of a ray chunk and
only then cuts the encodings into netchunk pieces, and its gradient tape keeps every activation of every piece. Here
points are encoded inside a tile, and only points that the loss depends on have a backward pass. Where all points fit
into one tile its activations are kept for it; where they do not, nothing but the points is, and those that matter are
evaluated again, tile by tile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from nerf_tf.field.encoding import positional_encoding
from nerf_tf.field.mlp import Activations, FieldSettings, backward, by_layer, forward, precision

# Points whose gradient is below this part of the largest one's are left out. All of them together are still lost in
# rounding: in float32 parameter gradients stay within 1e-5 of the exact ones, mostly within 3e-6; 16 bits round to
# 4e-3, and what is left out in a trained lego is 1e-4 of the whole.
ROW_TOLERANCE = {"float32": 1e-8, "bfloat16": 1e-5, "float16": 1e-5}


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """A network as a function of points and view directions.

    Attributes:
        mlp: the network.
        settings: what it was built from.
        netchunk: largest number of points to evaluate at once.
        row_tolerance: points whose gradient is below this part of the largest one's have no backward pass; 0: only
            those whose gradient is exactly zero; None: `ROW_TOLERANCE` of the network's precision.
        compiled: whether XLA compiles what happens within a tile. Tiles then have exactly `netchunk` points, the last
            one padded, and are evaluated again for the backward pass.
    """

    mlp: keras.Model
    settings: FieldSettings
    netchunk: int
    row_tolerance: float | None = None
    compiled: bool = False

    def __call__(
        self, points: tf.Tensor, viewdirs: tf.Tensor, visible_above: tf.Tensor | float | None = None
    ) -> tf.Tensor:
        """Raw colour and density.

        Gradients flow to the network's weights and to nothing else: points and view directions are data.

        Args:
            points: [R, S, 3].
            viewdirs: [R, 3] unit directions, one for all S points of a ray; ignored by a network without viewdirs.
            visible_above: scalar or [R, S]; the colour of a point whose density is not above it is of no concern, and
                may come out as anything. None: all colours matter.

        Returns:
            [R, S, 4] colour before the sigmoid, density before the ReLU.
        """
        count, samples = points.shape[0], points.shape[1]
        encoded_viewdirs = positional_encoding(viewdirs, self.settings.multires_views)  # once for each ray
        if visible_above is not None:
            visible_above = tf.reshape(tf.broadcast_to(visible_above, tf.shape(points)[:2]), [-1])
        variables = [tf.convert_to_tensor(variable.value) for variable in self.mlp.trainable_variables]
        largest = self.netchunk if count is None else min(self.netchunk, count * samples)
        one_tile = count is not None and count * samples <= largest and not self.compiled

        @tf.custom_gradient
        def evaluate(points: tf.Tensor, *variables: tf.Tensor):
            variables = [tf.cast(variable, precision(self.mlp)) for variable in variables]

            def gather(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                return tf.gather(points, rows), encoded_viewdirs, rows // samples

            if one_tile:
                rays = tf.range(count * samples) // samples
                raw, activations = self._forward(variables, points, encoded_viewdirs, rays, visible_above)
            else:
                raw = self._forward_in_tiles(variables, gather, tf.shape(points)[0], largest, visible_above)

            def gradient(upstream: tf.Tensor):
                active = self._active(upstream)
                if one_tile:
                    gradients = self._backward(variables, activations, upstream, active)
                else:
                    gradients = self._backward_in_tiles(variables, gather, upstream, tf.where(active)[:, 0], largest)
                return None, *gradients

            return raw, gradient

        return tf.reshape(evaluate(tf.reshape(points, [-1, 3]), *variables), [-1, samples, 4])

    @property
    def tolerance(self) -> float:
        """`row_tolerance`, or what stands for it."""
        return ROW_TOLERANCE[precision(self.mlp)] if self.row_tolerance is None else self.row_tolerance

    def _forward(self, variables, points, encoded_viewdirs, rays, visible_above=None) -> tuple[tf.Tensor, Activations]:
        encoded = positional_encoding(points, self.settings.multires)
        return forward(self.mlp, by_layer(self.mlp, variables), encoded, encoded_viewdirs, rays, visible_above)

    def _backward(self, variables, activations, upstream, active=None) -> list[tf.Tensor]:
        gradients = backward(by_layer(self.mlp, variables), activations, upstream, active)
        return [tensor for layer in self.mlp.layers if layer.weights for tensor in gradients[layer.name]]

    def _active(self, upstream: tf.Tensor) -> tf.Tensor:
        """Which of the points [B] a gradient [B, 4] comes from.

        A sample whose density the ReLU clipped has no weight, and neither its density nor its colour has a gradient;
        in a trained scene these are most samples. What lies behind a surface has next to none.
        """
        size = tf.reduce_max(tf.abs(upstream), axis=-1)
        # NaN counts too: compared with anything it is not larger, and would vanish unseen.
        least = self.tolerance * tf.reduce_max(size)
        return tf.logical_or(size > least, tf.logical_not(tf.math.is_finite(size)))

    def _forward_in_tiles(self, variables, gather, count, largest, visible_above) -> tf.Tensor:
        tiles, size = self._split(count, largest)

        def evaluate_tile(i, raw):
            rows = tf.minimum(i * size + tf.range(size), count - 1)
            if self.compiled:
                return i + 1, raw.write(i, self._compiled_forward(variables, *gather(rows)))
            above = None if visible_above is None else tf.gather(visible_above, rows)
            return i + 1, raw.write(i, self._forward(variables, *gather(rows), above)[0])

        raw = tf.TensorArray(tf.float32, tiles, element_shape=[None, 4])
        _, raw = tf.while_loop(lambda i, _: i < tiles, evaluate_tile, (0, raw), parallel_iterations=1)
        return raw.concat()[:count]

    def _backward_in_tiles(self, variables, gather, upstream, active, largest) -> list[tf.Tensor]:
        count = tf.shape(active)[0]
        tiles, size = self._split(count, largest)
        tile_gradients = self._compiled_gradients if self.compiled else self._tile_gradients

        def add_tile(i, sums):
            numbers = i * size + tf.range(size)
            rows = tf.gather(active, tf.minimum(numbers, count - 1))
            counts = tf.cast(numbers < count, tf.float32)  # but for the padding
            gradients = tile_gradients(variables, *gather(rows), tf.gather(upstream, rows) * counts[:, None])
            return i + 1, [a + b for a, b in zip(sums, gradients, strict=True)]

        zeros = [tf.zeros_like(variable, tf.float32) for variable in variables]
        return tf.while_loop(lambda i, _: i < tiles, add_tile, (0, zeros), parallel_iterations=1)[1]

    def _tile_gradients(self, variables, points, encoded_viewdirs, rays, upstream) -> list[tf.Tensor]:
        _, activations = self._forward(variables, points, encoded_viewdirs, rays)
        return self._backward(variables, activations, upstream)

    @functools.cached_property
    def _compiled_forward(self) -> Callable[..., tf.Tensor]:
        return tf.function(lambda *args: self._forward(*args)[0], jit_compile=True, autograph=False)

    @functools.cached_property
    def _compiled_gradients(self) -> Callable[..., list[tf.Tensor]]:
        return tf.function(self._tile_gradients, jit_compile=True, autograph=False)

    def _split(self, count: tf.Tensor, largest: int) -> tuple[tf.Tensor, tf.Tensor | int]:
        """Number of tiles for `count` points, and their size: even, so that the last is no sliver."""
        tiles = -(-count // largest)
        # XLA compiles a program for each size, so there is only one.
        return tiles, largest if self.compiled else -(-count // tf.maximum(tiles, 1))


def rays_at_once(rays: int, samples: int, chunk: int, netchunk: int, training: bool, compiled: bool) -> int:
    """How many of a step's or a view's rays are worked on together.

    A training step takes only as many as fit a tile with all their samples: the tile's activations then serve the
    backward pass too. XLA's tiles, and those that do not hold a single ray, are evaluated again instead.
    """
    limit = min(rays, chunk)
    if training and not compiled and samples <= netchunk:
        limit = min(limit, netchunk // samples)
    return limit
