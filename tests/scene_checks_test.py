"""Warnings about scenes on which training goes wrong, and none about good scenes."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerf_tf.data import blender, deepvoxels, llff
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import paths
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.safety import scene_checks

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"
REMEDY = "--no_ndc --spherify --lindisp"


def a_scene(poses: np.ndarray, near: float, far: float, **others: object) -> Scene:
    """Photos of 48x36, of which only the cameras matter."""
    count, none = len(poses), np.zeros(0, np.int64)
    return Scene(
        images=np.tile(np.linspace(0.0, 1.0, 48, dtype=np.float32)[:, None], [count, 36, 1, 3]),
        poses=poses.astype(np.float32),
        cameras=(Camera.centred(36, 48, 46.0),) * count,
        near=near,
        far=far,
        i_train=np.arange(count),
        i_val=none,
        i_test=none,
        render_poses=poses[:0],
        **{"ndc": False, "names": tuple(f"images/{i:03d}.png" for i in range(count)), **others},
    )


def ring(elevation: float, radius: float = 4.0, count: int = 12) -> np.ndarray:
    return np.stack([paths.spherical_pose(360 * i / count, -elevation, radius) for i in range(count)])


def forward_facing(rng: np.random.Generator, count: int = 20, target: float = 6.0, spread: float = 0.4) -> np.ndarray:
    """Cameras near the origin that look roughly at a point before them."""
    centres = rng.normal(size=(count, 3)) * [spread, spread, 0.1 * spread]
    targets = np.array([0.0, 0.0, -target]) + 0.02 * rng.normal(size=(count, 3))
    poses = [pose_maths.look_at(c - t, [0.0, 1.0, 0.0], c) for c, t in zip(centres, targets, strict=True)]
    return pose_maths.recenter(np.stack(poses))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def front(rng) -> Scene:
    """A forward-facing scene that is all right, out of NDC."""
    bounds = np.stack([rng.uniform(1.33, 2.0, 20), rng.uniform(8.0, 12.0, 20)], axis=-1)
    return a_scene(forward_facing(rng), 1.2, 12.0, bounds=bounds, to_dataset=np.diag([2.0, 2.0, 2.0, 1.0]))


def with_bound(scene: Scene, rows: list[int], column: int, value: float) -> Scene:
    bounds = scene.bounds.copy()
    bounds[rows, column] = value / scene.unit  # in the file's units
    return dataclasses.replace(scene, bounds=bounds)


def with_camera_at(scene: Scene, rows: list[int], centre: tuple[float, float, float]) -> Scene:
    poses = scene.poses.copy()
    poses[rows, :, 3] = np.array(centre) / scene.unit
    return dataclasses.replace(scene, poses=poses)


def one(warnings: list[str]) -> str:
    assert len(warnings) == 1, warnings
    assert "\n" not in warnings[0]
    return warnings[0]


# Cameras that don't fit NDC


@pytest.mark.parametrize(("elevation", "share"), [(5.0, "39 %"), (15.0, "17 %")])
def test_a_walk_around_the_scene_does_not_fit_ndc(elevation, share):
    poses = pose_maths.recenter(ring(elevation))
    assert (poses[:, 2, 2] > 0).all()  # no camera looks backwards, only rays do
    scene = a_scene(poses, 0.0, 1.0, ndc=True)
    message = one(scene_checks.check_scene(scene))
    assert f"12 of 12 views have rays that run sideways or backwards ({share} of all rays)" in message
    assert message.endswith(REMEDY)
    assert not scene_checks.check_scene(a_scene(ring(elevation), 2.0, 6.0))


def test_the_share_of_backward_rays_is_that_of_all_pixels():
    scene = a_scene(pose_maths.recenter(ring(15.0)), 0.0, 1.0, ndc=True)
    large = tuple(Camera.centred(144, 192, 184.0) for _ in scene.cameras)
    rows, cols = np.indices([144, 192])
    exact = np.mean([large[0].rays(pose, rows, cols)[1][..., 2] >= 0 for pose in scene.poses])
    message = one(scene_checks.check_ndc(dataclasses.replace(scene, cameras=large)))
    assert f"({100 * exact:.0f} % of all rays)" in message


def test_one_camera_that_looks_elsewhere_is_named(front):
    poses = front.poses.copy()
    poses[7, :, [0, 2]] *= -1
    message = one(scene_checks.check_scene(dataclasses.replace(front, ndc=True, near=0.0, far=1.0, poses=poses)))
    assert "1 of 20 views have rays" in message
    assert "poses_bounds.npy: row 7 (images/007.png)" in message


def test_what_spherify_makes_does_not_fit_ndc():
    message = one(scene_checks.check_scene(llff.load(SCENES / "llff", factor=2, spherify=True)))
    assert "the scene begins before that in 9 of 9 views" in message
    assert message.endswith(REMEDY)


# near and far


@pytest.mark.parametrize(
    ("distance", "remedy"),
    [(20.0, "--near 10 --far 30"), (0.8, "--near 0.4 --far 1.2"), (1.5, "--near 0.75 --far 2.3")],
)
def test_a_range_beside_what_the_cameras_look_at(distance, remedy):
    scene = a_scene(np.concatenate([ring(5.0, distance), ring(40.0, distance)]), 2.0, 6.0)
    message = one(scene_checks.check_scene(scene))
    assert message.startswith("near 2 and far 6 leave out what 24 of 24 views show")
    assert f"a point {distance:g} away" in message
    assert message.endswith(f"try {remedy}")
    near, far = (float(word) for word in remedy.split()[1::2])
    assert not scene_checks.check_scene(dataclasses.replace(scene, near=near, far=far))


def test_some_cameras_beyond_far_count_and_few_do_not():
    for far_away, count in ((2, 0), (6, 1)):
        poses = np.concatenate([ring(20.0, 4.0, 12 - far_away), ring(30.0, 7.0, far_away)])
        assert len(scene_checks.check_scene(a_scene(poses, 2.0, 6.0))) == count


def test_cameras_whose_axes_do_not_meet_say_nothing_of_the_range(rng):
    outwards = ring(10.0)
    outwards[:, :, [0, 2]] *= -1
    parallel = np.tile(np.eye(4)[None, :3], (12, 1, 1))
    parallel[:, :2, 3] = rng.normal(size=(12, 2))
    nearly = pose_maths.recenter(forward_facing(rng, target=1e4))
    scattered = np.stack(
        [pose_maths.look_at(v, [0.1, 0.2, 0.9], 5 * rng.normal(size=3)) for v in rng.normal(size=(30, 3))]
    )
    forward = llff.load(SCENES / "llff", factor=2).poses  # nearest to each other before the cameras, by chance
    for poses in (outwards, parallel, nearly, scattered, forward, ring(10.0)[:1]):
        assert not scene_checks.check_range(a_scene(poses, 0.01, 0.02))


def test_a_range_beside_the_bounds_of_the_file(front):
    assert not scene_checks.check_scene(front)
    message = one(scene_checks.check_scene(dataclasses.replace(front, near=20.0, far=60.0)))
    assert message.startswith("near 20 and far 60 leave out what 20 of 20 views show")
    assert message.endswith("leave --near and --far out")


# Bad rows


def test_a_near_bound_far_below_the_others(front):
    message = one(scene_checks.check_scene(with_bound(front, [3], 0, 0.01)))
    median = np.median(with_bound(front, [3], 0, 0.01).bounds[:, 0] * 2)
    assert message == (
        f"poses_bounds.npy: row 3 (images/003.png): near bound 0.01 is {median / 0.01:.0f} times smaller than the "
        f"median {median:.3g}; the whole scene is scaled by it; correct the row, or remove it and its photo"
    )
    assert not scene_checks.check_scene(with_bound(front, [3], 0, 0.4))


def test_several_bad_rows_are_named_together(front):
    message = one(scene_checks.check_scene(with_bound(front, [2, 3, 5, 8, 13, 14, 15], 0, 0.01)))
    assert "rows 2 (images/002.png), 3 (images/003.png), 5 (images/005.png), 8 (images/008.png) and 3 more" in message


def test_a_far_bound_counts_where_samples_are_spread_to_it(front):
    scene = with_bound(dataclasses.replace(front, far=1000.0), [4], 1, 2000.0)
    message = one(scene_checks.check_scene(scene))
    assert message.startswith("poses_bounds.npy: row 4 (images/004.png): far bound 2e+03 is ")
    assert not scene_checks.check_scene(scene, lindisp=True)
    assert not scene_checks.check_scene(dataclasses.replace(scene, far=15.0))
    assert not scene_checks.check_scene(dataclasses.replace(scene, ndc=True, near=0.0, far=1.0))


def test_a_camera_far_from_all_others(front):
    message = one(scene_checks.check_scene(with_camera_at(front, [5], (600.0, 0.0, 0.0))))
    assert message.startswith("poses_bounds.npy: row 5 (images/005.png): the camera is 600 from the middle of all")
    assert "rows 5 (images/005.png) and 9 (images/009.png)" in one(
        scene_checks.check_scene(with_camera_at(front, [5, 9], (0.0, 600.0, 0.0)))
    )
    around = a_scene(ring(10.0), 2.0, 6.0, names=())
    assert one(scene_checks.check_cameras(with_camera_at(around, [1], (0.0, 0.0, 300.0)))).startswith(
        "view 1: the camera"
    )


def test_cameras_in_a_line_or_in_one_place_are_all_right(front):
    line = np.tile(np.eye(4)[None, :3], (50, 1, 1))
    line[:, 0, 3] = np.arange(50)
    assert not scene_checks.check_cameras(a_scene(line, 1.0, 10.0))
    # One photo a step aside, all others from one place.
    still = front.poses.copy()
    still[:, :, 3] *= 1e-3
    still[0, :, 3] = [1.0, 0.0, 0.0]
    assert not scene_checks.check_cameras(dataclasses.replace(front, poses=still))


# Poses of other conventions


@pytest.mark.parametrize("centre", [(0.0, 0.0, 0.0), (5.0, -3.0, 1.0)])
@pytest.mark.parametrize(
    ("misread", "message"),
    [
        (pose_maths.opengl_to_opencv, "all cameras look away from the place where their axes meet"),
        (pose_maths.invert, "they may be world-to-camera matrices; if so, invert each"),
        (lambda c2w: pose_maths.invert(pose_maths.opengl_to_opencv(c2w)), "they may be world-to-camera matrices"),
    ],
)
def test_poses_of_another_convention_are_told_by_where_they_look(rng, centre, misread, message):
    poses = ring(15.0) + np.concatenate([np.zeros([3, 3]), np.array(centre)[:, None]], axis=-1)
    poses[:, :, 3] += rng.normal(scale=0.2, size=(12, 3))
    assert not scene_checks.check_axes(a_scene(poses, 2.0, 6.0))
    scene = a_scene(misread(poses), 2.0, 6.0)
    assert message in one(scene_checks.check_axes(scene))
    assert set(scene_checks.check_axes(scene)) <= set(scene_checks.check_scene(scene))


def test_the_remedy_for_axes_is_that_of_the_file(rng):
    poses = pose_maths.opengl_to_opencv(ring(15.0))
    assert one(scene_checks.check_axes(a_scene(poses, 2.0, 6.0))).endswith("columns of each pose by -1")
    bounds = np.tile([2.0, 6.0], (12, 1))
    assert "tools/convert_poses.py" in one(scene_checks.check_axes(a_scene(poses, 2.0, 6.0, bounds=bounds)))


@pytest.mark.parametrize("tilt", [0.005, 0.05, 0.3])
def test_cameras_that_look_at_nothing_in_common_say_nothing_of_their_axes(rng, tilt):
    for _ in range(20):
        centres = rng.normal(size=(20, 3))
        back = np.array([0.0, 0.0, 1.0]) + tilt * rng.normal(size=(20, 3))
        poses = np.stack([pose_maths.look_at(b, [0.0, 1.0, 0.0], c) for b, c in zip(back, centres, strict=True)])
        assert not scene_checks.check_axes(a_scene(poses, 2.0, 6.0))


def test_cameras_that_all_stand_in_one_place(front):
    poses = front.poses.copy()
    poses[:, :, 3] = [1.0, 2.0, 3.0]
    scene = dataclasses.replace(front, poses=poses)
    assert "all cameras stand in one place" in one(scene_checks.check_scene(scene))
    poses[3, 0, 3] += 0.01
    assert not scene_checks.check_scene(dataclasses.replace(scene, poses=poses))


# Photos that are listed twice


def test_photos_with_two_poses_and_tests_of_known_photos(front):
    names = ("a.png", "b.png", "a.png", *(f"{i}.png" for i in range(17)))
    scene = dataclasses.replace(front, names=names, i_train=np.arange(19), i_test=np.array([19]))
    assert one(scene_checks.check_scene(scene)).startswith("a.png: listed more than once for training; ")
    scene = dataclasses.replace(scene, i_train=np.arange(2), i_test=np.arange(2, 20))
    assert one(scene_checks.check_scene(scene)).startswith("a.png: listed twice, for training and for tests, ")


@pytest.mark.parametrize("colour", [0.0, 1.0])
def test_photos_of_one_colour(colour):
    scene = a_scene(ring(30.0), 2.0, 6.0)
    assert scene_checks.check_scene(scene) == []
    scene.images[3] = colour
    expected = "view 3 (images/003.png): of one colour all over; export it again, or remove it and its pose"
    assert scene_checks.check_scene(scene) == [expected]
    scene.images[[5, 7]] = 1.0 - colour
    scene.images[5, 35, 47] = 0.5  # one pixel is enough
    assert one(scene_checks.check_scene(scene)) == (
        "view 3 (images/003.png) and view 7 (images/007.png): of one colour all over; export them again, or remove "
        "them and their poses"
    )


# Stale copies


@pytest.fixture
def copied(tmp_path) -> Path:
    """A scene whose images_2/ was made from its photos, of 64x48."""
    folder = Path(shutil.copytree(SCENES / "llff", tmp_path / "scene"))
    shutil.rmtree(folder / "images_2")
    columns = np.linspace(0, 255, 64)
    for i, photo in enumerate(sorted((folder / "images").iterdir())):
        wave = np.sin(np.arange(48) / (3 + i))[:, None, None] * 100 + 128
        Image.fromarray((0.5 * wave + 0.5 * columns[None, :, None]).repeat(3, -1).astype(np.uint8)).save(photo)
    llff.load(folder, factor=2)
    return folder


def copy_warnings(folder: Path) -> list[str]:
    return scene_checks.check_scene(llff.load(folder, factor=2), folder)


def age(path: Path, seconds: float) -> None:
    time = path.stat().st_mtime - seconds
    os.utime(path, (time, time))


def test_copies_of_other_names_are_warned_of(copied):
    assert not copy_warnings(copied)
    for copy in sorted((copied / "images_2").iterdir()):
        copy.rename(copy.with_name(f"old_{copy.name}"))
    message = one(copy_warnings(copied))
    assert f"{copied / 'images_2'}: no photo in images/ has the name of old_im00.png" in message
    assert message.endswith("delete images_2/ so that it is made anew")
    assert not scene_checks.check_scene(llff.load(copied, factor=2))  # without the folder
    assert not scene_checks.check_scene(llff.load(copied, factor=1), copied)
    shutil.rmtree(copied / "images_2")
    assert not copy_warnings(copied)


def test_the_authors_numbers_are_names_of_copies(copied):
    for i, copy in enumerate(sorted((copied / "images_2").iterdir())):
        copy.rename(copy.with_name(f"image{i:03d}.png"))
    assert not copy_warnings(copied)


@pytest.mark.parametrize("numbered", [False, True])
def test_copies_older_than_their_photos_are_warned_of_if_they_differ(copied, numbered):
    copies = sorted((copied / "images_2").iterdir())
    if numbered:
        copies = [copy.rename(copy.with_name(f"image{i:03d}.png")) for i, copy in enumerate(copies)]
    for copy in copies:
        age(copy, 3600.0)
    assert not copy_warnings(copied)  # times are lost in copying and unpacking
    photo = copied / "images" / "im03.png"
    Image.fromarray(np.asarray(Image.open(photo))[::-1]).save(photo)
    for i, copy in enumerate(copies):
        if i != 3:
            age(copy, -3600.0)
    message = one(copy_warnings(copied))
    assert f"{copied / 'images_2'}: {copies[3].name} is older than" in message
    age(copies[3], -3600.0)
    assert not copy_warnings(copied)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_photos_that_cannot_be_read_say_nothing_of_the_copies(copied, content):
    for copy in (copied / "images_2").iterdir():
        age(copy, 3600.0)
    for photo in (copied / "images").iterdir():
        photo.write_bytes(content)
    assert not copy_warnings(copied)
    for photo in (copied / "images").iterdir():
        photo.unlink()
    assert not copy_warnings(copied)


# Scenes that are all right


@pytest.mark.parametrize("options", [{}, {"no_ndc": True}, {"no_ndc": True, "spherify": True}])
def test_fern_is_all_right(real_data, options):
    folder = real_data / "data" / "nerf_llff_data" / "fern"
    assert scene_checks.check_scene(llff.load(folder, factor=8, **options), folder) == []


def test_lego_is_all_right(real_data, monkeypatch):

    def read_nothing(paths, *_: object, **__: object) -> tuple[np.ndarray, None]:
        return np.broadcast_to(np.linspace(0, 1, 400, dtype=np.float32)[:, None], (len(paths), 400, 400, 3)), None

    monkeypatch.setattr(blender.image_files, "read_photos", read_nothing)
    folder = real_data / "data" / "nerf_synthetic" / "lego"
    scene = blender.load(folder, half_res=True)
    assert scene.names[0] == "train/r_0.png"
    assert scene_checks.check_scene(scene, folder) == []


@pytest.mark.parametrize(
    "load",
    [
        lambda: blender.load(SCENES / "blender"),
        lambda: llff.load(SCENES / "llff", factor=2),
        lambda: llff.load(SCENES / "llff", factor=2, no_ndc=True),
        lambda: llff.load(SCENES / "llff", factor=2, no_ndc=True, spherify=True),
    ],
)
def test_the_portable_scenes_are_all_right(load):
    assert scene_checks.check_scene(load()) == []


def test_the_portable_cameras_of_deepvoxels_look_away_from_the_object():
    """They were drawn for the loader alone."""
    assert "all cameras look away" in one(scene_checks.check_scene(deepvoxels.load(SCENES / "deepvoxels", "greek")))


def test_the_built_in_scene_is_all_right(tool, tmp_path):
    still_life = tool("still_life")
    folders = [
        still_life.write_blender(tmp_path / "blender", 8, 8, 20, 4, 8),
        still_life.write_llff(tmp_path / "llff", 8, 10, 20),
        still_life.write_deepvoxels(tmp_path / "deepvoxels", "greek", 20, 4, 8, side=8),
    ]
    scenes = [
        (blender.load(folders[0]), folders[0]),
        (deepvoxels.load(folders[2], "greek"), folders[2]),
        *((llff.load(folders[1], 2, no_ndc=no_ndc), folders[1]) for no_ndc in (False, True)),
    ]
    for scene, folder in scenes:
        assert scene_checks.check_scene(scene, folder) == []
