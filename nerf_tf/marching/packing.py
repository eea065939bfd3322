"""Packing: candidates in occupied cells become samples, each in a slot, ray after ray.

The number of slots is static, so that all of this compiles to one XLA program; as many rays are taken as fit into them.
Shapes: R rays, S candidates on each, K slots.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.marching.march import March

# Rays that march together: enough to keep two cores busy, few enough that their candidates stay in the cache.
BLOCK = 128
# Rays are rendered in rounds of this many samples. Samples that less than this part of the light reaches are left out:
# a quarter of a step of an 8-bit image.
ROUND, LEAST_LIGHT = 32, 1e-3


class Packed(NamedTuple):
    """Samples of rays in slots.

    Attributes:
        rays: scalar, how many rays were taken, from the first one on.
        samples: scalar, how many slots are in use: the first ones.
        ray: [K] number of the ray that a slot's sample lies on, ascending; 0 in slots that are not in use, as below.
        k: [K] which of the ray's S candidates it is.
        first: [K] the first slot of the same ray.
        in_use: [K] whether there is a sample in the slot.
    """

    rays: tf.Tensor
    samples: tf.Tensor
    ray: tf.Tensor
    k: tf.Tensor
    first: tf.Tensor
    in_use: tf.Tensor


class Samples(NamedTuple):
    """The samples in K slots; those of slots that are not in use have no meaning.

    Attributes:
        points: [K, 3] coordinates in the grid, from 0 to 1.
        t: [K] ray parameter.
        length: [K] length of the sample's interval, in `GridSpace.unit`.
        place: [K] see `March.candidates`.
        extent: [K] length of the sample's interval, in terms of `place`.
        is_last: [K] whether it is the last candidate of its ray.
    """

    points: tf.Tensor
    t: tf.Tensor
    length: tf.Tensor
    place: tf.Tensor
    extent: tf.Tensor
    is_last: tf.Tensor


def pack(
    march: March,
    occupied: tf.Tensor,
    rays: Rays,
    jitter: tf.Tensor,
    first_ray: tf.Tensor | int = 0,
    end: tf.Tensor | None = None,
    first_k: tf.Tensor | None = None,
) -> Packed:
    """Packs the candidates in occupied cells into slots, ray after ray, until a ray does not fit.

    Args:
        march: where rays have candidates.
        occupied: [cells ** 3] bool.
        rays: [R, ...].
        jitter: [R, 1] in [0, 1).
        first_ray: number of the first ray to take.
        end: number of the ray before which to stop in any case; None: R.
        first_k: [R] the candidate from which to take at most ROUND samples of each ray; None: take all samples.
    """
    count, samples, slots = rays.origins.shape[0], march.samples, march.slots
    size = min(BLOCK, count)
    end = count if end is None else end
    first_k = None if first_k is None else first_k[:, None]

    def add_block(start: tf.Tensor, filled: tf.Tensor, numbers: tf.Tensor, going: tf.Tensor):
        """Packs the rays from `start` on into slots after the first `filled` ones.

        `numbers` [K + 1] are those of the candidates in the slots, ray * S + k.
        """
        rows = start + tf.range(size)
        inside = tf.minimum(rows, count - 1)
        block, u = tf.nest.map_structure(lambda x: tf.gather(x, inside), (rays, jitter))
        meets = _meets(march, occupied, block, u) & (rows < end)[:, None]  # [size, S]
        if first_k is not None:
            meets &= tf.range(samples) >= tf.gather(first_k, inside)
            meets &= tf.cumsum(tf.cast(meets, tf.int32), axis=1) <= ROUND
        place = filled + tf.reshape(tf.cumsum(tf.cast(tf.reshape(meets, [-1]), tf.int32)), [size, samples])
        fits = (place[:, -1] <= slots) & (rows < end)  # where one ray does not fit, none after it does
        slot = tf.where(meets & fits[:, None], place - 1, slots)
        number = rows[:, None] * samples + tf.range(samples)
        numbers = tf.tensor_scatter_nd_update(numbers, tf.reshape(slot, [-1, 1]), tf.reshape(number, [-1]))
        filled = tf.maximum(filled, tf.reduce_max(tf.where(fits, place[:, -1], 0)))
        start += tf.reduce_sum(tf.cast(fits, tf.int32))
        return start, filled, numbers, tf.reduce_all(fits) & (start < end)

    start = tf.convert_to_tensor(first_ray)
    # One more slot, into which candidates without a slot are written.
    initial = (start, tf.constant(0), tf.zeros([slots + 1], tf.int32), start < end)
    stop, filled, numbers, _ = tf.while_loop(lambda *state: state[-1], add_block, initial, parallel_iterations=1)
    return _packed(march, stop - start, filled, tf.ensure_shape(numbers[:slots], [slots]), count)


def keep_visible(march: March, packed: Packed, transmittance: tf.Tensor, count: int, slots: int) -> Packed:
    """Packs once more, into `slots` slots, the samples that light reaches, until a ray does not fit.

    Args:
        march: where rays have candidates.
        packed: what was packed before.
        transmittance: [K] the part of the light that reaches each sample.
        count: R.
        slots: the new number of slots; at least `march.samples`.
    """
    keep = tf.cast(packed.in_use & (transmittance > LEAST_LIGHT), tf.int32)
    each = tf.math.unsorted_segment_sum(keep, packed.ray, count)
    until = tf.cumsum(each)
    fits = (until <= slots) & (tf.range(count) < packed.rays)  # where one ray does not fit, none after it does
    slot = tf.where((keep == 1) & tf.gather(fits, packed.ray), tf.cumsum(keep) - 1, slots)
    numbers = packed.ray * march.samples + packed.k
    numbers = tf.tensor_scatter_nd_update(tf.zeros([slots + 1], tf.int32), slot[:, None], numbers)[:slots]
    rays, filled = tf.reduce_sum(tf.cast(fits, tf.int32)), tf.reduce_max(tf.where(fits, until, 0))
    return _packed(march, rays, filled, numbers, count)


def _packed(march: March, rays: tf.Tensor, filled: tf.Tensor, numbers: tf.Tensor, count: int) -> Packed:
    """Describes the samples in the first `filled` slots from their `numbers` [K], which are ray * S + k."""
    in_use = tf.range(numbers.shape[0]) < filled
    numbers = tf.where(in_use, numbers, 0)
    ray, k = numbers // march.samples, numbers % march.samples
    each = tf.math.unsorted_segment_sum(tf.cast(in_use, tf.int32), ray, count)
    first = tf.gather(tf.cumsum(each, exclusive=True), ray)
    return Packed(rays, filled, ray, k, tf.where(in_use, first, 0), in_use)


def _meets(march: March, occupied: tf.Tensor, rays: Rays, jitter: tf.Tensor) -> tf.Tensor:
    """Finds which candidates [R, S] become samples, as bool; see `March.meets`."""
    first, last = march.span(rays)
    speed = tf.norm(rays.directions, axis=-1, keepdims=True)
    t, _, _ = march.candidates(first, last, speed, tf.range(march.samples, dtype=tf.float32) + jitter)
    cells = march.cells_at(rays.origins[:, None] + t[..., None] * rays.directions[:, None])
    return march.meets(occupied, cells, t, last)


def samples_in(march: March, rays: Rays, jitter: tf.Tensor, packed: Packed) -> Samples:
    """Computes the samples of rays [R, ...] that were packed with this `jitter` [R, 1]."""
    first, last = march.span(rays)
    speed = tf.norm(rays.directions, axis=-1, keepdims=True)
    of_ray = tf.gather(tf.concat([first, last, speed, jitter, rays.origins, rays.directions], axis=-1), packed.ray)
    first, last, speed, u, origins, directions = tf.split(of_ray, [1, 1, 1, 1, 3, 3], axis=-1)
    k = tf.cast(packed.k, tf.float32)[:, None] + u
    t, interval, place = march.candidates(first, last, speed, k)
    points = tf.clip_by_value(march.space.to_cube(origins + t * directions), 0.0, 1.0)
    length = (interval * speed / march.space.unit)[:, 0]
    extent = tf.fill(length.shape, 1.0 / march.samples)
    return Samples(points, t[:, 0], length, place[:, 0], extent, packed.k == march.samples - 1)
