"""Writes the binary files of COLMAP's sparse models, by its documentation of the format."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np


def points(positions: np.ndarray, views: Sequence[int]) -> bytes:
    """points3D.bin: points [P, 3], each shown by so many photos; they are numbered from 1."""
    records = [
        struct.pack("<Q3d3BdQ", i + 1, *position, 1, 2, 3, 0.5, count) + bytes(8 * count)
        for i, (position, count) in enumerate(zip(positions, views, strict=True))
    ]
    return struct.pack("<Q", len(records)) + b"".join(records)
