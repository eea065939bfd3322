"""Contraction of space, and the unit cube whose coordinates a grid takes.

Points are [..., 3]. "World" is the space of rays: that of the cameras, or NDC for scenes that face forward.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

# The radius of contracted space: where points at an infinite distance would end up.
CONTRACTED_RADIUS = 2.0


def contract(points: tf.Tensor) -> tf.Tensor:
    """Contracts all of space into a ball of radius 2 (Barron et al. 2022, equation 10).

    Points of the unit ball stay where they are; beyond it, a distance d from the origin becomes 2 - 1 / d.

    Args:
        points: [..., 3].

    Returns:
        [..., 3], with a norm below 2.
    """
    # The square root of what is at least 1, as the gradient of the norm is not finite at the origin.
    norm = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(points), axis=-1, keepdims=True), 1.0))
    return points * (CONTRACTED_RADIUS - 1.0 / norm) / norm


@dataclasses.dataclass(frozen=True, eq=False)
class GridSpace:
    """Where in the world a grid lies: in a box, or everywhere, by contraction around a ball.

    Attributes:
        lower, upper: [3] float32 corners of the box; with contraction those of the cube around the ball.
        contracted: whether the grid holds all of space, of which the ball keeps its shape and the rest is contracted.
    """

    lower: np.ndarray
    upper: np.ndarray
    contracted: bool = False

    @classmethod
    def around_ball(cls, centre: np.ndarray, radius: float) -> GridSpace:
        """Makes the space of a grid that holds everything, contracted outside of a ball; `centre` is [3]."""
        centre = np.asarray(centre, np.float32)
        return cls(centre - np.float32(radius), centre + np.float32(radius), contracted=True)

    @property
    def unit(self) -> float:
        """The unit of length for densities and steps, in the world: a third of the grid's longest side.

        It makes densities independent of the world's scale. Initial densities and thresholds were chosen on the
        Blender scenes, whose grids have a side of about 3, so that there it is about 1.
        """
        side = float((self.upper - self.lower).max())
        return side * (CONTRACTED_RADIUS if self.contracted else 1.0) / 3.0

    def to_cube(self, points: tf.Tensor) -> tf.Tensor:
        """Converts points [..., 3] of the world to coordinates [..., 3] of the grid, which go from 0 to 1 in it."""
        if self.contracted:
            radius = 0.5 * (self.upper - self.lower)
            points = contract((points - (self.lower + radius)) / radius)
            return points / (2.0 * CONTRACTED_RADIUS) + 0.5
        return (points - self.lower) / (self.upper - self.lower)
