"""Writes cameras in the formats of LLFF, NeRF, COLMAP, IBRNet and transforms.json.

The docstring of tools/convert_poses.py says what each holds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from nerf_tf.geometry import poses as pose_maths
from nerf_tf.storage import atomic, image_folders

FORMATS = ("llff", "transforms", "opengl", "opencv", "colmap", "ibrnet")
# Formats that hold poses only.
PLAIN = ("opengl", "opencv", "colmap")
# LLFF has one focal length and a centred camera; cameras that differ by more than this fraction are refused.
CENTRED = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Cameras:
    """N cameras as files describe them; None for what a file lacks.

    Attributes:
        poses: [N, 3, 4] camera-to-world, OpenGL axes.
        intrinsics: [N, 6] height, width, fx, fy, cx, cy in pixels.
        bounds: [N, 2] least and greatest depth.
        names: N paths of images, from the current folder.
    """

    poses: np.ndarray
    intrinsics: np.ndarray | None = None
    bounds: np.ndarray | None = None
    names: list[Path] | None = None


def centred(hwf: np.ndarray) -> np.ndarray:
    """Intrinsics [N, 6] of centred cameras, from height, width and focal length [N, 3]."""
    height, width, focal = np.asarray(hwf, np.float64).T
    return np.stack([height, width, focal, focal, width / 2, height / 2], axis=-1)


def write(path: Path, kind: str, cameras: Cameras, folder: Path | None) -> None:
    """Writes a file of one of `FORMATS`.

    transforms.json names the images in `folder` if the cameras have no names.

    Raises:
        ValueError: the format needs values that are unknown, or cannot hold these cameras.
    """
    poses = cameras.poses
    if kind not in PLAIN and cameras.intrinsics is None:
        raise ValueError(f"{path}: {kind} needs the images' size and focal length; give --hwf H W F, or --scene")
    if kind == "llff" and cameras.bounds is None:
        raise ValueError(f"{path}: llff needs the depths that photos show; give --bounds NEAR FAR, or --scene")
    if kind == "transforms":
        atomic.write_text(path, _transforms_text(path, cameras, folder))
        return
    if kind == "llff":
        height, width, fx, fy, cx, cy = cameras.intrinsics.T
        off = np.abs(np.stack([fy - fx, cx - width / 2, cy - height / 2])) > CENTRED * np.stack([fx, width, height])
        if np.any(off):
            raise ValueError(
                f"{path}: llff has one focal length and a centred camera; camera {np.argmax(off.any(axis=0))} has "
                "fx != fy, or its axis meets the image elsewhere"
            )
        hwf = np.stack([height, width, (fx + fy) / 2], axis=-1)[..., None]
        rows = np.concatenate([pose_maths.opengl_to_llff(poses), hwf], axis=-1).reshape(-1, 15)
        array = np.concatenate([rows, cameras.bounds], axis=-1)
    else:
        if kind != "opengl":
            poses = pose_maths.opengl_to_opencv(poses)
        if kind == "colmap":
            poses = pose_maths.invert(poses)
        array = np.concatenate([poses, np.broadcast_to([[[0.0, 0.0, 0.0, 1.0]]], (len(poses), 1, 4))], axis=1)
    if kind == "ibrnet":
        height, width, fx, fy, cx, cy = cameras.intrinsics.T
        k = np.tile(np.eye(4), (len(poses), 1, 1))
        k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2] = fx, fy, cx, cy
        array = np.concatenate([height[:, None], width[:, None], k.reshape(-1, 16), array.reshape(-1, 16)], axis=-1)
    with atomic.complete_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def _transforms_text(path: Path, cameras: Cameras, folder: Path | None) -> str:
    names = cameras.names
    if names is None and folder is not None and folder.is_dir():
        names = image_folders.list_images(folder)
        if len(names) != len(cameras.poses):
            raise ValueError(f"{folder}: holds {len(names)} images for {len(cameras.poses)} poses; give --images")
    if names is None:
        names = [path.parent / f"images/{i:03d}.png" for i in range(len(cameras.poses))]
        print("no folder of images: file_path is images/000.png and so on; --images names one", file=sys.stderr)
    lengths, frames = ("h", "w", "fl_x", "fl_y", "cx", "cy"), []
    for i, (name, c2w) in enumerate(zip(names, cameras.poses, strict=True)):
        name = Path(os.path.relpath(name, path.parent)).as_posix()
        frame = {"file_path": name, "transform_matrix": [*c2w.tolist(), [0.0, 0.0, 0.0, 1.0]]}
        frame |= dict(zip(lengths, cameras.intrinsics[i].tolist(), strict=True))
        frames.append(frame)
    # Numbers that are equal in all frames are written once, for the file.
    shared = {key: frames[0][key] for key in lengths if all(frame[key] == frames[0][key] for frame in frames)}
    if {"w", "fl_x"} <= shared.keys():
        shared["camera_angle_x"] = 2 * math.atan(0.5 * shared["w"] / shared["fl_x"])
    frames = [{key: value for key, value in frame.items() if key not in shared} for frame in frames]
    return json.dumps(shared | {"frames": frames}, indent=1) + "\n"
