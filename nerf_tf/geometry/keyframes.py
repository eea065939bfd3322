"""Camera paths through keyframes, which are poses at times: the smooth motion between them. Numpy only.

Between two keyframes positions follow a cubic with given velocities at its ends (Hermite's), and so do rotations: the
cumulative cubic of Kim, Kim and Shin (A General Construction Scheme for Unit Quaternion Curves with Simple High Order
Derivatives, SIGGRAPH 1995) is a product of rotations, hence a rotation, with given angular velocities at its ends.
Neighbouring pieces share these velocities, so nothing jerks. Velocities follow from the keyframes, see `_velocities`.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np

# More is a mistake, such as times in milliseconds: at 30 frames a second it would be an hour.
MAX_FRAMES = 108_000
# A cubic whose velocities at both ends are at most this many times its mean velocity does not overshoot (Fritsch and
# Carlson, Monotone Piecewise Cubic Interpolation, 1980, condition 2).
FASTEST = 3.0


@dataclasses.dataclass(frozen=True, eq=False)
class Keyframes:
    """Where a camera is at which time.

    Attributes:
        times: [K] seconds, ascending.
        poses: [K, 3, 4] camera-to-world, OpenGL axes, in the world that the scene has after loading.
    """

    times: np.ndarray
    poses: np.ndarray


def keyframes_json(keyframes: Keyframes) -> str:
    """The text of the JSON file that `data.keyframe_file.load_keyframes` reads; it gives back the same numbers."""
    frames = [
        json.dumps({"time": float(time), "c2w": np.asarray(pose, np.float64).tolist()})
        for time, pose in zip(keyframes.times, keyframes.poses, strict=True)
    ]
    return '{"axes": "opengl", "keyframes": [\n  ' + ",\n  ".join(frames) + "\n]}\n"


def interpolate(keyframes: Keyframes, fps: float) -> np.ndarray:
    """Poses [M, 3, 4] of a video at `fps` frames a second, M = round(duration * fps) + 1.

    The first and the last frame are the first and the last keyframe; one between them is met where it falls on a frame.

    Raises:
        ValueError: that would be more than `MAX_FRAMES`.
    """
    times = np.asarray(keyframes.times, np.float64)
    duration = times[-1] - times[0]
    if not duration * fps < MAX_FRAMES:
        raise ValueError(
            f"keyframes span {duration:g} s, at {fps:g} frames a second more than {MAX_FRAMES} frames; "
            "times are in seconds"
        )
    return resample(keyframes, np.linspace(times[0], times[-1], round(duration * fps) + 1))


def resample(keyframes: Keyframes, times: np.ndarray) -> np.ndarray:
    """Poses [M, 3, 4] at `times` [M], which lie between the first and the last keyframe's."""
    key_times, poses = np.asarray(keyframes.times, np.float64), np.asarray(keyframes.poses, np.float64)
    if len(key_times) == 1:
        return np.repeat(poses, len(times), axis=0)
    rotations = _rotations(_quaternions(poses[:, :, :3]))
    centres, durations = poses[:, :, 3], np.diff(key_times)
    turns = _rotation_vectors(np.swapaxes(rotations[:-1], -1, -2) @ rotations[1:])  # [K-1, 3] in the camera's frame
    piece = np.clip(np.searchsorted(key_times, times, side="right") - 1, 0, len(durations) - 1)  # [M]
    u = ((times - key_times[piece]) / durations[piece])[:, None]
    return np.concatenate(
        [_rotate(rotations, turns, durations, piece, u), _move(centres, durations, piece, u)[..., None]], axis=-1
    )


def _velocities(means: np.ndarray, durations: np.ndarray) -> np.ndarray:
    """Velocities [K, 3] at keyframes, from mean velocities [K-1, 3] between them and durations [K-1].

    Inside, that of the parabola through a keyframe and its two neighbours, no faster than `FASTEST` times the slower
    side: a camera that stands still between two keyframes does not creep. At the ends, that which makes the motion
    begin and end without acceleration.
    """
    if len(means) == 1:
        return np.repeat(means, 2, axis=0)
    before, after = durations[:-1, None], durations[1:, None]
    inner = (after * means[:-1] + before * means[1:]) / (before + after)
    slower = np.minimum(np.linalg.norm(means[:-1], axis=-1), np.linalg.norm(means[1:], axis=-1))
    speed = np.linalg.norm(inner, axis=-1)
    inner = inner * (np.minimum(speed, FASTEST * slower) / np.maximum(speed, np.finfo(float).tiny))[:, None]
    return np.concatenate([[1.5 * means[0] - 0.5 * inner[0]], inner, [1.5 * means[-1] - 0.5 * inner[-1]]])


