"""Contraction of unbounded space, and conversion of points to the unit cube of a grid.

Points are [..., 3]. "World" is the space of rays: that of the cameras, or NDC for forward-facing scenes.
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
        [..., 3], with a norm of at most 2.
    """
    # Clipped to 1 before the square root, whose gradient is not finite at 0.
    norm = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(points), axis=-1, keepdims=True), 1.0))
    return points * (CONTRACTED_RADIUS - 1.0 / norm) / norm


@dataclasses.dataclass(frozen=True, eq=False)
class GridSpace:
    """The part of the world that a grid covers: a box, or all of space, contracted around a ball.

    Attributes:
        lower, upper: [3] float32 corners of the box; with contraction those of the cube around the ball.
        contracted: whether the grid covers all of space: the ball as it is, and the rest contracted.
    """

    lower: np.ndarray
    upper: np.ndarray
    contracted: bool = False

    @classmethod
    def around_ball(cls, centre: np.ndarray, radius: float) -> GridSpace:
        """Makes the space of a grid that covers all of space, contracted outside of a ball.

        Args:
            centre: [3] of the ball.
            radius: of the ball, in units of the world.
        """
        centre = np.asarray(centre, np.float32)
        return cls(centre - np.float32(radius), centre + np.float32(radius), contracted=True)

    @property
    def unit(self) -> float:
        """The unit of length for densities and steps: a third of the grid's longest side, in the world.

        It makes densities independent of the world's scale. Initial densities and thresholds were chosen on the
        Blender scenes, whose grids have a side of about 3, so that there it is about 1.
        """
        side = float((self.upper - self.lower).max())
        return side * (CONTRACTED_RADIUS if self.contracted else 1.0) / 3.0

    def to_cube(self, points: tf.Tensor) -> tf.Tensor:
        """Converts points [..., 3] of the world to the grid's coordinates [..., 3], 0 to 1 inside it."""
        if self.contracted:
            radius = 0.5 * (self.upper - self.lower)
            points = contract((points - (self.lower + radius)) / radius)
            return points / (2.0 * CONTRACTED_RADIUS) + 0.5
        return (points - self.lower) / (self.upper - self.lower)
