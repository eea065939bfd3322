"""Loads scenes in the DeepVoxels format.

The folders {train,validation,test}/{shape} hold pose/*.txt and rgb/*.png; the one of train also holds intrinsics.txt.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.storage import camera_matrices, image_folders, image_reader, readers

# Most characters of a text file: some hundred are needed.
LARGEST_TEXT = 2**16


def load(datadir: str | os.PathLike[str], shape: str, testskip: int = 8) -> Scene:
    """Loads one object of a DeepVoxels data set.

    The images are squares cut from photos of the height that intrinsics.txt states, then scaled; focal lengths scale
    with them. The original assumes a side of 512; any side works here. The world2cam flag, barycentre, near plane and
    scale in the file are not used, as in the original: near and far are the mean distance of the loaded cameras from
    the origin, minus and plus 1.

    Args:
        datadir: the folder that holds train/, validation/ and test/.
        shape: name of the object: armchair, cube, greek or vase.
        testskip: keep every testskip-th validation and test view; 0 means 1. Training views are all kept.

    Raises:
        FileNotFoundError: a folder, intrinsics.txt or an image is missing.
        ValueError: a text file is malformed, images and poses differ in number, images are not squares of one size, or
            testskip is negative.
    """
    if testskip < 0:
        raise ValueError(f"testskip {testskip}: give 0 or 1 for every view, or a larger number to skip some")
    strides = {"train": 1, "validation": testskip or 1, "test": testskip or 1}
    splits = [_read_split(Path(datadir) / name / shape, stride) for name, stride in strides.items()]
    intrinsics_file = Path(datadir) / "train" / shape / "intrinsics.txt"
    photo_focal, photo_height = read_intrinsics(intrinsics_file)
    paths = [path for split_paths, _ in splits for path in split_paths]
    poses = np.concatenate([split_poses for _, split_poses in splits]).astype(np.float32)
    side, width = image_reader.image_size(paths[0])
    if side != width:
        raise ValueError(f"{paths[0]}: {width}x{side}; DeepVoxels images must be square (the original's are 512x512)")
    with readers.path_in_errors(intrinsics_file):
        camera = Camera.centred(side, side, side / photo_height * photo_focal)
    starts = np.cumsum([len(split_paths) for split_paths, _ in splits])[:-1]
    i_train, i_val, i_test = np.split(np.arange(len(paths), dtype=np.int64), starts)
    radius = float(np.mean(np.linalg.norm(poses[:, :, 3], axis=-1)))
    return Scene(
        images=image_reader.read_images(paths, channels=3),
        poses=poses,
        cameras=(camera,) * len(paths),
        near=radius - 1.0,
        far=radius + 1.0,
        ndc=False,
        i_train=i_train,
        i_val=i_val,
        i_test=i_test,
        render_poses=poses[i_test],
        names=tuple(os.path.relpath(path, datadir) for path in paths),
    )


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
    """Reads a camera-to-world pose [3, 4], converted to OpenGL axes.

    The file holds the 4x4 matrix row by row, in OpenCV axes.

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
    return pose_maths.opencv_to_opengl(values.reshape(4, 4)[:3])


def _read_split(folder: Path, stride: int) -> tuple[list[Path], np.ndarray]:
    """Image paths and poses [N, 3, 4] of every stride-th view, both in the order of their names."""
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
