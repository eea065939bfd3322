"""From a rendered t back to space: depth of a view, points on surfaces, the way out of NDC. Numpy, in float64.

What volume rendering knows of distance is a ray's expected t. In metric scenes that is depth along the optical axis;
under NDC it is one minus inverse depth from the average camera. Here both become points and distances.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import NDC_NEAR

# A ray of which less is stopped went past everything: its expected t belongs to haze.
MIN_ACC = 0.5


class Surface(NamedTuple):
    """What the pixels of a view meet; NaN where that is nothing.

    Attributes:
        points: [H, W, 3] in the world that the camera's pose is in.
        along_ray: [H, W] distance from the camera's centre.
        along_z: [H, W] distance along the camera's optical axis.
    """

    points: np.ndarray
    along_ray: np.ndarray
    along_z: np.ndarray


def surface(
    camera: Camera, c2w: np.ndarray, depth: np.ndarray, acc: np.ndarray, ndc: bool, min_acc: float = MIN_ACC
) -> Surface:
    """Where the rays of a view end.

    Args:
        camera: the camera.
        c2w: [3, 4] its pose.
        depth, acc: [H, W] as rendered: sum of weight times t, and sum of weights.
        ndc: whether the rays were rendered in NDC.
        min_acc: rays with less `acc` meet nothing.
    """
    # On the host: a view's memory on a GPU does not grow with its size.
    origins, directions = camera.rays(c2w, *np.mgrid[: camera.height, : camera.width])
    depth, acc = np.asarray(depth, np.float64), np.asarray(acc, np.float64)
    t = np.divide(depth, acc, out=np.full(depth.shape, np.nan), where=(acc >= min_acc) & (acc > 0))
    if ndc:
        t = ndc_to_metric_t(origins, directions, t)
    # Directions are one long along the optical axis, so t is depth along it.
    return Surface(origins + t[..., None] * directions, t * np.linalg.norm(directions, axis=-1), t)


def ndc_to_metric_t(origins: np.ndarray, directions: np.ndarray, t: np.ndarray, near: float = NDC_NEAR) -> np.ndarray:
    """The ray parameter in space of what lies at `t` on the NDC ray (paper, appendix C, solved for it).

    On every ray t_ndc is 1 - near / depth, with the depth counted from the world's origin along -z.

    Args:
        origins, directions: [..., 3] the rays in space, direction z < 0.
        t: [...] on the same rays moved to NDC by `ndc_rays`; 1 and more is infinitely far.
        near: distance of the near plane.
    """
    with np.errstate(divide="ignore"):
        z = -near / np.maximum(1.0 - np.asarray(t, np.float64), 0.0)
    return (z - origins[..., 2]) / directions[..., 2]


def ndc_to_world(camera: Camera, points: np.ndarray, near: float = NDC_NEAR) -> np.ndarray:
    """Points [..., 3] of NDC, z < 1, in space; the camera's focal lengths and size define the frustum."""
    x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
    z = 2.0 * near / (z - 1.0)
    return np.stack([-x * z * camera.width / (2 * camera.fx), -y * z * camera.height / (2 * camera.fy), z], axis=-1)


def transform(similarity: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 3] moved by a similarity [4, 4], such as `Scene.to_dataset`."""
    return np.asarray(points, np.float64) @ similarity[:3, :3].T + similarity[:3, 3]
