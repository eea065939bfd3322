"""Depth of rendered views: from a ray's expected t to points and distances. NumPy, float64.

In metric scenes t is depth along the optical axis; under NDC it is one minus inverse depth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import NDC_NEAR

# Below half opacity most of a pixel's colour is background, so its expected t is not that of a surface.
MIN_ACC = 0.5


class Surface(NamedTuple):
    """The surface points that the pixels of a view see; NaN where a ray meets nothing.

    Attributes:
        points: [H, W, 3] in the world of the camera's pose.
        along_ray: [H, W] distance from the camera's centre.
        along_z: [H, W] distance along the camera's optical axis.
    """

    points: np.ndarray
    along_ray: np.ndarray
    along_z: np.ndarray


def find_surface(
    camera: Camera, c2w: np.ndarray, depth: np.ndarray, acc: np.ndarray, ndc: bool, min_acc: float = MIN_ACC
) -> Surface:
    """Finds the surface point that each pixel of a rendered view sees.

    Args:
        camera: the view's camera.
        c2w: [3, 4] its pose.
        depth, acc: [H, W] as rendered: sum of weight times t, and sum of weights.
        ndc: whether the rays were rendered in NDC.
        min_acc: rays with less `acc` meet nothing.
    """
    origins, directions = camera.rays(c2w, *np.mgrid[: camera.height, : camera.width])
    depth, acc = np.asarray(depth, np.float64), np.asarray(acc, np.float64)
    t = np.divide(depth, acc, out=np.full(depth.shape, np.nan), where=(acc >= min_acc) & (acc > 0))
    if ndc:
        t = ndc_to_metric_t(origins, directions, t)
    # Directions have length 1 along the optical axis, so t is depth along it.
    return Surface(origins + t[..., None] * directions, t * np.linalg.norm(directions, axis=-1), t)


def ndc_to_metric_t(origins: np.ndarray, directions: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Converts t of NDC rays to t of the same rays in the world (paper, appendix C, solved for t).

    On every ray t_ndc = 1 - NDC_NEAR / depth, with depth counted from the world's origin along -z.

    Args:
        origins, directions: [..., 3] rays in the world, direction z < 0.
        t: [...] on the same rays, converted to NDC by `ndc_rays`.

    Returns:
        [...] t in the world; infinity where t is 1 or more.
    """
    with np.errstate(divide="ignore"):
        z = -NDC_NEAR / np.maximum(1.0 - np.asarray(t, np.float64), 0.0)
    return (z - origins[..., 2]) / directions[..., 2]


def ndc_to_world(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Converts points [..., 3], z < 1, from NDC to the world: the inverse of `ndc_rays` for points."""
    x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
    z = 2.0 * NDC_NEAR / (z - 1.0)
    return np.stack([-x * z * camera.width / (2 * camera.fx), -y * z * camera.height / (2 * camera.fy), z], axis=-1)
