"""Conversion of points and poses between a data set's own world and that of a scene. NumPy, float64."""

from __future__ import annotations

import numpy as np

from nerf_tf.geometry.poses import compose


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Transforms points [..., 3] by an affine matrix [4, 4], such as `Scene.to_dataset`."""
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def change_world(similarity: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Moves poses [..., 3, 4] as `similarity` [4, 4] moves points; their axes keep length 1.

    The inverse of `Scene.to_dataset` moves poses of a data set to the scene's world, that of the networks.
    """
    moved = compose(similarity[:3], poses)
    moved[..., :3] /= np.cbrt(np.linalg.det(np.asarray(similarity, np.float64)[:3, :3]))
    return moved
