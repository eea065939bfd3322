"""The LLFF loader, against what the original loaded from the same files."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerf_tf.captures.worlds import transform_points
from nerf_tf.data import llff
from nerf_tf.geometry import paths
from nerf_tf.geometry import poses as pose_maths

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"
REAL = os.environ.get("NERF_TF_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="NERF_TF_REAL_DATA is not set")


@pytest.fixture
def scene_dir(tmp_path):
    return Path(shutil.copytree(SCENES / "llff", tmp_path / "scene"))


def edit_rows(folder: Path, change) -> None:
    rows = np.load(folder / "poses_bounds.npy")
    np.save(folder / "poses_bounds.npy", change(rows))


@pytest.mark.parametrize(("spherify", "prefix"), [(False, "llff_"), (True, "llff_spherify_")])
def test_matches_the_original(spherify, prefix):
    scene = llff.load(SCENES / "llff", factor=2, spherify=spherify, llffhold=0, no_ndc=True)
    with np.load(SCENES / "loaded.npz") as arrays:
        golden = {name: arrays[prefix + name] for name in ("images", "poses", "bds", "render_poses", "i_test")}
    np.testing.assert_array_equal(scene.images, golden["images"])
    np.testing.assert_allclose(scene.poses, golden["poses"][..., :4], atol=1e-6)
    np.testing.assert_allclose(scene.render_poses, golden["render_poses"][..., :4], atol=1e-6)
    np.testing.assert_allclose(scene.near, 0.9 * golden["bds"].min(), rtol=1e-6)
    np.testing.assert_allclose(scene.far, golden["bds"].max(), rtol=1e-6)
    assert not scene.ndc
    np.testing.assert_array_equal(scene.i_test, [golden["i_test"]])
    np.testing.assert_array_equal(scene.i_val, scene.i_test)
    np.testing.assert_array_equal(np.sort([*scene.i_train, *scene.i_test]), np.arange(9))
    height, width, focal = golden["poses"][0, :, 4]
    assert len(scene.cameras) == 9
    for camera in scene.cameras:
        assert (camera.height, camera.width, camera.cx, camera.cy) == (height, width, width / 2, height / 2)
        np.testing.assert_allclose([camera.fx, camera.fy], focal, rtol=1e-6)
    assert all(getattr(scene, name).dtype == np.float32 for name in ("images", "poses", "render_poses"))


def test_ndc_has_its_own_near_and_far():
    scene = llff.load(SCENES / "llff", factor=2)
    assert (scene.near, scene.far, scene.ndc) == (0.0, 1.0, True)


@pytest.mark.parametrize(("llffhold", "test"), [(8, [0, 8]), (3, [0, 3, 6]), (100, [0])])
def test_every_llffhold_th_view_is_held_out(llffhold, test):
    scene = llff.load(SCENES / "llff", factor=2, llffhold=llffhold)
    np.testing.assert_array_equal(scene.i_test, test)
    np.testing.assert_array_equal(scene.i_val, test)
    np.testing.assert_array_equal(scene.i_train, [i for i in range(9) if i not in test])
    assert scene.i_train.dtype == scene.i_test.dtype == np.int64


def test_bd_factor_sets_the_nearest_bound():
    for bd_factor, nearest in (
        (0.75, 1 / 0.75),
        (0.5, 2.0),
        (None, np.load(SCENES / "llff/poses_bounds.npy")[:, 15].min()),
    ):
        scene = llff.load(SCENES / "llff", factor=2, no_ndc=True, bd_factor=bd_factor)
        np.testing.assert_allclose(scene.near, 0.9 * nearest, rtol=1e-6)


@pytest.mark.parametrize("factor", [0, 1, None])
def test_full_size(factor):
    scene = llff.load(SCENES / "llff", factor=factor)
    assert scene.images.shape == (9, 24, 32, 3)
    np.testing.assert_allclose(scene.cameras[0].fx, np.load(SCENES / "llff" / "poses_bounds.npy")[0, 14])


def test_missing_sizes_are_made_once(scene_dir):
    scene = llff.load(scene_dir, factor=4)
    assert scene.images.shape == (9, 6, 8, 3)
    np.testing.assert_allclose(scene.cameras[0].fx, np.load(scene_dir / "poses_bounds.npy")[0, 14] / 4)
    full = llff.load(scene_dir, factor=1).images
    np.testing.assert_allclose(scene.images.mean(axis=(1, 2)), full.mean(axis=(1, 2)), atol=0.02)
    shutil.rmtree(scene_dir / "images")
    np.testing.assert_array_equal(llff.load(scene_dir, factor=4).images, scene.images)


def test_alpha_is_dropped(scene_dir):
    expected = llff.load(scene_dir, factor=2).images
    for path in sorted((scene_dir / "images_2").iterdir())[::2]:
        image = Image.open(path)
        image.putalpha(100)
        image.save(path)
    np.testing.assert_array_equal(llff.load(scene_dir, factor=2).images, expected)


def test_single_view_loads(scene_dir, caplog):
    edit_rows(scene_dir, lambda rows: rows[:1])
    for path in sorted((scene_dir / "images_2").iterdir())[1:]:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        scene = llff.load(scene_dir, factor=2)
    np.testing.assert_allclose(scene.poses, np.eye(4)[None, :3], atol=1e-6)
    assert scene.i_train.size == 0
    assert "none is left to train on" in caplog.text
    with pytest.raises(ValueError, match=r"poses_bounds\.npy: spherify needs"):
        llff.load(scene_dir, factor=2, spherify=True, no_ndc=True)


def test_photos_and_bounds_are_named_for_messages():
    scene = llff.load(SCENES / "llff", factor=2, no_ndc=True)
    assert scene.names == tuple(f"images_2/im{i:02d}.png" for i in range(9))
    np.testing.assert_allclose(
        scene.bounds * scene.unit, np.load(SCENES / "llff" / "poses_bounds.npy")[:, 15:], rtol=1e-6
    )


def write_ring(folder: Path, elevation: float, count: int = 12) -> None:
    """Cameras in a full circle around the origin, and photos of 16x12."""
    poses = np.stack([paths.spherical_pose(360 * i / count, -elevation, 3.0) for i in range(count)])
    hwf = np.tile([[12.0], [16.0], [16.0]], (count, 1, 1))
    matrices = np.concatenate([pose_maths.opengl_to_llff(poses), hwf], axis=-1)
    bounds = np.tile([2.0, 4.0], (count, 1))
    (folder / "images").mkdir(parents=True)
    np.save(folder / "poses_bounds.npy", np.concatenate([matrices.reshape(count, 15), bounds], axis=-1))
    for i in range(count):
        Image.new("RGB", (16, 12)).save(folder / "images" / f"{i:03d}.png")


# Of four cameras the directions cancel out exactly, of twelve but for rounding.
@pytest.mark.parametrize("count", [4, 12])
def test_a_level_circle_needs_spherify(tmp_path, count):
    write_ring(tmp_path, 0.0, count)
    for no_ndc in (False, True):
        with pytest.raises(
            ValueError, match=r"poses_bounds\.npy: the cameras look from all around: .*--no_ndc --spherify"
        ):
            llff.load(tmp_path, factor=1, no_ndc=no_ndc)
    for llffhold in (0, 8):
        scene = llff.load(tmp_path, factor=1, no_ndc=True, spherify=True, llffhold=llffhold)
        # The circle and the path lie in the plane z = 0, at radius 1.
        for poses in (scene.poses, scene.render_poses):
            np.testing.assert_allclose(np.linalg.norm(poses[:, :2, 3], axis=-1), 1.0, atol=1e-5)
            np.testing.assert_allclose(poses[:, 2, 3], 0.0, atol=1e-5)
        np.testing.assert_allclose(scene.poses[:, 2, 1], 1.0, atol=1e-5)
        rows = np.load(tmp_path / "poses_bounds.npy")[:, :15].reshape(-1, 3, 5)
        np.testing.assert_allclose(transform_points(scene.to_dataset, scene.poses[:, :, 3]), rows[:, :, 3], atol=1e-5)


def list_posed(folder: Path, *numbers: int) -> None:
    """Writes view_imgs.txt; its photos are JPEGs, of which images_2/ has PNG copies."""
    (folder / "view_imgs.txt").write_text("".join(f"im{i:02d}.JPG\n" for i in numbers))


def test_photos_without_poses_are_named(scene_dir):
    edit_rows(scene_dir, lambda rows: np.delete(rows, [3, 5], axis=0))
    with pytest.raises(ValueError, match=r"images_2: holds 9 .* 7 poses; 2 of the photos have none: move those"):
        llff.load(scene_dir, factor=2)
    list_posed(scene_dir, 0, 1, 2, 4, 6, 7, 8)
    message = "no pose for im03.png and im05.png: move these photos out of {}$"
    with pytest.raises(ValueError, match=message.format("images_2/ and images/")):
        llff.load(scene_dir, factor=2)
    with pytest.raises(ValueError, match=message.format("images/")):
        llff.load(scene_dir, factor=1)
    list_posed(scene_dir, 0, 1, 2)  # of an earlier run of COLMAP
    with pytest.raises(ValueError, match="2 of the photos have none"):
        llff.load(scene_dir, factor=2)
    (scene_dir / "view_imgs.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="2 of the photos have none"):
        llff.load(scene_dir, factor=2)
    list_posed(scene_dir, 0, 1, 2, 4, 6, 7, 8)
    for folder in ("images", "images_2"):
        for i in (3, 5):
            (scene_dir / folder / f"im{i:02d}.png").unlink()
    assert len(llff.load(scene_dir, factor=2).images) == 7


def test_an_incomplete_copy_is_to_be_deleted(scene_dir):
    (scene_dir / "images_2" / "im03.png").unlink()
    with pytest.raises(ValueError, match=r"images_2: holds 8 .* 9 poses, as many as images/ .*; delete images_2/"):
        llff.load(scene_dir, factor=2)
    for photo in (scene_dir / "images").iterdir():
        photo.rename(scene_dir / photo.name)
    with pytest.raises(ValueError, match=r"images_2: holds 8 .* 9 poses; photos are missing; put them back"):
        llff.load(scene_dir, factor=2)
    for photo in scene_dir.glob("*.png"):
        photo.rename(scene_dir / "images" / photo.name)
    shutil.rmtree(scene_dir / "images_2")
    assert len(llff.load(scene_dir, factor=2).images) == 9


def test_missing_photos_are_named_and_none_is_to_be_removed(scene_dir):
    for i in (3, 5):
        (scene_dir / "images" / f"im{i:02d}.png").unlink()
    with pytest.raises(ValueError, match=r"holds 7 .* 9 poses; photos are missing; put them back") as error:
        llff.load(scene_dir, factor=1)
    assert "remove" not in str(error.value)
    list_posed(scene_dir, *range(9))
    with pytest.raises(ValueError, match=r"missing: im03\.JPG and im05\.JPG, says view_imgs\.txt; put them back"):
        llff.load(scene_dir, factor=1)
    for name in ("im03.tif", "im05.tif"):
        (scene_dir / "images" / name).write_bytes(b"")
    (scene_dir / "images" / "Thumbs.db").write_bytes(b"")
    (scene_dir / "images" / ".DS_Store").write_bytes(b"")
    with pytest.raises(ValueError, match=r"not read: im03\.tif and im05\.tif \(save photos as"):
        llff.load(scene_dir, factor=1)


def test_photos_of_other_poses_are_warned_of(scene_dir, caplog):
    list_posed(scene_dir, *range(9))
    llff.load(scene_dir, factor=1)
    # A photo in the wrong place; then all renamed, as the authors' copies are, of which the order may be right.
    list_posed(scene_dir, *range(8), 20)
    llff.load(scene_dir, factor=1)
    list_posed(scene_dir, *range(20, 29))
    llff.load(scene_dir, factor=1)
    (message,) = caplog.messages
    assert "images: view_imgs.txt lists no pose for im08.png, but poses for im20.JPG, which is missing" in message


def test_unequal_focal_lengths_warn_and_the_first_counts(scene_dir, caplog):
    def zoom(rows):
        rows[1:, 14] *= 1.5
        return rows

    expected = llff.load(scene_dir, factor=2).cameras[0]
    edit_rows(scene_dir, zoom)
    with caplog.at_level(logging.WARNING):
        assert set(llff.load(scene_dir, factor=2).cameras) == {expected}
    assert "focal lengths run from" in caplog.text


def test_poses_of_photos_of_another_size_warn(scene_dir, caplog):
    llff.load(scene_dir, factor=2)
    assert "is about photos" not in caplog.text

    def enlarge(rows):
        rows[:, [4, 9, 14]] *= 10.0
        return rows

    edit_rows(scene_dir, enlarge)
    llff.load(scene_dir, factor=2)
    assert "poses_bounds.npy is about photos that would be 160x120 here, and these are 16x12" in caplog.text


def with_value(index, value):
    def change(rows):
        rows[index] = value
        return rows

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-2], r"images_2: holds 9 images, but poses_bounds\.npy has 7 poses"),
        (lambda rows: rows[:, :15], r"expected an array \[N, 17\], found \(9, 15\)"),
        (lambda rows: rows[:0], r"found \(0, 17\)"),
        (lambda rows: rows.astype(str), r"it holds <U\d+, not numbers"),
        (with_value((3, 2), np.nan), "row 3 holds NaN"),
        (with_value((3, 16), 1e20), r"row 3 .*from 1e-09 to 1e\+09"),
        (with_value((2, slice(0, 15, 5)), 3.0), "row 2: the camera's axes have lengths"),
        (with_value((0, 14), 1e9), r"focal length .* does not go with images of 16x12"),
        (with_value((3, 15), -1.0), r"row 3 .*0 < near < far"),
        (with_value((4, 16), 0.1), r"row 4 .*0 < near < far"),
        (with_value((5, 14), 0.0), r"row 5 has focal 0"),
    ],
)
def test_malformed_poses_are_explained(scene_dir, change, message):
    edit_rows(scene_dir, change)
    with pytest.raises(ValueError, match=message):
        llff.load(scene_dir, factor=2)


def test_cameras_that_cancel_out_are_explained(scene_dir):
    def opposite(rows):
        matrix = np.array([[0, 1, 0, 0, 24], [-1, 0, 0, 0, 32], [0, 0, 1, 0, 30.0]])
        turned = matrix * [[1, -1, -1, 1, 1]]
        return np.stack([np.append(m, [1.0, 2.0]) for m in (matrix, turned)])

    edit_rows(scene_dir, opposite)
    for path in sorted((scene_dir / "images_2").iterdir())[2:]:
        path.unlink()
    with pytest.raises(ValueError, match=r"poses_bounds\.npy: the cameras look from all around"):
        llff.load(scene_dir, factor=2)


def test_pickled_poses_are_not_executed(scene_dir):
    np.save(scene_dir / "poses_bounds.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"poses_bounds\.npy: not an npy file.*pickled objects"):
        llff.load(scene_dir, factor=2)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", b"PK\x03\x04 no zip"])
def test_damaged_poses_are_explained(scene_dir, content):
    (scene_dir / "poses_bounds.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"poses_bounds\.npy: not an npy file"):
        llff.load(scene_dir, factor=2)


def test_photos_that_count_and_those_that_do_not(scene_dir):
    """Endings of any case, beside what systems leave behind; and files of another format, which stand for photos."""
    folder = scene_dir / "images_2"
    expected = llff.load(scene_dir, factor=2).images
    (folder / "im03.png").rename(folder / "im03.PNG")
    for name in ("._im03.png", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"no photo")
    (folder / "im04.jpg").mkdir()
    np.testing.assert_array_equal(llff.load(scene_dir, factor=2).images, expected)
    Image.open(folder / "im05.png").save(folder / "im05.jpeg")
    (folder / "im05.png").unlink()
    assert len(llff.load(scene_dir, factor=2).images) == 9
    (folder / "im03.PNG").rename(folder / "im03.webp")
    with pytest.raises(ValueError, match=r"has 9 poses, as many as images/ has photos; delete images_2/"):
        llff.load(scene_dir, factor=2)
    (folder / "im03.webp").unlink()
    with pytest.raises(ValueError, match=r"8 images, but .* has 9 poses") as raised:
        llff.load(scene_dir, factor=2)
    assert "remove" not in str(raised.value)


def test_missing_files_are_named(scene_dir):
    with pytest.raises(ValueError, match="must be positive"):
        llff.load(scene_dir, factor=-2)
    shutil.rmtree(scene_dir / "images")
    with pytest.raises(FileNotFoundError, match=r"images_8: no such folder.*; give --factor 2, as there is images_2/$"):
        llff.load(scene_dir, factor=8)
    (scene_dir / "poses_bounds.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"poses_bounds\.npy: no such file"):
        llff.load(scene_dir, factor=2)


@needs_real_data
def test_fern_matches_the_original():
    scene = llff.load(Path(REAL) / "data" / "nerf_llff_data" / "fern", factor=8, llffhold=0, no_ndc=True)
    with np.load(Path(REAL) / "golden" / "llff_fern_f8_forward.npz") as golden:
        np.testing.assert_allclose(scene.poses, golden["poses"][..., :4], atol=1e-6)
        np.testing.assert_allclose(scene.render_poses, golden["render_poses"][..., :4], atol=1e-6)
        np.testing.assert_array_equal(scene.i_test, [golden["i_test"]])
        np.testing.assert_allclose([scene.near, scene.far], [0.9 * golden["bds"].min(), golden["bds"].max()], rtol=1e-6)
        camera = scene.cameras[0]
        np.testing.assert_allclose([camera.height, camera.width, camera.fx], golden["poses"][0, :, 4], rtol=1e-6)
        np.testing.assert_array_equal(scene.images[0][::16, ::16], golden["image0"])
        np.testing.assert_allclose(scene.images.mean(axis=(1, 2)), golden["image_mean"], atol=1e-6)


@pytest.mark.parametrize("bd_factor", [0.75, None])
@pytest.mark.parametrize("spherify", [False, True])
def test_the_files_coordinates_come_back(spherify, bd_factor):
    scene = llff.load(SCENES / "llff", factor=2, spherify=spherify, no_ndc=True, bd_factor=bd_factor)
    rows = np.load(SCENES / "llff" / "poses_bounds.npy")
    matrices = rows[:, :15].reshape(-1, 3, 5)
    np.testing.assert_allclose(transform_points(scene.to_dataset, scene.poses[:, :, 3]), matrices[:, :, 3], atol=2e-6)
    back = scene.to_dataset[:3, :3] @ scene.poses[:, :, 2:3] / scene.unit
    np.testing.assert_allclose(back[..., 0], matrices[:, :, 2], atol=1e-6)
    np.testing.assert_allclose(scene.far * scene.unit, rows[:, 16].max(), rtol=1e-6)
