"""The point that cameras look at, if their optical axes meet. NumPy, float64."""

from __future__ import annotations

import numpy as np

from nerf_tf.geometry.poses import nearest_point_to_axes

# Optical axes count as meeting if they miss their nearest point by at most this part of the cameras' distance from
# their middle (medians). It is a correlation of 0.97 between cameras' positions and directions; fern's 0.2 just passes.
MEETING_MISS = 0.25


def distances_from_middle(poses: np.ndarray) -> np.ndarray:
    """Distances [N] of the centres of `poses` [N, 3, 4] from their median, which stray ones hardly move."""
    centres = np.asarray(poses, np.float64)[:, :, 3]
    return np.linalg.norm(centres - np.median(centres, axis=0), axis=-1)


def meeting_depths(poses: np.ndarray) -> np.ndarray | None:
    """Depths [N] of the point where the optical axes of `poses` [N, 3, 4] meet; None if they do not.

    They meet if they pass closely enough (`MEETING_MISS`) by a point that is in front of nine in ten cameras.
    """
    poses = np.asarray(poses, np.float64)
    try:
        point = nearest_point_to_axes(poses)
    except ValueError:  # they are parallel
        return None
    offsets, back = point - poses[:, :, 3], poses[:, :, 2]
    depths = -np.sum(offsets * back, axis=-1)
    misses = np.linalg.norm(offsets + depths[:, None] * back, axis=-1)
    if np.median(misses) > MEETING_MISS * np.median(distances_from_middle(poses)) or np.mean(depths > 0) < 0.9:
        return None
    return depths
