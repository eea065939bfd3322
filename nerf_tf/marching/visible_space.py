"""Which part of space the views of a scene see."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from nerf_tf.data.scene import Scene
from nerf_tf.geometry.rays import finish_rays, pixel_rays

# Cells along each side of the box in which `seen_box` looks.
SEEN_CELLS = 40


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """A box in the space of the rays, its sides parallel to the axes.

    Attributes:
        lower, upper: [3] float32 corners.
    """

    lower: np.ndarray
    upper: np.ndarray


def ray_box(scene: Scene) -> Box:
    """Finds the box, in the space of the rays, around all that cameras and render path can see.

    The space of the rays is NDC, or else the world.
    """
    views = [*zip(scene.cameras, scene.poses, strict=True), *((scene.cameras[0], c2w) for c2w in scene.render_poses)]
    corners = []
    for camera in set(scene.cameras):
        c2w = np.stack([pose for other, pose in views if other == camera])[:, None]  # [N, 1, 3, 4]
        # What a camera sees is a frustum, under NDC too, so its corners are enough.
        rows, cols = np.array([0, 0, camera.height, camera.height]), np.array([0, camera.width, 0, camera.width])
        rays = finish_rays(camera, *pixel_rays(camera, c2w, rows, cols), scene.near, scene.far, scene.ndc)
        corners += [tf.reshape(rays.origins + t * rays.directions, [-1, 3]) for t in (scene.near, scene.far)]
    points = np.concatenate(corners)
    lower, upper = points.min(axis=0), points.max(axis=0)
    margin = 1e-3 * (upper - lower)  # so that rounding leaves no sample outside
    return Box(lower - margin, upper + margin)


def seen_box(scene: Scene) -> Box:
    """Finds the box around all `seen_cells` of a scene without NDC; `ray_box` if there are none."""
    box = ray_box(scene)
    for _ in range(2):  # the second time with smaller cells, as they share a smaller box
        found = np.argwhere(seen_cells(scene, box, SEEN_CELLS))
        if not len(found):
            return box
        size = (box.upper - box.lower) / SEEN_CELLS
        box = Box(box.lower + (found.min(axis=0) - 0.5) * size, box.lower + (found.max(axis=0) + 1.5) * size)
    return box


def seen_cells(scene: Scene, box: Box, count: int) -> np.ndarray:
    """Marks the cells of a box, [count] * 3 bool, that may hold something, in a scene without NDC.

    A cell is marked if a training view sees it nearer than far, and none sees it nearer than near or only at pixels of
    alpha 0, where nothing can be. What the alphas of all views leave is the visual hull (Laurentini 1994).
    """
    size = (box.upper - box.lower) / count
    cells = np.stack(np.meshgrid(*[np.arange(count, dtype=np.float32) + 0.5] * 3, indexing="ij"), axis=-1)
    points = (box.lower + cells.reshape(-1, 3) * size).astype(np.float32)
    left, seen = np.arange(len(points)), np.zeros(len(points), bool)
    reach = 0.5 * float(np.linalg.norm(size))  # from a cell's centre to its corners
    for i in scene.i_train:
        camera = scene.cameras[i]
        rows, cols, z = camera.project(scene.poses[i], points[left])
        in_view = (z < 0) & (rows >= 0) & (rows < camera.height) & (cols >= 0) & (cols < camera.width)
        seen[left] |= in_view & (-z <= scene.far)
        is_empty = in_view & (-z < scene.near - reach)
        if scene.alphas is not None:
            pixels = reach * max(camera.fx, camera.fy) / np.maximum(-z - reach, 1e-6) + 1.0
            is_empty |= in_view & ~_any_near(scene.alphas[i] > 0, rows, cols, pixels)
        left = left[~is_empty]
    possible = np.zeros(len(points), bool)
    possible[left] = seen[left]
    return possible.reshape(count, count, count)


def _any_near(image: np.ndarray, rows: np.ndarray, cols: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Whether any pixel of an image [H, W] bool is set within `reach` [P] rows and columns of places [P]."""
    sums = np.pad(image, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
    (top, bottom), (left, right) = (
        [np.clip(edge, 0, length).astype(int) for edge in (np.floor(x - reach), np.ceil(x + reach) + 1)]
        for x, length in ((rows, image.shape[0]), (cols, image.shape[1]))
    )
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left] > 0
