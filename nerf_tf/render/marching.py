"""Marching: rays pass through an occupancy grid, and only samples in occupied cells get slots.

Shapes: R rays, S candidates on each, K slots. Candidates are points at fixed steps on a ray; those in occupied cells
become samples, each in a slot, ray after ray. The number of slots is static, so that all of this compiles to one XLA
program; as many rays are taken as fit into them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nerf_tf.geometry.contraction import GridSpace
from nerf_tf.geometry.rays import Rays

# Rays that march together: enough to keep two cores busy, few enough that their candidates stay in the cache.
BLOCK = 128
# A cell is occupied if a step through it absorbs at least this part of the light ...
LEAST_OPACITY = 0.01
# ... or if its density is more than this part of the mean density: early on nothing is opaque yet.
PART_OF_MEAN = 0.5
# Densities are clipped at this in that mean: one opaque cell must not outweigh a thousand cells of fog.
LARGEST_DENSITY = 50.0
# A cell's stored density is multiplied by this at each update, so that a maximum from old weights fades.
DECAY = 0.8
# Each update evaluates one in this many cells: all of them would take longer than a training step.
TURNS = 8
# Optical depths of samples are clipped at this: exp(-40) is far below float32 rounding.
OPAQUE = 40.0
# In contracted space, where steps differ, the occupancy threshold is that of a step of this length in `GridSpace.unit`.
NOMINAL_STEP = 0.02
# Rays are rendered in rounds of this many samples. Samples that less than this part of the light reaches are left out:
# a quarter of a step of an 8-bit image.
ROUND, LEAST_LIGHT = 32, 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class March:
    """Where rays have candidates, and how many samples there is room for.

    In a box all steps have the same length, so that S of them make up its diagonal. In contracted space they are even
    in disparity from near to far, and the last candidate is always an opaque sample: every ray ends at something.

    Attributes:
        space: where the grid lies.
        cells: number of cells along a side of the occupancy grid.
        samples: S.
        slots: K, at least S.
        possible: [cells, cells, cells] bool, the cells in which anything can be at all; None: all.

    Raises:
        ValueError: there are fewer slots than a ray may need.
    """

    space: GridSpace
    cells: int
    samples: int
    slots: int
    possible: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.slots < self.samples:
            raise ValueError(f"{self.slots} slots do not hold the {self.samples} samples of one ray")

    @property
    def step(self) -> float:
        """Length of a step in the box, in units of the world."""
        return float(np.linalg.norm(self.space.upper - self.space.lower)) / self.samples

    @property
    def least_density(self) -> float:
        """The density, per `GridSpace.unit`, above which a cell is occupied whatever the mean."""
        return LEAST_OPACITY / (NOMINAL_STEP if self.space.contracted else self.step / self.space.unit)

    def span(self, rays: Rays) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the t [R, 1] at which rays enter the grid, and the t [R, 1] at which they leave it.

        A ray that misses the box between near and far leaves it no later than it enters.
        """
        if self.space.contracted:
            return rays.near, rays.far
        directions = tf.where(rays.directions == 0.0, 1e-12, rays.directions)  # in the plane of a face: not 0 / 0
        to_lower, to_upper = (
            (self.space.lower - rays.origins) / directions,
            (self.space.upper - rays.origins) / directions,
        )
        enters = tf.reduce_max(tf.minimum(to_lower, to_upper), axis=-1, keepdims=True)
        leaves = tf.reduce_min(tf.maximum(to_lower, to_upper), axis=-1, keepdims=True)
        return tf.clip_by_value(enters, rays.near, rays.far), tf.minimum(leaves, rays.far)

    def candidates(self, first: tf.Tensor, last: tf.Tensor, speed: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Computes where candidates are.

        Args:
            first, last: the t at which their rays enter and leave, see `span`.
            speed: lengths of the rays' directions.
            k: numbers of the candidates, from 0 to S - 1, each plus a jitter in [0, 1).

        Returns:
            t; the length in t of a candidate's interval; and its place, from 0 to 1, among the candidates of its ray.
            All have the shape to which the arguments broadcast.
        """
        if not self.space.contracted:
            interval = self.step / speed
            return first + k * interval, interval + tf.zeros_like(k), k / self.samples
        at, following = k / self.samples, tf.minimum((k + 1.0) / self.samples, 1.0)
        t, t_following = (1.0 / ((1.0 - s) / first + s / last) for s in (at, following))
        return t, t_following - t, at

    def cells_at(self, points: tf.Tensor) -> tf.Tensor:
        """Finds the numbers [...] of the cells that points [..., 3] of the world are in or nearest to."""
        cell = tf.cast(tf.clip_by_value(self.space.to_cube(points) * self.cells, 0.0, self.cells - 1.0), tf.int32)
        return (cell[..., 0] * self.cells + cell[..., 1]) * self.cells + cell[..., 2]

    def meets(self, occupied: tf.Tensor, cells: tf.Tensor, t: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
        """Finds which candidates [R, S] may be samples, as bool: those in occupied cells.

        In a box they also lie before its end; in contracted space the last one of each ray always counts.

        Args:
            occupied: [cells ** 3] bool.
            cells: [R, S] the cells that all candidates lie in, see `cells_at`.
            t: [R, S] where they are.
            last: [R, 1] the t at which rays leave, see `span`.
        """
        meets = tf.gather(occupied, cells)
        if self.space.contracted:
            return meets | (tf.range(self.samples) == self.samples - 1)
        return meets & (t < last)


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


def occupied_cells(densities: tf.Tensor, march: March) -> tf.Tensor:
    """Finds the occupied cells, [cells ** 3] bool, from densities [cells ** 3]."""
    if march.possible is None:
        possible = tf.ones([march.cells**3], tf.bool)
    else:
        possible = tf.constant(march.possible.reshape(-1))
    share = tf.cast(possible, tf.float32)
    mean = tf.reduce_sum(share * tf.minimum(densities, LARGEST_DENSITY)) / tf.maximum(tf.reduce_sum(share), 1.0)
    return possible & (densities > tf.minimum(PART_OF_MEAN * mean, march.least_density))


def cells_in_turn(cells: int, turn: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """Computes points [cells ** 3 // TURNS, 3] in [0, 1], one in each cell of a turn.

    A turn takes every `TURNS`-th cell.

    Args:
        cells: number of cells along a side.
        turn: the number of the turn, from 0 to TURNS - 1.
        u: [cells ** 3 // TURNS, 3] in [0, 1), each point's place in its cell.
    """
    number = tf.range(cells**3 // TURNS) * TURNS + turn
    cell = tf.stack([number // cells**2, number // cells % cells, number % cells], axis=-1)
    return (tf.cast(cell, tf.float32) + u) / cells


def update_densities(densities: tf.Tensor, turn: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """Updates densities [cells ** 3] with those `found` [cells ** 3 // TURNS] in the cells of a turn.

    A cell keeps the larger of its faded old density and the new one, as a point says little about the rest of its cell.
    """
    by_turn = tf.reshape(densities, [-1, TURNS])
    updated = tf.maximum(DECAY * by_turn, found[:, None])
    return tf.reshape(tf.where(tf.range(TURNS) == turn, updated, by_turn), [-1])


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


def keep_visible(march: March, packed: Packed, density: tf.Tensor, samples: Samples, count: int, slots: int) -> Packed:
    """Packs once more, into `slots` slots, the samples that light reaches, until a ray does not fit.

    Args:
        march: where rays have candidates.
        packed, samples: what was packed before.
        density: [K] of the samples, per `GridSpace.unit`.
        count: R.
        slots: the new number of slots; at least `march.samples`.
    """
    _, transmittance = packed_weights(march, density, samples, packed)
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
