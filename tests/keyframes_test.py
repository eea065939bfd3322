"""Keyframes: closed forms of the motion between them, and reading their file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from nerf_tf.camera_paths.keyframes import (
    MAX_FRAMES,
    SHORTEST_STEP,
    Keyframes,
    interpolate,
    interpolate_at,
    keyframes_json,
    load_keyframes,
)
from nerf_tf.geometry import paths
from nerf_tf.storage import camera_matrices


def about(axis: int, degrees: float) -> np.ndarray:
    """The rotation [3, 3] about x, y or z."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    rotation = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return rotation


def pose(rotation: np.ndarray, centre: list[float] | np.ndarray = (0.0, 0.0, 0.0)) -> np.ndarray:
    return np.concatenate([rotation, np.reshape(centre, [3, 1])], axis=-1)


def random_path(seed: int, count: int) -> Keyframes:
    """Keyframes with unequal steps in time, and rotations of all sizes between them."""
    rng = np.random.default_rng(seed)
    rotations = [np.linalg.qr(matrix)[0] for matrix in rng.normal(size=[count, 3, 3])]
    rotations = [rotation * np.linalg.det(rotation) for rotation in rotations]
    times = np.cumsum(rng.uniform(0.1, 2.0, size=count))
    return Keyframes(times, np.stack([pose(rotation, rng.normal(size=3)) for rotation in rotations]))


def angles(rotations: np.ndarray) -> np.ndarray:
    """Angles [M - 1] in degrees between one rotation and the next."""
    relative = np.swapaxes(rotations[:-1], -1, -2) @ rotations[1:]
    # From the sine part, as the cosine loses small angles to rounding.
    return np.rad2deg(2 * np.arcsin(np.linalg.norm(relative - np.eye(3), axis=(-2, -1)) / np.sqrt(8)))


# The motion


