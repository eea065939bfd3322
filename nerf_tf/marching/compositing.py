"""Compositing: packed samples become weights, colours and whole renderings of their rays.

Shapes: R rays, S candidates on each, K slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.marching.march import March
from nerf_tf.marching.packing import LEAST_LIGHT, ROUND, Packed, Samples, pack, samples_in

# Optical depths of samples are clipped at this: exp(-40) is far below float32 rounding.
OPAQUE = 40.0


def packed_weights(march: March, density: tf.Tensor, samples: Samples, packed: Packed) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes weights [K] of samples and transmittances [K], the part of the light that reaches them.

    They are T_i (1 - exp(-sigma_i delta_i)) and T_i of the paper, equation 3.

    Args:
        march: where rays have candidates.
        density: [K] per `GridSpace.unit`.
        samples, packed: what the slots hold.
    """
    depth = tf.minimum(density * samples.length, OPAQUE)
    if march.space.contracted:
        depth = tf.where(samples.is_last, OPAQUE, depth)
    # One sum runs through all rays, and its value at each ray's first sample is subtracted. In float32 little would be
    # left of the ray's own optical depths.
    depth = tf.cast(tf.where(packed.in_use, depth, 0.0), tf.float64)
    before = tf.cumsum(depth, exclusive=True)
    transmittance = tf.exp(tf.gather(before, packed.first) - before)
    return tf.cast(-transmittance * tf.math.expm1(-depth), tf.float32), tf.cast(transmittance, tf.float32)


def sum_by_ray(values: tf.Tensor, packed: Packed, count: int) -> tf.Tensor:
    """Adds up values [K, C] of the samples of each of `count` rays: [count, C]."""
    return tf.math.unsorted_segment_sum(values, packed.ray, count)


def distortion(weights: tf.Tensor, samples: Samples, packed: Packed, count: int) -> tf.Tensor:
    """Computes the spread of each ray's weights along it, [count] (Barron et al. 2022, equation 15).

    Args:
        weights: [K] of the samples.
        samples, packed: what the slots hold.
        count: R.
    """
    both = tf.cast(tf.stack([weights, weights * samples.place], axis=-1), tf.float64)  # [K, 2]
    before = tf.cumsum(both, exclusive=True)
    before = tf.cast(before - tf.gather(before, packed.first), tf.float32)
    # The sum is over pairs in both orders, hence the 2. Places ascend, so |s_i - s_j| is s_i - s_j for earlier j.
    pairs = 2.0 * weights * (samples.place * before[:, 0] - before[:, 1])
    return sum_by_ray((pairs + tf.square(weights) * samples.extent / 3.0)[:, None], packed, count)[:, 0]


class PackedRendering(NamedTuple):
    """The rendering of R rays, as in `render.volume.Rendering`: rgb [R, 3]; disp, acc and depth [R]."""

    rgb: tf.Tensor
    disp: tf.Tensor
    acc: tf.Tensor
    depth: tf.Tensor


