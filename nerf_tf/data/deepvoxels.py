"""Loads scenes in the DeepVoxels format.

The folders {train,validation,test}/{shape} hold pose/*.txt and rgb/*.png; the one of train also holds intrinsics.txt.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from nerf_tf.data import view_splits
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.storage import deepvoxels_files, image_reader, readers


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
    folders = [Path(datadir) / name / shape for name in ("train", "validation", "test")]
    strides = view_splits.strides(testskip)
    splits = [deepvoxels_files.read_split(folder, stride) for folder, stride in zip(folders, strides, strict=True)]
    intrinsics_file = folders[0] / "intrinsics.txt"
    photo_focal, photo_height = deepvoxels_files.read_intrinsics(intrinsics_file)
    paths = [path for split_paths, _ in splits for path in split_paths]
    poses = pose_maths.opencv_to_opengl(np.concatenate([split_poses for _, split_poses in splits])).astype(np.float32)
    side, width = image_reader.image_size(paths[0])
    if side != width:
        raise ValueError(f"{paths[0]}: {width}x{side}; DeepVoxels images must be square (the original's are 512x512)")
    with readers.path_in_errors(intrinsics_file):
        camera = Camera.centred(side, side, side / photo_height * photo_focal)
    i_train, i_val, i_test = view_splits.successive([len(split_paths) for split_paths, _ in splits])
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
