"""Reads what a DeepVoxels scene consists of: poses, intrinsics, and the names of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerf_tf.storage import camera_matrices, image_folders, readers

# Most characters of a text file: some hundred are needed.
LARGEST_TEXT = 2**16


def read_intrinsics(path: Path) -> tuple[float, float]:
    """Reads the focal length and the height, in pixels, of the photos that the images were cut from.

    They are in lines 1 and 5 of intrinsics.txt.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is malformed.
    """
    lines = readers.read_text(path, LARGEST_TEXT).splitlines()
    try:
        focal, height = float(lines[0].split()[0]), float(lines[4].split()[0])
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path}: expected numbers, 'focal cx cy 0' in line 1 and 'height width' in line 5") from error
    if not (0 < focal < np.inf and 0 < height < np.inf):
        raise ValueError(f"{path}: focal {focal} and height {height} must be positive")
    return focal, height


def read_pose(path: Path) -> np.ndarray:
    """Reads a camera-to-world pose [3, 4] in OpenCV axes; the file holds the 4x4 matrix row by row.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not hold 16 finite numbers.
    """
    text = readers.read_text(path, LARGEST_TEXT)
    try:
        values = np.array(text.split(), np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: holds something other than numbers") from error
    if values.size != 16 or not np.all(np.isfinite(values)):
        raise ValueError(f"{path}: expected the 16 finite numbers of a 4x4 pose, found {values.size} numbers")
    return values.reshape(4, 4)[:3]


def read_split(folder: Path, stride: int) -> tuple[list[Path], np.ndarray]:
    """Reads image paths and poses [N, 3, 4], in OpenCV axes, of every stride-th view, in the order of their names.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: images and poses differ in number, or a pose is malformed or no rotation.
    """
    if not folder.is_dir():
        shapes = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
        raise FileNotFoundError(f"{folder}: no such folder; shapes found beside it: {', '.join(shapes) or 'none'}")
    names = image_folders.list_files(folder / "pose")
    pose_files = [folder / "pose" / name for name in names if name.lower().endswith(".txt")]
    paths = image_folders.list_images(folder / "rgb")
    if len(pose_files) != len(paths):
        single = sorted({path.stem for path in paths} ^ {path.stem for path in pose_files})
        raise ValueError(
            f"{folder}: {len(paths)} images in rgb/, but {len(pose_files)} poses in pose/; without its counterpart: "
            f"{image_folders.listed(single) or 'none'}{image_folders.name_other_files(folder / 'rgb')}"
        )
    pose_files = pose_files[::stride]
    poses = np.stack([read_pose(path) for path in pose_files])
    camera_matrices.require_rigid(poses, [str(path) for path in pose_files])
    return paths[::stride], poses
