"""Evaluates a network on any number of points, `netchunk` of them at a time, forward and backward.

This is the one place that decides how much memory a network takes. The original encodes all points of a ray chunk and
only then cuts the encodings into netchunk pieces, and its gradient tape keeps every activation of every piece. Here
points are encoded inside a tile, and only points that the loss depends on have a backward pass. Where all points fit
into one tile its activations are kept for it, and rays are followed from front to back, only for as long as there is
light; where they do not fit, nothing but the points is kept, and those that matter are evaluated again, tile by tile.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import keras
import tensorflow as tf

from nerf_tf.field.encoding import positional_encoding
from nerf_tf.field.mlp import Activations, FieldSettings, backward, by_layer, forward, precision

# Points whose gradient is below this part of the largest one's are left out. A million of them together are still lost
# in float32's rounding: parameter gradients stay within 1e-5 of the exact ones, mostly within 1e-6.
ROW_TOLERANCE = 1e-8
# A ray is spent behind this optical depth: 2e-9 of its light is left, which is lost in float32's rounding too.
SPENT = 20.0
# Rays are cut into at most so many parts, which are evaluated one after the other, and a tile's into parts of no fewer
# points than this, as a processor takes many points at once.
MOST_PARTS, LEAST_POINTS = 8, 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """A network as a function of points and view directions.

    Attributes:
        mlp: the network.
        settings: what it was built from.
        netchunk: largest number of points to evaluate at once.
        row_tolerance: see `ROW_TOLERANCE`; 0 leaves out only points whose gradient is exactly zero.
        compiled: whether XLA compiles what happens within a tile. Tiles then have exactly `netchunk` points, the last
            one padded, and are evaluated again for the backward pass.
    """

    mlp: keras.Model
    settings: FieldSettings
    netchunk: int
    row_tolerance: float = ROW_TOLERANCE
    compiled: bool = False

    def __call__(
        self, points: tf.Tensor, viewdirs: tf.Tensor, visible_above: tf.Tensor | float | None = None
    ) -> tf.Tensor:
        """Raw colour and density.

        Gradients flow to the network's weights and to nothing else: points and view directions are data.

        Args:
            points: [R, S, 3].
            viewdirs: [R, 3] unit directions, one for all S points of a ray; ignored by a network without viewdirs.
            visible_above: scalar or [R, S]; what a point's density has to exceed to be seen, where the S points of a
                ray are in order and to be composited. The colour of what is not seen, and the density too of what the
                excess of others hides, are of no concern and may come out as anything. None: all matters.

        Returns:
            [R, S, 4] colour before the sigmoid, density before the ReLU.
        """
        count, samples = points.shape[0], points.shape[1]
        encoded_viewdirs = positional_encoding(viewdirs, self.settings.multires_views)  # once for each ray
        if visible_above is not None:
            visible_above = tf.broadcast_to(visible_above, tf.shape(points)[:2])
        variables = [tf.convert_to_tensor(variable.value) for variable in self.mlp.trainable_variables]
        largest = self.netchunk if count is None else min(self.netchunk, count * samples)
        one_tile = count is not None and count * samples <= largest and not self.compiled

        @tf.custom_gradient
        def evaluate(points: tf.Tensor, *variables: tf.Tensor):
            variables = [tf.cast(variable, precision(self.mlp)) for variable in variables]
            flat_points = tf.reshape(points, [-1, 3])

            def gather(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                return tf.gather(flat_points, rows), encoded_viewdirs, rows // samples

            if one_tile:
                raw, parts = self._forward_in_parts(variables, points, encoded_viewdirs, visible_above)
            else:
                raw = self._forward_in_tiles(variables, gather, tf.size(flat_points) // 3, largest, visible_above)

            def gradient(upstream: tf.Tensor):
                upstream = tf.reshape(upstream, [-1, 4])
                active = self._active(upstream)
                if one_tile:
                    gradients = self._backward_in_parts(variables, parts, upstream, active)
                else:
                    gradients = self._backward_in_tiles(variables, gather, upstream, tf.where(active)[:, 0], largest)
                return None, *gradients

            return tf.reshape(raw, [-1, samples, 4]), gradient

        return evaluate(points, *variables)

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
        # What is no number counts too: compared with anything it is not larger, and would vanish unseen.
        return tf.logical_or(size > self.row_tolerance * tf.reduce_max(size), tf.logical_not(tf.math.is_finite(size)))

    def _forward_in_parts(self, variables, points, encoded_viewdirs, visible_above):
        """Raw [R, S, 4] of points [R, S, 3] from front to back; also each part's rows, and what it kept of them."""
        rays, samples = points.shape[:2]
        count = 1 if visible_above is None else max(1, min(MOST_PARTS, samples, rays * samples // LEAST_POINTS))
        intervals = tf.pad(tf.norm(points[:, 1:] - points[:, :-1], axis=-1), [[0, 0], [0, 1]])  # [R, S]
        rows = tf.reshape(tf.range(rays * samples), [rays, samples])
        optical_depth, raw, parts = tf.zeros([rays]), [], []
        for first, end in itertools.pairwise(samples * i // count for i in range(count + 1)):
            lit = tf.where(optical_depth < SPENT)[:, 0]
            taken = tf.reshape(tf.gather(rows[:, first:end], lit), [-1])
            above = None if visible_above is None else tf.gather(tf.reshape(visible_above, [-1]), taken)
            inputs = tf.gather(tf.reshape(points, [-1, 3]), taken), encoded_viewdirs, taken // samples
            found, activations = self._forward(variables, *inputs, above)
            found = tf.scatter_nd(lit[:, None], tf.reshape(found, [-1, end - first, 4]), [rays, end - first, 4])
            if count > 1:
                excess = tf.nn.relu(found[..., 3] - visible_above[:, first:end])
                # However dense a point is, some light gets past it: compositing sees to that.
                hidden = tf.minimum(excess * intervals[:, first:end], SPENT)
                optical_depth += tf.reduce_sum(hidden, axis=-1)
            raw.append(found)
            parts.append((taken, activations))
        return tf.concat(raw, axis=1), parts

    def _backward_in_parts(self, variables, parts, upstream, active) -> list[tf.Tensor]:
        sums = [tf.zeros_like(variable, tf.float32) for variable in variables]
        for rows, activations in reversed(parts):
            with tf.control_dependencies(sums):  # one after the other, in the memory of one
                upstream, active = tf.identity(upstream), tf.identity(active)
            part = self._backward(variables, activations, tf.gather(upstream, rows), tf.gather(active, rows))
            sums = [a + b for a, b in zip(sums, part, strict=True)]
        return sums

    def _forward_in_tiles(self, variables, gather, count, largest, visible_above) -> tf.Tensor:
        tiles, size = self._split(count, largest)

        def evaluate_tile(i, raw):
            rows = tf.minimum(i * size + tf.range(size), count - 1)
            if self.compiled:
                return i + 1, raw.write(i, self._compiled_forward(variables, *gather(rows)))
            above = None if visible_above is None else tf.gather(tf.reshape(visible_above, [-1]), rows)
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
