"""The Blender loader, against what the original loaded from the same files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerf_tf.data import blender
from nerf_tf.data import images as image_files

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"
REAL = os.environ.get("NERF_TF_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="NERF_TF_REAL_DATA is not set")


@pytest.fixture
def golden():
    with np.load(SCENES / "loaded.npz") as arrays:
        return {name[8:]: arrays[name] for name in arrays.files if name.startswith("blender_")}


@pytest.fixture
def scene_dir(tmp_path):
    return Path(shutil.copytree(SCENES / "blender", tmp_path / "scene"))


def edit(path: Path, change) -> None:
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def test_matches_the_original(golden):
    scene = blender.load(SCENES / "blender", testskip=2)
    np.testing.assert_array_equal(scene.images, golden["images"][..., :3])
    np.testing.assert_allclose(scene.poses, golden["poses"][:, :3], atol=1e-6)
    np.testing.assert_allclose(scene.render_poses, golden["render_poses"][:, :3], atol=1e-6)
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(scene, f"i_{name}"), golden[name])
        assert getattr(scene, f"i_{name}").dtype == np.int64
    assert (scene.near, scene.far, scene.ndc) == (2.0, 6.0, False)
    np.testing.assert_array_equal(scene.to_dataset, np.eye(4))
    assert len(scene.cameras) == len(scene.images)
    height, width, focal = golden["hwf"]
    for camera in scene.cameras:
        assert (camera.height, camera.width, camera.cx, camera.cy) == (height, width, width / 2, height / 2)
        np.testing.assert_allclose([camera.fx, camera.fy], focal, rtol=1e-12)
    assert all(getattr(scene, name).dtype == np.float32 for name in ("images", "poses", "render_poses"))


def test_white_background_composites_by_alpha(golden):
    scene = blender.load(SCENES / "blender", testskip=2, white_bkgd=True)
    rgba = golden["images"]
    np.testing.assert_allclose(scene.images, rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]), atol=1e-6)


def test_half_res_resizes_alpha_before_compositing(golden):
    scene = blender.load(SCENES / "blender", half_res=True, testskip=2, white_bkgd=True)
    rgba = golden["images"].reshape(-1, 10, 2, 10, 2, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(scene.images, rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]), atol=1e-6)
    camera = scene.cameras[0]
    assert (camera.height, camera.width, camera.cx) == (10, 10, 5.0)
    np.testing.assert_allclose(camera.fx, golden["hwf"][2] / 2)


def test_half_res_of_odd_sides_rounds_down(scene_dir):
    for path in scene_dir.glob("*/*.png"):
        Image.open(path).crop((0, 0, 19, 15)).save(path)
    camera = blender.load(scene_dir, half_res=True).cameras[0]
    assert (camera.height, camera.width) == (7, 9)
    angle = json.loads((scene_dir / "transforms_test.json").read_text())["camera_angle_x"]
    np.testing.assert_allclose(camera.fx, 0.5 * 19 / np.tan(0.5 * angle) / 2)


@pytest.mark.parametrize(("testskip", "val", "test"), [(0, 3, 5), (1, 3, 5), (2, 2, 3), (100, 1, 1)])
def test_testskip_spares_training_views(testskip, val, test):
    scene = blender.load(SCENES / "blender", testskip=testskip)
    assert [len(scene.i_train), len(scene.i_val), len(scene.i_test)] == [3, val, test]


def test_images_without_alpha_need_no_compositing(scene_dir):
    for path in scene_dir.glob("*/*.png"):
        Image.open(path).convert("RGB").save(path)
    plain, white = (blender.load(scene_dir, white_bkgd=on) for on in (False, True))
    np.testing.assert_array_equal(plain.images, white.images)


def test_paths_with_an_ending_are_taken_as_they_are(scene_dir):
    expected = blender.load(scene_dir).images

    def add_ending(meta):
        for frame in meta["frames"]:
            frame["file_path"] += ".png"

    edit(scene_dir / "transforms_train.json", add_ending)
    np.testing.assert_array_equal(blender.load(scene_dir).images, expected)


def test_each_split_has_its_own_angle_of_view(scene_dir):
    edit(scene_dir / "transforms_train.json", lambda meta: meta.update(camera_angle_x=1.0))
    cameras = blender.load(scene_dir).cameras
    np.testing.assert_allclose(cameras[0].fx, 10 / np.tan(0.5))
    assert cameras[-1].fx != cameras[0].fx


def test_what_other_programs_say_of_the_same_camera_changes_nothing(scene_dir):
    expected = blender.load(scene_dir).cameras
    same = {"fl_x": expected[0].fx, "fl_y": 1.005 * expected[0].fx, "cx": 10.0, "cy": 9.95, "k1": 0, "p2": 0.0, "w": 20}
    edit(scene_dir / "transforms_train.json", lambda meta: meta.update(same))
    edit(scene_dir / "transforms_train.json", lambda meta: meta["frames"][1].update(same))
    assert blender.load(scene_dir).cameras == expected
    for name, value in {"cx": 10.2, "cy": float("nan"), "fl_y": 30.0, "k1": 1e-6, "p1": -0.1}.items():
        edit(scene_dir / "transforms_train.json", lambda meta, more={name: value}: meta.update(same | more))
        with pytest.raises(ValueError, match=rf"transforms_train\.json has {name} "):
            blender.load(scene_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta.pop("camera_angle_x"), r"transforms_val\.json lacks 'camera_angle_x'"),
        (lambda meta: meta.update(camera_angle_x="wide"), "camera_angle_x is 'wide'"),
        (lambda meta: meta.update(camera_angle_x=4.0), "between 0 and pi"),
        (lambda meta: meta.update(camera_angle_x=float("nan")), "between 0 and pi"),
        (lambda meta: meta.pop("frames"), "lacks 'frames'"),
        (lambda meta: meta.update(frames=[]), "at least one view"),
        (lambda meta: meta["frames"][1].pop("file_path"), "frame 1 lacks 'file_path'"),
        (lambda meta: meta["frames"][1].pop("transform_matrix"), "frame 1 lacks 'transform_matrix'"),
        (lambda meta: meta["frames"][0].update(transform_matrix=[[1, 2], [3, 4]]), r"frame 0.*shape \(2, 2\)"),
        (lambda meta: meta["frames"][0].update(transform_matrix=[[1, 2], [3]]), "frame 0.*not a matrix"),
        (lambda meta: meta["frames"][2]["transform_matrix"][0].__setitem__(0, float("nan")), "frame 2.*NaN"),
    ],
)
def test_malformed_transforms_are_explained(scene_dir, change, message):
    edit(scene_dir / "transforms_val.json", change)
    with pytest.raises(ValueError, match=message):
        blender.load(scene_dir, testskip=1)


def test_missing_and_broken_files_are_named(scene_dir):
    (scene_dir / "test" / "r_4.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"r_4\.png"):
        blender.load(scene_dir, testskip=1)
    (scene_dir / "transforms_val.json").write_text("{")
    with pytest.raises(ValueError, match=r"transforms_val\.json: not valid JSON"):
        blender.load(scene_dir)
    (scene_dir / "transforms_val.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"transforms_val\.json"):
        blender.load(scene_dir)


def test_bad_requests_are_refused(scene_dir):
    with pytest.raises(ValueError, match="testskip -1"):
        blender.load(scene_dir, testskip=-1)
    for path in scene_dir.glob("*/*.png"):
        Image.open(path).crop((0, 0, 20, 1)).save(path)
    with pytest.raises(ValueError, match="half_res leaves no pixels of a 20x1 image"):
        blender.load(scene_dir, half_res=True)


@needs_real_data
def test_lego_matches_the_original(tmp_path):
    """Only every 8th validation and test image is at hand: others are stood in for, and their pixels not compared."""
    lego = Path(REAL).resolve() / "data" / "nerf_synthetic" / "lego"
    (tmp_path / "train").symlink_to(lego / "train")
    stood_in = set()
    for name in ("train", "val", "test"):
        shutil.copyfile(lego / f"transforms_{name}.json", tmp_path / f"transforms_{name}.json")
    for name, count in (("val", 100), ("test", 200)):
        (tmp_path / name).mkdir()
        for index in range(0, count, 25):
            image = lego / name / f"r_{index}.png"
            if not image.is_file():
                stood_in.add(tmp_path / name / image.name)
                image = lego / "train" / "r_0.png"
            (tmp_path / name / f"r_{index}.png").symlink_to(image)
    scene = blender.load(tmp_path, half_res=True, testskip=25)
    with np.load(Path(REAL) / "golden" / "blender_lego_half_skip25.npz") as golden:
        np.testing.assert_allclose(scene.poses, golden["poses"][:, :3], atol=1e-6)
        np.testing.assert_allclose(scene.render_poses, golden["render_poses"][:, :3], atol=1e-6)
        for indices, name in ((scene.i_train, "split0"), (scene.i_val, "split1"), (scene.i_test, "split2")):
            np.testing.assert_array_equal(indices, golden[name])
        camera = scene.cameras[0]
        np.testing.assert_allclose([camera.height, camera.width, camera.fx], golden["hwf"], rtol=1e-9)
        real = [*scene.i_train, scene.i_val[0], scene.i_test[0]]
        assert len(real) == len(scene.images) - len(stood_in)
        # The golden means were summed in single precision; exactly so they come from alpha and all.
        means = scene.images.mean(axis=(1, 2), dtype=np.float64)
        np.testing.assert_allclose(means[real], golden["image_mean"][real, :3], atol=5e-5)
        for index in (0, 20, 99):
            rgba = image_files.area_resize(image_files.read_image(lego / "train" / f"r_{index}.png"), 400, 400)
            np.testing.assert_array_equal(scene.images[index], rgba[..., :3])
            np.testing.assert_allclose(rgba.mean(axis=(0, 1)), golden["image_mean"][index], atol=1e-7)
            if index == 0:
                np.testing.assert_array_equal(rgba[::8, ::8], golden["image0"])
