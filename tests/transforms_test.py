"""Scenes of a transforms.json in the words of each program that writes one, against closed forms."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import colmap_files
import numpy as np
import pytest
import tensorflow as tf
from app_test import SCENES, TINY, assert_one_line, run
from fuzz_test import assert_sane, damage_file, refused_by_name, restore, try_out
from hypothesis import strategies as st
from PIL import Image

from nerf_tf import build, build_hash_grid
from nerf_tf.camera_paths import around_cameras
from nerf_tf.captures import transforms
from nerf_tf.captures.distortion import Distortion, find_pinhole, resample
from nerf_tf.captures.worlds import change_world, transform_points
from nerf_tf.data import blender
from nerf_tf.data import images as image_files
from nerf_tf.data.pipeline import BatchSettings, ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import paths, poses
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.depth import find_surface
from nerf_tf.render.passes import RenderSettings
from nerf_tf.render.renderer import Renderer
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import ply

HEIGHT, WIDTH, COUNT = 12, 16, 9
# Fields that other programs write, and that say the same as CAMERA.
CAMERA = Camera(HEIGHT, WIDTH, 20.0, 18.0, 7.5, 6.5)
LENGTHS = {"fl_x": 20.0, "fl_y": 18.0, "cx": 7.5, "cy": 6.5}
SIZE = {"w": float(WIDTH), "h": float(HEIGHT)}
ANGLES = {"camera_angle_x": 2 * math.atan(0.5 * WIDTH / 20.0), "camera_angle_y": 2 * math.atan(0.5 * HEIGHT / 18.0)}
NO_DISTORTION = dict.fromkeys(("k1", "k2", "k3", "k4", "p1", "p2"), 0)
K = [[20, 0, 7.5], [0, 18, 6.5], [0, 0, 1]]


def around(count: int = COUNT, radius: float = 3.0, centre: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> np.ndarray:
    """Cameras on a circle that look at `centre`."""
    circle = paths.orbit_path(count, radius=radius)
    circle[:, :, 3] += centre
    return circle


def photo_of(i: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A photo whose colour tells which it is."""
    return Image.new("RGB", size, (20 * i, 100, 0))


def write_scene(
    folder: Path,
    file_path: str = "images/{:04d}.png",
    saved: str = "images/{:04d}.png",
    meta: dict | None = None,
    frame: Callable[[int], dict] = lambda i: {},
    c2w: np.ndarray | None = None,
    name: str = "transforms.json",
    numbers: range = range(COUNT),
) -> Path:
    """Writes a file and its photos; `file_path` is what the file calls them, `saved` where they are."""
    c2w, frames = around() if c2w is None else c2w, []
    for i in numbers:
        path = folder / saved.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        photo_of(i).save(path)
        matrix = np.concatenate([c2w[i], [[0, 0, 0, 1]]]).tolist()
        frames.append({"file_path": file_path.format(i), "transform_matrix": matrix} | frame(i))
    content = (SIZE | LENGTHS if meta is None else meta) | {"frames": frames}
    (folder / name).write_text(json.dumps(content))
    return folder


def edit(folder: Path, change: Callable[[dict], object], name: str = "transforms.json") -> Path:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder


def shown(scene: Scene) -> list[int]:
    """Which photo each view of a scene has."""
    return np.rint(scene.images[:, 0, 0, 0] * 255 / 20).astype(int).tolist()


def in_dataset(scene: Scene) -> np.ndarray:
    """The scene's poses in the file's world."""
    return change_world(scene.to_dataset, scene.poses)


# Each program's words


def colmap2nerf(folder: Path) -> Path:
    """instant-ngp, run from a folder above on Windows."""
    meta = ANGLES | LENGTHS | NO_DISTORTION | SIZE | {"is_fisheye": False, "aabb_scale": 16, "scale": 0.3}
    return write_scene(
        folder, "./data\\room\\images/{:04d}.jpg", "images/{:04d}.jpg", meta, lambda i: {"sharpness": 10.0 + i}
    )


def nerfstudio(folder: Path) -> Path:
    meta = {"w": WIDTH, "h": HEIGHT, "camera_model": "OPENCV"} | LENGTHS | dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0)
    meta |= {"applied_transform": np.eye(4)[:3].tolist(), "ply_file_path": "sparse_pc.ply"}
    return write_scene(folder, meta=meta, frame=lambda i: {"colmap_im_id": i + 1})


def polycam(folder: Path) -> Path:
    """Every frame has a camera of its own; paths are those of another machine."""
    return write_scene(
        folder,
        "/home/bob/scan/images/{:04d}.png",
        meta={"camera_model": "OPENCV"},
        frame=lambda i: SIZE | LENGTHS | {"fl_x": 20.0 + i, "fl_y": 18.0 + i},
    )


def record3d(folder: Path) -> Path:
    meta = LENGTHS | SIZE | ANGLES | {"aabb_scale": 4, "integer_depth_scale": 0.001}
    return write_scene(folder, "../../r3d/x/rgb/{}", "rgb/{}.jpg", meta, lambda i: {"depth_path": f"depth/{i}.png"})


def with_k(folder: Path) -> Path:
    return write_scene(folder, meta={}, frame=lambda i: {"K": K, "w": WIDTH, "h": HEIGHT})


def only_angles(folder: Path) -> Path:
    return write_scene(folder, meta=ANGLES | {"cx": 7.5, "cy": 6.5})


def twice_as_large(folder: Path) -> Path:
    """The photos were shrunk since."""
    meta = {name: 2 * value for name, value in (LENGTHS | SIZE).items()}
    return write_scene(folder, meta=meta | ANGLES | {"camera_model": "SIMPLE_PINHOLE"})


