"""The DeepVoxels loader, against what the original loaded from the same files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerf_tf.data import deepvoxels
from nerf_tf.storage import deepvoxels_files

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"


@pytest.fixture
def scene_dir(tmp_path):
    """The portable scene at 16x16, for speed."""
    folder = Path(shutil.copytree(SCENES / "deepvoxels", tmp_path / "scene"))
    for path in folder.glob("*/greek/rgb/*.png"):
        Image.open(path).resize((16, 16)).save(path)
    return folder


def test_matches_the_original():
    scene = deepvoxels.load(SCENES / "deepvoxels", "greek", testskip=2)
    with np.load(SCENES / "loaded.npz") as arrays:
        golden = {name[11:]: arrays[name] for name in arrays.files if name.startswith("deepvoxels_")}
    np.testing.assert_allclose(scene.poses, golden["poses"], atol=1e-6)
    np.testing.assert_allclose(scene.render_poses, golden["render_poses"], atol=1e-6)
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(scene, f"i_{name}"), golden[name])
        assert getattr(scene, f"i_{name}").dtype == np.int64
    assert len(scene.cameras) == len(scene.images) == 8
    camera = scene.cameras[0]
    np.testing.assert_allclose([camera.height, camera.width, camera.fx], golden["hwf"], rtol=1e-12)
    assert (camera.cx, camera.cy) == (256.0, 256.0)
    np.testing.assert_allclose(scene.images.mean(axis=(1, 2)), golden["image_means"], atol=1e-6)
    radius = np.linalg.norm(golden["poses"][:, :, 3], axis=-1).mean()
    np.testing.assert_allclose([scene.near, scene.far], [radius - 1, radius + 1], rtol=1e-6)
    assert not scene.ndc
    # The fourth column of a pose file is the camera's centre, whatever its axes.
    centre = np.loadtxt(SCENES / "deepvoxels" / "train" / "greek" / "pose" / "000000.txt").reshape(4, 4)[:3, 3]
    np.testing.assert_allclose(scene.to_dataset[:3] @ [*scene.poses[0, :, 3], 1], centre, atol=1e-6)
    assert all(getattr(scene, name).dtype == np.float32 for name in ("images", "poses", "render_poses"))


def test_other_sides_scale_the_focal_length(scene_dir):
    camera = deepvoxels.load(scene_dir, "greek").cameras[0]
    assert (camera.height, camera.width) == (16, 16)
    np.testing.assert_allclose(camera.fx, 560.0 * 16 / 512)


@pytest.mark.parametrize(("testskip", "val", "test"), [(0, 4, 5), (1, 4, 5), (3, 2, 2), (100, 1, 1)])
def test_testskip_spares_training_views(scene_dir, testskip, val, test):
    scene = deepvoxels.load(scene_dir, "greek", testskip=testskip)
    assert [len(scene.i_train), len(scene.i_val), len(scene.i_test)] == [3, val, test]
    np.testing.assert_array_equal(scene.render_poses, scene.poses[scene.i_test])


def test_pose_file_in_lines_or_in_one(tmp_path):
    rows = np.arange(16.0).reshape(4, 4)
    for separator in (" ", "\n"):
        path = tmp_path / "pose.txt"
        path.write_text(separator.join(" ".join(map(str, row)) for row in rows) + "\n")
        np.testing.assert_array_equal(deepvoxels_files.read_pose(path), rows[:3])


@pytest.mark.parametrize("text", ["", "1 2 3", "1 " * 15 + "x", "1 " * 15 + "nan"])
def test_malformed_pose_is_named(tmp_path, text):
    path = tmp_path / "000.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"000\.txt"):
        deepvoxels_files.read_pose(path)


@pytest.mark.parametrize(
    "text", ["", "525 3 2\n0 0 0\n.1\n1\n", "f 3 2\n0 0 0\n.1\n1\n480 640\n", "525 3 2\n0 0 0\n.1\n1\n0 640\n"]
)
def test_malformed_intrinsics_are_named(tmp_path, text):
    path = tmp_path / "intrinsics.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"intrinsics\.txt"):
        deepvoxels_files.read_intrinsics(path)


def test_missing_shape_lists_the_others(scene_dir):
    with pytest.raises(FileNotFoundError, match=r"vase: no such folder; shapes found beside it: greek"):
        deepvoxels.load(scene_dir, "vase")
    with pytest.raises(FileNotFoundError, match="found beside it: none"):
        deepvoxels.load(scene_dir / "nowhere", "vase")


def test_incomplete_scenes_are_explained(scene_dir):
    with pytest.raises(ValueError, match="testskip -1"):
        deepvoxels.load(scene_dir, "greek", testskip=-1)
    (scene_dir / "test/greek/pose/000004.txt").unlink()
    with pytest.raises(ValueError, match=r"greek: 5 images in rgb/, but 4 poses .*: 000004$"):
        deepvoxels.load(scene_dir, "greek")
    (scene_dir / "test/greek/rgb/000004.png").unlink()
    (scene_dir / "train/greek/intrinsics.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"intrinsics\.txt"):
        deepvoxels.load(scene_dir, "greek")


def test_what_is_no_photo_or_pose_is_ignored(scene_dir):
    expected = deepvoxels.load(scene_dir, "greek")
    folder = scene_dir / "train" / "greek"
    for name in ("rgb/._000000.png", "rgb/.DS_Store", "rgb/Thumbs.db", "pose/._000000.txt", "pose/Thumbs.db"):
        (folder / name).write_bytes(b"no photo")
    (folder / "rgb" / "x.png").mkdir()
    (folder / "pose" / "x.txt").mkdir()
    (folder / "rgb" / "000001.png").rename(folder / "rgb" / "000001.PNG")
    (folder / "pose" / "000001.txt").rename(folder / "pose" / "000001.TXT")
    scene = deepvoxels.load(scene_dir, "greek")
    np.testing.assert_array_equal(scene.images, expected.images)
    np.testing.assert_array_equal(scene.poses, expected.poses)
    (folder / "rgb" / "000000.png").rename(folder / "rgb" / "000000.webp")
    message = r"2 images in rgb/, but 3 poses in pose/; without its counterpart: 000000; not read: 000000\.webp"
    with pytest.raises(ValueError, match=message):
        deepvoxels.load(scene_dir, "greek")


def test_photos_are_read_with_any_ending(scene_dir):
    for path in scene_dir.glob("test/greek/rgb/*.png"):
        Image.open(path).save(path.with_suffix(".jpeg"))
        path.unlink()
    assert len(deepvoxels.load(scene_dir, "greek", testskip=1).i_test) == 5


def test_images_must_be_squares_of_one_size(scene_dir):
    path = scene_dir / "validation/greek/rgb/000000.png"
    Image.open(path).resize((8, 8)).save(path)
    with pytest.raises(ValueError, match=r"validation.*000000\.png: 8x8"):
        deepvoxels.load(scene_dir, "greek")
    for path in scene_dir.glob("*/greek/rgb/*.png"):
        Image.open(path).resize((16, 12)).save(path)
    with pytest.raises(ValueError, match="must be square"):
        deepvoxels.load(scene_dir, "greek")
