"""Contraction of space, and the unit cube in which a grid of features lives.

Shapes: points are [..., 3]. "World" is the space that rays live in: metric, or NDC for forward-facing scenes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

# The radius of contracted space: what lies infinitely far away ends up there.
CONTRACTED_RADIUS = 2.0


def contract(points: tf.Tensor) -> tf.Tensor:
    """Squeezes all of space into a ball of radius 2 (Barron et al. 2022, equation 10).

    Points of the unit ball stay where they are; beyond it distance becomes 2 - 1 / distance.

    Args:
        points: [..., 3].

    Returns:
        [..., 3], with a norm below 2.
    """
    # Not the norm itself: its gradient at the origin is not finite.
    norm = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(points), axis=-1, keepdims=True), 1.0))
    return points * (CONTRACTED_RADIUS - 1.0 / norm) / norm


@dataclasses.dataclass(frozen=True, eq=False)
class GridSpace:
    """Where in the world a grid lies: in a box, or everywhere, by contraction around a ball.

    Attributes:
        lower, upper: [3] float32 corners of the box; of a contracted space, the cube around the ball.
        contracted: whether the grid holds all of space; the box is then its part that is not contracted.
    """

    lower: np.ndarray
    upper: np.ndarray
    contracted: bool = False

    @classmethod
    def around_ball(cls, centre: np.ndarray, radius: float) -> GridSpace:
        """Makes a grid of all space, contracted outside of a ball; `centre` is [3]."""
        centre = np.asarray(centre, np.float32)
        return cls(centre - np.float32(radius), centre + np.float32(radius), contracted=True)

    @property
    def unit(self) -> float:
        """The length that densities and steps are measured by: a third of the grid's longest side.

        It makes densities independent of the world's scale. Initial densities and thresholds were found for the
        Blender scenes, whose grids have a side of 3.
        """
        side = float((self.upper - self.lower).max())
        return side * (CONTRACTED_RADIUS if self.contracted else 1.0) / 3.0

    def to_cube(self, points: tf.Tensor) -> tf.Tensor:
        """Converts points [..., 3] of the world to coordinates [..., 3] in the grid, 0 to 1 for what it holds."""
        if self.contracted:
            radius = 0.5 * (self.upper - self.lower)
            points = contract((points - (self.lower + radius)) / radius)
            return points / (2.0 * CONTRACTED_RADIUS) + 0.5
        return (points - self.lower) / (self.upper - self.lower)
