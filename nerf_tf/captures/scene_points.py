"""Finds the sparse points that COLMAP or nerfstudio left beside a scene's cameras."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nerf_tf.captures.worlds import transform_points
from nerf_tf.geometry.camera import Camera
from nerf_tf.storage import ply, readers, sparse_points

logger = logging.getLogger(__name__)

# Folders of COLMAP's model in a scene: that of LLFF, 3D Gaussian Splatting and our imgs2poses, then nerfstudio's.
MODELS = ("sparse/0", "colmap/sparse/0")
# A point counts if at least so many photos show it, as points of two photos are often wrong. With fewer than so many
# such points, all count.
CERTAIN_VIEWS, ENOUGH_POINTS = 3, 100
# Points are of the cameras' world if `share_of_sightings` is at least this. Fern's is 0.999 in its own world, 0.8 with
# a focal length 20 % too long, and 0 in a world turned by 90 degrees.
OWN_SIGHTINGS = 0.5
# Points that are projected into all views to compute that share, and near and far: more do not change them.
POINTS_FOR_SHARE, POINTS_FOR_RANGE = 5000, 20_000
# Near and far are these percentiles of the points' depths, as some points are always wrong, times these margins.
POINT_PERCENTILES, POINT_MARGINS = (0.1, 99.9), (0.9, 1.1)


class ScenePoints(NamedTuple):
    """Sparse points in the data set's own world.

    Attributes:
        positions: [P, 3].
        source: their file or folder, relative to the scene's folder.
        model: the folder of COLMAP's model; None for points of another file.
        from_model: [4, 4] the similarity that takes points of that model to the data set's world.
    """

    positions: np.ndarray
    source: str
    model: Path | None = None
    from_model: np.ndarray = np.eye(4)


def find_points(
    folder: Path, cameras: Sequence[Camera], poses: np.ndarray, meta: Mapping[str, object] | None = None
) -> ScenePoints | None:
    """Finds a scene's sparse points: those that its transforms.json names, or COLMAP's model beside it.

    A model is used only if its points are of the cameras' world, as they are or moved by the file's `applied_transform`
    (nerfstudio turns the cameras but not the model): cameras must have in their images what the model's photos show.
    One of another world is skipped, and so is a damaged one, with a warning.

    Args:
        cameras: N cameras.
        poses: [N, 3, 4] camera-to-world in the data set's world.
        meta: what a transforms.json holds; None for scenes of other kinds.

    Returns:
        The points; None if there are none.

    Raises:
        ValueError: the file that `meta` names is damaged, or `applied_transform` is no matrix.
    """
    meta = meta or {}
    if isinstance(name := meta.get("ply_file_path"), str) and name and os.path.lexists(folder / name):
        points = ply.read_points(folder / name)
        return ScenePoints(points[np.isfinite(points).all(axis=-1)], name)
    for source in MODELS:
        try:
            points, views = sparse_points.read_points(folder / source)
        except FileNotFoundError:
            continue
        except ValueError as error:
            logger.warning("%s; it is not used: copy it again, or remove it", error)
            continue
        certain = views >= CERTAIN_VIEWS
        if certain.sum() >= ENOUGH_POINTS:
            points, views = points[certain], views[certain]
        for from_model in _worlds(meta):
            with np.errstate(over="ignore", invalid="ignore"):
                moved = transform_points(from_model, points)
            if share_of_sightings(cameras, poses, moved, views) >= OWN_SIGHTINGS:
                return ScenePoints(moved, source, folder / source, from_model)
        logger.info("%s: its points are of another world than the cameras, or of other photos", folder / source)
    return None


def _worlds(meta: Mapping[str, object]) -> Iterator[np.ndarray]:
    """Yields the similarities [4, 4] that may take a model to the world of a file's cameras."""
    if "applied_transform" in meta:
        applied = readers.parse_matrix(meta["applied_transform"], "applied_transform", ((3, 4), (4, 4)))
        scale = readers.parse_number(meta.get("applied_scale", 1.0), "applied_scale")
        yield np.concatenate([scale * applied[:3], [[0.0, 0.0, 0.0, 1.0]]])
    yield np.eye(4)


def share_of_sightings(cameras: Sequence[Camera], poses: np.ndarray, points: np.ndarray, views: np.ndarray) -> float:
    """Computes for how many of the photos that show a point a camera has it in view: a mean share.

    Args:
        cameras: N cameras.
        poses: [N, 3, 4] camera-to-world.
        points: [P, 3].
        views: [P] how many photos show each point.

    Returns:
        The share, near 1 if points and cameras are of one world; 0 without points.
    """
    points, views = thinned(points, POINTS_FOR_SHARE), np.maximum(thinned(views, POINTS_FOR_SHARE), 1)
    counts = np.isfinite(depths_in_images(cameras, poses, points)).sum(axis=0)
    return float(np.mean(np.minimum(counts / views, 1.0))) if len(points) else 0.0


def pixels_in_image(camera: Camera, c2w: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projects points [P, 3] into a view: rows, columns and depths, each [P]; NaN outside of its image."""
    with np.errstate(over="ignore", invalid="ignore"):  # of absurd points, which are in no image then
        rows, cols, z = camera.project(np.asarray(c2w, np.float64), points)
        inside = (z < 0) & (rows >= 0) & (rows < camera.height) & (cols >= 0) & (cols < camera.width)
    return tuple(np.where(inside, values, np.nan) for values in (rows, cols, -z))


def depths_in_images(cameras: Sequence[Camera], poses: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Computes depths [N, P] of points [P, 3] along the optical axes of N views; NaN outside of their images."""
    return np.stack([pixels_in_image(*view, points)[2] for view in zip(cameras, poses, strict=True)])


def thinned(points: np.ndarray, most: int) -> np.ndarray:
    """Returns about `most` of the points [P, ...], evenly spaced; all if they are fewer."""
    return points[:: max(1, len(points) // most)]


def range_of(depths: np.ndarray) -> np.ndarray:
    """Returns near and far [2] for points at these depths [P]; NaN is left out, but not all may be NaN."""
    return np.nanpercentile(depths, POINT_PERCENTILES) * POINT_MARGINS
