"""tools/convert_poses.py: each convention by hand, there and back, and in the loaded world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nerf_tf.camera_paths import scene_paths
from nerf_tf.captures.worlds import change_world
from nerf_tf.data import blender, llff
from nerf_tf.geometry import paths
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.storage import camera_matrices, llff_files, readers, transforms_files

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"
BOUNDS_FILE = SCENES / "llff" / "poses_bounds.npy"


@pytest.fixture
def convert(tool, capsys):
    """Runs the program, which must end well; returns the file it wrote."""

    def run(*arguments: object) -> Path:
        assert tool("convert_poses").main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
        return Path(capsys.readouterr().out.strip())

    return run


@pytest.fixture
def fail(tool, capsys):
    """Runs the program, which must end with the exit code; returns what it says."""

    def run(code: int, *arguments: object) -> str:
        try:
            found = tool("convert_poses").main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            found = stopped.code
        assert found == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    return run


def test_one_camera_in_all_conventions(convert, tmp_path):
    """A camera at (1, 2, 3) that looks along the world's +x, its up the world's +z: right is -y, back is -x."""
    opengl = np.array([[0.0, 0.0, -1.0, 1.0], [-1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
    np.save(tmp_path / "a.npy", opengl[None])
    right, up, back, centre = opengl[:3].T

    def converted(kind: str, name: str = "b.npy") -> np.ndarray:
        extra = ["--hwf", 30, 40, 50, "--bounds", 1, 9]
        return np.load(convert(tmp_path / "a.npy", tmp_path / name, "--from", "opengl", "--to", kind, *extra))[0]

    np.testing.assert_array_equal(converted("opencv")[:3], np.stack([right, -up, -back, centre], axis=-1))
    # The camera sees its own right, down and forward along x, y and z, and its centre at 0.
    w2c = converted("colmap")
    np.testing.assert_allclose(w2c @ [*centre, 1], [0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(w2c @ [*(centre + 2 * right - up - 3 * back), 1], [2, 1, 3, 1], atol=1e-12)
    row = converted("llff")
    np.testing.assert_array_equal(row[:15].reshape(3, 5), np.stack([-up, right, back, centre, [30, 40, 50]], axis=-1))
    np.testing.assert_array_equal(row[15:], [1, 9])
    row = converted("ibrnet")
    np.testing.assert_array_equal(row[:2], [30, 40])
    np.testing.assert_array_equal(row[2:18].reshape(4, 4)[:2, :3], [[50, 0, 20], [0, 50, 15]])
    np.testing.assert_array_equal(row[18:].reshape(4, 4), converted("opencv"))


@pytest.mark.parametrize("world", ["dataset", "loaded"])
@pytest.mark.parametrize("spherify", [False, True])
@pytest.mark.parametrize("kind", ["transforms", "opengl", "opencv", "colmap", "ibrnet", "llff"])
def test_there_and_back(convert, tmp_path, kind, world, spherify):
    there = tmp_path / ("a.json" if kind == "transforms" else "a.npy")
    spherified = ["--spherify"] if spherify else []
    convert(BOUNDS_FILE, there, "--to", kind, "--to_world", world, *spherified)
    back = convert(
        there, tmp_path / "poses_bounds.npy", "--from", kind, "--from_world", world, "--scene", BOUNDS_FILE, *spherified
    )
    # The loader finds its world in single precision, so the way back from world-to-camera is a rotation to 1e-7 only.
    tolerance = 1e-6 if (kind, world) == ("colmap", "loaded") else 1e-12
    np.testing.assert_allclose(np.load(back), np.load(BOUNDS_FILE), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("spherify", [False, True])
def test_the_loaded_world_is_the_loaders(convert, tmp_path, spherify):
    scene = llff.load(SCENES / "llff", factor=2, spherify=spherify, no_ndc=True)
    flags = ["--to_world", "loaded", *(["--spherify"] if spherify else [])]
    converted = np.load(convert(BOUNDS_FILE, tmp_path / "a.npy", "--to", "opengl", *flags))
    np.testing.assert_allclose(converted[:, :3], scene.poses, atol=2e-6)
    converted = np.load(convert(BOUNDS_FILE, tmp_path / "poses_bounds.npy", *flags))
    np.testing.assert_allclose([0.9 * converted[:, 15].min(), converted[:, 16].max()], [scene.near, scene.far], 1e-6)


def test_what_is_written_is_what_others_read(convert, tmp_path):
    """The transforms file is one for the Blender loader, and a camera path of one's own."""
    path = convert(BOUNDS_FILE, tmp_path / "transforms_train.json", "--images", SCENES / "llff" / "images")
    split = transforms_files.read_split(path)
    poses, hwf, _ = llff_files.read_poses_bounds(BOUNDS_FILE)
    np.testing.assert_allclose(split.poses, pose_maths.llff_to_opengl(poses), atol=1e-12)
    np.testing.assert_allclose(split.focal(*hwf[0, :2]), hwf[0, 2], rtol=1e-12)
    assert [p.resolve() for p in split.paths] == [p.resolve() for p in sorted((SCENES / "llff" / "images").iterdir())]
    np.testing.assert_allclose(scene_paths.read_path(path, 30), split.poses, rtol=1e-6)
    meta = json.loads(path.read_text())
    assert {"w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "frames"} == set(meta)


def test_frames_are_ordered_by_the_names_of_their_images(convert, tmp_path):
    convert(BOUNDS_FILE, tmp_path / "a.json", "--images", SCENES / "llff" / "images")
    meta = json.loads((tmp_path / "a.json").read_text())
    meta["frames"].reverse()
    (tmp_path / "b.json").write_text(json.dumps(meta))
    back = convert(tmp_path / "b.json", tmp_path / "poses_bounds.npy", "--scene", BOUNDS_FILE)
    np.testing.assert_allclose(np.load(back), np.load(BOUNDS_FILE), rtol=1e-12)


def test_paths_of_images_go_on_to_name_the_same_files(convert, tmp_path):
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "a.json").write_text(json.dumps(meta_of()))
    path = convert(tmp_path / "scene" / "a.json", tmp_path / "b.json")
    assert [frame["file_path"] for frame in json.loads(path.read_text())["frames"]] == ["scene/train/r_0.png"]


