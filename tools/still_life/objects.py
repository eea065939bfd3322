"""The built-in scene: toys on a painted wooden disc.

World axes: x right, y away from the front, z up. Everything but the room lies within `RADIUS` of the origin. A small
network must learn the colours in minutes, so textures are broad and highlights moderate.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from still_life.solids import Paint, Solid, box, ellipsoid, frustum, rotation

RADIUS = 1.34
_TOP = -0.54  # height of the disc that the toys stand on
_BOTTOM = -0.68


def _colour(code: str) -> np.ndarray:
    """'#rrggbb' as displayed -> [3] linear light."""
    return (np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0) ** 2.2


CREAM, WHITE, INK = _colour("#f3e6cc"), _colour("#f4f1ea"), _colour("#22304a")
CORAL, ORANGE, MUSTARD = _colour("#e5483f"), _colour("#f28a2e"), _colour("#fbc531")
SAGE, TEAL, BLUE, PLUM = _colour("#a3cbb3"), _colour("#1f9e9b"), _colour("#3577c8"), _colour("#8a4f9e")
WOOD, DARK_WOOD = _colour("#dda76f"), _colour("#c48a55")


def _plain(colour: np.ndarray) -> Paint:
    return lambda local: np.broadcast_to(colour, local.shape)


def _where(mask: np.ndarray, yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], yes, no)


def _wood(grain: np.ndarray) -> np.ndarray:
    """Wood colours for a coordinate [P] across the grain."""
    mix = 0.5 + 0.5 * np.sin(grain + 0.8 * np.sin(0.37 * grain))
    return WOOD + (DARK_WOOD - WOOD) * mix[..., None]


def _disc_paint(local: np.ndarray) -> np.ndarray:
    """A chequered top inside a wooden rim."""
    x, y, z = local.T
    radius = np.hypot(x, y)
    checks = _where((np.floor(x / 0.48) + np.floor(y / 0.48)) % 2 == 0, CREAM, SAGE)
    rim = _wood(14.0 * radius + 1.5 * np.sin(3.0 * np.arctan2(y, x)))
    return _where((radius < 0.98) & (z > 0.0), checks, rim)


def _rocket_paint(local: np.ndarray) -> np.ndarray:
    """White with a coral nose and a teal belt; z in units of the body's upper half."""
    z = local[:, 2]
    body = _where(z > 0.52, CORAL, WHITE)
    return _where((z > -0.22) & (z < -0.1), TEAL, body)


def _ball_paint(local: np.ndarray) -> np.ndarray:
    """A beach ball of six gores with white poles."""
    gore = np.floor(np.arctan2(local[:, 1], local[:, 0]) / (np.pi / 3.0)).astype(int) % 6
    colours = np.stack([BLUE, WHITE, CORAL, WHITE, MUSTARD, WHITE])[gore]
    return _where(np.abs(local[:, 2]) > 0.93, WHITE, colours)


def _block_paint(local: np.ndarray) -> np.ndarray:
    """A wooden block: each face a coloured panel with a cream dot."""
    axis = np.argmax(np.abs(local), axis=-1)
    across = np.take_along_axis(local, (axis[:, None] + np.array([1, 2])) % 3, axis=-1)
    panel = np.stack([PLUM, TEAL, CORAL])[axis]
    panel = _where(np.hypot(*across.T) < 0.46, CREAM, panel)
    return _where(np.max(np.abs(across), axis=-1) > 0.8, WOOD, panel)


def _rocket(x: float, y: float) -> list[Solid]:
    parts = [
        ellipsoid((x, y, _TOP + 0.54), (0.29, 0.29, 1.06), _rocket_paint, 0.35, z_range=(-0.34, 1.0)),
        frustum((x, y, _TOP + 0.12), 0.2, 0.13, 0.06, _plain(INK)),
    ]
    for yaw in (30.0, 150.0, 270.0):
        axes = rotation(yaw)
        hinge = np.array([x, y, _TOP + 0.18]) + 0.24 * axes[:, 0]
        parts.append(ellipsoid(hinge, (0.24, 0.045, 0.32), _plain(CORAL), 0.3, axes, (-0.56, 1.0)))
    for yaw in (-60.0, 90.0):
        axes = rotation(yaw)
        window = np.array([x, y, _TOP + 0.76]) + 0.265 * axes[:, 0]
        parts.append(ellipsoid(window, (0.05, 0.145, 0.145), _plain(MUSTARD), 0.3, axes))
        parts.append(ellipsoid(window + 0.02 * axes[:, 0], (0.06, 0.1, 0.1), _plain(BLUE), 0.7, axes))
    return parts


