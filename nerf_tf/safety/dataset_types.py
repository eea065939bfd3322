"""Tells which dataset types a folder is of, and what to do about a folder of another type."""

from __future__ import annotations

import os
from pathlib import Path

from nerf_tf.captures import scene_points

SPLITS = ("train", "val", "test")
# What each type reads, for messages.
CONTENTS = {
    "llff": "poses_bounds.npy",
    "blender": "transforms_train, _val or _test.json",
    "transforms": "transforms.json or transforms_train.json",
    "deepvoxels": "train/SHAPE/pose",
}


def find_types(folder: Path) -> list[str]:
    """Returns the dataset types that can load the scene in a folder, the most suitable first."""
    splits = [os.path.lexists(folder / f"transforms_{name}.json") for name in SPLITS]
    can_load = {
        "llff": os.path.lexists(folder / "poses_bounds.npy"),
        "blender": all(splits),
        "transforms": splits[0] or os.path.lexists(folder / "transforms.json"),
        "deepvoxels": any(folder.glob("train/*/pose")),
    }
    return [name for name, can in can_load.items() if can]


def require_type(datadir: Path, dataset_type: str) -> None:
    """Checks that a folder holds a scene of a dataset type, where it is known what to do otherwise.

    Raises:
        FileNotFoundError: it holds none, but one of another type, or COLMAP's model; or a folder beside it has one.
    """
    found = find_types(datadir)
    if dataset_type not in found and (remedy := _find_remedy(datadir, dataset_type, found)):
        raise FileNotFoundError(
            f"{datadir}: lacks {CONTENTS[dataset_type]}, which --dataset_type {dataset_type} reads; {remedy}"
        )


def _find_remedy(datadir: Path, dataset_type: str, found: list[str]) -> str | None:
    """Finds what to do about a folder that is of other types, or of none; None if nothing is known."""
    if found:
        return f"what it holds is read by --dataset_type {found[0]}"
    for folder in (*sorted(path for path in datadir.iterdir() if path.is_dir()), datadir.resolve().parent):
        if found := find_types(folder):
            flag = "" if dataset_type in found else f" --dataset_type {found[0]}"
            return f"{folder} is a scene's folder: give --datadir {folder}{flag}"
    model = next((name for name in scene_points.MODELS if any((datadir / name).glob("images.*"))), None)
    if model is not None:
        photos = f"{datadir / 'images'} NEW_FOLDER --sparse {datadir / model}"
        return f"it holds COLMAP's model: make a scene of that with python tools/imgs2poses.py {photos}"
    return None
