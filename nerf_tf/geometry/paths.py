"""The original's camera paths for videos: spiral, circle and orbit. NumPy only, in float64.

A path is an array of poses [frames, 3, 4] with OpenGL axes, as in `geometry.poses`.
"""

from __future__ import annotations

import numpy as np

from nerf_tf.geometry.poses import average_pose, look_at, normalise


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