def meta_of(frame: dict | None = None, **changes: object) -> dict:
    """A transforms file of one camera."""
    own = {"file_path": "./train/r_0", "transform_matrix": np.eye(4).tolist()} | (frame or {})
    return {"w": 40, "h": 30, "fl_x": 50, "frames": [own]} | changes


def test_numbers_of_a_frame_go_before_those_of_the_file(convert, tmp_path):
    bounds = ["--bounds", 1, 5]
    (tmp_path / "a.json").write_text(json.dumps(meta_of({"fl_x": 60})))
    row = np.load(convert(tmp_path / "a.json", tmp_path / "poses_bounds.npy", *bounds))[0]
    np.testing.assert_array_equal([row[4], row[9], row[14], *row[15:]], [30, 40, 60, 1, 5])
    meta = meta_of(camera_angle_x=2 * np.arctan(0.25))
    del meta["fl_x"]
    (tmp_path / "a.json").write_text(json.dumps(meta))
    row = np.load(convert(tmp_path / "a.json", tmp_path / "poses_bounds.npy", *bounds))[0]
    np.testing.assert_allclose(row[14], 80)


def test_the_size_of_images_is_read_from_them_where_the_file_lacks_it(convert, tmp_path):
    source = SCENES / "blender" / "transforms_train.json"
    rows = np.load(convert(source, tmp_path / "poses_bounds.npy", "--bounds", 2, 6))
    scene = blender.load(SCENES / "blender")
    camera = scene.cameras[0]
    np.testing.assert_allclose(rows[0, [4, 9, 14]], [camera.height, camera.width, camera.fx])
    np.testing.assert_allclose(
        pose_maths.llff_to_opengl(rows[:, :15].reshape(-1, 3, 5)[..., :4]), scene.poses[: len(rows)], atol=1e-6
    )


def test_poses_alone_do_not_need_the_rest(convert, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"k1": 0.5, "frames": meta_of()["frames"]}))
    np.testing.assert_array_equal(
        np.load(convert(tmp_path / "a.json", tmp_path / "a.npy", "--to", "opengl"))[0], np.eye(4)
    )


