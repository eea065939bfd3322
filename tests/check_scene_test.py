"""The program that checks a scene: what it guesses, its table, its picture and its exit code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import colmap_files
import numpy as np
import pytest
from PIL import Image, ImageFilter
from plots_test import assert_picture

from nerf_tf.data import llff

pytest.importorskip("matplotlib", reason="the picture needs matplotlib: pip install -e '.[plots]'")

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"
TOPICS = ["number", "capture", "rotations", "bounds", "cameras", "exposure", "sharpness", "files"]


@pytest.fixture
def check(tool, tmp_path, monkeypatch, capsys):
    """Runs the program, without drawing unless asked to; returns its exit code and what it prints."""

    def run(*arguments: object, drawn: bool = False) -> tuple[int, str]:
        program = tool("check_scene")
        with monkeypatch.context() as context:
            context.chdir(tmp_path)
            if not drawn:
                context.setattr(program.figures, "save", lambda figure, path: None)
                context.setattr(program, "draw", lambda inspection: None)
            code = program.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def verdicts(text: str) -> dict[str, str]:
    """Of each topic whether it is ok or a problem."""
    return {topic: kind for kind, topic in re.findall(r"^(ok|problem) +(\w+)", text, re.MULTILINE)}


def test_a_good_scene(check, tmp_path):
    code, text = check(SCENES / "llff", "--factor", 2, drawn=True)
    assert code == 0, text
    assert verdicts(text) == dict.fromkeys(TOPICS, "ok")
    assert "photos   9 of 16x12: 7 to train on, 2 held out" in text
    assert "forward-facing: rays reach " in text
    assert len(re.findall(r"^images_2/im0\d\.png +\d", text, re.MULTILINE)) == 9
    assert text.splitlines()[-1] == "llff_check.png"
    assert_picture(tmp_path / "llff_check.png", 1800, Image.open(tmp_path / "llff_check.png").height)
    assert [path.name for path in tmp_path.iterdir()] == ["llff_check.png"]


@pytest.mark.parametrize(
    ("kind", "flags", "shown"),
    [
        ("blender", [], "--dataset_type blender --white_bkgd"),
        ("blender", ["--white_bkgd=False"], "add --white_bkgd to put them on white"),
        ("blender", ["--dataset_type=blender", "--half_res"], "--dataset_type blender --white_bkgd --half_res"),
        ("deepvoxels", ["--shape=cube"], "cube: no such folder; shapes found beside it: greek"),
        ("deepvoxels", [], "--dataset_type deepvoxels"),
        ("llff", ["--factor=2", "--no_ndc", "--spherify"], "--dataset_type llff --no_ndc --spherify"),
    ],
)
def test_what_is_guessed_and_what_is_not(check, kind, flags, shown):
    assert shown in check(SCENES / kind, *flags)[1]


def test_transforms_alone_are_taken_for_what_they_are(check, tmp_path):
    folder = Path(shutil.copytree(SCENES / "blender", tmp_path / "scene"))
    (folder / "transforms_val.json").unlink()
    _, text = check(folder, "--factor=1", "--white_bkgd")
    assert "--dataset_type transforms --white_bkgd" in text


def test_what_is_no_scene(check, tmp_path):
    assert check(tmp_path / "none") == (
        1,
        f"check_scene: {tmp_path / 'none'}: no such folder; name the folder of a scene\n",
    )
    code, text = check(tmp_path)
    assert (code, text.partition(": holds no scene")[1]) == (1, ": holds no scene")
    (tmp_path / "poses_bounds.npy").write_bytes(b"")
    assert "not an npy file" in check(tmp_path)[1]
    with pytest.raises(SystemExit) as stop:
        check(tmp_path, "--factr=2")
    assert stop.value.code == 2


@pytest.fixture
def bad(tmp_path) -> Path:
    """A scene with a blurred photo, a wrong near bound and photos that get darker, and points of another world."""
    folder = Path(shutil.copytree(SCENES / "llff", tmp_path / "bad"))
    shutil.rmtree(folder / "images_2")
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.2, 0.8, (24, 32, 3))
    for i, path in enumerate(sorted((folder / "images").iterdir())):
        image = Image.fromarray(np.uint8(255 * noise * 2 ** (-0.1 * i)))
        (image.filter(ImageFilter.GaussianBlur(1.5)) if i == 4 else image).save(path)
    rows = np.load(folder / "poses_bounds.npy")
    rows[2, 15] /= 100
    np.save(folder / "poses_bounds.npy", rows)
    (folder / "sparse" / "0").mkdir(parents=True)
    (folder / "sparse" / "0" / "points3D.bin").write_bytes(colmap_files.points([[1.0, -2.0, 3.5], [0, 0, 7]], [2, 3]))
    return folder


def test_a_bad_scene(check, bad, tmp_path):
    code, text = check(bad, "--factor=1", "--out", tmp_path / "bad.png", drawn=True)
    assert code == 1
    kinds = verdicts(text)
    assert {topic for topic, kind in kinds.items() if kind == "problem"} == {"bounds", "exposure", "sharpness"}
    assert re.search(r"^ {20}poses_bounds\.npy: row 2 \(images/im02\.png\): near bound", text, re.MULTILINE)
    assert re.search(r"^ {20}the last third of the photos is 1\.\d stops darker than the first", text, re.MULTILINE)
    assert re.search(r"^ {20}images/im04\.png: is blurred", text, re.MULTILINE)
    assert "those of sparse/0 are of another world" in text
    assert_picture(tmp_path / "bad.png", 1800, Image.open(tmp_path / "bad.png").height)


def test_too_few_photos_and_a_wrong_focal_length(check, tmp_path):
    """Three photos; then all nine, whose focal length is 20 % off what COLMAP's points say."""
    folder = Path(shutil.copytree(SCENES / "llff", tmp_path / "scene"))
    shutil.rmtree(folder / "images_2")
    rows = np.load(folder / "poses_bounds.npy")
    rng = np.random.default_rng(0)
    scene = llff.load(folder, factor=1)
    points = scene.poses[:, :, 3].mean(axis=0) + [0, 0, -3] + rng.normal(size=(600, 3)) * [0.5, 0.5, 0.3]
    colmap_files.write_model(folder / "sparse/0", scene, points, larger=10)
    for flags in ([], ["--field=hash_grid"]):  # whose rays go through the middle of pixels
        code, text = check(folder, "--factor=1", *flags)
        assert code == 0, text
        assert re.search(r"^ok +points +a photo shows \d{3} to \d{3} of them, 0\.0 pixels from", text, re.MULTILINE)
    longer = rows.copy()
    longer[:, 14] *= 1.2
    np.save(folder / "poses_bounds.npy", longer)
    code, text = check(folder, "--factor=1")
    assert code == 1
    assert {topic for topic, kind in verdicts(text).items() if kind == "problem"} == {"points"}
    assert "they would be 0.0 off with focal lengths 0.833 times as long: correct them" in text
    shutil.rmtree(folder / "sparse")
    assert "points" not in verdicts(check(folder, "--factor=1")[1])
    np.save(folder / "poses_bounds.npy", rows[:3])
    for path in sorted((folder / "images").iterdir())[3:]:
        path.unlink()
    code, text = check(folder, "--factor=1")
    assert code == 1
    assert verdicts(text)["number"] == "problem"
    assert text.count("3 photos are few: ") == 1


