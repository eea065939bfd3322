"""Smooth camera motion through keyframes, which are poses at times. NumPy, float64.

Positions follow piecewise cubics with given velocities at the keyframes (Hermite splines). So do rotations, as products
instead of sums: Kim, Kim and Shin, A General Construction Scheme for Unit Quaternion Curves with Simple High Order
Derivatives, SIGGRAPH 1995. Neighbouring segments share their velocities, so there are no jerks.

Keyframes are kept in JSON files:

    {"axes": "opengl", "keyframes": [{"time": 0.0, "c2w": [[4 numbers], [4 numbers], [4 numbers]]}, ...]}
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from nerf_tf.storage import camera_matrices, readers

# An hour at 30 frames a second. More is a mistake, such as times in milliseconds.
MAX_FRAMES = 108_000
# A cubic whose velocities at both ends are at most this many times its mean velocity does not overshoot (Fritsch and
# Carlson, Monotone Piecewise Cubic Interpolation, 1980, condition 2).
MAX_SPEED_RATIO = 3.0
# Characters in the file: room for some 50,000 keyframes.
LARGEST_TEXT = 2**24
# Seconds from one keyframe to the next. After less time the speed between them could overflow.
SHORTEST_STEP = 1e-6
# Largest time in seconds, either way from 0: seconds since 1970 are below it, and sums of them do not overflow.
LATEST = 1e12


@dataclasses.dataclass(frozen=True, eq=False)
class Keyframes:
    """Poses of a camera at given times.

    Attributes:
        times: [K] seconds, ascending.
        poses: [K, 3, 4] camera-to-world, OpenGL axes, in the world that the scene has after loading.
    """

    times: np.ndarray
    poses: np.ndarray


def keyframes_json(keyframes: Keyframes) -> str:
    """Returns keyframes as the JSON text that `load_keyframes` reads."""
    frames = [
        json.dumps({"time": float(time), "c2w": np.asarray(pose, np.float64).tolist()})
        for time, pose in zip(keyframes.times, keyframes.poses, strict=True)
    ]
    return '{"axes": "opengl", "keyframes": [\n  ' + ",\n  ".join(frames) + "\n]}\n"


def load_keyframes(path: str | os.PathLike[str]) -> Keyframes:
    """Reads keyframes from a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not such a file; says which keyframe is wrong, and how.
    """
    path = Path(path)
    document = readers.read_json(path, LARGEST_TEXT, "; expected keyframes as JSON")
    with readers.path_in_errors(path):
        return _parse_keyframes(document)


def _parse_keyframes(document: object) -> Keyframes:
    frames = document.get("keyframes") if isinstance(document, dict) else None
    if not isinstance(frames, list) or not frames:
        raise ValueError('expected {"axes": "opengl", "keyframes": [...]} with at least one keyframe')
    if document.get("axes") != "opengl":
        raise ValueError(f'"axes" is {json.dumps(document.get("axes"))[:40]}; expected "opengl" (right, up, back)')
    times, poses = [], []
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise ValueError(f'keyframe {i} is not {{"time": ..., "c2w": ...}}')
        times.append(readers.parse_number(frame.get("time"), f'keyframe {i}: "time"'))
        if not abs(times[i]) <= LATEST:
            raise ValueError(f'keyframe {i}: "time" is {times[i]:g} s; it must be within {LATEST:g} s of 0')
        if i and not times[i] - times[i - 1] >= SHORTEST_STEP:
            raise ValueError(
                f'keyframe {i}: "time" {times[i]:g} does not come after {times[i - 1]:g}, or by less than '
                f"{SHORTEST_STEP:g} s"
            )
        poses.append(camera_matrices.parse_camera_matrix(frame.get("c2w"), f'keyframe {i}: "c2w"'))
    camera_matrices.require_rigid(poses, [f"keyframe {i}" for i in range(len(poses))])
    return Keyframes(np.array(times), np.array(poses))


def interpolate(keyframes: Keyframes, fps: float) -> np.ndarray:
    """Interpolates keyframes for a video of `fps` frames a second, from the first keyframe to the last.

    Returns:
        Poses [M, 3, 4], M = round(duration * fps) + 1.

    Raises:
        ValueError: the video would have more than `MAX_FRAMES` frames.
    """
    times = np.asarray(keyframes.times, np.float64)
    duration = times[-1] - times[0]
    if not duration * fps < MAX_FRAMES:
        raise ValueError(
            f"keyframes span {duration:g} s, at {fps:g} frames a second more than {MAX_FRAMES} frames; "
            "times are in seconds"
        )
    return interpolate_at(keyframes, np.linspace(times[0], times[-1], round(duration * fps) + 1))


def interpolate_at(keyframes: Keyframes, times: np.ndarray) -> np.ndarray:
    """Interpolates keyframes at `times` [M] within their range; returns poses [M, 3, 4]."""
    key_times, poses = np.asarray(keyframes.times, np.float64), np.asarray(keyframes.poses, np.float64)
    if len(key_times) == 1:
        return np.repeat(poses, len(times), axis=0)
    rotations = _quaternion_to_rotation(_rotation_to_quaternion(poses[:, :, :3]))  # free of rounding
    centres, durations = poses[:, :, 3], np.diff(key_times)
    segment = np.clip(np.searchsorted(key_times, times, side="right") - 1, 0, len(durations) - 1)  # [M]
    u = ((times - key_times[segment]) / durations[segment])[:, None]  # [M, 1], 0 to 1 within its segment
    return np.concatenate(
        [
            _interpolate_rotations(rotations, durations, segment, u),
            _interpolate_centres(centres, durations, segment, u)[..., None],
        ],
        axis=-1,
    )


def _keyframe_velocities(mean_velocities: np.ndarray, durations: np.ndarray) -> np.ndarray:
    """Computes velocities [K, 3] at keyframes from mean velocities [K-1, 3] and durations [K-1].

    At an inner keyframe: that of the parabola through it and its two neighbours, at most `MAX_SPEED_RATIO` times the
    slower side's, so that a camera that rests between two keyframes does not move. At the ends: zero acceleration.
    """
    if len(mean_velocities) == 1:
        return np.repeat(mean_velocities, 2, axis=0)
    before, after = durations[:-1, None], durations[1:, None]
    inner = (after * mean_velocities[:-1] + before * mean_velocities[1:]) / (before + after)
    speeds = np.linalg.norm(mean_velocities, axis=-1)
    speed, limit = np.linalg.norm(inner, axis=-1), MAX_SPEED_RATIO * np.minimum(speeds[:-1], speeds[1:])
    inner = inner * (np.minimum(speed, limit) / np.maximum(speed, np.finfo(float).tiny))[:, None]
    first, last = 1.5 * mean_velocities[0] - 0.5 * inner[0], 1.5 * mean_velocities[-1] - 0.5 * inner[-1]
    return np.concatenate([[first], inner, [last]])


def _cumulative_bernstein(u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cumulative Bernstein polynomials of degree 3; slopes 3, 0, 0 at u = 0, and 0, 0, 3 at u = 1."""
    return 1 - (1 - u) ** 3, u * u * (3 - 2 * u), u**3


