"""Loads scenes in the Blender ("nerf_synthetic") format: transforms_{train,val,test}.json and images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from nerf_tf.data import images as image_files
from nerf_tf.data import view_splits
from nerf_tf.data.scene import Scene
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.paths import orbit_path
from nerf_tf.storage import image_folders, image_reader, readers, transforms_files

# These scenes are rendered from a sphere of radius about 4 around an object within radius 2.
NEAR, FAR = 2.0, 6.0


def load(
    datadir: str | os.PathLike[str],
    half_res: bool = False,
    testskip: int = 8,
    white_bkgd: bool = False,
    keep_alpha: bool = False,
) -> Scene:
    """Loads a scene in Blender format.

    Args:
        datadir: folder of the three transforms files.
        half_res: halve the sides (odd ones rounded down) by an area mean of colour and alpha.
        testskip: keep every testskip-th validation and test view; 0 means 1. Training views are all kept.
        white_bkgd: composite colours on white. Otherwise alpha is dropped, not multiplied, as in the original.
        keep_alpha: with white_bkgd, also keep the images' alpha, as `Scene.alphas`.

    Raises:
        FileNotFoundError: a transforms file or an image is missing.
        ValueError: a transforms file is malformed, its cameras differ from those of `Camera.centred`, or images differ
            in size or channels, or testskip is negative.
    """
    files = [Path(datadir) / f"transforms_{name}.json" for name in ("train", "val", "test")]
    strides = view_splits.strides(testskip)
    splits = [transforms_files.read_split(path, stride) for path, stride in zip(files, strides, strict=True)]
    paths = [path for split in splits for path in split.paths]
    image_folders.require_images(paths, transforms_files.MISSING_REMEDY)
    height, width = image_reader.image_size(paths[0])
    if half_res and min(height, width) < 2:
        raise ValueError(f"{paths[0]}: half_res leaves no pixels of a {width}x{height} image")
    focals = [split.focal(height, width) / (2 if half_res else 1) for split in splits]
    size = (height // 2, width // 2) if half_res else (height, width)

    def fit(image: np.ndarray) -> np.ndarray:
        return image_files.shrink(image, *size, white_bkgd, keep_alpha)

    images, alphas = image_files.read_photos(paths, fit, white_bkgd)
    cameras = []
    for split, focal in zip(splits, focals, strict=True):
        with readers.path_in_errors(split.file):
            cameras += [Camera.centred(*images.shape[1:3], focal)] * len(split.paths)
    i_train, i_val, i_test = view_splits.successive([len(split.paths) for split in splits])
    return Scene(
        images=images,
        alphas=alphas,
        poses=np.concatenate([split.poses for split in splits]).astype(np.float32),
        cameras=tuple(cameras),
        near=NEAR,
        far=FAR,
        ndc=False,
        i_train=i_train,
        i_val=i_val,
        i_test=i_test,
        render_poses=orbit_path().astype(np.float32),
        names=tuple(os.path.relpath(path, datadir) for path in paths),
    )
