"""Which dataset types a folder is of, and what is said about one that another type reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nerf_tf.safety import dataset_types

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"


@pytest.mark.parametrize(
    ("files", "types"),
    [
        (["poses_bounds.npy"], ["llff"]),
        (["poses_bounds.npy", "transforms.json"], ["llff", "transforms"]),
        (["transforms_train.json", "transforms_val.json", "transforms_test.json"], ["blender", "transforms"]),
        (["transforms_train.json", "transforms_test.json"], ["transforms"]),
        (["train/vase/pose/0.txt"], ["deepvoxels"]),
        (["images/0.png"], []),
    ],
)
def test_types_of_a_folder(tmp_path, files, types):
    write(tmp_path, *files)
    assert dataset_types.find_types(tmp_path) == types


def write(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")


@pytest.mark.parametrize("kind", ["llff", "blender", "deepvoxels"])
def test_each_type_takes_its_own_scene_and_names_the_type_of_others(kind):
    dataset_types.require_type(SCENES / kind, kind)
    for other in dataset_types.CONTENTS.keys() - set(dataset_types.find_types(SCENES / kind)):
        with pytest.raises(FileNotFoundError, match=f"reads; what it holds is read by --dataset_type {kind}$"):
            dataset_types.require_type(SCENES / kind, other)


@pytest.mark.parametrize(
    ("files", "datadir", "remedy"),
    [
        (["lego/transforms.json"], "", r"lego is a scene's folder: give --datadir .*/lego --dataset_type transforms"),
        (["fern/poses_bounds.npy", "a/0.png"], "", r"fern is a scene's folder: give --datadir .*/fern"),
        (["poses_bounds.npy", "images/0.png"], "images", r"here is a scene's folder: give --datadir .*/here"),
        (["sparse/0/images.bin", "images/0.png"], "", r"here/images NEW_FOLDER --sparse .*/here/sparse/0"),
    ],
)
def test_the_scene_near_by_is_meant(tmp_path, files, datadir, remedy):
    write(tmp_path / "here", *files)
    with pytest.raises(
        FileNotFoundError, match=re.escape("lacks poses_bounds.npy, which --dataset_type llff ")
    ) as said:
        dataset_types.require_type(tmp_path / "here" / datadir, "llff")
    assert re.search(f"{remedy}$", str(said.value))


def test_a_folder_of_nothing_is_left_to_its_loader(tmp_path):
    write(tmp_path, "images/0.png")
    for kind in dataset_types.CONTENTS:
        dataset_types.require_type(tmp_path, kind)