def _interpolate_centres(centres: np.ndarray, durations: np.ndarray, segment: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Interpolates centres [K, 3] at u [M, 1] of segments [M]; returns [M, 3]."""
    steps = np.diff(centres, axis=0)
    velocities = _keyframe_velocities(steps / durations[:, None], durations)
    first, last = (velocities[k] * durations[segment, None] / 3 for k in (segment, segment + 1))
    b1, b2, b3 = _cumulative_bernstein(u)
    inside = centres[segment] + b1 * first + b2 * (steps[segment] - first - last) + b3 * last
    # At u = 1 the sum equals the keyframe but for rounding.
    return np.where(u >= 1, centres[segment + 1], inside)


def _interpolate_rotations(
    rotations: np.ndarray, durations: np.ndarray, segment: np.ndarray, u: np.ndarray
) -> np.ndarray:
    """Interpolates rotations [K, 3, 3] as `_interpolate_centres` does centres, but with products."""
    # In the camera's frame, [K-1, 3]. A turn's axis is the same before and after it, so velocities can be averaged.
    turns = _rotation_to_vector(np.swapaxes(rotations[:-1], -1, -2) @ rotations[1:])
    velocities = _keyframe_velocities(turns / durations[:, None], durations)
    first, last = velocities[:-1] * durations[:, None] / 3, velocities[1:] * durations[:, None] / 3
    after_first = rotations[:-1] @ _vector_to_rotation(first)
    middle = _rotation_to_vector(np.swapaxes(after_first, -1, -2) @ rotations[1:] @ _vector_to_rotation(-last))
    # Turns that differ by full circles end alike; take the one that is closest to `turns - first - last`.
    angle = np.linalg.norm(middle, axis=-1, keepdims=True)
    axis = middle / np.maximum(angle, np.finfo(float).tiny)
    wanted = np.sum((turns - first - last) * axis, axis=-1, keepdims=True)
    middle = axis * (angle + 2 * np.pi * np.round((wanted - angle) / (2 * np.pi)))
    b1, b2, b3 = _cumulative_bernstein(u)
    r1, r2, r3 = (_vector_to_rotation(b * part[segment]) for b, part in ((b1, first), (b2, middle), (b3, last)))
    return rotations[segment] @ (r1 @ r2 @ r3)


def _rotation_to_quaternion(rotations: np.ndarray) -> np.ndarray:
    """Converts rotations [..., 3, 3] to unit quaternions [..., 4], real part first."""
    (a, b, c), (d, e, f), (g, h, i) = np.moveaxis(np.asarray(rotations, np.float64), [-2, -1], [0, 1])
    # Four times q q^T: each row is a multiple of q, and the one with the largest diagonal element is not close to zero.
    outer = np.stack(
        [
            np.stack([1 + a + e + i, h - f, c - g, d - b], axis=-1),
            np.stack([h - f, 1 + a - e - i, b + d, c + g], axis=-1),
            np.stack([c - g, b + d, 1 - a + e - i, f + h], axis=-1),
            np.stack([d - b, c + g, f + h, 1 - a - e + i], axis=-1),
        ],
        axis=-2,
    )
    largest = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    row = np.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :]
    return row / np.linalg.norm(row, axis=-1, keepdims=True)


def _quaternion_to_rotation(quaternions: np.ndarray) -> np.ndarray:
    """Converts unit quaternions [..., 4] to rotations [..., 3, 3]."""
    w, x, y, z = np.moveaxis(quaternions, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _rotation_to_vector(rotations: np.ndarray) -> np.ndarray:
    """Converts rotations [..., 3, 3] to axis times angle [..., 3], angle at most pi."""
    quaternions = _rotation_to_quaternion(rotations)
    # A quaternion and its negative are the same rotation.
    quaternions = np.where(quaternions[..., :1] < 0, -quaternions, quaternions)
    sine = np.linalg.norm(quaternions[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternions[..., :1])
    return quaternions[..., 1:] * np.where(sine > 0, angle / np.maximum(sine, np.finfo(float).tiny), 2.0)


def _vector_to_rotation(vectors: np.ndarray) -> np.ndarray:
    """Converts axis times angle [..., 3] to rotations [..., 3, 3]."""
    half = np.linalg.norm(vectors, axis=-1, keepdims=True) / 2
    return _quaternion_to_rotation(np.concatenate([np.cos(half), np.sinc(half / np.pi) / 2 * vectors], axis=-1))
