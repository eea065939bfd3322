"""Camera paths for videos: spiral, circle and orbit. NumPy only, in float64.

A path is an array of poses [frames, 3, 4] with OpenGL axes, as in `geometry.poses`.
"""

from __future__ import annotations

import numpy as np

from nerf_tf.geometry.poses import average_pose, compose, invert, look_at, nearest_point_to_axes, normalise


def spiral_path(poses: np.ndarray, near: float, far: float, frames: int = 120) -> np.ndarray:
    """Makes a spiral around the average of forward-facing cameras; all frames look at one point.

    As the original: two turns, with one period of the motion along the optical axis. The radii are the 90th percentile
    of the centres' coordinates along each axis, so `poses` should be recentred. The point's distance is the harmonic
    mean of .9 `near` and 5 `far`, weighted 1 to 3.

    Args:
        poses: [N, 3, 4].
        near, far: smallest and largest depth of the scene, in the units of `poses`.

    Returns:
        [frames, 3, 4], without a repeated first frame at the end.

    Raises:
        ValueError: the cameras' viewing directions or their up axes cancel out.
    """
    poses = np.asarray(poses, np.float64)
    middle = average_pose(poses)
    up = normalise(poses[:, :3, 1].sum(axis=0))
    focus = 1.0 / (0.25 / (0.9 * near) + 0.75 / (5.0 * far))
    target = middle @ np.array([0.0, 0.0, -focus, 1.0])
    radii = np.percentile(np.abs(poses[:, :3, 3]), 90, axis=0)
    theta = np.linspace(0.0, 4.0 * np.pi, frames, endpoint=False)
    offsets = np.stack([np.cos(theta), -np.sin(theta), -np.sin(theta * 0.5)], axis=-1) * radii
    centres = offsets @ middle[:, :3].T + middle[:, 3]
    return np.stack([look_at(centre - target, up, centre) for centre in centres])


def face_one_way(poses: np.ndarray, cosine: float = 0.0) -> bool:
    """Whether all `poses` [N, 3, 4] look along their mean direction, within the angle of this cosine."""
    average = poses[:, :, 2].mean(axis=0)
    return bool(np.all(poses[:, :, 2] @ average > cosine * np.linalg.norm(average)))


def spiral_among(poses: np.ndarray, near: float, far: float, frames: int = 120) -> np.ndarray:
    """Makes the `spiral_path` [frames, 3, 4] of cameras [N, 3, 4] that need not be recentred."""
    middle = average_pose(poses)
    return compose(middle, spiral_path(compose(invert(middle), poses), near, far, frames))


def circle_path(poses: np.ndarray, frames: int = 120) -> np.ndarray:
    """Makes a circle around z on the unit sphere, at the mean height of spherified `poses` [N, 3, 4].

    As the original: up is z, and the last frame repeats the first. Returns [frames, 3, 4].
    """
    height = np.asarray(poses, np.float64)[:, 2, 3].mean()
    # |height| <= 1 but for rounding.
    radius = np.sqrt(max(0.0, 1.0 - height**2))
    theta = np.linspace(0.0, 2.0 * np.pi, frames)
    centres = np.stack([radius * np.cos(theta), radius * np.sin(theta), np.full(frames, height)], axis=-1)
    z = normalise(centres)
    x = normalise(np.cross(z, [0.0, 0.0, -1.0]))
    return np.stack([x, normalise(np.cross(z, x)), z, centres], axis=-1)


def spherical_pose(theta: float, phi: float, radius: float) -> np.ndarray:
    """Makes a pose [3, 4] on a sphere that looks at the origin, with z up, as in the Blender scenes.

    Args:
        theta: degrees around z.
        phi: degrees of elevation, negative above the horizon.
        radius: distance from the origin.
    """
    theta, phi = np.deg2rad(theta), np.deg2rad(phi)
    around = np.array([[np.cos(theta), 0, -np.sin(theta)], [0, 1, 0], [np.sin(theta), 0, np.cos(theta)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(phi), -np.sin(phi)], [0, np.sin(phi), np.cos(phi)]])
    y_up_to_z_up = np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
    rotation = y_up_to_z_up @ around @ tilt
    return np.concatenate([rotation, radius * rotation[:, 2:]], axis=-1)


def orbit_path(frames: int = 40, phi: float = -30.0, radius: float = 4.0) -> np.ndarray:
    """Makes a full turn of `spherical_pose`s, [frames, 3, 4]; defaults: the original's for Blender."""
    return np.stack(
        [spherical_pose(theta, phi, radius) for theta in np.linspace(-180.0, 180.0, frames, endpoint=False)]
    )


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
