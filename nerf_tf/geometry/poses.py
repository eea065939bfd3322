"""Camera poses: axis conventions, averages, recentring. NumPy only.

A pose is a camera-to-world matrix [3, 4]: three columns for the camera's axes in the world, one for its centre. The
package uses OpenGL's axes; loaders convert from other conventions with the functions below:

    convention                         column 0   column 1   column 2
    OpenGL, Blender, this package      right      up         back
    OpenCV, COLMAP                     right      down       forward
    LLFF (poses_bounds.npy)            down       right      back

All are right-handed. COLMAP stores world-to-camera matrices: apply `invert` as well. Functions do not change their
arguments. They compute in float64, except `average_pose` and `recenter`, which keep the precision of their argument.
"""

from __future__ import annotations

import numpy as np


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Scales vectors [..., 3] to length 1.

    Raises:
        ValueError: a vector has length zero (the original returned NaN).
    """
    vectors = np.asarray(vectors)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.all(length > 0):
        raise ValueError("a direction has length zero: the cameras' axes or centres cancel out or are not numbers")
    return vectors / length


def look_at(back: np.ndarray, up: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Makes the pose [3, 4] at `centre` [3] that looks along `-back` [3], y axis close to `up` [3].

    Raises:
        ValueError: `back` and `up` are parallel, or one of them is zero.
    """
    z = normalise(back)
    x = normalise(np.cross(up, z))
    y = normalise(np.cross(z, x))
    return np.stack([x, y, z, centre], axis=-1)


def invert(poses: np.ndarray) -> np.ndarray:
    """Inverts rigid transforms [..., 3, 4]: camera-to-world to world-to-camera and back."""
    poses = np.asarray(poses, np.float64)
    rotation = np.swapaxes(poses[..., :3, :3], -1, -2)
    return np.concatenate([rotation, -rotation @ poses[..., :3, 3:]], axis=-1)


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Multiplies transforms [..., 3, 4] whose last row (0, 0, 0, 1) is left out: `outer @ inner`."""
    outer, inner = np.asarray(outer, np.float64), np.asarray(inner, np.float64)
    rotation = outer[..., :3, :3] @ inner[..., :3, :3]
    centre = outer[..., :3, :3] @ inner[..., :3, 3:] + outer[..., :3, 3:]
    return np.concatenate([rotation, centre], axis=-1)


def average_pose(poses: np.ndarray) -> np.ndarray:
    """Averages `poses` [N, 3, 4] to a pose [3, 4]: their mean centre, viewing direction and up.

    Raises:
        ValueError: their viewing directions or their up axes cancel out.
    """
    back = normalise(poses[:, :3, 2].sum(axis=0))
    return look_at(back, poses[:, :3, 1].sum(axis=0), poses[:, :3, 3].mean(axis=0))


def recenter(poses: np.ndarray) -> np.ndarray:
    """Moves `poses` [N, 3, 4] so that their average becomes the identity.

    As the original, bit for bit, for float32 poses: the average is computed in single precision, then inverted in
    double by the general inverse, as it is not exactly a rotation. Under NDC a difference of one rounding is visible.

    Raises:
        ValueError: as `average_pose`.
    """
    average = np.eye(4)
    average[:3] = average_pose(poses)
    return compose(np.linalg.inv(average)[:3], poses).astype(poses.dtype)


def nearest_point_to_axes(poses: np.ndarray) -> np.ndarray:
    """Finds the point [3] closest, in least squares, to the optical axes of `poses` [N, 3, 4].

    Raises:
        ValueError: the optical axes are parallel.
    """
    directions, centres = poses[:, :3, 2:3], poses[:, :3, 3:4]
    # The projection A onto the plane at right angles to an axis. A^T A = A but for rounding; as in the original.
    off_axis = np.eye(3) - directions @ np.swapaxes(directions, -1, -2)
    normal = (np.swapaxes(off_axis, -1, -2) @ off_axis).mean(axis=0)
    # Beyond this, rounding of the pose file to single precision moves the point by more than the scene's size.
    if np.linalg.cond(normal) > 1e7:
        raise ValueError("spherify needs cameras that look at a common point, but their optical axes are parallel")
    return np.linalg.solve(normal, (off_axis @ centres).mean(axis=0))[:, 0]


def sphere_frame(poses: np.ndarray) -> np.ndarray:
    """Finds the frame [3, 4] of `spherify`: origin where `poses` [N, 3, 4] look, z towards them.

    Raises:
        ValueError: as `nearest_point_to_axes`.
    """
    poses = np.asarray(poses, np.float64)[:, :3, :4]
    origin = nearest_point_to_axes(poses)
    offsets = poses[:, :, 3] - origin
    z = offsets.mean(axis=0)
    if np.linalg.norm(z) < 1e-6 * np.linalg.norm(offsets, axis=-1).mean():
        z = poses[:, :, 1].mean(axis=0)  # a closed circle has no mean direction: the cameras' up
    z = normalise(z)
    # The original's constant; any direction that is not parallel to z would do.
    x = normalise(np.cross([0.1, 0.2, 0.3], z))
    return np.stack([x, normalise(np.cross(z, x)), z, origin], axis=-1)


def spherify(poses: np.ndarray) -> tuple[np.ndarray, float]:
    """Moves and scales cameras around an object to the unit sphere, as the original's --spherify.

    The point they look at becomes the origin, the mean direction from there to the cameras becomes z, and the root mean
    square distance of the centres becomes 1.

    Args:
        poses: [N, 3, 4].

    Returns:
        The new poses [N, 3, 4], and the factor for other lengths such as the depth bounds.

    Raises:
        ValueError: the optical axes are parallel, or there is one camera only.
    """
    poses = np.asarray(poses, np.float64)[:, :3, :4]
    moved = compose(invert(sphere_frame(poses)), poses)
    scale = 1.0 / np.sqrt(np.mean(np.sum(np.square(moved[:, :, 3]), axis=-1)))
    moved[:, :, 3] *= scale
    return moved, float(scale)


def llff_to_opengl(poses: np.ndarray) -> np.ndarray:
    """Converts poses [..., 3 or 4, 4] from [down, right, back] to [right, up, back]."""
    poses = np.asarray(poses)
    return np.concatenate([poses[..., 1:2], -poses[..., 0:1], poses[..., 2:]], axis=-1)


def opengl_to_llff(poses: np.ndarray) -> np.ndarray:
    """Converts poses [..., 3 or 4, 4] from [right, up, back] to [down, right, back]."""
    poses = np.asarray(poses)
    return np.concatenate([-poses[..., 1:2], poses[..., 0:1], poses[..., 2:]], axis=-1)


def opengl_to_opencv(poses: np.ndarray) -> np.ndarray:
    """Converts poses [..., 3 or 4, 4] from [right, up, back] to [right, down, forward]."""
    poses = np.asarray(poses)
    return np.concatenate([poses[..., 0:1], -poses[..., 1:3], poses[..., 3:]], axis=-1)


def opencv_to_opengl(poses: np.ndarray) -> np.ndarray:
    """Converts poses [..., 3 or 4, 4] from [right, down, forward] to [right, up, back]."""
    return opengl_to_opencv(poses)
