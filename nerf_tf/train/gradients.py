"""Gradients of a batch: renders its rays and compares them with the photos; changes nothing.

The loss is the sum of both passes' mean squared errors (paper, equation 6).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.field.query import Field, rays_at_once
from nerf_tf.render.passes import Draws, RenderSettings, coarse_pass, fine_pass
from nerf_tf.train.counts import opacities


class StepGradients(NamedTuple):
    """What a training step computes from a batch before it moves the weights.

    Attributes:
        losses: scalars, the mean squared error of the coarse and, if there is one, of the fine pass.
        gradients: those of the sum of the losses, times the loss scale; in the order of the coarse network's variables,
            then the fine network's.
        opacity: [2] see `counts.opacities`, of the final pass.
        sigma: [R, S] raw density of the final pass, of the batch's last chunk.
    """

    losses: list[tf.Tensor]
    gradients: list[tf.Tensor]
    opacity: tf.Tensor
    sigma: tf.Tensor


def batch_gradients(
    coarse: Field,
    fine: Field | None,
    rendering: RenderSettings,
    scale_loss: Callable[[tf.Tensor], tf.Tensor],
    draw_chunk: Callable[[tf.Tensor | int, int], Draws],
    batch: RayBatch,
    parts: int,
    first: tf.Tensor | int,
    end: tf.Tensor | int,
) -> StepGradients:
    """Computes what some parts of a batch add to its gradients, in chunks of rays that fit into memory at once.

    Args:
        coarse, fine: the networks; `fine` is None when there is no fine pass.
        scale_loss: multiplies a loss by the optimizer's loss scale.
        draw_chunk: (number of the first ray, number of rays) -> the random draws of these rays of the batch.
        batch: R rays and their colours.
        parts: into how many parts of equal size the batch is split.
        first, end: number of the first part to add up, and of the one after the last.
    """
    count, samples = batch.rgb.shape[0], rendering.N_samples + rendering.N_importance
    field, part = fine or coarse, -(-count // parts)
    at_once = rays_at_once(part, samples, rendering.chunk, field.netchunk, training=True, compiled=field.compiled)
    chunks = -(-part // at_once)
    size = -(-part // chunks)  # as even as possible

    gradients_of = functools.partial(chunk_gradients, coarse, fine, rendering, scale_loss)
    if parts * chunks == 1:
        return gradients_of(batch, draw_chunk(0, count), tf.fill([count], 1.0 / count))

    def part_gradients(number: tf.Tensor | int) -> StepGradients:
        """Computes what a part adds: the sum over its chunks."""
        if chunks == 1:
            return add_chunk(number * part, 0, zeros)
        return loop(0, chunks, lambda i, sums: add_chunk(number * part, i, sums), zeros)

    def add_chunk(first_ray: tf.Tensor | int, i: tf.Tensor | int, sums: StepGradients) -> StepGradients:
        """Adds what the i-th chunk of the part from `first_ray` on has."""
        rows = i * size + tf.range(size)
        # A part's last chunk is filled up with its last ray, and the last part with the batch's, with weight 0.
        is_ray = (rows < part) & (first_ray + rows < count)
        inside = tf.minimum(first_ray + tf.minimum(rows, part - 1), count - 1)
        chunk = tf.nest.map_structure(lambda x: tf.gather(x, inside), batch)
        shares = tf.where(is_ray, 1.0 / count, 0.0)
        return add(sums, gradients_of(chunk, draw_chunk(first_ray + i * size, size), shares))

    def add(sums: StepGradients, found: StepGradients) -> StepGradients:
        """Adds up losses, gradients and opacities."""
        added = tf.nest.map_structure(tf.add, sums[:3], found[:3])
        return StepGradients(*added, tf.ensure_shape(found.sigma, [size, samples]))

    networks = [coarse] if fine is None else [coarse, fine]
    zeros = StepGradients(
        losses=[tf.zeros([])] * len(networks),
        gradients=[tf.zeros_like(value) for field in networks for value in _values(field)],
        opacity=tf.zeros([2]),
        sigma=tf.zeros([size, samples]),
    )
    if isinstance(end, int) and end - first == 1:
        return part_gradients(first)
    # A part's sums are added after the next part's are computed, so that XLA cannot make one operation of their last
    # product and this addition, which would round differently than two devices do.
    sums, last = loop(first, end, lambda number, state: (add(*state), part_gradients(number)), (zeros, zeros))
    return add(sums, last)


def loop(first: tf.Tensor | int, end: tf.Tensor | int, body: Callable, state: Any) -> Any:
    """Replaces `state` by body(i, state) for each i from `first` to `end` - 1, in order; returns the last one."""
    return tf.while_loop(
        lambda i, _: i < end, lambda i, state: (i + 1, body(i, state)), (first, state), parallel_iterations=1
    )[1]


def chunk_gradients(
    coarse: Field,
    fine: Field | None,
    rendering: RenderSettings,
    scale_loss: Callable[[tf.Tensor], tf.Tensor],
    chunk: RayBatch,
    draws: Draws,
    shares: tf.Tensor,
) -> StepGradients:
    """Computes the gradients of a part of a batch that fits into memory at once.

    Args:
        coarse, fine, rendering, scale_loss: as in `batch_gradients`.
        chunk: R rays of the batch and their colours.
        shares: [R] the weight of each ray in the batch's loss.
    """
    with tf.GradientTape() as tape:
        coarse_result = coarse_pass(coarse, chunk.rays, rendering, draws.coarse)
        loss = mean_squared_error(coarse_result.rendering.rgb, chunk.rgb, shares)
        scaled_loss = scale_loss(loss)
    losses, gradients, result = [loss], tape.gradient(scaled_loss, _values(coarse)), coarse_result
    if fine is not None:
        # No gradient flows from one pass to the other's network, so each has a tape of its own. The second begins when
        # the first has ended, because together they would need the memory of two tiles.
        with tf.control_dependencies(gradients), tf.GradientTape() as tape:
            coarse_result = tf.nest.map_structure(tf.identity, coarse_result)
            result, _ = fine_pass(fine, chunk.rays, coarse_result, rendering, draws.fine)
            loss = mean_squared_error(result.rendering.rgb, chunk.rgb, shares)
            scaled_loss = scale_loss(loss)
        losses, gradients = [*losses, loss], gradients + tape.gradient(scaled_loss, _values(fine))
    return StepGradients(losses, gradients, opacities(result.rendering.acc, shares), result.raw[..., 3])


def mean_squared_error(rgb: tf.Tensor, photo_rgb: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    """Computes the mean squared error of colours [R, 3]; `shares` [R] are the rays' weights in the batch."""
    return tf.reduce_sum(shares * tf.reduce_mean(tf.square(rgb - photo_rgb), axis=-1))


def _values(field: Field) -> list[tf.Variable]:
    return [variable.value for variable in field.mlp.trainable_variables]
