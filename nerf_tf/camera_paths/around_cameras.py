"""Paths that follow from where a scene's cameras are: a spiral among them, or an orbit. NumPy, float64.

A path is an array of poses [frames, 3, 4] with OpenGL axes, as in `geometry.poses`.
"""

from __future__ import annotations

import numpy as np

from nerf_tf.geometry.paths import spiral_path
from nerf_tf.geometry.poses import average_pose, compose, invert, look_at, nearest_point_to_axes, normalise


def face_one_way(poses: np.ndarray, cosine: float = 0.0) -> bool:
    """Whether all `poses` [N, 3, 4] look along their mean direction, within the angle of this cosine."""
    average = poses[:, :, 2].mean(axis=0)
    return bool(np.all(poses[:, :, 2] @ average > cosine * np.linalg.norm(average)))


def spiral_among(poses: np.ndarray, near: float, far: float, frames: int = 120) -> np.ndarray:
    """Makes the `spiral_path` [frames, 3, 4] of cameras [N, 3, 4] that need not be recentred."""
    middle = average_pose(poses)
    return compose(middle, spiral_path(compose(invert(middle), poses), near, far, frames))


def orbit_around(poses: np.ndarray, frames: int = 120) -> np.ndarray:
    """Makes a circle around the point that cameras look at, at their mean distance and elevation.

    Up is the direction that comes closest to right angles with all cameras' x axes; it is exact if no camera is rolled.
    The circle begins near the first camera and turns the same way as `orbit_path`.

    Args:
        poses: [N, 3, 4] of cameras that surround an object.

    Returns:
        [frames, 3, 4], without a repeated first frame at the end.

    Raises:
        ValueError: the optical axes are parallel.
    """
    poses = np.asarray(poses, np.float64)
    centre = nearest_point_to_axes(poses)
    up = np.linalg.svd(poses[:, :, 0])[2][-1]
    up = up * np.sign(np.sum(poses[:, :, 1] @ up) or 1.0)
    offsets = poses[:, :, 3] - centre
    distances = np.linalg.norm(offsets, axis=-1)
    elevation = np.mean(np.arcsin(np.clip(offsets @ up / np.maximum(distances, 1e-12), -1.0, 1.0)))
    x = normalise(np.cross(poses[0, :, 0], up))
    theta = np.linspace(0.0, 2.0 * np.pi, frames, endpoint=False)[:, None]
    around = np.cos(theta) * x + np.sin(theta) * np.cross(x, up)
    back = np.cos(elevation) * around + np.sin(elevation) * up
    return np.stack([look_at(b, up, centre + distances.mean() * b) for b in back])