@pytest.mark.parametrize("times", [[0.0, 1.0, 2.0, 3.0], [1.0, 1.5, 4.0, 4.2]])
def test_a_steady_line_stays_a_line(times):
    centres = np.array(times)[:, None] * [1.0, -2.0, 0.5] + [3.0, 0.0, 1.0]
    keys = Keyframes(np.array(times), np.stack([pose(np.eye(3), centre) for centre in centres]))
    path = interpolate(keys, 10)
    seconds = np.linspace(times[0], times[-1], len(path))
    np.testing.assert_allclose(path[:, :, 3], seconds[:, None] * [1.0, -2.0, 0.5] + [3.0, 0.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(path[:, :, :3], np.tile(np.eye(3), [len(path), 1, 1]), atol=1e-12)


def test_half_way_of_a_right_angle_is_45_degrees():
    keys = Keyframes(np.array([0.0, 2.0]), np.stack([pose(np.eye(3)), pose(about(1, 90.0), [1.0, 2.0, 4.0])]))
    path = interpolate(keys, 2)
    assert path.shape == (5, 3, 4)
    for i, degrees in enumerate([0.0, 22.5, 45.0, 67.5, 90.0]):
        np.testing.assert_allclose(path[i], pose(about(1, degrees), np.array([1, 2, 4]) * degrees / 90), atol=1e-12)


@pytest.mark.parametrize("step", [10.0, 95.0, 170.0])
def test_a_steady_turn_stays_steady_over_many_circles(step):
    """Its quaternions change sign on the way, which must not show."""
    start = about(0, 33.0)
    keys = Keyframes(np.arange(40.0), np.stack([pose(start @ about(2, step * i)) for i in range(40)]))
    path = interpolate(keys, 4)
    for i in range(len(path)):
        np.testing.assert_allclose(path[i, :, :3], start @ about(2, step * i / 4), atol=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_a_path_meets_its_keyframes_and_keeps_rotations(seed):
    keys = random_path(seed, 9)
    np.testing.assert_allclose(interpolate_at(keys, keys.times), keys.poses, atol=1e-12)
    rotations = interpolate_at(keys, np.linspace(keys.times[0], keys.times[-1], 500))[:, :, :3]
    np.testing.assert_allclose(np.swapaxes(rotations, -1, -2) @ rotations, np.tile(np.eye(3), [500, 1, 1]), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_velocities_do_not_jump_at_keyframes(seed):
    keys, step = random_path(seed, 9), 1e-5
    inner = keys.times[1:-1]
    before, at, after = (interpolate_at(keys, inner + offset) for offset in (-step, 0.0, step))
    speed = np.linalg.norm(after[:, :, 3] - at[:, :, 3], axis=-1)
    np.testing.assert_allclose((after - at)[:, :, 3], (at - before)[:, :, 3], atol=1e-3 * speed.max())
    # Angular velocities, as small rotations in the camera's frame.
    turn_after = np.swapaxes(at[:, :, :3], -1, -2) @ after[:, :, :3] - np.eye(3)
    turn_before = np.swapaxes(before[:, :, :3], -1, -2) @ at[:, :, :3] - np.eye(3)
    np.testing.assert_allclose(turn_after, turn_before, atol=2e-3 * np.abs(turn_after).max())


def test_a_path_turns_the_shorter_way_and_not_in_circles():
    """Turns to and fro in unequal times, which a cubic could take for a way round the back."""
    degrees, times = [0.0, 90.0, 0.0, 120.0, 0.0, 150.0], np.array([0.0, 0.1, 2.0, 2.1, 4.0, 4.1])
    keys = Keyframes(times, np.stack([pose(about(0, angle)) for angle in degrees]))
    rotations = interpolate_at(keys, np.linspace(0.0, 4.1, 5000))[:, :, :3]
    for a, b in itertools.pairwise(times):
        inside = interpolate_at(keys, np.linspace(a, b, 200))[:, :, :3]
        ends = angles(inside[[0, -1]])[0]
        assert angles(inside).sum() < 2 * ends  # some swing to and fro, but no way round the back
    assert angles(rotations).max() < 5


def test_a_camera_that_stands_still_does_not_creep():
    rest = pose(about(0, 20.0), [1.0, 2.0, 3.0])
    keys = Keyframes(np.arange(4.0), np.stack([pose(np.eye(3)), rest, rest, pose(about(2, 50.0), [5.0, 5.0, 5.0])]))
    path = interpolate_at(keys, np.linspace(1.0, 2.0, 11))
    np.testing.assert_allclose(path, np.tile(rest, [11, 1, 1]), atol=1e-12)


def test_an_orbit_through_few_keyframes_is_nearly_one():
    keys = Keyframes(np.arange(13.0), paths.orbit_path(12)[np.arange(13) % 12])
    path = interpolate(keys, 10)
    distance = np.linalg.norm(path[:, :, 3], axis=-1)
    np.testing.assert_allclose(distance, 4.0, rtol=0.01)
    looks_at_origin = np.sum(path[:, :, 2] * path[:, :, 3], axis=-1) / distance
    assert looks_at_origin.min() > np.cos(np.deg2rad(1.0))


@pytest.mark.parametrize(("fps", "count"), [(1, 3), (10, 26), (24, 61), (29.97, 76), (60, 151)])
def test_the_number_of_frames(fps, count):
    keys = Keyframes(np.array([0.5, 3.0]), np.stack([pose(np.eye(3)), pose(np.eye(3), [1.0, 0.0, 0.0])]))
    path = interpolate(keys, fps)
    assert len(path) == count
    np.testing.assert_array_equal(path[[0, -1], :, 3], keys.poses[:, :, 3])


def test_one_keyframe_is_one_frame():
    path = interpolate(Keyframes(np.array([7.0]), pose(about(1, 30.0), [1.0, 2.0, 3.0])[None]), 30)
    np.testing.assert_allclose(path, pose(about(1, 30.0), [1.0, 2.0, 3.0])[None])


def test_too_many_frames():
    keys = Keyframes(np.array([0.0, 1e5]), np.stack([pose(np.eye(3))] * 2))
    with pytest.raises(ValueError, match=f"100000 s.*{MAX_FRAMES} frames.*seconds"):
        interpolate(keys, 30)


# The file


def test_a_file_gives_back_what_was_written(tmp_path):
    keys = random_path(3, 5)
    (tmp_path / "keys.json").write_text(keyframes_json(keys))
    read = load_keyframes(tmp_path / "keys.json")
    np.testing.assert_array_equal(read.times, keys.times)
    np.testing.assert_array_equal(read.poses, keys.poses)
    document = json.loads(keyframes_json(keys))
    assert document["axes"] == "opengl"
    assert document["keyframes"][2] == {"time": keys.times[2], "c2w": keys.poses[2].tolist()}


def test_rounded_rotations_are_taken_and_mended(tmp_path):
    keys = random_path(4, 3)
    rounded = Keyframes(keys.times, keys.poses.round(3))
    (tmp_path / "keys.json").write_text(keyframes_json(rounded))
    path = interpolate(load_keyframes(str(tmp_path / "keys.json")), 10)
    rotations = path[:, :, :3]
    np.testing.assert_allclose(
        np.swapaxes(rotations, -1, -2) @ rotations, np.tile(np.eye(3), [len(path), 1, 1]), atol=1e-12
    )
    np.testing.assert_allclose(path[0], keys.poses[0], atol=2e-3)


GOOD = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]]


def document(*frames: object, **top: object) -> str:
    return json.dumps({"axes": "opengl", "keyframes": list(frames)} | top)


def frame(time: object = 0.0, c2w: object = GOOD) -> dict:
    return {"time": time, "c2w": c2w}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        ("[]", "at least one keyframe"),
        ("3", "at least one keyframe"),
        ("{}", "at least one keyframe"),
        (document(), "at least one keyframe"),
        (document(keyframes={"0": frame()}), "at least one keyframe"),
        (document(frame(), axes="opencv"), '"axes" is "opencv"; expected "opengl"'),
        (json.dumps({"keyframes": [frame()]}), '"axes" is null'),
        (document(3), "keyframe 0 is not"),
        (document({"c2w": GOOD}), 'keyframe 0: "time" is None, which is not a number'),
        (document(frame(), frame("1")), "keyframe 1: \"time\" is '1', which is not a number"),
        (document(frame(True)), 'keyframe 0: "time"'),
        (document(frame(float("nan"))), 'keyframe 0: "time" is nan s; it must be within 1e.12 s of 0'),
        (document(frame(0), frame(1e308)), 'keyframe 1: "time" is 1e.308 s; it must be within'),
        (document(frame(10**400)), 'keyframe 0: "time"'),
        ('{"axes": "opengl", "keyframes": [{"time": 1' + "0" * 5000 + "}]}", "not valid JSON"),
        (document(frame(1), frame(1)), 'keyframe 1: "time" 1 does not come after 1'),
        (document(frame(1), frame(0.5)), 'keyframe 1: "time" 0.5 does not come after 1'),
        (document(frame(0), frame(5e-324)), 'keyframe 1: "time" .* after 0, or by less than 1e-06 s'),
        (document({"time": 0}), r'keyframe 0: "c2w" has shape \(\); it must be 4x4 or 3x4'),
        (document(frame(c2w=GOOD[:2])), r"has shape \(2, 4\)"),
        (document(frame(c2w=[row[:3] for row in GOOD])), r"has shape \(3, 3\)"),
        (document(frame(c2w=[*GOOD[:2], [0, 0, 1]])), '"c2w" is not a matrix of numbers'),
        (document(frame(c2w=[*GOOD[:2], [0, 0, 1, 10**400]])), '"c2w" is not a matrix of numbers'),
        (document(frame(c2w=[*GOOD[:2], [0, 0, 1, None]])), '"c2w" holds NaN'),
        (document(frame(c2w=[*GOOD[:2], [0, 0, 1, float("inf")]])), '"c2w" holds NaN or infinity'),
        (document(frame(c2w=np.zeros([3, 4]).tolist())), "keyframe 0: the camera's axes have lengths 0"),
        (document(frame(c2w=(2 * np.array(GOOD)).tolist())), "keyframe 0: the camera's axes have lengths 2"),
        (document(frame(c2w=[[1e200, 0, 0, 0], *GOOD[1:]])), "too large to compute with"),
        (document(frame(), frame(1, [*GOOD[:2], [0, 0, 1, 1e308]])), "keyframe 1: .* too large to compute with"),
        (document(frame(c2w=[[-1, 0, 0, 0], *GOOD[1:]])), "mirror"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "keys.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_keyframes(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fastest_that_a_file_may_ask_for_is_finite(tmp_path):
    far = [[[1, 0, 0, sign * camera_matrices.MAX_COORDINATE], *GOOD[1:]] for sign in (1, -1, 1)]
    turned = [[[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0]], GOOD]
    frames = [frame(i * SHORTEST_STEP * 1.001, c2w) for i, c2w in enumerate([*far, *turned])]
    (tmp_path / "keys.json").write_text(document(*frames, frame(10.0)))
    with np.errstate(over="raise", invalid="raise"):
        assert np.isfinite(np.float32(interpolate(load_keyframes(tmp_path / "keys.json"), 30))).all()


def test_a_matrix_with_its_last_row_is_taken(tmp_path):
    (tmp_path / "keys.json").write_text(document(frame(c2w=[*GOOD, [0, 0, 0, 1]])))
    np.testing.assert_array_equal(load_keyframes(tmp_path / "keys.json").poses, [GOOD])


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere.json: no such file"):
        load_keyframes(Path("nowhere.json"))