def test_without_photos_their_names_are_made_up_and_said(tool, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.eye(4)[None])
    arguments = [str(tmp_path / "a.npy"), str(tmp_path / "a.json"), "--from", "opengl", "--hwf", "3", "4", "5"]
    assert tool("convert_poses").main(arguments) == 0
    assert "no folder of images: file_path is images/000.png" in capsys.readouterr().err
    assert json.loads((tmp_path / "a.json").read_text())["frames"][0]["file_path"] == "images/000.png"


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"frames": []}, "a.json: frames must be a list of at least one view"),
        (meta_of({"transform_matrix": (2 * np.eye(4)).tolist()}), "frame 0: the camera's axes have lengths 2, 2, 2"),
        (meta_of(k1=0.1), "a.json: has k1 0.1; undistort the images first"),
        (meta_of(fl_x=-1), "a.json: fl_x is -1.0; it must lie between 0 and 1e9"),
        (meta_of(fl_y=60), "poses_bounds.npy: llff has one focal length and a centred camera; camera 0 has fx != fy"),
        (meta_of(cx=10), "poses_bounds.npy: llff has one focal length and a centred camera"),
        ({"frames": meta_of()["frames"]}, "llff needs the images' size and focal length; give --hwf H W F, or --scene"),
    ],
)
def test_files_that_cannot_be_converted(fail, tmp_path, meta, reason):
    (tmp_path / "a.json").write_text(json.dumps(meta))
    message = fail(1, tmp_path / "a.json", tmp_path / "poses_bounds.npy", "--bounds", 1, 4)
    assert message.startswith(f"convert_poses: {tmp_path}/")
    assert reason in message
    assert not (tmp_path / "poses_bounds.npy").exists()


def test_a_scene_of_other_cameras_is_not_taken_silently(tool, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.eye(4)[None])
    arguments = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "--from", "opencv", "--to", "opengl"]
    assert tool("convert_poses").main([*arguments, "--scene", str(BOUNDS_FILE)]) == 0
    count = len(np.load(BOUNDS_FILE))
    assert f"{BOUNDS_FILE}: {count} cameras, but {tmp_path / 'a.npy'} has 1: sizes, " in capsys.readouterr().err
    assert np.load(tmp_path / "b.npy").shape[0] == 1


def test_arrays_that_are_no_poses(fail, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 5)))
    arguments = [tmp_path / "a.npy", tmp_path / "b.npy", "--to", "opengl"]
    assert "a.npy: holds [2, 5]; opencv has [N, 4, 4] or [N, 3, 4]" in fail(1, *arguments, "--from", "opencv")
    assert "a.npy: holds [2, 5]; ibrnet has [N, 34]" in fail(1, *arguments, "--from", "ibrnet")
    np.save(tmp_path / "a.npy", np.eye(4)[None] * [[[1, 1, -1, 1]]])
    assert "a.npy: pose 0: the camera's axes are left-handed" in fail(1, *arguments, "--from", "colmap")
    (tmp_path / "a.json").write_text(json.dumps(meta_of()))
    assert "llff needs the depths that photos show; give --bounds NEAR FAR" in fail(
        1, tmp_path / "a.json", tmp_path / "poses_bounds.npy"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a.npy", "poses_bounds.npy"],
            "a.npy: its name does not say which format it has; give --from (llff, ",
        ),
        (["a.json", "b.npy"], "b.npy: its name does not say which format it has; give --to"),
        (
            ["a.json", "b.json", "--to_world", "loaded"],
            "give --scene, the poses_bounds.npy from which the loaded world",
        ),
        (["a.json", "b.json", "--bounds", "2", "1"], "--bounds: expected 0 < NEAR < FAR"),
        (["a.json", "b.json", "--hwf", "2", "1", "0"], "--hwf: expected three numbers > 0"),
    ],
)
def test_wrong_arguments(fail, arguments, message):
    assert message in fail(2, *arguments)


def test_change_world_turns_and_moves_but_does_not_scale_axes():
    rotation = paths.spherical_pose(30.0, -20.0, 1.0)[:, :3]
    similarity = np.eye(4)
    similarity[:3] = np.concatenate([3.0 * rotation, [[1.0], [2.0], [3.0]]], axis=-1)
    poses = paths.orbit_path(5)
    moved = change_world(similarity, poses)
    camera_matrices.require_rigid(moved, list("abcde"))
    np.testing.assert_allclose(moved[:, :, 3], poses[:, :, 3] @ similarity[:3, :3].T + similarity[:3, 3])
    np.testing.assert_allclose(moved[:, :, :3], rotation @ poses[:, :, :3])
    np.testing.assert_allclose(change_world(np.linalg.inv(similarity), moved), poses, atol=1e-12)


def test_real_poses_there_and_back(convert, tmp_path, real_data):
    source = real_data / "data" / "nerf_llff_data" / "fern" / "poses_bounds.npy"
    there = convert(source, tmp_path / "a.npy", "--to", "colmap", "--to_world", "loaded")
    back = convert(
        there, tmp_path / "poses_bounds.npy", "--from", "colmap", "--from_world", "loaded", "--scene", source
    )
    np.testing.assert_allclose(np.load(back), readers.read_npy(source), rtol=1e-6, atol=1e-6)