def test_warnings_of_the_loader_are_problems(check, tmp_path):
    folder = Path(shutil.copytree(SCENES / "llff", tmp_path / "scene"))
    rows = np.load(folder / "poses_bounds.npy")
    rows[:, 14] *= np.linspace(1, 1.1, len(rows))
    np.save(folder / "poses_bounds.npy", rows)
    code, text = check(folder, "--factor=2")
    assert code == 1
    assert verdicts(text)["files"] == "problem"
    assert "focal lengths run from" in text
    assert text.count("focal lengths run from") == 1


@pytest.mark.parametrize(
    ("folder", "flags"),
    [("nerf_llff_data/fern", []), ("nerf_llff_data/fern", ["--no_ndc", "--spherify", "--lindisp"])],
)
def test_the_authors_fern_is_all_right(check, real_data, folder, flags):
    code, text = check(real_data / "data" / folder, *flags)
    assert code == 0, text
    assert "points   6808 of sparse/0" in text


def test_the_built_in_scene_is_all_right(check, tool, tmp_path):
    still_life = tool("still_life")
    code, text = check(still_life.write_llff(tmp_path / "room", 16, 20, 12), "--factor=2")
    assert code == 0, text
    code, text = check(still_life.write_blender(tmp_path / "toys", 16, 16, 28, 2, 2))
    assert code == 0, text
