"""Camera poses: averages, re-centring, paths for videos and axis conventions. Numpy only.

A pose is a camera-to-world matrix [3, 4]: three columns for the camera's axes in the world, one for its centre.
The package keeps to OpenGL's axes; only the loaders and the conversions below know others:

    convention                         column 0   column 1   column 2
    OpenGL, Blender, this package      right      up         back
    OpenCV, COLMAP                     right      down       forward
    LLFF (poses_bounds.npy)            down       right      back

All of them are right-handed, so the conversions keep the determinant at +1. COLMAP stores world-to-camera matrices:
apply `invert` as well. Functions take [..., 3, 4] arrays and leave their arguments alone. They compute in float64, but
for averaging and recentering, which keep the precision of their argument: see `recenter`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# How far lengths and products of a camera's axes may be from a rotation's 1 and 0: files of 3 decimals pass, and
# distances along rays are wrong by a hundredth at most.
RIGID_TOLERANCE = 1e-2
# Farthest that a camera may be from the origin, in scene units: squares of it are far from float32's limits.
FARTHEST = 1e9


def require_rigid(poses: np.ndarray, names: Sequence[str]) -> None:
    """Checks that poses [N, 3, 4] are a camera's: a rotation, and a centre within reach.

    Args:
        poses: the poses.
        names: [N] what to call each.

    Raises:
        ValueError: one is not; the message begins with its name.
    """
    for pose, name in zip(np.asarray(poses, np.float64), names, strict=True):
        problem = _what_is_not_rigid(pose)
        if problem:
            raise ValueError(f"{name}: {problem}")


def _what_is_not_rigid(pose: np.ndarray) -> str | None:
    if not np.all(np.isfinite(pose)):
        return "the pose holds NaN or infinity"
    if np.abs(pose).max() > FARTHEST:
        return f"the pose holds {np.abs(pose).max():g}; coordinates beyond {FARTHEST:g} are too large to compute with"
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


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., 3] at length one.

    Raises:
        ValueError: one of them has length zero (the original returned NaN).
    """
    vectors = np.asarray(vectors)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.all(length > 0):
        raise ValueError("a direction has length zero: the cameras' axes or centres cancel out or are not numbers")
    return vectors / length


