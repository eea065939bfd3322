"""Writes files of COLMAP's sparse models, by its documentation of the formats."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nerf_tf.captures.worlds import transform_points
from nerf_tf.data.scene import Scene

# Numbers of the kinds of cameras, and how many numbers each has.
SIMPLE_PINHOLE, SIMPLE_RADIAL = (0, 3), (2, 4)


def points(positions: np.ndarray, views: Sequence[int]) -> bytes:
    """points3D.bin: points [P, 3], each shown by so many photos; they are numbered from 1."""
    records = [
        struct.pack("<Q3d3BdQ", i + 1, *position, 1, 2, 3, 0.5, count) + bytes(8 * count)
        for i, (position, count) in enumerate(zip(positions, views, strict=True))
    ]
    return struct.pack("<Q", len(records)) + b"".join(records)


def cameras(width: int, height: int, kind: tuple[int, int] = SIMPLE_PINHOLE) -> bytes:
    """cameras.bin: camera 7, whose own numbers are nonsense, as nothing reads them."""
    number, count = kind
    return struct.pack("<QIiQQ", 1, 7, number, width, height) + struct.pack(f"<{count}d", *range(count))


def images(sightings: dict[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """images.bin: by photos' names, columns and rows [K, 2] and the numbers [K] of the points there, -1 for none."""
    content = struct.pack("<Q", len(sightings))
    for i, (name, (pixels, numbers)) in enumerate(sightings.items()):
        content += struct.pack("<I7dI", i, *range(7), 7) + name.encode() + struct.pack("<BQ", 0, len(pixels))
        content += b"".join(struct.pack("<2dq", *xy, number) for xy, number in zip(pixels, numbers, strict=True))
    return content


def write_model(folder: Path, scene: Scene, positions: np.ndarray, larger: int = 1) -> None:
    """Writes the model that COLMAP would have made of a scene's photos, in the data set's world.

    Args:
        folder: the model's.
        scene: its cameras and names count.
        positions: points [P, 3] of the scene's world.
        larger: how many times larger COLMAP's photos were.
    """
    folder.mkdir(parents=True)
    sightings = {}
    for name, camera, c2w in zip(scene.names, scene.cameras, scene.poses, strict=True):
        rows, cols, z = camera.project(c2w.astype(np.float64), positions)
        inside = (z < 0) & (rows >= 0) & (rows < camera.height) & (cols >= 0) & (cols < camera.width)
        pixels = np.stack([cols, rows], axis=-1)[inside] * larger
        nothing = np.zeros([3, 2])  # features that are no point's
        numbers = [-1, -1, -1, *(np.flatnonzero(inside) + 1)]
        sightings[f"raw/{Path(name).stem}.JPG"] = (np.concatenate([nothing, pixels]), numbers)
    in_dataset = transform_points(scene.to_dataset, positions)
    width, height = scene.cameras[0].width * larger, scene.cameras[0].height * larger
    (folder / "points3D.bin").write_bytes(points(in_dataset, [len(scene.poses)] * len(positions)))
    (folder / "cameras.bin").write_bytes(cameras(width, height))
    (folder / "images.bin").write_bytes(images(sightings))