@pytest.mark.parametrize(
    "writer",
    [colmap2nerf, nerfstudio, polycam, record3d, with_k, only_angles, twice_as_large],
    ids=lambda w: w.__name__,
)
def test_every_program_describes_the_same_scene(writer, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    scene = transforms.load(writer(tmp_path), factor=1, llffhold=3)
    for i, camera in enumerate(scene.cameras):
        more = i if writer is polycam else 0
        expected = dataclasses.replace(CAMERA, fx=CAMERA.fx + more, fy=CAMERA.fy + more)
        np.testing.assert_allclose(dataclasses.astuple(camera), dataclasses.astuple(expected))
    np.testing.assert_allclose(in_dataset(scene), around(), atol=1e-5)
    assert shown(scene) == list(range(COUNT))
    assert scene.i_test.tolist() == scene.i_val.tolist() == [0, 3, 6]
    assert scene.i_train.tolist() == [1, 2, 4, 5, 7, 8]
    assert not scene.ndc
    assert scene.masks is None
    elsewhere = "9 images were found by the ends of their paths" in caplog.text
    assert elsewhere == (writer in (colmap2nerf, polycam, record3d))
    named = {colmap2nerf: "aabb_scale and scale without effect", nerfstudio: "applied_transform without effect"}
    assert named.get(writer, "") in caplog.text


def test_what_is_null_or_empty_counts_as_left_out(tmp_path):
    expected = transforms.load(write_scene(tmp_path / "a"), factor=1)
    nothing = dict.fromkeys(("k1", "K", "camera_model", "near", "far", "camera_angle_x"))
    meta = SIZE | LENGTHS | nothing | {"ply_file_path": ""}
    scene = transforms.load(
        write_scene(tmp_path / "b", meta=meta, frame=lambda i: {"mask_path": "", "fl_x": None} if i else {}), factor=1
    )
    assert scene.masks is None
    assert scene.cameras == expected.cameras
    assert (scene.near, scene.far) == (expected.near, expected.far)


def test_blendernerf_writes_a_file_for_each_split(tmp_path):
    """Paths of Windows without endings; no file for validation."""
    meta = ANGLES | LENGTHS | NO_DISTORTION | SIZE | {"aabb_scale": 4}
    write_scene(tmp_path, "train\\{:04d}", "train/{:04d}.png", meta, name="transforms_train.json", numbers=range(6))
    write_scene(tmp_path, "test\\{:04d}", "test/{:04d}.png", meta, name="transforms_test.json", numbers=range(6, 9))
    scene = transforms.load(tmp_path, factor=1)
    assert (scene.i_train.tolist(), scene.i_val.tolist(), scene.i_test.tolist()) == (
        [0, 1, 2, 3, 4, 5], [6, 7, 8], [6, 7, 8],
    )  # fmt: skip
    assert shown(scene) == list(range(9))
    (tmp_path / "transforms_test.json").unlink()
    assert transforms.load(tmp_path, factor=1, llffhold=3).i_test.tolist() == [0, 3]


def test_a_scene_of_the_original_is_the_same_but_for_its_unit():
    ours, theirs = (
        transforms.load(SCENES / "blender", 1, white_bkgd=True),
        blender.load(SCENES / "blender", False, 1, True),
    )
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_allclose(in_dataset(ours), theirs.poses, atol=1e-5)
    assert [camera.fx for camera in ours.cameras] == pytest.approx([camera.fx for camera in theirs.cameras])
    for name in ("i_train", "i_val", "i_test"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    # Cameras at distance 4 look at the origin, and near and far are 2 and 6.
    assert (ours.unit, ours.unit * ours.near, ours.unit * ours.far) == pytest.approx((4, 2, 6))


# Splits


def test_every_nth_photo_counts_by_name_whatever_the_order_of_the_file(tmp_path):
    write_scene(tmp_path)
    edit(tmp_path, lambda content: content["frames"].reverse())
    scene = transforms.load(tmp_path, factor=1, llffhold=4)
    assert [shown(scene)[i] for i in scene.i_test] == [0, 4, 8]
    assert sorted(shown(scene)[i] for i in scene.i_train) == [1, 2, 3, 5, 6, 7]


def test_lists_of_splits_are_followed(tmp_path, caplog):
    names = [f"images/{i:04d}.png" for i in range(COUNT)]
    write_scene(tmp_path)
    edit(
        tmp_path,
        lambda content: content.update(train_filenames=names[2:6], test_filenames=["images\\0000.png", "gone"]),
    )
    scene = transforms.load(tmp_path, factor=1)
    assert (scene.i_train.tolist(), scene.i_val.tolist(), scene.i_test.tolist()) == ([2, 3, 4, 5], [0], [0])
    assert "test_filenames: no frame has gone" in caplog.text
    edit(tmp_path, lambda content: (content.pop("train_filenames"), content.update(val_filenames=names[7:])))
    scene = transforms.load(tmp_path, factor=1)
    assert (scene.i_train.tolist(), scene.i_val.tolist(), scene.i_test.tolist()) == ([1, 2, 3, 4, 5, 6], [7, 8], [0])


# Paths


def test_the_image_that_shares_most_of_its_path_is_meant(tmp_path):
    write_scene(tmp_path, "C:\\data\\room\\left\\images\\{:04d}.JPG", "left/images/{:04d}.png")
    for name in ("right/images/0003.png", "left/0003.png", "left/images_2/0003.png", "left/images/.0003.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo_of(0).save(tmp_path / name)
    assert shown(transforms.load(tmp_path, factor=1)) == list(range(COUNT))


@pytest.mark.parametrize(
    ("file_path", "spoil", "message"),
    [
        ("/x/{:04d}.png", lambda f: shutil.copytree(f / "images", f / "other"),
         r"'/x/0000\.png': no such image \(9 of 9 are missing\); images/0000\.png and other/0000\.png end alike: "),
        ("images/{:04d}.png", lambda f: (f / "images/0003.png").rename(f / "0003.png"),
         r"images/0003\.png: no such image \(1 of 9 are missing\); .*images holds 0000\.png"),
        ("/x/{:04d}.png", lambda f: (f / "images").rename(f / ".images"),
         r"'/x/0000\.png': no such image \(9 of 9 are missing\); .* holds transforms\.json, and no image of that name"),
        ("/x/images/{:04d}.png", lambda f: ((f / "mask").mkdir(), (f / "images/0003.png").rename(f / "mask/0003.png")),
         r"'/x/images/0003\.png': no such image \(9 of 9 are missing\); .* and no image of that name"),
        ("/a/{0}/0001.png", lambda f: None, r"file_path of two frames may mean images/0001\.png: correct the paths"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_told(tmp_path, file_path, spoil, message):
    spoil(write_scene(tmp_path, file_path))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        transforms.load(tmp_path, factor=1)


# Cameras that are refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(camera_angle_x=1.5),
         r"frame 0: fl_x 20 and camera_angle_x 1\.5 contradict each other \(20 and 8\.58741 pixels of 16\)"),
        (lambda m: m["frames"][4].update(K=[[25, 0, 7.5], *K[1:]]), r"frame 4: fl_x 20 and K's fx 25 contradict"),
        (lambda m: m.update(K=[[20, 0, 7.5], [0, 18, 9], [0, 0, 1]]), r"frame 0: cy 6\.5 and K's cy 9 contradict"),
        (lambda m: m.update(K=[[20, 0.5, 7.5], [0, 18, 6.5], [0, 0, 1]]), r"frame 0: K must be \[fx, 0, cx\]"),
        (lambda m: m.update(K=[20, 18]), r"frame 0: K has shape \(2,\); it must be 3x3"),
        (lambda m: (m.pop("fl_x"), m.pop("fl_y")), "frame 0: it has no focal length: fl_x"),
        (lambda m: m.update(camera_model="OPENCV_FISHEYE"), "frame 0: camera_model 'OPENCV_FISHEYE' is not one"),
        (lambda m: m["frames"][2].update(camera_model="EQUIRECTANGULAR"), "frame 2: camera_model 'EQUIRECTANGULAR' is"),
        (lambda m: m.update(camera_model=["a"]), "is not one of PINHOLE"),
        (lambda m: m.update(is_fisheye=True), "frame 0: is_fisheye is not one of PINHOLE"),
        (lambda m: m.update(k4=0.1), "k4 0.1 is no distortion of OPENCV"),
        (lambda m: m.update(k6=0.1), "k6 0.1 is no distortion of OPENCV"),
        (lambda m: m.update(camera_model="PINHOLE", k1=0.1), "k1 0.1 is no distortion of PINHOLE"),
        (lambda m: m.update(k1=float("nan")), "k1 nan is no coefficient of a lens"),
        (lambda m: m.update(k1=-9.0), r"json: the lens distortion k1 -9 leaves less than half of the sides of 16x12"),
        (lambda m: m.update(cx=0), r"frame 0: its principal point 0, 6\.5 is outside of images of 16x12"),
        (lambda m: m.update(near=1, far=1e300), "near 1 and far 1e\\+300: expected 0 <= near < far"),
        (lambda m: m.update(cx=20), r"frame 0: its principal point 20, 6\.5 is outside of images of 16x12"),
        (lambda m: m.update(w=12, h=16), r"has w 12 and h 16, but images are 16x12, .*; turn the images by 90 degrees"),
        (lambda m: m.update(w=20, h=9), "of other proportions; export the cameras of these images"),
        (lambda m: m.update(fl_y=0.01), r"frame 0: focal length 0\.01 does not go with images of 16x12"),
        (lambda m: m.update(near=3, far=2), "near 3 and far 2: expected 0 <= near < far"),
        (lambda m: m.update(near=-1), "near -1 and far .*: expected 0 <= near < far"),
        (lambda m: m.update(near="1 m"), "near is '1 m', which is not a number"),
        (lambda m: m.update(train_filenames="all"), "train_filenames must be a list of paths"),
        (lambda m: m.update(train_filenames=["images/0001.png"], val_filenames=["./images/0001.png"]),
         r"'images/0001\.png' is listed for training and for tests"),
        (lambda m: m["frames"][1].update(mask_path=3), "frame 1: mask_path must be the path of an image"),
        (lambda m: m["frames"][1].update(mask_path="a/none.png"), r"mask_path 'a/none\.png': no such image \(1 of 1"),
        (lambda m: m["frames"][1].update(mask_path="masks/0001.png"), r"mask_path 'masks/0001\.png': no such image"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, change, message):
    edit(write_scene(tmp_path), change)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        transforms.load(tmp_path, factor=1)
    assert str(tmp_path / "transforms.json") in str(error.value)


@pytest.mark.parametrize("factor", [1, 2])
def test_photos_of_other_proportions_are_shrunk_to_fit(tmp_path, caplog, factor):
    """A turned photo [32, 24] lies in the middle; its camera sees each of its pixels where it was, masks the rest."""
    turned = {"fl_x": 36.0, "fl_y": 40.0, "cx": 11.0, "cy": 15.0, "mask_path": "masks/8.png"}
    write_scene(tmp_path, meta=LENGTHS, frame=lambda i: turned if i == 8 else {})
    photo_of(8, (24, 32)).save(tmp_path / "images/0008.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.uint8(255 * (np.arange(32)[:, None] >= np.full(24, 16)))).save(tmp_path / "masks/8.png")
    scene = transforms.load(tmp_path, factor=factor)
    height, width = HEIGHT // factor, WIDTH // factor
    across = round(height * 24 / 32)
    left = (width - across) // 2
    assert scene.images.shape == (COUNT, height, width, 3)
    assert shown(scene)[:-1] == list(range(COUNT - 1))  # the others are as they were
    # 0008.png would be held out.
    assert (list(scene.i_test), list(scene.i_val), list(scene.i_train)) == ([0], [0], list(range(1, COUNT)))
    expected = np.zeros((height, width), bool)
    expected[height // 2 :, left : left + across] = True
    np.testing.assert_array_equal(scene.masks[8], expected)
    assert scene.masks[:8].all()
    assert not scene.images[8, :, :left].any()
    assert not scene.images[8, :, left + across :].any()
    np.testing.assert_allclose(scene.photo(8)[:, :, :1], 160 / 255, atol=1e-5)
    assert scene.photo(8).shape == (height // 2, across, 3)
    camera, shrunk = scene.cameras[8], height / 32
    assert (camera.height, camera.width) == (height, width)
    np.testing.assert_allclose(
        [camera.fx, camera.fy, camera.cx - left, camera.cy],
        [36 * across / 24, 40 * shrunk, 11 * across / 24, 15 * shrunk],
    )
    assert "0008.png: 1 of 9 photos have other proportions (24x32) than most (16x12)" in caplog.text


def test_test_views_have_one_size(tmp_path):
    """A photo of other proportions is none, even if the file lists it as one."""
    write_scene(tmp_path, meta=LENGTHS | {"test_filenames": ["images/0002.png", "images/0005.png"]})
    photo_of(5, (8, 8)).save(tmp_path / "images/0005.png")
    scene = transforms.load(tmp_path, factor=1)
    assert list(scene.i_test) == list(scene.i_val) == [2]
    assert 5 not in scene.i_train
    assert scene.photo(5).shape == (8, 8, 3)  # no larger than it is


def test_beside_a_photo_is_no_empty_space(tmp_path):
    """Alpha is 1 there: the visual hull must not end at the photo's edge."""
    write_scene(tmp_path, meta=LENGTHS)
    for path in (tmp_path / "images").iterdir():
        Image.new("RGBA", (8, 8) if path.stem == "0003" else (WIDTH, HEIGHT), (9, 9, 9, 0)).save(path)
    scene = transforms.load(tmp_path, factor=1, white_bkgd=True, keep_alpha=True)
    np.testing.assert_array_equal(scene.alphas[3], ~scene.masks[3])
    assert not scene.alphas[:3].any()


def test_distorted_photos_of_other_proportions_are_undistorted_in_their_place(tmp_path):
    """As the same photos alone in a scene."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8)
    lens = LENGTHS | {"cx": 6.0, "cy": 8.0, "k1": -0.1, "p1": 0.01}
    for name, turned in (("mixed", {4}), ("alone", set(range(COUNT)))):
        write_scene(tmp_path / name, meta=LENGTHS, frame=lambda i, turned=turned: lens if i in turned else {})
        for i in turned:
            Image.fromarray(noise).save(tmp_path / name / f"images/{i:04d}.png")
    mixed, alone = (transforms.load(tmp_path / name, factor=1) for name in ("mixed", "alone"))
    # 16 rows become 12: alike is what cameras make of it.
    place = mixed.photo(4)
    assert place.shape == (12, 9, 3)
    shrunk = image_files.area_resize(alone.images[4], 12, 9)
    assert np.abs(place - shrunk)[1:-1, 1:-1].mean() < 0.1
    assert mixed.cameras[4].fx / 9 == pytest.approx(alone.cameras[4].fx / 12, rel=1e-6)


@pytest.mark.parametrize("factor", [1, 2])
def test_photos_of_several_sizes_are_shrunk_to_the_smallest(tmp_path, caplog, factor):
    """Cameras and masks follow: lengths are in pixels of the photo, or of w x h where these are given."""
    own = {0: {name: 2 * value for name, value in LENGTHS.items()} | {"mask_path": "masks/0.png"}, 5: SIZE}
    write_scene(tmp_path, meta=LENGTHS, frame=lambda i: own.get(i, {}))
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "images/0000.png")
    photo_of(5, (3 * WIDTH, 3 * HEIGHT)).save(tmp_path / "images/0005.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.uint8(255 * (np.arange(24)[:, None] >= np.full(32, 8)))).save(tmp_path / "masks/0.png")
    scene = transforms.load(tmp_path, factor=factor)
    assert scene.images.shape == (COUNT, HEIGHT // factor, WIDTH // factor, 3)
    assert shown(scene)[1:] == list(range(1, COUNT))
    blocks = picture.reshape(12 // factor, 2 * factor, 16 // factor, 2 * factor, 3) / 255.0
    np.testing.assert_allclose(scene.images[0], blocks.mean(axis=(1, 3)), atol=1e-5)
    expected = Camera(HEIGHT // factor, WIDTH // factor, *(x / factor for x in (20.0, 18.0, 7.5, 6.5)))
    assert set(scene.cameras) == {expected}
    np.testing.assert_array_equal(
        scene.masks[0], np.arange(12 // factor)[:, None] >= np.full(16 // factor, 4 // factor)
    )
    assert scene.masks[1:].all()
    assert "photos of several sizes, up to 48x36, are shrunk to this one's, 16x12" in caplog.text


# Distortion


def test_the_polynomials_are_those_of_opencv():
    """Worked out by hand at 0.5, -0.25, where r^2 is 0.3125."""
    lens = Distortion(k1=0.1, k2=-0.2, k3=0.3, p1=0.01, p2=0.02)
    radial = 1 + 0.1 * 0.3125 - 0.2 * 0.3125**2 + 0.3 * 0.3125**3
    x = 0.5 * radial + 2 * 0.01 * 0.5 * -0.25 + 0.02 * (0.3125 + 2 * 0.25)
    y = -0.25 * radial + 0.01 * (0.3125 + 2 * 0.0625) + 2 * 0.02 * 0.5 * -0.25
    assert lens.distort(np.float64(0.5), np.float64(-0.25)) == pytest.approx((x, y))


def undistorted(lens: Distortion, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a pinhole would show where the lens shows x, y: the inverse of `distort`, by fixed-point iteration."""
    u, v = x, y
    for _ in range(200):
        found = lens.distort(u, v)
        u, v = u + (x - found[0]), v + (y - found[1])
    return u, v


def pattern(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth picture of the plane at distance 1."""
    return np.stack([0.5 + 0.4 * np.sin(5 * x), 0.5 + 0.4 * np.cos(4 * y), 0.5 + 0.3 * np.sin(3 * x + 4 * y)], axis=-1)


@pytest.mark.parametrize(
    "lens", [Distortion(k1=-0.25, k2=0.05), Distortion(0.1, 0.05, 0.02, 0.01, -0.015), Distortion(p1=0.03)]
)
def test_distorted_photos_become_those_of_a_pinhole(tmp_path, lens):
    """A smooth picture seen through the lens, pixel by pixel, is after loading what a pinhole sees of it."""
    height, width = 90, 120
    camera = Camera(height, width, 100.0, 90.0, 57.0, 47.0)
    write_scene(
        tmp_path, meta=lens._asdict() | {"fl_x": 100, "fl_y": 90, "cx": 57, "cy": 47, "camera_model": "OPENCV"},
        frame=lambda i: {"mask_path": f"masks/{i}.png"} if i == 1 else {},
    )  # fmt: skip
    rows, cols = np.mgrid[:height, :width] + 0.5
    seen = pattern(*undistorted(lens, (cols - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy))
    for i in range(COUNT):
        Image.fromarray(np.uint8(np.rint(255 * seen))).save(tmp_path / f"images/{i:04d}.png")
    (tmp_path / "masks").mkdir()
    mask = np.full((height, width), 255, np.uint8)
    mask[:, :30] = 0
    Image.fromarray(mask).save(tmp_path / "masks/1.png")
    scene = transforms.load(tmp_path, factor=1)
    pinhole = scene.cameras[0]
    x, y = (cols - pinhole.cx) / pinhole.fx, (rows - pinhole.cy) / pinhole.fy
    np.testing.assert_allclose(scene.images[0], pattern(x, y), atol=0.006)
    assert np.abs(pattern((cols - 57) / 100, (rows - 47) / 90) - seen).max() > 0.03  # the lens makes a difference
    # A pixel is within its mask if what it is made of is.
    col = lens.distort(x, y)[0] * camera.fx + camera.cx - 0.5
    np.testing.assert_array_equal(scene.masks[1], col >= 30)
    assert scene.masks[0].all()


@pytest.mark.parametrize("lens", [Distortion(k1=-0.25, k2=0.05), Distortion(0.1, 0.05, 0.02, 0.01, -0.015)])
def test_the_pinhole_shows_as_much_as_the_photo_holds(lens):
    camera = Camera(90, 120, 100.0, 90.0, 57.0, 47.0)
    pinhole = find_pinhole(camera, lens)
    corners = np.array(list(itertools.product(np.linspace(0, 120, 241), [0, 90])) + [
        (u, v) for u in (0, 120) for v in np.linspace(0, 90, 181)
    ])  # fmt: skip
    x, y = (corners - [pinhole.cx, pinhole.cy]).T / [[pinhole.fx], [pinhole.fy]]
    u, v = (f * d + c for f, d, c in zip((100, 90), lens.distort(x, y), (57, 47), strict=True))
    room = min(u.min(), v.min(), 120 - u.max(), 90 - v.max())
    assert -0.01 < room < 0.1
    assert pinhole.fy / pinhole.fx == pytest.approx(0.9)


def test_without_distortion_photos_are_as_they_are(tmp_path):
    scene = transforms.load(nerfstudio(tmp_path), factor=1)
    np.testing.assert_array_equal(scene.images[3], np.float32(photo_of(3)) / 255)


def test_resampling_at_pixels_gives_them_and_between_them_their_mean():
    image = np.random.default_rng(0).random((5, 7, 3), np.float32)
    rows, cols = np.mgrid[:5, :7]
    np.testing.assert_array_equal(resample(image, rows, cols), image)
    np.testing.assert_allclose(resample(image, np.array(1.5), np.array(2.0)), image[1:3, 2].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(resample(image, np.array(-3.0), np.array(99.0)), image[0, 6])


# Size, masks


def test_factor_shrinks_photos_cameras_and_masks(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_scene(tmp_path, frame=lambda i: {"mask_path": f"masks/{i}.png"} if i < 2 else {})
    (tmp_path / "masks").mkdir()
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:, 1:] = 1  # white, as some programs write it
    for i in range(2):
        Image.fromarray(mask).save(tmp_path / f"masks/{i}.png")
    scene = transforms.load(tmp_path, factor=2)
    assert scene.images.shape == (COUNT, 6, 8, 3)
    assert scene.cameras[0] == Camera(6, 8, 10.0, 9.0, 3.75, 3.25)
    # A pixel of which a part is masked is masked.
    np.testing.assert_array_equal(scene.masks[0], [[row >= 2 and col >= 1 for col in range(8)] for row in range(6)])
    assert scene.masks[2:].all()
    assert "factor 2: photos of 16x12 become 8x6" in caplog.text
    with pytest.raises(ValueError, match=r"0000\.png: factor 13 leaves no pixels of photos of 16x12"):
        transforms.load(tmp_path, factor=13)
    Image.new("L", (8, 6)).save(tmp_path / "masks/1.png")
    with pytest.raises(ValueError, match=r"1\.png: 8x6, but photos are 16x12; a mask has the size of its photo"):
        transforms.load(tmp_path, factor=2)


@pytest.mark.parametrize("settings", [
    BatchSettings(N_rand=16), BatchSettings(N_rand=16, no_batching=True),
    BatchSettings(N_rand=8, no_batching=True, precrop_iters=20, precrop_frac=0.5),
])  # fmt: skip
def test_masked_pixels_take_no_part_in_training(tmp_path, settings):
    """Colours tell image and pixel; what is drawn is within its mask, and in the end all of that is."""
    scene = transforms.load(write_scene(tmp_path), factor=1, llffhold=3)
    grid = np.stack(np.meshgrid(np.arange(COUNT), np.arange(HEIGHT), np.arange(WIDTH), indexing="ij"), axis=-1)
    masks = np.random.default_rng(1).random(grid.shape[:3]) < 0.6
    scene = dataclasses.replace(scene, images=np.float32(grid), masks=masks)
    batches = [np.int64(batch.rgb) for batch in ray_batches(scene, settings, 3).take(120).as_numpy_iterator()]
    drawn = np.concatenate(batches)
    assert masks[tuple(drawn.T)].all()
    kept = masks[scene.i_train].sum()
    if not settings.no_batching:  # an epoch has each ray once
        epoch = np.concatenate(batches[: kept // 16])
        assert len(np.unique(epoch, axis=0)) == len(epoch)
        return
    assert all(len(np.unique(batch, axis=0)) == len(batch) and len(set(batch[:, 0])) == 1 for batch in batches)
    inside = drawn[: 20 * 8] if settings.precrop_iters else drawn
    rows, cols = (range(3, 9), range(4, 12)) if settings.precrop_iters else (range(HEIGHT), range(WIDTH))
    assert set(inside[:, 1]) == set(rows)
    assert set(inside[:, 2]) == set(cols)
    assert set(drawn[:, 0]) == set(scene.i_train)


def test_masks_that_leave_nothing_out_draw_the_same_rays(tmp_path):
    scene = transforms.load(write_scene(tmp_path), factor=1)
    with_masks = dataclasses.replace(scene, masks=np.ones(scene.images.shape[:3], bool))
    for settings in (BatchSettings(N_rand=8), BatchSettings(N_rand=8, no_batching=True)):
        streams = [ray_batches(s, settings, 0).take(2).as_numpy_iterator() for s in (scene, with_masks)]
        for plain, masked in zip(*streams, strict=True):
            np.testing.assert_array_equal(plain.rays.origins, masked.rays.origins)
            np.testing.assert_array_equal(plain.rays.directions, masked.rays.directions)


def test_masks_that_are_all_black(tmp_path):
    def mask(i: int) -> dict:
        return {"mask_path": "black.png"}

    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "black.png")
    with pytest.raises(
        ValueError, match=r"black\.png: this mask and all others are black; white is what is kept: invert them"
    ):
        transforms.load(write_scene(tmp_path, frame=mask), factor=1)


def test_too_few_pixels_within_masks(tmp_path):
    scene = transforms.load(write_scene(tmp_path), factor=1)
    masks = np.zeros(scene.images.shape[:3], bool)
    masks[:, 5, 5:8] = True
    scene = dataclasses.replace(scene, masks=masks)
    with pytest.raises(ValueError, match="N_rand 4 is more than the 3 pixels of an image within its mask; lower"):
        ray_batches(scene, BatchSettings(N_rand=4, no_batching=True), 0)
    with pytest.raises(ValueError, match=f"more than the {3 * len(scene.i_train)} rays of all"):
        ray_batches(scene, BatchSettings(N_rand=99), 0)


# World, range, path


def write_ply(path: Path, points: np.ndarray, layout: str) -> None:
    """With a colour between the coordinates, as any order is allowed."""
    header = (
        f"ply\nformat {layout} 1.0\ncomment x\nelement vertex {len(points)}\nproperty float x\nproperty uchar red\n"
    )
    header += (
        "property double y\nproperty float z\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n"
    )
    if layout == "ascii":
        body = "".join(f"{x} 7 {y} {z}\n" for x, y, z in points).encode()
    else:
        order = "<" if "little" in layout else ">"
        rows = np.zeros(len(points), [("x", order + "f4"), ("red", "u1"), ("y", order + "f8"), ("z", order + "f4")])
        rows["x"], rows["y"], rows["z"] = points.T
        body = rows.tobytes()
    path.write_bytes(header.encode() + body)


@pytest.mark.parametrize("layout", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_sparse_points_say_where_the_scene_is(tmp_path, layout):
    points = a_sphere()
    write_ply(tmp_path / "sparse_pc.ply", points, layout)
    np.testing.assert_allclose(ply.read_points(tmp_path / "sparse_pc.ply"), points, atol=1e-6)
    scene = transforms.load(nerfstudio(tmp_path), factor=1)
    assert (scene.near * scene.unit, scene.far * scene.unit) == pytest.approx((0.9 * 2.5, 1.1 * 3.5), rel=0.01)


def a_sphere() -> np.ndarray:
    """What the cameras of `around` look at, from 2.5 to 3.5 away."""
    return np.array([1.0, 2.0, 3.0]) + 0.5 * poses.normalise(np.random.default_rng(0).normal(size=(4000, 3)))


# nerfstudio turns the cameras by this, and leaves COLMAP's model as it is.
APPLIED = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("place", "meta", "to_model"),
    [
        ("sparse/0", {}, np.eye(4)),
        ("colmap/sparse/0", {"applied_transform": APPLIED}, np.linalg.inv([*APPLIED, [0, 0, 0, 1]])),
        ("sparse/0", {"applied_transform": APPLIED}, np.eye(4)),
        ("sparse/0", {"applied_transform": APPLIED, "applied_scale": 2},
         np.linalg.inv([*(2 * np.array(APPLIED)), [0, 0, 0, 1]])),
    ],
)  # fmt: skip
def test_points_of_colmap_say_where_the_scene_is(tmp_path, caplog, place, meta, to_model):
    """In the world of the cameras, or in the one that applied_transform tells."""
    caplog.set_level(logging.INFO)
    edit(write_scene(tmp_path), lambda m: m.update(meta))
    (tmp_path / place).mkdir(parents=True)
    doubtful = np.linspace([1.0, 2.0, 3.0], around()[0, :, 3], 50)  # up to a camera, but shown by two photos
    positions = transform_points(np.array(to_model), np.concatenate([a_sphere(), doubtful]))
    (tmp_path / place / "points3D.bin").write_bytes(colmap_files.points(positions, [9] * 4000 + [2] * 50))
    scene = transforms.load(tmp_path, factor=1)
    assert (scene.near * scene.unit, scene.far * scene.unit) == pytest.approx((0.9 * 2.5, 1.1 * 3.5), rel=0.01)
    assert f"follow from {place} (--near" in caplog.text
    caplog.clear()
    scene = transforms.load(edit(tmp_path, lambda m: m.update(far=7)), factor=1)
    assert (scene.near * scene.unit, scene.far * scene.unit) == pytest.approx((0.9 * 2.5, 7), rel=0.01)
    assert f"follow from {place} and the file (--near" in caplog.text


def of_another_world(content: bytes) -> bytes:
    return colmap_files.points(a_sphere() + 100.0, [9] * 4000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (of_another_world, "sparse/0: its points are of another world than the cameras"),
        (lambda content: content[:-1], "points3D.bin: not COLMAP's points (it is cut short); it is not used: "),
        (lambda content: colmap_files.points(np.full([200, 3], 1e300), [9] * 200), "points are of another world"),
        (lambda content: colmap_files.points(np.zeros([0, 3]), []), "points are of another world"),
    ],
)
def test_points_that_do_not_fit_leave_the_range_to_the_cameras(tmp_path, caplog, spoil, message):
    caplog.set_level(logging.INFO)
    (write_scene(tmp_path) / "sparse/0").mkdir(parents=True)
    (tmp_path / "sparse/0/points3D.bin").write_bytes(spoil(colmap_files.points(a_sphere(), [9] * 4000)))
    scene = transforms.load(tmp_path, factor=1)
    assert (scene.near * scene.unit, scene.far * scene.unit) == pytest.approx((0.6, 24))
    assert message in caplog.text
    assert "follow from the point that cameras look at" in caplog.text


def test_the_range_of_the_authors_fern_is_near_that_of_its_bounds(real_data, tool, tmp_path):
    fern = real_data / "data" / "nerf_llff_data" / "fern"
    for name in ("images_8", "sparse"):
        (tmp_path / name).symlink_to(fern / name)
    convert = tool("convert_poses").main
    words = [fern / "poses_bounds.npy", tmp_path / "transforms.json", "--images", tmp_path / "images_8"]
    assert convert([*map(str, words)]) == 0
    scene = transforms.load(tmp_path, factor=4)
    bounds, near, far = np.load(fern / "poses_bounds.npy")[:, 15:], scene.near * scene.unit, scene.far * scene.unit
    assert 0.8 < near / bounds.min() < 1.0 < far / bounds.max() < 1.2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has no header"),
        (b"PK\x03\x04end_header\n", "."),
        (b"ply\nend_header\n", "its first element is not vertex"),
        (b"ply\nformat ascii 1.0\nelement vertex 99999999999\nproperty float x\nproperty float y\nproperty float z\n"
         b"end_header\n1 2 3\n", "it announces 99999999999 points, and 6 bytes follow"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
         b"end_header\n1 __import__('os') 3\n", "."),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 9\nproperty list uchar int x\nend_header\n", "."),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex -9\nproperty float x\nproperty float y\n"
         b"property float z\nend_header\n", "it announces -9 points of 12 bytes, and 0 bytes follow"),
        (b"ply\nformat elsewhere 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\n"
         b"end_header\n", "elsewhere"),
    ],
)  # fmt: skip
def test_point_files_that_are_none(tmp_path, content, message):
    (nerfstudio(tmp_path) / "sparse_pc.ply").write_bytes(content)
    with pytest.raises(ValueError, match=rf"sparse_pc\.ply: not a PLY file of points \(.*{message}"):
        transforms.load(tmp_path, factor=1)


@pytest.mark.parametrize(
    ("near", "far", "white_bkgd", "expected"),
    [(None, None, False, (0.6, 24)), (None, None, True, (1.5, 4.5)), (2, 5, False, (2, 5)), (None, 7, False, (0.6, 7))],
)
def test_the_range_follows_from_the_file_or_the_cameras(tmp_path, near, far, white_bkgd, expected):
    given = {name: value for name, value in (("near", near), ("far", far)) if value is not None}
    scene = transforms.load(edit(write_scene(tmp_path), lambda m: m.update(given)), 1, white_bkgd=white_bkgd)
    assert (scene.near * scene.unit, scene.far * scene.unit) == pytest.approx(expected)


def drone(height: float) -> np.ndarray:
    """Cameras in a row that look straight down from there."""
    down = np.eye(4)[:3]
    rows = np.tile(down, [COUNT, 1, 1])
    rows[:, :, 3] = [[380.0 + 20 * i, 50.0, height] for i in range(COUNT)]
    return rows


def outward() -> np.ndarray:
    """Cameras that stand together and look away from each other."""
    views = around(radius=1.0)
    views[:, :, [0, 2]] *= -1
    return views


def test_cameras_far_away_come_to_lie_around_the_origin(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    scene = transforms.load(write_scene(tmp_path / "a", c2w=around(radius=380.0, centre=(5e3, 0, 100))), factor=1)
    np.testing.assert_allclose(np.linalg.norm(scene.poses[:, :, 3], axis=-1), 1.0, atol=1e-4)
    np.testing.assert_allclose(scene.to_dataset @ [0, 0, 0, 1], [5e3, 0, 100, 1], atol=1e-3)
    assert scene.unit == pytest.approx(380)
    assert (
        "1 unit is 380 of the file's, and the origin is at 5000, 0, 100 there; near 0.2 and far 8 follow" in caplog.text
    )
    scene = transforms.load(write_scene(tmp_path / "b", c2w=drone(120.0)), factor=1)
    np.testing.assert_allclose(np.median(np.linalg.norm(scene.poses[:, :, 3], axis=-1)), 1.0, atol=1e-4)
    np.testing.assert_allclose(in_dataset(scene), drone(120.0), atol=1e-3)
    # One camera, or several in one place: nothing to scale by.
    scene = transforms.load(write_scene(tmp_path / "c", c2w=np.tile(drone(9.0)[:1], [COUNT, 1, 1])), factor=1)
    assert scene.unit == 1.0
    # World-to-camera matrices of a circle: in one place, but for rounding.
    c2w = poses.invert(around(centre=(0, 0, 0)))
    assert transforms.load(write_scene(tmp_path / "d", c2w=c2w), factor=1).unit == 1.0


@pytest.mark.parametrize(
    ("c2w", "kind"),
    [(around(), "orbit"), (drone(120.0), "spiral"), (outward(), "views")],
    ids=["around", "down", "outward"],
)
def test_the_path_suits_the_cameras(tmp_path, c2w, kind):
    scene = transforms.load(write_scene(tmp_path, c2w=c2w), factor=1)
    path = scene.render_poses
    assert path.dtype == np.float32
    if kind == "views":
        np.testing.assert_array_equal(path, scene.poses)
    elif kind == "orbit":
        np.testing.assert_allclose(path, around_cameras.orbit_around(scene.poses), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(path[:, :, 3], axis=-1), 1.0, atol=1e-4)
    else:
        assert len(path) == 120
        assert (path[:, :, 2] @ [0, 0, 1] > 0.5).all()


# Cameras in rays, pictures, meshes


def test_a_point_appears_in_the_pixel_that_the_file_says(tmp_path):
    """A point of the file's world, projected by its numbers, lies on that pixel's ray, in training as well."""
    scene = transforms.load(polycam(tmp_path), factor=1, llffhold=3)
    point = np.array([1.2, 2.1, 2.8])
    for i in range(COUNT):
        x, y, z = np.linalg.inv(np.concatenate([around()[i], [[0, 0, 0, 1]]]))[:3] @ [*point, 1]
        col, row = 7.5 + (20 + i) * x / -z, 6.5 - (18 + i) * y / -z
        origin, direction = scene.cameras[i].rays(scene.poses[i], np.array(row), np.array(col))
        ends = transform_points(scene.to_dataset, np.stack([origin, origin + direction]))
        along = poses.normalise(ends[1] - ends[0])
        assert np.linalg.norm(np.cross(point - ends[0], along)) < 1e-5
    batch = next(ray_batches(scene, BatchSettings(N_rand=HEIGHT * WIDTH, no_batching=True), 0).as_numpy_iterator())
    i = int(np.argmin(np.linalg.norm(scene.poses[:, :, 3] - batch.rays.origins[0], axis=-1)))
    row, col, _ = scene.cameras[i].project(scene.poses[i], batch.rays.origins + batch.rays.directions)
    expected = sorted(itertools.product(range(HEIGHT), range(WIDTH)))
    np.testing.assert_allclose(sorted(zip(np.rint(row), np.rint(col), strict=True)), expected)
    np.testing.assert_allclose(row, np.rint(row), atol=1e-3)


def wall(points: tf.Tensor, viewdirs: tf.Tensor, dense_below: object) -> tf.Tensor:
    """A field: solid beyond z = -2, and its colour tells x and y."""
    colour = tf.concat([points[..., :2], tf.zeros_like(points[..., :1])], axis=-1)
    return tf.concat([colour, tf.where(points[..., 2:] < -2.0, 1e4, 0.0)], axis=-1)


def test_unequal_focal_lengths_and_the_principal_point_are_in_pictures_surfaces_and_the_viewer(tool):
    camera, c2w = Camera(6, 9, 12.0, 8.0, 2.5, 4.25), np.eye(4)[:3]
    renderer = Renderer(wall, None, RenderSettings(N_samples=400, N_importance=0), 1.0, 3.0, False)
    image = renderer.image(camera, c2w)
    rows, cols = np.mgrid[:6, :9]
    x, y = 2.0 * (cols - 2.5) / 12.0, -2.0 * (rows - 4.25) / 8.0  # where rays meet the wall
    logit = np.log(image.rgb / (1 - image.rgb))
    np.testing.assert_allclose(logit[..., 0], x, atol=0.02)
    np.testing.assert_allclose(logit[..., 1], y, atol=0.02)
    surface = find_surface(camera, c2w, image.depth, image.acc, False)  # as export_points does
    np.testing.assert_allclose(surface.points, np.stack([x, y, np.full_like(x, -2)], axis=-1), atol=0.02)
    progressive_view = tool("support.progressive_view")
    scene = Scene(image.rgb[None], c2w[None], (camera,), 1.0, 3.0, False, *[np.arange(1)] * 3, c2w[None])
    view = progressive_view.ProgressiveView(renderer, scene, camera, c2w)
    assert list(view.refine())
    np.testing.assert_allclose(view.image().rgb, image.rgb, atol=1e-6)
    # The mesh looks where training cameras look, and nowhere else.
    space = tool("extract_mesh").Space(scene, 1.0)
    corners = np.array([(-0.2, 0.5), (0.5, -0.2), (-0.22 * 2, 0.0), (0.0, 0.55 * 2), (0.56 * 2, 0.0), (0.0, -0.25 * 2)])
    points = np.concatenate([2.0 * corners[:2], corners[2:]])
    points = np.concatenate([points, np.full([6, 1], -2.0)], axis=-1)
    np.testing.assert_array_equal(space.seen(points), [True, True, False, False, False, False])
    low, high = space.box()
    np.testing.assert_allclose([low, high], [[-0.625, -0.28125, -3], [3 * 5.5 / 12, 3 * 4.25 / 8, -1]], atol=1e-6)
    from support.camera_drawing import frustum

    tip, *corners = frustum(camera, c2w, 1.0)
    np.testing.assert_allclose(tip, 0)
    expected = [(-2.5 / 12, 4.25 / 8), (6.5 / 12, 4.25 / 8), (6.5 / 12, -1.75 / 8), (-2.5 / 12, -1.75 / 8)]
    np.testing.assert_allclose(corners, [(*xy, -1) for xy in expected], atol=1e-6)


def test_the_plot_of_cameras(tmp_path, tool):
    out = tmp_path / "cameras.png"
    assert (
        tool("plot_cameras").main(
            ["--dataset_type", "transforms", "--datadir", str(polycam(tmp_path)), "--out", str(out)]
        )
        == 0
    )
    assert out.stat().st_size > 10_000


# Hostile files


def test_damaged_scenes_are_loaded_or_refused_by_name(tmp_path):
    valid = nerfstudio(tmp_path / "valid")
    write_ply(valid / "sparse_pc.ply", around()[:, :, 3] * 0.5, "ascii")
    edit(valid, lambda m: [frame.update(mask_path="images/0001.png") for frame in m["frames"][:3]])
    folder = Path(shutil.copytree(valid, tmp_path / "scene"))

    def check(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(["transforms.json"] * 4 + ["images/0001.png", "images/0002.png"]))
        try:
            damage_file(data, folder / path)
            with refused_by_name(folder):
                assert_sane(transforms.load(folder, factor=1))
        finally:
            restore(folder / path, valid / path)

    assert_sane(transforms.load(folder, factor=1))
    try_out(40, check)


@pytest.mark.parametrize("name", ["fl_x", "fl_y", "cx", "w", "k1", "k2", "p1", "near", "camera_angle_y"])
@pytest.mark.parametrize("value", [0, -1, 1e-320, 1e-9, 1e9, 1e308, float("inf"), float("nan"), "x", None, [1]])
def test_absurd_numbers_are_refused_by_name_or_have_no_effect(tmp_path, name, value):
    write_scene(tmp_path, numbers=range(2))
    edit(tmp_path, lambda m: m.update({name: value}))
    with refused_by_name(tmp_path):
        assert_sane(transforms.load(tmp_path, factor=1))


# The program


def test_a_run_from_transforms_to_video(tmp_path):
    folder = nerfstudio(tmp_path / "scene")
    edit(folder, lambda m: (m.update(k1=-0.05), m["frames"][4].update(mask_path="mask.png")))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:, :] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    flags = [*TINY.split(), "--dataset_type=transforms", f"--datadir={folder}", f"--basedir={tmp_path}", "--expname=x"]
    flags += [
        "--factor=1",
        "--llffhold=4",
        "--N_iters=3",
        "--i_img=2",
        "--i_video=2",
        "--render_frames=2",
        "--chunk=512",
    ]
    result = run(*flags, "--half_res")
    assert result.code == 0, result.stderr
    assert "9 images of 16x12 (6 train, 3 val, 3 test), near 0.2, far 8" in result.stderr
    assert "--half_res has no effect on a transforms scene" in result.stderr
    assert "transforms.json: applied_transform without effect" in result.stderr
    video = tmp_path / "x" / "x_spiral_000002_rgb.mp4"
    assert video.stat().st_size > 0
    assert_one_line(
        run(*flags, "--datadir", str(tmp_path)), 1, r"lacks transforms\.json .*; .* is a scene's folder: give --datadir"
    )


def test_a_hash_grid_holds_what_is_around_photos_and_the_object_alone_where_alpha_says_so():
    """The alphas of a scene of the original; without --white_bkgd all of space counts."""
    settings = Settings(dataset_type="transforms", datadir=str(SCENES / "blender"), factor=1, field="hash_grid")
    assert build_hash_grid.grid_space(settings, build.load_scene(settings)).contracted
    settings = settings.replace(white_bkgd=True)
    scene = build.load_scene(settings)
    np.testing.assert_array_equal(scene.alphas, blender.load(SCENES / "blender", False, 1, True, True).alphas)
    assert not build_hash_grid.grid_space(settings, scene).contracted


def test_flags_decide_the_range_in_units(tmp_path):
    settings = Settings(dataset_type="transforms", datadir=str(write_scene(tmp_path)), factor=1, near=0.5, far=1.5)
    scene = build.load_scene(settings)
    assert (scene.near, scene.far) == (0.5, 1.5)
