"""Evaluates a network on any number of points, at most `netchunk` at a time, forward and backward.

This module alone determines how much memory a network takes. The original encodes all points of a chunk before it
splits them into pieces of netchunk, and its gradient tape keeps all activations. Here points are encoded inside a tile,
and only points that the loss depends on have a backward pass: from the kept activations if all points fit into one
tile, otherwise tile by tile, evaluated again. A program that XLA compiles has static shapes: there all colours are
computed, and a single tile computes gradients from all points.

In private functions: points [B, 3]; rays [B], the row of each in encoded_viewdirs [R, ...]; upstream [B, 4], the
gradient of raw; variables and gradients in the order of `mlp.trainable_variables`; gather_points(numbers of points)
returns points, encoded_viewdirs and rays.
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from nerf_tf.compaction import compact
from nerf_tf.field.backprop import Activations, backward, forward
from nerf_tf.field.encoding import positional_encoding
from nerf_tf.field.mlp import FieldSettings, group_by_layer, precision

# Points whose gradient is smaller than this part of the largest one are left out. Measured: float32 weight gradients
# stay within 1e-5 of the exact ones, mostly within 3e-6. With 16 bits, where bfloat16 itself rounds to 4e-3, the points
# left out make up 1e-4 of the gradient in a trained lego.
ROW_TOLERANCE = {"float32": 1e-8, "bfloat16": 1e-5, "float16": 1e-5}
# Tiles of a compiled backward pass hold netchunk divided by this.
COMPILED_BACKWARD_TILES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """A network as a function of points and view directions.

    Attributes:
        mlp: the network.
        settings: its shape.
        netchunk: largest number of points to evaluate at once.
        row_tolerance: points whose gradient is smaller than this part of the largest one have no backward pass; 0: only
            those whose gradient is exactly zero; None: `ROW_TOLERANCE` of the network's precision.
        compiled: whether it is part of a program that XLA compiles.
    """

    mlp: keras.Model
    settings: FieldSettings
    netchunk: int
    row_tolerance: float | None = None
    compiled: bool = False

    def __call__(
        self, points: tf.Tensor, viewdirs: tf.Tensor, visible_above: tf.Tensor | float | None = None
    ) -> tf.Tensor:
        """Computes raw colour and density; gradients flow to the network's weights only.

        Args:
            points: [R, S, 3].
            viewdirs: [R, 3] unit directions, one per ray; ignored by a network without view directions.
            visible_above: scalar or [R, S]; the colour of a point whose density is not above it may be anything. None:
                all colours matter.

        Returns:
            [R, S, 4] colour before the sigmoid, density before the ReLU.
        """
        count, samples = points.shape[0], points.shape[1]
        if self.compiled:
            visible_above = None
        encoded_viewdirs = positional_encoding(viewdirs, self.settings.multires_views)  # once per ray
        if visible_above is not None:
            visible_above = tf.reshape(tf.broadcast_to(visible_above, tf.shape(points)[:2]), [-1])
        variables = [tf.convert_to_tensor(variable.value) for variable in self.mlp.trainable_variables]
        max_tile = self.netchunk if count is None else min(self.netchunk, count * samples)
        one_tile = count is not None and count * samples <= max_tile

        @tf.custom_gradient
        def evaluate(points: tf.Tensor, *variables: tf.Tensor):
            """Raw [B, 4] of points [B, 3], and the function that turns its gradient into that of the weights."""
            variables = [tf.cast(variable, precision(self.mlp)) for variable in variables]

            def gather_points(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                return tf.gather(points, rows), encoded_viewdirs, rows // samples

            if one_tile:
                rays = tf.range(count * samples) // samples
                raw, activations = self._forward(variables, points, encoded_viewdirs, rays, visible_above)
            else:
                raw = self._forward_in_tiles(variables, gather_points, _rows_in(points), max_tile, visible_above)

            def gradient(upstream: tf.Tensor):
                if one_tile:
                    active = None if self.compiled else self._find_active(upstream)
                    return None, *self._backward(variables, activations, upstream, active)
                return None, *self._backward_in_tiles(variables, gather_points, upstream, max_tile)

            return raw, gradient

        return tf.reshape(evaluate(tf.reshape(points, [-1, 3]), *variables), [-1, samples, 4])

    @property
    def tolerance(self) -> float:
        """`row_tolerance`, or its default for the network's precision."""
        return ROW_TOLERANCE[precision(self.mlp)] if self.row_tolerance is None else self.row_tolerance

    def _forward(self, variables, points, encoded_viewdirs, rays, visible_above=None) -> tuple[tf.Tensor, Activations]:
        encoded_points = positional_encoding(points, self.settings.multires)
        weights = group_by_layer(self.mlp, variables)
        return forward(self.mlp, weights, encoded_points, encoded_viewdirs, rays, visible_above)

    def _backward(self, variables, activations, upstream, active=None) -> list[tf.Tensor]:
        gradients = backward(group_by_layer(self.mlp, variables), activations, upstream, active)
        return [tensor for layer in self.mlp.layers if layer.weights for tensor in gradients[layer.name]]

    def _find_active(self, upstream: tf.Tensor) -> tf.Tensor:
        """Finds the points [B] whose gradient, in `upstream` [B, 4], is large enough to matter.

        Density that the ReLU clips has no weight, so neither its density nor its colour has a gradient; in a trained
        scene that is most samples. Samples behind a surface have almost none.
        """
        size = tf.reduce_max(tf.abs(upstream), axis=-1)
        threshold = self.tolerance * tf.reduce_max(size)
        # NaN is not larger than the threshold, but must not get lost.
        return tf.logical_or(size > threshold, tf.logical_not(tf.math.is_finite(size)))

    def _forward_in_tiles(self, variables, gather_points, count, max_tile, visible_above) -> tf.Tensor:
        tiles = -(-count // max_tile)
        size = _even_size(count, tiles)

        def evaluate_tile(i, raw):
            rows = tf.minimum(i * size + tf.range(size), count - 1)
            above = None if visible_above is None else tf.gather(visible_above, rows)
            return i + 1, raw.write(i, self._forward(variables, *gather_points(rows), above)[0])

        is_static = isinstance(size, int)
        raw = tf.TensorArray(tf.float32, tiles, element_shape=[size if is_static else None, 4])
        _, raw = tf.while_loop(lambda i, _: i < tiles, evaluate_tile, (0, raw), parallel_iterations=1)
        return (tf.reshape(raw.stack(), [-1, 4]) if is_static else raw.concat())[:count]

    def _backward_in_tiles(self, variables, gather_points, upstream, max_tile) -> list[tf.Tensor]:
        active = self._find_active(upstream)
        if self.compiled:
            # The number of tiles varies, their size does not: small ones, so that the last is not mostly padding.
            active_rows, count = compact(active)
            size = -(-max_tile // COMPILED_BACKWARD_TILES)
            tiles = -(-count // size)
        else:
            active_rows = tf.where(active)[:, 0]
            count = _rows_in(active_rows)
            tiles = -(-count // max_tile)
            size = _even_size(count, tiles)

        def add_tile(i, sums):
            """Adds a tile's gradients to those so far."""
            numbers = i * size + tf.range(size)
            rows = tf.gather(active_rows, tf.minimum(numbers, count - 1))
            is_point = tf.cast(numbers < count, tf.float32)[:, None]  # 0 for padding
            _, activations = self._forward(variables, *gather_points(rows))
            gradients = self._backward(variables, activations, tf.gather(upstream, rows) * is_point)
            return i + 1, [a + b for a, b in zip(sums, gradients, strict=True)]

        zeros = [tf.zeros_like(variable, tf.float32) for variable in variables]
        return tf.while_loop(lambda i, _: i < tiles, add_tile, (0, zeros), parallel_iterations=1)[1]


def _rows_in(tensor: tf.Tensor) -> tf.Tensor | int:
    """Returns the first dimension, as a Python number if it is known when the graph is made."""
    return tf.shape(tensor)[0] if tensor.shape[0] is None else tensor.shape[0]


def _even_size(count: tf.Tensor | int, tiles: tf.Tensor | int) -> tf.Tensor | int:
    """Returns the size of `tiles` tiles that together hold `count` points, as even as possible."""
    return -(-count // max(tiles, 1)) if isinstance(tiles, int) else -(-count // tf.maximum(tiles, 1))


def rays_at_once(rays: int, samples: int, chunk: int, netchunk: int, training: bool, compiled: bool) -> int:
    """Returns how many of a step's or a view's `rays`, of so many `samples` each, are computed together.

    A training step takes as many as fit into one tile with all their samples, because that tile's activations also
    serve the backward pass. If tiles are too small for one ray, their points are evaluated again anyway; so they are in
    a compiled program, unless all of `chunk` fits into one tile.
    """
    limit = min(rays, chunk)
    if training and not compiled and samples <= netchunk:
        limit = min(limit, netchunk // samples)
    return limit
