"""Marching: where rays have candidates on their way through an occupancy grid, and which of its cells are occupied.

Candidates are points at fixed steps on a ray; those in occupied cells become samples. Shapes: R rays, S candidates on
each, K slots for samples.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.marching.contraction import GridSpace

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
# In contracted space, where steps differ, the occupancy threshold is that of a step of this length in `GridSpace.unit`.
NOMINAL_STEP = 0.02


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