# Points [K, 3] in the grid and unit view directions [K, 3] -> density [K] per `GridSpace.unit`, raw colour [K, 3].
GridFunction = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def render_rays(
    march: March,
    field: GridFunction,
    occupied: tf.Tensor,
    rays: Rays,
    white_bkgd: bool = False,
    end: tf.Tensor | int | None = None,
) -> PackedRendering:
    """Renders rays without randomness, as many at once as fit into the slots.

    Each round takes the next ROUND samples of the rays that still have light, so that hidden samples cost little.

    Args:
        march: where rays have candidates.
        field: computes density and colour.
        occupied: [cells ** 3] bool.
        rays: R rays, [R, ...].
        white_bkgd: white instead of black background.
        end: renders the first `end` rays only; the results of the others have no meaning. None: all.
    """
    count = rays.origins.shape[0]
    end = tf.convert_to_tensor(count if end is None else end)
    jitter = tf.fill([count, 1], 0.5)

    def add_round(going: tf.Tensor, order: tf.Tensor, next_k: tf.Tensor, sums: tf.Tensor):
        """Adds the next samples of the first `going` rays of `order`, and finds the rays of the next round.

        `next_k` [R + 1] is the candidate at which each ray continues; `sums` [R + 1, 5] rgb, acc and weighted t so far.
        """
        own, first_k = tf.nest.map_structure(lambda x: tf.gather(x, order), (rays, next_k))

        def add_rays(taken: tf.Tensor, found: tf.Tensor, last_k: tf.Tensor, own_sums: tf.Tensor):
            """Adds as many rays as fit; `found` and `last_k` [R] are their numbers of samples and last k."""
            packed = pack(march, occupied, own, jitter, taken, going, first_k)
            samples = samples_in(march, own, jitter, packed)
            density, raw_rgb = field(samples.points, tf.gather(own.viewdirs, packed.ray))
            weights, _ = packed_weights(march, density, samples, packed)
            weights *= tf.gather(1.0 - own_sums[:, 3], packed.ray)
            in_use = tf.cast(packed.in_use, tf.int32)
            found += tf.math.unsorted_segment_sum(in_use, packed.ray, count)
            last_k = tf.maximum(last_k, tf.math.unsorted_segment_max(in_use * packed.k, packed.ray, count))
            own_sums += _sums(weights, raw_rgb, samples, packed, count)
            return taken + packed.rays, found, last_k, own_sums

        none = tf.zeros([count], tf.int32)
        initial = (tf.constant(0), none, none, tf.gather(sums, order))
        _, found, last_k, own_sums = tf.while_loop(
            lambda taken, *_: taken < going, add_rays, initial, parallel_iterations=1
        )
        rows = tf.range(count)
        places = tf.where(rows < going, order, count)[:, None]  # row R takes the rest
        sums = tf.tensor_scatter_nd_update(sums, places, own_sums)
        next_k = tf.tensor_scatter_nd_update(next_k, places, last_k + 1)
        goes_on = (rows < going) & (found == ROUND) & (1.0 - own_sums[:, 3] > LEAST_LIGHT)
        number = tf.cumsum(tf.cast(goes_on, tf.int32))
        places = tf.where(goes_on, number - 1, count)[:, None]
        order = tf.tensor_scatter_nd_update(tf.zeros([count + 1], tf.int32), places, order)[:count]
        return number[-1], order, next_k, sums

    start = (end, tf.range(count), tf.zeros([count + 1], tf.int32), tf.zeros([count + 1, 5]))
    *_, sums = tf.while_loop(lambda going, *_: going > 0, add_round, start, parallel_iterations=1)
    return _rendering(sums[:count], white_bkgd)


def render_packed(
    march: March, field: GridFunction, rays: Rays, packed: Packed, samples: Samples, white_bkgd: bool = False
) -> PackedRendering:
    """Renders rays from the samples in the slots, which hold all of each ray's.

    Args:
        march: where rays have candidates.
        field: computes density and colour.
        rays: R rays, [R, ...].
        packed, samples: what the slots hold.
        white_bkgd: white instead of black background.
    """
    density, raw_rgb = field(samples.points, tf.gather(rays.viewdirs, packed.ray))
    weights, _ = packed_weights(march, density, samples, packed)
    return _rendering(_sums(weights, raw_rgb, samples, packed, rays.origins.shape[0]), white_bkgd)


def _sums(weights: tf.Tensor, raw_rgb: tf.Tensor, samples: Samples, packed: Packed, count: int) -> tf.Tensor:
    """Adds up rgb, acc and weighted t of the samples of each of `count` rays: [count, 5]."""
    values = tf.concat([tf.sigmoid(raw_rgb), tf.ones_like(weights)[:, None], samples.t[:, None]], axis=-1)
    return sum_by_ray(weights[:, None] * values, packed, count)


def _rendering(sums: tf.Tensor, white_bkgd: bool) -> PackedRendering:
    """Makes a rendering of sums [R, 5] over each ray's samples: rgb, acc and weighted t."""
    rgb, acc, depth = sums[:, :3], sums[:, 3], sums[:, 4]
    disp = tf.math.divide_no_nan(acc, depth)
    return PackedRendering(rgb + (1.0 - acc[:, None]) if white_bkgd else rgb, disp, acc, depth)
