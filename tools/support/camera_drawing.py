"""Draws cameras and their frusta in 3-D panels of a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import pixel_rays
from nerf_tf.output import figures

GROUP_COLOURS = (figures.BLUE, figures.GREEN, figures.ORANGE)


def frustum(camera: Camera, c2w: np.ndarray, depth: float) -> np.ndarray:
    """Corners [5, 3] of a camera's pyramid: its centre, then the image's corners at `depth`, in order."""
    rows, cols = [0, 0, camera.height, camera.height], [0, camera.width, camera.width, 0]
    origins, directions = pixel_rays(camera, tf.constant(c2w, tf.float32), tf.constant(rows), tf.constant(cols))
    return np.concatenate([c2w[None, :, 3], (origins + depth * directions).numpy()])


def draw_frusta(axes, cameras: Sequence[Camera], poses: np.ndarray, size: float, colour: str, label: str = "") -> None:
    """Draws pyramids of `size` along the optical axis, with a dark upper edge of the image."""
    for i, (camera, c2w) in enumerate(zip(cameras, poses, strict=True)):
        tip, *corners = frustum(camera, c2w, size)
        a, b, c, d = corners
        axes.plot(*np.array([a, tip, b, c, tip, d, a]).T, color=colour, lw=0.8, label=None if i else label or None)
        axes.plot(*np.array([c, d]).T, color=colour, lw=0.8)
        axes.plot(*np.array([a, b]).T, color=figures.INK, lw=1.5)


def draw_world(axes, size: float) -> None:
    """Draws arrows of `size` along the world's axes, with their names."""
    for tip, name, colour in zip(size * np.eye(3), "xyz", (figures.RED, figures.GREEN, figures.BLUE), strict=True):
        axes.quiver(0, 0, 0, *tip, color=colour, lw=1.8, arrow_length_ratio=0.2)
        axes.text(*(1.25 * tip), name, color=colour, ha="center", va="center")


def add_space(figure, place, title: str, poses: np.ndarray, shown: np.ndarray):
    """Adds a 3-D panel with equal axes that holds `shown` [N, 3], with the cameras' up direction upwards."""
    axes = figure.add_subplot(place, projection="3d")
    axes.locator_params(nbins=5)
    axes.set_title(title, loc="left", color=figures.INK)
    middle, half = (shown.min(0) + shown.max(0)) / 2, np.ptp(shown, axis=0).max() / 2
    axes.set(**{f"{name}lim": (c - half, c + half) for name, c in zip("xyz", middle, strict=True)})
    axes.set_box_aspect((1, 1, 1), zoom=1.15)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((0.97, 0.975, 0.98, 1.0))
    up = "xyz"[np.argmax(np.abs(poses[:, :, 1].sum(axis=0)))]
    axes.view_init(22, {"x": -60, "y": 40, "z": -60}[up], vertical_axis=up)
    return axes


def draw_cameras(
    figure, place, title: str, groups: dict[str, tuple[Sequence[Camera], np.ndarray]], path: np.ndarray | None = None
) -> None:
    """Draws a 3-D panel: frusta, coloured by group, the world's axes and the path's centres."""
    poses = np.concatenate([group for _, group in groups.values()])
    centres = poses[:, :, 3]
    spread = np.ptp(centres, axis=0).max() or 1.0
    size = 0.14 * spread
    views = [view for cameras, group in groups.values() for view in zip(cameras, group, strict=True)]
    corners = np.concatenate([frustum(camera, c2w, size) for camera, c2w in views])
    shown = np.concatenate([corners, np.zeros([1, 3]), 0.3 * spread * np.eye(3)])
    axes = add_space(figure, place, title, poses, shown)
    draw_world(axes, 0.3 * spread)
    for (label, (cameras, group)), colour in zip(groups.items(), GROUP_COLOURS, strict=False):
        draw_frusta(axes, cameras, group, size, colour, label)
    if path is not None:
        axes.plot(*path[:, :, 3].T, color=figures.PALE, lw=1.2, label="path for videos")
    axes.legend(loc="upper right", frameon=False, fontsize=9)
