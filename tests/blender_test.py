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
from nerf_tf.storage import image_reader

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


@pytest.mark.parametrize(
    ("written", "saved"),
    [
        ("train\\r_1.png", "r_1.png"),
        (".\\train\\r_1", "r_1.png"),
        ("train/r_1", "r_1.PNG"),
        ("train/r_1.PNG", "r_1.png"),
        ("train/r_1.png", "r_1.JPEG"),
        ("train\\r_1.jpg", "r_1.png"),
        ("train/r_1.exr", "r_1.png"),
        ("train/r_1.0001", "r_1.0001.jpg"),
        ("Train/R_1.png", "r_1.png"),
        ("Train/.././train/r_1.png", "r_1.png"),
        ("train/r_1", "train\\r_1.png"),
        ("train/u\u0308_1.png", "\u00fc_1.png"),
        ("train/\u00dc_1", "u\u0308_1.png"),
    ],
)
def test_paths_are_read_as_other_systems_write_them(scene_dir, written, saved):
    """Beside what may lie there: a folder and hidden files of the same stem, and images of other stems."""
    folder = scene_dir / "train"
    for path in scene_dir.glob("*/*.png"):  # as a JPEG may be among them
        Image.open(path).convert("RGB").save(path)
    image = Image.open(folder / "r_1.png")
    (folder / "r_1.png").unlink()
    image.save(folder / saved, format="JPEG" if saved.lower().endswith(("jpg", "jpeg")) else "PNG")
    if "png" not in saved:
        (folder / "r_1.png").mkdir()
    for name in ("._r_1.jpg", "._r_1.png", "r_1_depth.png", "R_10.png"):
        (folder / name).write_bytes(b"no image")
    edit(scene_dir / "transforms_train.json", lambda meta: meta["frames"][1].update(file_path=written))
    if "\\" in saved:
        (folder / saved).rename(scene_dir / saved)  # as Linux unpacks some archives of Windows
        edit(scene_dir / "transforms_train.json", lambda meta: meta["frames"][1].update(file_path=saved))
    images = blender.load(scene_dir).images
    np.testing.assert_allclose(images[1], np.float32(image) / 255, atol=0.5)
    np.testing.assert_allclose(images[1].mean(), np.float32(image).mean() / 255, atol=0.02)


def test_the_image_of_the_same_ending_or_case_is_meant(scene_dir):
    folder = scene_dir / "train"
    (folder / "r_1.png").rename(folder / "r_1.PNG")
    Image.new("RGB", (20, 20)).save(folder / "r_1.jpg")
    expected = blender.load(SCENES / "blender").images
    np.testing.assert_array_equal(blender.load(scene_dir).images, expected)
    (folder / "r_1.PNG").rename(folder / "r_1.jpeg")
    (folder / "r_1.jpg").rename(folder / "R_1.jpg")
    np.testing.assert_array_equal(blender.load(scene_dir).images, expected)


def test_missing_images_are_counted_and_what_lies_there_is_named(scene_dir):
    folder = scene_dir / "train"
    (folder / "r_0.png").rename(folder / "r_0.webp")
    with pytest.raises(
        FileNotFoundError, match=r"r_0\.png: no such image \(1 of 5 are missing\); .*train holds r_0\.webp: "
    ):
        blender.load(scene_dir)
    (folder / "r_0.webp").rename(folder / "r_0.jpg")
    (folder / "r_1.png").rename(folder / "R_0.JPEG")
    edit(scene_dir / "transforms_train.json", lambda meta: meta["frames"][0].update(file_path="train\\R_0"))
    (folder / "r_0.jpg").rename(folder / "R_0.jpg")
    with pytest.raises(FileNotFoundError, match=r"train/R_0\.png: .*2 of 5.* holds R_0\.JPEG and R_0\.jpg: give"):
        blender.load(scene_dir)
    edit(scene_dir / "transforms_train.json", lambda meta: meta["frames"][0].update(file_path="train/a"))
    holds = r"a\.png: .*2 of 5 .*; .*train holds R_0\.JPEG, R_0\.jpg and r_2\.png; put the missing ones there"
    with pytest.raises(FileNotFoundError, match=holds):
        blender.load(scene_dir)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"3 of 5 are missing\); there is no folder .*train$"):
        blender.load(scene_dir)


def one_line(caplog) -> str:
    """The one warning there was."""
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "\n" not in record.getMessage()
    return record.getMessage()


def test_transparency_without_a_background_is_warned_of_once(scene_dir, caplog):
    blender.load(scene_dir, half_res=True)
    message = one_line(caplog)
    assert f"{scene_dir}/train/r_0.png: 5 of 5 images have transparent pixels" in message
    assert "used as they are; add --white_bkgd" in message


def test_no_transparency_is_not_warned_of(scene_dir, caplog):
    blender.load(scene_dir, white_bkgd=True)
    for opaque in ("RGBA", "RGB"):
        for path in scene_dir.glob("*/*.png"):
            Image.open(path).convert("RGB").convert(opaque).save(path)
        blender.load(scene_dir)
    assert not caplog.records
    Image.new("RGB", (20, 20)).save(scene_dir / "train" / "r_0.png")
    image = np.full((20, 20, 4), 255, np.uint8)
    for path in scene_dir.glob("*/*.png"):
        Image.fromarray(image).save(path)
    image[3, 4, 3] = 254
    Image.fromarray(image).save(scene_dir / "val" / "r_0.png")
    blender.load(scene_dir)
    assert "val/r_0.png: 1 of 5 images" in one_line(caplog)