def _rings(x: float, y: float) -> list[Solid]:
    parts = []
    height = _TOP
    for radius, half, colour in ((0.33, 0.115, BLUE), (0.29, 0.105, TEAL), (0.25, 0.1, MUSTARD), (0.205, 0.09, ORANGE)):
        parts.append(ellipsoid((x, y, height + half), (radius, radius, half), _plain(colour), 0.35))
        height += 1.72 * half
    return [*parts, ellipsoid((x, y, height + 0.1), (0.125, 0.125, 0.125), _plain(CORAL), 0.5)]


def _duck(x: float, y: float, yaw: float) -> list[Solid]:
    axes = rotation(yaw)

    def part(offset: Sequence[float], radii: Sequence[float], colour: np.ndarray, gloss: float, pitch: float = 0.0):
        return ellipsoid(np.array([x, y, _TOP]) + axes @ offset, radii, _plain(colour), gloss, rotation(yaw, pitch))

    sides = (-1.0, 1.0)
    return [
        part((0.0, 0.0, 0.2), (0.34, 0.26, 0.21), MUSTARD, 0.35),
        part((0.2, 0.0, 0.49), (0.185, 0.185, 0.185), MUSTARD, 0.35),
        part((0.39, 0.0, 0.455), (0.11, 0.095, 0.045), ORANGE, 0.3),
        part((-0.3, 0.0, 0.29), (0.16, 0.11, 0.07), MUSTARD, 0.35, 140.0),
        *(part((-0.04, 0.23 * side, 0.24), (0.18, 0.06, 0.11), ORANGE, 0.3, -12.0) for side in sides),
        *(part((0.325, 0.095 * side, 0.545), (0.038, 0.038, 0.038), INK, 0.8) for side in sides),
    ]


@functools.cache
def toys() -> tuple[Solid, ...]:
    """The toys on their disc: a rocket, stacking rings, a duck, a ball and a block."""
    disc = frustum((0.0, 0.0, 0.5 * (_TOP + _BOTTOM)), 1.12, 1.12, 0.5 * (_TOP - _BOTTOM), _disc_paint)
    ball = ellipsoid((0.74, -0.27, _TOP + 0.24), (0.24, 0.24, 0.24), _ball_paint, 0.6, rotation(20.0, 50.0))
    block = box((0.2, -0.65, _TOP + 0.21), (0.21, 0.21, 0.21), _block_paint, 0.15, 28.0)
    return (disc, *_rocket(-0.36, 0.42), *_rings(0.46, 0.46), *_duck(-0.45, -0.42, 250.0), ball, block)


def _wall_paint(local: np.ndarray) -> np.ndarray:
    """Broad stripes above a wainscot; local x, z run over 20 units each way."""
    stripes = _where(np.floor(local[:, 0] * 20.0 / 0.55) % 2 == 0, _colour("#a9c6d6"), _colour("#c7dbe2"))
    return _where(local[:, 2] * 20.0 < -0.25, _colour("#efe6d6"), stripes)


def _floor_paint(local: np.ndarray) -> np.ndarray:
    """Planks that run away from the front."""
    x = local[:, 0] * 20.0
    plank = np.floor(x / 0.5)
    tint = 0.85 + 0.15 * np.cos(2.4 * plank)
    return _wood(9.0 * x + 2.0 * plank + 0.6 * np.sin(30.0 * local[:, 1])) * 0.8 * tint[..., None]


@functools.cache
def room() -> tuple[Solid, ...]:
    """The toys on a plank floor in front of a wall: a forward-facing scene in which no ray is empty."""
    wall = box((0.0, 22.0, 0.0), (20.0, 20.0, 20.0), _wall_paint, 0.0)
    floor = box((0.0, 0.0, _BOTTOM - 20.0), (20.0, 20.0, 20.0), _floor_paint, 0.05)
    around = (dataclasses.replace(side, occludes=False, blocks_sky=0.0) for side in (wall, floor))
    return (*toys(), *around)


@functools.cache
def hall() -> tuple[Solid, ...]:
    """The toys amid four walls: whichever way a camera looks, there is something far behind."""
    angles = (0.0, 90.0, 180.0, 270.0)
    walls = (box(rotation(yaw) @ [0.0, 28.0, 0.0], (20.0, 20.0, 20.0), _wall_paint, 0.0, yaw) for yaw in angles)
    around = (dataclasses.replace(wall, occludes=False, blocks_sky=0.0) for wall in walls)
    return (*room()[:-2], *around, room()[-1])
