"""A box whose sides are parallel to the axes."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """A box in the space of the rays.

    Attributes:
        lower, upper: [3] float32 corners.
    """

    lower: np.ndarray
    upper: np.ndarray
