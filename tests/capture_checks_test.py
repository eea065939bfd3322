"""How a scene was photographed: warnings where it went wrong, none where it went well; and COLMAP's points."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import colmap_files
import numpy as np
import pytest
from scene_checks_test import a_scene, forward_facing, one, ring

from nerf_tf.captures import scene_points
from nerf_tf.data import llff
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.safety import capture_checks, scene_checks
from nerf_tf.storage import sparse_points

CAMERA = Camera.centred(36, 48, 46.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def arc(degrees: float, count: int = 15) -> np.ndarray:
    """Cameras on an arc, all facing its middle."""
    angles = np.radians(np.linspace(-0.5 * degrees, 0.5 * degrees, count))
    centres = 4.0 * np.stack([np.sin(angles), np.full(count, 0.1), np.cos(angles)], axis=-1)
    return np.stack([pose_maths.look_at(centre, [0.0, 1.0, 0.0], centre) for centre in centres])


def outwards(count: int = 16) -> np.ndarray:
    """Cameras a step from the middle of a room that look away from it, each another way."""
    poses = ring(5.0, 0.5, count)
    poses[:, :, [0, 2]] *= -1
    poses[:, :, 3] += 0.3 * np.random.default_rng(0).normal(size=(count, 3))
    return poses


def kind_of(poses: np.ndarray) -> str:
    return capture_checks.find_capture([CAMERA] * len(poses), poses).kind


def test_which_way_the_cameras_look(rng):
    assert kind_of(forward_facing(rng)) == capture_checks.FORWARD
    assert kind_of(arc(40.0)) == capture_checks.FORWARD
    for poses in (arc(120.0), ring(0.0), ring(30.0), np.concatenate([ring(10.0), ring(60.0)])):
        assert kind_of(poses) == capture_checks.AROUND
    assert kind_of(outwards()) == capture_checks.MIXED
    # Neither the world nor its unit matters.
    turn = pose_maths.look_at([1.0, 2.0, 3.0], [0.3, 1.0, 0.0], [7.0, -3.0, 2.0])
    for poses in (arc(40.0), arc(120.0), outwards()):
        moved = pose_maths.compose(turn, poses * [1.0, 1.0, 1.0, 20.0])
        assert kind_of(moved) == kind_of(poses)


def test_flags_that_follow():
    capture = capture_checks.find_capture([CAMERA] * 15, arc(120.0))
    assert capture.flags == ("--no_ndc", "--spherify", "--lindisp")
    assert capture.depth == pytest.approx(4.0, rel=0.01)
    half_diagonal = np.degrees(np.arctan(np.hypot(24, 18) / 46))
    assert half_diagonal + 55 < capture.widest < half_diagonal + 61
    assert capture_checks.find_capture([CAMERA] * 15, arc(40.0)).flags == ()
    assert "--render_path" in capture_checks.find_capture([CAMERA] * 16, outwards()).flags


def test_ndc_for_cameras_that_look_far_aside():
    """From 70 degrees to 90, where the check of rays that run backwards says nothing yet."""
    poses = pose_maths.recenter(arc(90.0))
    wide = a_scene(poses, 0.0, 1.0, ndc=True)
    assert not scene_checks.check_ndc(wide)
    message = one(capture_checks.check_capture(wide))
    assert message.startswith("all around: rays reach 7")
    assert message.endswith("add --no_ndc --spherify --lindisp")
    assert not capture_checks.check_capture(dataclasses.replace(wide, ndc=False))
    backwards = a_scene(pose_maths.recenter(ring(5.0)), 0.0, 1.0, ndc=True)
    assert scene_checks.check_ndc(backwards)
    assert not capture_checks.check_capture(backwards)  # one warning is enough


def test_poses_that_are_no_rotations():
    poses = ring(20.0)
    assert capture_checks.rotation_errors(poses).max() < 1e-6
    assert not capture_checks.check_rotations(a_scene(poses, 2.0, 6.0))
    for change in (
        lambda pose: pose * 1.1,
        lambda pose: pose * [1, 1, -1, 1],
        lambda pose: np.roll(pose, 1, axis=0) * [1, 0.5, 1, 1],
    ):
        bad = poses.copy()
        bad[3] = change(bad[3])
        assert one(capture_checks.check_rotations(a_scene(bad, 2.0, 6.0))).startswith("view 3 (images/003.png): the ")
        assert np.argmax(capture_checks.rotation_errors(bad)) == 3
        assert capture_checks.rotation_errors(bad)[3] > 0.1


def test_turning_on_the_spot_has_no_parallax(rng):
    still = forward_facing(rng)
    still[:, :, 3] *= 0.02
    bounds = np.tile([4.0, 9.0], (20, 1))
    message = one(capture_checks.check_parallax(a_scene(still, 3.6, 9.0, bounds=bounds)))
    assert "seen from the scene, under 0." in message
    assert not capture_checks.check_parallax(a_scene(forward_facing(rng), 3.6, 9.0, bounds=bounds))
    # Points say better how far the scene is than bounds do.
    far_away = np.concatenate([rng.uniform(-9, 9, (99, 2)), np.full((99, 1), -300.0)], axis=-1)
    assert capture_checks.check_parallax(a_scene(forward_facing(rng), 3.6, 9.0, bounds=bounds), far_away)
    # Two cameras that see something at distance 6 from places 1 apart.
    pair = np.stack([pose_maths.look_at(np.array([x, 0, 6.0]), [0, 1, 0], np.array([x, 0, 6.0])) for x in (-0.5, 0.5)])
    assert capture_checks.parallax(a_scene(pair, 2.0, 9.0), np.zeros([1, 3])) == pytest.approx(9.5, abs=0.1)
    assert capture_checks.parallax(a_scene(outwards(), 0.1, 20.0)) is None


def test_a_view_that_looks_elsewhere_is_named():
    poses = ring(20.0)
    poses[4, :, [0, 2]] *= -1
    scene = a_scene(poses, 2.0, 6.0)
    shares = capture_checks.shares_in_frusta(scene, capture_checks.sample_points(scene), sampled=True)
    assert one(capture_checks.check_frusta(scene, shares)).startswith("view 4 (images/004.png): sees ")
    good = a_scene(ring(20.0), 2.0, 6.0)
    shares = capture_checks.shares_in_frusta(good, capture_checks.sample_points(good), sampled=True)
    assert not capture_checks.check_frusta(good, shares)


def test_shares_are_those_of_the_frustum():
    scene = a_scene(np.eye(4)[None, :3], 1.0, 3.0)
    points = np.array(
        [[0, 0, -2], [0, 0, -0.5], [0, 0, -4], [0, 0, 2], [1.04, 0, -2], [1.05, 0, -2], [0, 0.78, -2], [0, 0.79, -2]]
    )
    assert capture_checks.shares_in_frusta(scene, points) == pytest.approx([3 / 8])
    depths = scene_points.depths_in_images(scene.cameras, scene.poses, points)[0]
    np.testing.assert_allclose(depths, [2, 0.5, 4, np.nan, 2, np.nan, 2, np.nan])
    under_ndc = dataclasses.replace(scene, ndc=True, near=0.0, far=1.0)
    assert capture_checks.shares_in_frusta(under_ndc, points) == pytest.approx([5 / 8])


def test_points_out_of_near_and_far(rng):
    scene = a_scene(ring(20.0), 2.0, 6.0)
    points = rng.normal(size=(500, 3)) * 0.4
    assert not capture_checks.check_point_range(scene, points)
    message = one(capture_checks.check_point_range(dataclasses.replace(scene, near=4.0), points))
    assert message.startswith("near 4 and far 6 leave out ")
    near, far = map(float, message.split("--near ")[1].split(" --far "))
    assert not capture_checks.check_point_range(dataclasses.replace(scene, near=near, far=far), points)
    front = a_scene(forward_facing(rng), 0.0, 1.0, ndc=True)
    before = np.concatenate([rng.uniform(-0.1, 0.1, (200, 2)), rng.uniform(-3.0, -0.5, (200, 1))], axis=-1)
    assert "NDC begins at distance 1 " in one(capture_checks.check_point_range(front, before))
    assert not capture_checks.check_point_range(front, before - [0, 0, 1])


def test_the_authors_fern_is_all_right(real_data):
    folder = real_data / "data" / "nerf_llff_data" / "fern"
    points, views = sparse_points.read_points(folder / "sparse" / "0")
    assert len(points) == 10091
    points = points[views >= 3]
    for options in ({}, {"no_ndc": True, "spherify": True}):
        scene = llff.load(folder, factor=8, **options)
        to_scene = np.linalg.inv(scene.to_dataset)
        own = points @ to_scene[:3, :3].T + to_scene[:3, 3]
        views_of_own = views[views >= 3]
        assert scene_points.share_of_sightings(scene.cameras, scene.poses, own, views_of_own) > 0.95
        assert scene_points.share_of_sightings(scene.cameras, scene.poses, points, views_of_own) < 0.1
        shares = capture_checks.shares_in_frusta(scene, own)
        assert shares.min() > 0.9
        assert capture_checks.find_capture(scene.cameras, scene.poses).kind == capture_checks.FORWARD
        found = [
            *capture_checks.check_capture(scene),
            *capture_checks.check_rotations(scene),
            *capture_checks.check_parallax(scene, own),
            *capture_checks.check_frusta(scene, shares),
            *capture_checks.check_point_range(scene, own),
        ]
        assert found == []


# How many photos, and whether they show the points where their cameras have them


@pytest.mark.parametrize(("poses", "count", "few"), [
    (arc(40.0, 9), 9, False), (arc(40.0, 8), 8, True), (arc(10.0, 1), 1, True),
    (ring(20.0, 4.0, 30), 30, False), (ring(20.0, 4.0, 29), 29, True), (outwards(), 16, True),
])  # fmt: skip
def test_few_photos(poses, count, few):
    scene = a_scene(poses, 2.0, 6.0)
    warnings = capture_checks.check_number(scene)
    assert bool(warnings) == few
    assert all(warning.startswith(f"{count} photo") for warning in warnings)
    # Before each run only so few that no scene comes of them.
    assert bool(scene_checks.check_number(scene)) == (count == 1)


def reprojection(scene: Scene, folder: Path) -> capture_checks.Reprojection | None:
    found = scene_points.find_points(folder, scene.cameras, scene.poses)
    return capture_checks.reproject(scene, sparse_points.read_sightings(folder / "sparse/0"), found.from_model)


@pytest.fixture
def with_model(tmp_path, rng) -> Scene:
    """A scene around points that its photos show; COLMAP had photos four times as large."""
    scene = a_scene(ring(20.0), 2.0, 6.0)
    colmap_files.write_model(tmp_path / "sparse/0", scene, rng.normal(size=(500, 3)) * 0.4, larger=4)
    return scene


def test_cameras_that_agree_with_the_points(with_model, tmp_path):
    found = reprojection(with_model, tmp_path)
    assert found.errors.max() < 1e-3
    assert found.zoom == pytest.approx(1.0, abs=1e-4)
    assert found.counts.min() > 400
    assert not capture_checks.check_reprojection(with_model, found)
    assert not capture_checks.check_sightings(found)


def test_a_wrong_focal_length_is_said(with_model, tmp_path):
    longer = dataclasses.replace(with_model, cameras=(Camera.centred(36, 48, 1.2 * 46.0),) * 12)
    found = reprojection(longer, tmp_path)
    message = one(capture_checks.check_reprojection(longer, found))
    assert message.startswith("12 of 12 photos: sparse points appear ")
    assert message.endswith("they would be 0.0 off with focal lengths 0.833 times as long: correct them")
    # At the median distance from the middle, in COLMAP's larger photos.
    rows, cols, _ = CAMERA.project(
        with_model.poses[0].astype(float), sparse_points.read_points(tmp_path / "sparse/0")[0]
    )
    typical = np.median(np.hypot(rows - 18, cols - 24))
    assert found.errors[0] == pytest.approx(4 * 0.2 * typical, rel=0.05)


def test_a_photo_with_the_pose_of_another_is_named(with_model, tmp_path):
    poses = with_model.poses.copy()
    poses[5] = poses[4]
    scene = dataclasses.replace(with_model, poses=poses)
    message = one(capture_checks.check_reprojection(scene, reprojection(scene, tmp_path)))
    assert message.startswith("view 5 (images/005.png): sparse points appear ")
    assert message.endswith("correct the view, or remove it and its photo")
    all_wrong = dataclasses.replace(with_model, poses=np.roll(with_model.poses, 1, axis=0))
    message = one(capture_checks.check_reprojection(all_wrong, reprojection(all_wrong, tmp_path)))
    assert message.startswith("12 of 12 photos")
    assert message.endswith("their poses or intrinsics are not those of COLMAP's model: make them anew")


def test_of_distorted_photos_nothing_is_said(with_model, tmp_path):
    (tmp_path / "sparse/0/cameras.bin").write_bytes(colmap_files.cameras(192, 144, colmap_files.SIMPLE_RADIAL))
    assert reprojection(with_model, tmp_path) is None
    (tmp_path / "sparse/0/images.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.bin: no such file"):
        sparse_points.read_sightings(tmp_path / "sparse/0")


def test_photos_that_show_few_points(with_model, tmp_path):
    found = reprojection(with_model, tmp_path)
    counts = np.full(12, 152)
    counts[5:9] = 0  # the model lacks these
    few = dataclasses.replace(found, counts=counts)
    assert one(capture_checks.check_sightings(few)).startswith("a photo shows 152 of the sparse points, in the median")


# COLMAP's files

POINTS = np.array([[1.0, -2.0, 3.5], [0.0, 1e-3, 7.0]])


def text() -> bytes:
    lines = [
        "# 3D point list",
        *(f"{i} {x} {y} {z} 1 2 3 0.5 {' 4 7' * (i + 2)}" for i, (x, y, z) in enumerate(POINTS)),
    ]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("name", "content"), [("points3D.bin", colmap_files.points(POINTS, [2, 3])), ("points3D.txt", text())]
)
def test_points_of_colmap(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    points, views = sparse_points.read_points(tmp_path)
    np.testing.assert_array_equal(points, POINTS)
    np.testing.assert_array_equal(views, [2, 3])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("points3D.bin", b""),
        ("points3D.bin", b"\xff" * 200),
        ("points3D.bin", colmap_files.points(POINTS, [2, 3])[:-1]),
        ("points3D.bin", struct.pack("<Q", 1) + struct.pack("<Q3d3BdQ", 0, 1, 2, 3, 1, 2, 3, 0.5, 2**63)),
        ("points3D.txt", b"1 2\n"),
        ("points3D.txt", b"\xff\xfe"),
        ("points3D.txt", b"1 a b c 1 2 3 0\n"),
    ],
)
def test_points_that_are_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: not COLMAP's points \("):
        sparse_points.read_points(tmp_path)


SEEN = {"a b.png": (np.array([[1.5, 2.0], [3.0, 4.0]]), [2, -1]), "c.png": (np.zeros([0, 2]), [])}
TEXT = {
    "cameras": "# Camera list\n7 PINHOLE 48 36 1 1 2 3\n",
    "images": "# Image list\n1 1 0 0 0 0 0 0 7 a b.png\n1.5 2.0 2 3.0 4.0 -1\n2 1 0 0 0 0 0 0 7 c.png\n\n",
}


@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_sightings_of_colmap(tmp_path, kind):
    (tmp_path / "points3D.bin").write_bytes(colmap_files.points(POINTS, [2, 3]))
    content = {"cameras": colmap_files.cameras(48, 36), "images": colmap_files.images(SEEN)}
    for name in content:
        (tmp_path / f"{name}.{kind}").write_bytes(content[name] if kind == "bin" else TEXT[name].encode())
    first, second = sparse_points.read_sightings(tmp_path)
    assert (first.name, first.height, first.width) == ("a b.png", 36, 48)
    np.testing.assert_array_equal(first.pixels, [[1.5, 2.0]])
    np.testing.assert_array_equal(first.points, POINTS[1:])
    assert (second.name, len(second.pixels)) == ("c.png", 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images.bin", colmap_files.images(SEEN)[:-1], "not COLMAP's photos"),
        ("images.bin", colmap_files.images(SEEN)[:-30], "not COLMAP's photos"),
        ("images.bin", b"\xff" * 99, "not COLMAP's photos .it announces 18446744073709551615 photos in 99 bytes"),
        ("images.bin", struct.pack("<QI7dI", 1, 0, *range(7), 7) + b"no end of the name", "not COLMAP's photos"),
        ("images.txt", TEXT["images"].replace("3.0 ", "").encode(), "not COLMAP's photos"),
        ("images.txt", TEXT["images"].encode()[:-1], "not COLMAP's photos .it is cut short"),
        ("cameras.bin", b"", "not COLMAP's cameras"),
        ("cameras.bin", colmap_files.cameras(48, 36, (99, 3)), "not COLMAP's cameras .camera 7 is of kind 99"),
        ("cameras.txt", b"7 PINHOLE wide 36\n", "not COLMAP's cameras"),
    ],
)
def test_sightings_that_are_none(tmp_path, name, content, message):
    valid = {"cameras.bin": colmap_files.cameras(48, 36), "images.bin": colmap_files.images(SEEN)}
    valid["points3D.bin"] = colmap_files.points(POINTS, [2, 3])
    valid.pop(f"{name.partition('.')[0]}.bin")
    for file, bytes_of_file in {**valid, name: content}.items():
        (tmp_path / file).write_bytes(bytes_of_file)
    with pytest.raises(ValueError, match=rf"{name}: {message}"):
        sparse_points.read_sightings(tmp_path)


def test_no_points(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"points3D\.bin: no such file"):
        sparse_points.read_points(Path(tmp_path))
