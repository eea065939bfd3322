"""Checks of camera-to-world matrices in untrusted files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nerf_tf.storage.readers import parse_matrix

# How far the lengths and dot products of a camera's axes may be from 1 and 0: files with 3 decimals pass, and distances
# along rays are wrong by at most 1 %.
RIGID_TOLERANCE = 1e-2
# Largest coordinate of a camera, in scene units: its square is far below float32's limit.
MAX_COORDINATE = 1e9


def parse_camera_matrix(value: object, name: str) -> np.ndarray:
    """Converts a camera-to-world matrix [4, 4] or [3, 4] from JSON to float64 [3, 4] of finite numbers.

    Raises:
        ValueError: it is no such matrix; the message begins with its `name`.
    """
    matrix = parse_matrix(value, name, ((4, 4), (3, 4)))
    if np.any(np.abs(matrix[3:, :3]) > 1e-6):
        last = ", ".join(f"{x:g}" for x in matrix[3])
        raise ValueError(f"{name} ends in the row {last} and not in 0, 0, 0, 1: is it transposed?")
    return matrix[:3]


def require_rigid(poses: np.ndarray, names: Sequence[str]) -> None:
    """Checks that poses are finite and not too far away, and that their axes are a rotation.

    Args:
        poses: [N, 3, 4].
        names: [N] names of the poses in messages.

    Raises:
        ValueError: a pose fails the check; the message begins with its name.
    """
    for pose, name in zip(np.asarray(poses, np.float64), names, strict=True):
        problem = _find_problem(pose)
        if problem:
            raise ValueError(f"{name}: {problem}")


def _find_problem(pose: np.ndarray) -> str | None:
    if not np.all(np.isfinite(pose)):
        return "the pose holds NaN or infinity"
    largest = np.abs(pose).max()
    if largest > MAX_COORDINATE:
        return f"the pose holds {largest:g}; coordinates beyond {MAX_COORDINATE:g} are too large to compute with"
    axes = pose[:, :3]
    lengths, products = np.linalg.norm(axes, axis=0), axes.T @ axes
    if np.abs(lengths - 1).max() > RIGID_TOLERANCE:
        return (
            f"the camera's axes have lengths {', '.join(f'{length:.3g}' for length in lengths)} rather than 1; divide "
            "the first three columns by them (in Blender: apply the camera's scale)"
        )
    if np.abs(products - np.diag(lengths**2)).max() > RIGID_TOLERANCE:
        return "the camera's axes, the first three columns, are not at right angles, so they are no rotation"
    if np.linalg.det(axes) < 0:
        return "the camera's axes are left-handed, a mirror image: one of the first three columns has the wrong sign"
    return None