def test_the_demo_is_loaded_without_a_warning(tmp_path, tool, caplog):
    tool("still_life").write_blender(tmp_path / "toys", 16, 16, n_train=2, n_val=1, n_test=1, seed=0, workers=1)
    caplog.clear()
    blender.load(tmp_path / "toys", white_bkgd=True)
    assert not caplog.records


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


def without_angle(**intrinsics):
    """A change of a transforms file: other intrinsics take the place of camera_angle_x."""

    def change(meta):
        meta.pop("camera_angle_x")
        meta.update(intrinsics)

    return change


def in_frames(*values):
    """A change of a transforms file: each frame has its own intrinsics, and the file has none."""

    def change(meta):
        meta.pop("camera_angle_x")
        for frame, value in zip(meta["frames"], values, strict=True):
            frame.update(value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        without_angle(fl_x=30),
        without_angle(fl_y=30.0, w=20.0),
        without_angle(fl_x=30, fl_y=30.1, cx=10, cy=10, w=20, h=20, k1=0, camera_model="OPENCV"),
        without_angle(fl_x=60, cx=20, cy=20, w=40, h=40),
        without_angle(fl_x=60.0, h=40.0),
        without_angle(fl_x=303, fl_y=303, cx=101, cy=100.5, w=202, h=201),  # a tenth, rounded
        without_angle(fl_x=15, w=10, h=10),
        in_frames(*[{"fl_x": 30, "w": 20}] * 3),
        in_frames({"fl_x": 30}, {"fl_x": 60, "w": 40, "h": 40}, {"camera_angle_x": 2 * np.arctan(1 / 3)}),
        lambda meta: meta.update(camera_angle_x=2 * np.arctan(1 / 3), fl_x=60, cx=20, cy=20, w=40, h=40),
    ],
)
def test_intrinsics_of_other_programs_give_the_focal_length(scene_dir, change):
    """Of images as they are, and of larger and smaller ones."""
    edit(scene_dir / "transforms_train.json", change)
    for half_res in (False, True):
        scene = blender.load(scene_dir, half_res=half_res)
        for camera in scene.cameras[:3]:
            np.testing.assert_allclose([camera.fx, camera.fy], 15 if half_res else 30, rtol=2e-3)
            assert camera.cx == camera.cy == (5 if half_res else 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_angle(), r"transforms_train\.json lacks 'camera_angle_x' \(radians\), and frame 0 'fl_x'"),
        (in_frames({"fl_x": 30}, {}, {"fl_x": 30}), r"lacks 'camera_angle_x' \(radians\), and frame 1 'fl_x'"),
        (in_frames({"fl_x": 30}, {"fl_x": 30}, {"fl_x": 31}), "frame 2 has focal length 31, but frame 0 has 30"),
        (without_angle(fl_x=30, fl_y=31), r"json has fl_y 31, but images of 20x20 with this fl_x have 30"),
        (without_angle(fl_x=30, cx=11, w=20), r"json has cx 11, but images of 20x20 with this fl_x have 10: [^;]*$"),
        (without_angle(fl_x=60, cx=20), r"json has cx 20, but .*; if the images were resized, add the former w and h$"),
        (without_angle(fl_x=30, k2=0.01), "json has k2 0.01"),
        (without_angle(fl_x=30, w=40, h=30), "json has w 40 and h 30, but images are 20x20, of other proportions"),
        (lambda meta: meta.update(w=40, h=30), "json has w 40 and h 30, but images are 20x20"),
        (lambda meta: meta.update(fl_x=60, w=40, h=40), "json has fl_x 60, .*40x40 with this camera_angle_x have 55.6"),
        (without_angle(fl_x=0), "fl_x is 0.0; it must lie between 0 and 1e9"),
        (without_angle(fl_x="30 px"), "fl_x is '30 px', which is not a number"),
        (without_angle(fl_x=30, w=float("nan")), "json: w is nan; it must lie between 0 and 1e9"),
        (without_angle(fl_x=30, h=float("inf")), "json: h is inf; it must lie between 0 and 1e9"),
        (without_angle(fl_x=1e-200), r"transforms_train\.json: focal length 1e-200 does not go with images of 20x20"),
        (without_angle(fl_x=30, w=1e-300), r"json: focal length .* does not go with images of 20x20"),
    ],
)
def test_other_cameras_are_refused(scene_dir, change, message):
    edit(scene_dir / "transforms_train.json", change)
    with pytest.raises(ValueError, match=message):
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
def test_the_authors_lego_is_loaded_without_a_warning(tmp_path, caplog):
    lego = Path(REAL).resolve() / "data" / "nerf_synthetic" / "lego"
    for name in ("train", "val", "test"):
        (tmp_path / name).symlink_to(lego / name)
        meta = json.loads((lego / f"transforms_{name}.json").read_text())
        (tmp_path / f"transforms_{name}.json").write_text(json.dumps(meta | {"frames": meta["frames"][:1]}))
    blender.load(tmp_path, half_res=True, white_bkgd=True)
    assert not caplog.records


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
            rgba = image_files.area_resize(image_reader.read_image(lego / "train" / f"r_{index}.png"), 400, 400)
            np.testing.assert_array_equal(scene.images[index], rgba[..., :3])
            np.testing.assert_allclose(rgba.mean(axis=(0, 1)), golden["image_mean"][index], atol=1e-7)
            if index == 0:
                np.testing.assert_array_equal(rgba[::8, ::8], golden["image0"])