def _basis(u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cumulative Bernstein polynomials of degree 3; their slopes are 3, 0, 0 at u = 0 and 0, 0, 3 at u = 1."""
    return 1 - (1 - u) ** 3, u * u * (3 - 2 * u), u**3


def _move(centres: np.ndarray, durations: np.ndarray, piece: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Centres [M, 3] at the part u [M, 1] of pieces [M]."""
    steps = np.diff(centres, axis=0)
    velocities = _velocities(steps / durations[:, None], durations)
    first, last = (velocities[k] * durations[piece, None] / 3 for k in (piece, piece + 1))
    b1, b2, b3 = _basis(u)
    inside = centres[piece] + b1 * first + b2 * (steps[piece] - first - last) + b3 * last
    # Only rounding keeps the sum from the keyframe itself.
    return np.where(u >= 1, centres[piece + 1], inside)


def _rotate(
    rotations: np.ndarray, turns: np.ndarray, durations: np.ndarray, piece: np.ndarray, u: np.ndarray
) -> np.ndarray:
    """Rotations [M, 3, 3] at the part u [M, 1] of pieces [M]; the same construction as `_move`'s, with products."""
    # The axis of a turn is the same seen before and after it, so both sides of a keyframe can be averaged.
    velocities = _velocities(turns / durations[:, None], durations)
    first, last = velocities[:-1] * durations[:, None] / 3, velocities[1:] * durations[:, None] / 3
    between = np.swapaxes(rotations[:-1] @ _turned(first), -1, -2) @ rotations[1:] @ _turned(-last)
    middle = _rotation_vectors(between)
    # A turn and one that is longer by a full circle end alike; take the one that the sum of the parts asks for.
    angle = np.linalg.norm(middle, axis=-1, keepdims=True)
    axis = middle / np.maximum(angle, np.finfo(float).tiny)
    wanted = np.sum((turns - first - last) * axis, axis=-1, keepdims=True)
    middle = axis * (angle + 2 * np.pi * np.round((wanted - angle) / (2 * np.pi)))
    b1, b2, b3 = _basis(u)
    parts = _turned(b1 * first[piece]) @ _turned(b2 * middle[piece]) @ _turned(b3 * last[piece])
    return rotations[piece] @ parts


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions [..., 4], real part first, of rotations [..., 3, 3]; of nearly rotations, one close by."""
    (a, b, c), (d, e, f), (g, h, i) = np.moveaxis(np.asarray(rotations, np.float64), [-2, -1], [0, 1])
    # Four times the outer product q q^T. Any row gives q; the one with the largest diagonal is not close to zero.
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


def _rotations(quaternions: np.ndarray) -> np.ndarray:
    """Rotations [..., 3, 3] of unit quaternions [..., 4]."""
    w, x, y, z = np.moveaxis(quaternions, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _rotation_vectors(rotations: np.ndarray) -> np.ndarray:
    """Axis times angle [..., 3] of rotations [..., 3, 3], the shorter way round: at most half a circle."""
    quaternions = _quaternions(rotations)
    # A quaternion and its negative are one rotation.
    quaternions = np.where(quaternions[..., :1] < 0, -quaternions, quaternions)
    sine = np.linalg.norm(quaternions[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternions[..., :1])
    return quaternions[..., 1:] * np.where(sine > 0, angle / np.maximum(sine, np.finfo(float).tiny), 2.0)


def _turned(vectors: np.ndarray) -> np.ndarray:
    """Rotations [..., 3, 3] about axes by angles, given as axis times angle [..., 3]."""
    half = np.linalg.norm(vectors, axis=-1, keepdims=True) / 2
    return _rotations(np.concatenate([np.cos(half), np.sinc(half / np.pi) / 2 * vectors], axis=-1))