def look_at(back: np.ndarray, up: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The pose [3, 4] of a camera at `centre` [3] that looks along `-back` [3], its up near `up` [3]."""
    z = normalise(back)
    x = normalise(np.cross(up, z))
    y = normalise(np.cross(z, x))
    return np.stack([x, y, z, centre], axis=-1)


def invert(poses: np.ndarray) -> np.ndarray:
    """Rigid inverse of [..., 3, 4] poses: camera-to-world to world-to-camera and back."""
    poses = np.asarray(poses, np.float64)
    rotation = np.swapaxes(poses[..., :3, :3], -1, -2)
    return np.concatenate([rotation, -rotation @ poses[..., :3, 3:]], axis=-1)


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """`outer @ inner` for [..., 3, 4] transforms whose missing last row is (0, 0, 0, 1)."""
    outer, inner = np.asarray(outer, np.float64), np.asarray(inner, np.float64)
    rotation = outer[..., :3, :3] @ inner[..., :3, :3]
    centre = outer[..., :3, :3] @ inner[..., :3, 3:] + outer[..., :3, 3:]
    return np.concatenate([rotation, centre], axis=-1)


def average_pose(poses: np.ndarray) -> np.ndarray:
    """The pose [3, 4] at the mean centre of `poses` [N, 3, 4] that looks along the sum of their viewing directions."""
    back = normalise(poses[:, :3, 2].sum(axis=0))
    return look_at(back, poses[:, :3, 1].sum(axis=0), poses[:, :3, 3].mean(axis=0))


def recenter(poses: np.ndarray) -> np.ndarray:
    """Moves the world so that the average of `poses` [N, 3, 4] is the identity; returns the moved [N, 3, 4].

    Poses in float32 give, bit for bit, the poses that the original trained with: it averages in single precision and
    inverts that average, not quite a rotation, in double. NDC magnifies the difference of one rounding until it shows.
    """
    average = np.eye(4)
    average[:3] = average_pose(poses)
    return compose(np.linalg.inv(average)[:3], poses).astype(poses.dtype)


def nearest_point_to_axes(poses: np.ndarray) -> np.ndarray:
    """The point [3] nearest, in least squares, to the optical axes of `poses` [N, 3, 4].

    Raises:
        ValueError: the optical axes are parallel.
    """
    directions, centres = poses[:, :3, 2:3], poses[:, :3, 3:4]
    # Takes a point to its offset from an axis: a projection, so that A^T A = A but for rounding.
    off_axis = np.eye(3) - directions @ np.swapaxes(directions, -1, -2)
    normal = (np.swapaxes(off_axis, -1, -2) @ off_axis).mean(axis=0)
    # Beyond this, single precision in the pose file alone moves the point by more than the scene's size.
    if np.linalg.cond(normal) > 1e7:
        raise ValueError("spherify needs cameras that look at a common point, but their optical axes are parallel")
    return np.linalg.solve(normal, (off_axis @ centres).mean(axis=0))[:, 0]


def sphere_frame(poses: np.ndarray) -> np.ndarray:
    """The frame [3, 4] that `spherify` takes `poses` [N, 3, 4] into: the point they look at, z from there to them."""
    poses = np.asarray(poses, np.float64)[:, :3, :4]
    origin = nearest_point_to_axes(poses)
    z = normalise((poses[:, :, 3] - origin).mean(axis=0))
    # Any direction that is not parallel to z would do; this is the original's.
    x = normalise(np.cross([0.1, 0.2, 0.3], z))
    return np.stack([x, normalise(np.cross(z, x)), z, origin], axis=-1)


def spherify(poses: np.ndarray) -> tuple[np.ndarray, float]:
    """Brings cameras around an object onto the unit sphere, as the original's --spherify does.

    The point they look at becomes the origin, the mean direction from there to the cameras becomes z, and the scale
    is such that the root mean square distance of the centres is 1.

    Args:
        poses: [N, 3, 4].

    Returns:
        The poses [N, 3, 4], and the scale that other lengths (the depth bounds) are to be multiplied by.

    Raises:
        ValueError: the optical axes are parallel (a single camera's included).
    """
    poses = np.asarray(poses, np.float64)[:, :3, :4]
    moved = compose(invert(sphere_frame(poses)), poses)
    scale = 1.0 / np.sqrt(np.mean(np.sum(np.square(moved[:, :, 3]), axis=-1)))
    moved[:, :, 3] *= scale
    return moved, float(scale)


def llff_to_opengl(poses: np.ndarray) -> np.ndarray:
    """[down, right, back] to [right, up, back] for [..., 3 or 4, 4] poses."""
    poses = np.asarray(poses)
    return np.concatenate([poses[..., 1:2], -poses[..., 0:1], poses[..., 2:]], axis=-1)


def opengl_to_llff(poses: np.ndarray) -> np.ndarray:
    """[right, up, back] to [down, right, back] for [..., 3 or 4, 4] poses."""
    poses = np.asarray(poses)
    return np.concatenate([-poses[..., 1:2], poses[..., 0:1], poses[..., 2:]], axis=-1)


def opengl_to_opencv(poses: np.ndarray) -> np.ndarray:
    """[right, up, back] to [right, down, forward] for [..., 3 or 4, 4] camera-to-world poses."""
    poses = np.asarray(poses)
    return np.concatenate([poses[..., 0:1], -poses[..., 1:3], poses[..., 3:]], axis=-1)


def opencv_to_opengl(poses: np.ndarray) -> np.ndarray:
    """[right, down, forward] to [right, up, back] for [..., 3 or 4, 4] camera-to-world poses."""
    # Turning two axes around undoes itself.
    return opengl_to_opencv(poses)
