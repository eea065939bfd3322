"""Renders photos of the built-in scene by ray tracing, with numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nerf_tf.geometry.camera import Camera
from still_life import objects
from still_life.lighting import shade
from still_life.solids import Solid, nearest_hit

# Rays traced at a time, so that their arrays stay in a CPU's cache.
_BLOCK = 4096
# Rays along each side of a pixel on a contour.
_FINE = 3
# A pixel is on a contour if its corners differ by more than this (of 1).
_CONTRAST = 0.06


def _colours(
    solids: Sequence[Solid], camera: Camera, c2w: np.ndarray, rows: np.ndarray, cols: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Traces image positions [R]: colours [R, 3], black where empty, and indices of solids [R], or -1."""
    colours, owners = np.zeros((len(rows), 3)), np.full(len(rows), -1)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        origins, directions = camera.rays(c2w, rows[block], cols[block])
        t, owners[block] = nearest_hit(solids, origins, directions)
        hit = np.flatnonzero(np.isfinite(t))
        points = origins[hit] + t[hit, None] * directions[hit]
        viewdirs = directions[hit] / np.linalg.norm(directions[hit], axis=-1, keepdims=True)
        colours[start + hit] = shade(solids, points, owners[start + hit], viewdirs)
    return colours, owners


def _has_contour(colours: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Whether a pixel's corners [H+1, W+1], or those of a neighbour, differ: [H, W]."""
    corners = [np.s_[:-1, :-1], np.s_[:-1, 1:], np.s_[1:, :-1], np.s_[1:, 1:]]
    around = np.stack([colours[c] for c in corners])
    same = np.all(np.stack([owners[c] == owners[:-1, :-1] for c in corners]), axis=0)
    found = ~same | np.any(np.ptp(around, axis=0) > _CONTRAST, axis=-1)
    spread = found.copy()
    spread[1:] |= found[:-1]
    spread[:-1] |= found[1:]
    spread[:, 1:] |= found[:, :-1]
    spread[:, :-1] |= found[:, 1:]
    return spread


def render(camera: Camera, c2w: np.ndarray, solids: Sequence[Solid] | None = None) -> np.ndarray:
    """Renders a photo of the scene.

    A pixel is the mean over a square one pixel wide around the ray that `geometry.rays.pixel_rays` casts for it, so
    that rays and photos agree exactly: its four corners, or 3x3 points on a contour.

    Args:
        camera: any pinhole camera.
        c2w: [3, 4] or [4, 4] camera-to-world, OpenGL axes.
        solids: the scene; the toys by default.

    Returns:
        float32 [H, W, 4] in [0, 1]: colour, not multiplied by alpha, and coverage. Empty pixels are 0.
    """
    solids = objects.toys() if solids is None else solids
    height, width = camera.height, camera.width
    rows, cols = np.meshgrid(np.arange(height + 1) - 0.5, np.arange(width + 1) - 0.5, indexing="ij")
    colours, owners = _colours(solids, camera, c2w, rows.ravel(), cols.ravel())
    colours, owners = colours.reshape(height + 1, width + 1, 3), owners.reshape(height + 1, width + 1)
    rgba = np.zeros((height, width, 4))
    rgba[..., :3] = (colours[:-1, :-1] + colours[:-1, 1:] + colours[1:, :-1] + colours[1:, 1:]) / 4.0
    rgba[..., 3] = owners[:-1, :-1] >= 0
    row, col = np.nonzero(_has_contour(colours, owners))
    steps = (np.arange(_FINE) + 0.5) / _FINE - 0.5
    down, across = (a.ravel() for a in np.meshgrid(steps, steps, indexing="ij"))
    colours, owners = _colours(solids, camera, c2w, (row[:, None] + down).ravel(), (col[:, None] + across).ravel())
    covered = (owners >= 0).reshape(-1, _FINE**2)
    total = colours.reshape(-1, _FINE**2, 3).sum(axis=1)
    rgba[row, col, :3] = total / np.maximum(covered.sum(axis=1), 1)[:, None]
    rgba[row, col, 3] = covered.mean(axis=1)
    return rgba.astype(np.float32)


def depth(camera: Camera, c2w: np.ndarray, solids: Sequence[Solid] | None = None) -> np.ndarray:
    """Depth along the optical axis where each pixel's ray ends, float32 [H, W]; inf where it meets nothing."""
    solids = objects.toys() if solids is None else solids
    rows, cols = np.meshgrid(np.arange(camera.height), np.arange(camera.width), indexing="ij")
    origins, directions = camera.rays(c2w, rows.ravel(), cols.ravel())
    return nearest_hit(solids, origins, directions)[0].reshape(camera.height, camera.width).astype(np.float32)
