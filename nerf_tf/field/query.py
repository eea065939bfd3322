"""Evaluates a network on any number of points, `netchunk` of them at a time, forward and backward.

This is the one place that decides how much memory a network takes. The original encodes all points of a ray chunk and
only then cuts the encodings into netchunk pieces, and its gradient tape keeps every activation of every piece. Here
points are encoded inside a tile, and the backward pass keeps nothing but points and directions: it evaluates again,
tile by tile, the points whose output the loss depends on.
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from nerf_tf.field.encoding import positional_encoding
from nerf_tf.field.mlp import FieldSettings


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """A network as a function of points and view directions.

    Attributes:
        mlp: the network.
        settings: what it was built from.
        netchunk: largest number of points to evaluate at once.
    """

    mlp: keras.Model
    settings: FieldSettings
    netchunk: int

    def __call__(self, points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
        """Raw colour and density.

        Gradients flow to the network's weights and to nothing else: points and view directions are data.

        Args:
            points: [R, S, 3].
            viewdirs: [R, 3] unit directions, one for all S points of a ray; ignored by a network without viewdirs.

        Returns:
            [R, S, 4] colour before the sigmoid, density before the ReLU.
        """
        samples = points.shape[1]
        # Once for each ray, not for each of its samples.
        encoded_viewdirs = positional_encoding(viewdirs, self.settings.multires_views)
        weights = [tf.convert_to_tensor(variable.value) for variable in self.mlp.trainable_variables]

        @tf.custom_gradient
        def evaluate(points: tf.Tensor, encoded_viewdirs: tf.Tensor, *weights: tf.Tensor):
            raw = self._forward(points, encoded_viewdirs, samples, weights)

            def backward(upstream: tf.Tensor):
                return None, None, *self._backward(points, encoded_viewdirs, samples, weights, upstream)

            return raw, backward

        raw = evaluate(tf.reshape(points, [-1, 3]), encoded_viewdirs, *weights)
        return tf.reshape(raw, [-1, samples, 4])

    def _tile(self, points: tf.Tensor, encoded_viewdirs: tf.Tensor, weights: list[tf.Tensor]) -> tf.Tensor:
        inputs = [positional_encoding(points, self.settings.multires)]
        if self.settings.use_viewdirs:
            inputs.append(encoded_viewdirs)
        raw, _ = self.mlp.stateless_call(weights, [], inputs)
        return raw

    def _forward(self, points, encoded_viewdirs, samples, weights) -> tf.Tensor:
        count = tf.shape(points)[0]
        tiles, size = self._split(count)

        def evaluate_tile(i, raw):
            rows = tf.range(i * size, tf.minimum((i + 1) * size, count))
            tile = self._tile(tf.gather(points, rows), tf.gather(encoded_viewdirs, rows // samples), weights)
            return i + 1, raw.write(i, tile)

        raw = tf.TensorArray(tf.float32, tiles, infer_shape=False, element_shape=[None, 4])
        _, raw = tf.while_loop(lambda i, _: i < tiles, evaluate_tile, (0, raw), parallel_iterations=1)
        return raw.concat()

    def _backward(self, points, encoded_viewdirs, samples, weights, upstream) -> list[tf.Tensor]:
        # A sample whose density the ReLU clipped has zero weight, so neither its density nor its colour has a
        # gradient: leaving such rows out changes nothing, and in a trained scene they are most of all rows.
        active = tf.where(tf.reduce_any(upstream != 0.0, axis=-1))[:, 0]
        count = tf.shape(active)[0]
        tiles, size = self._split(count)

        def add_tile(i, sums):
            rows = active[i * size : (i + 1) * size]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                raw = self._tile(tf.gather(points, rows), tf.gather(encoded_viewdirs, rows // samples), weights)
            gradients = tape.gradient(raw, weights, tf.gather(upstream, rows), unconnected_gradients="zero")
            return i + 1, [a + b for a, b in zip(sums, gradients, strict=True)]

        zeros = [tf.zeros_like(weight) for weight in weights]
        return tf.while_loop(lambda i, _: i < tiles, add_tile, (0, zeros), parallel_iterations=1)[1]

    def _split(self, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Number of tiles for `count` points, and their size: even, so that the last is no sliver."""
        tiles = -(-count // self.netchunk)
        return tiles, -(-count // tf.maximum(tiles, 1))
