"""Reads keyframes of a camera path from a JSON file, as `camera_paths.keyframes.keyframes_json` writes it.

{"axes": "opengl", "keyframes": [{"time": 0.0, "c2w": [[4 numbers], [4 numbers], [4 numbers]]}, ...]}
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from nerf_tf.camera_paths.keyframes import Keyframes
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.storage import readers

# Characters in the file: room for some 50,000 keyframes.
LARGEST_TEXT = 2**24
# Seconds from one keyframe to the next. After less time the speed between them could overflow.
SHORTEST_STEP = 1e-6
# Largest time in seconds, either way from 0: seconds since 1970 are below it, and sums of them do not overflow.
LATEST = 1e12


def load_keyframes(path: str | os.PathLike[str]) -> Keyframes:
    """Reads keyframes from a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not such a file; says which keyframe is wrong, and how.
    """
    path = Path(path)
    document = readers.read_json(path, LARGEST_TEXT, "; expected keyframes as JSON")
    with readers.path_in_errors(path):
        return _parse(document)


def _parse(document: object) -> Keyframes:
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
        poses.append(readers.parse_camera_matrix(frame.get("c2w"), f'keyframe {i}: "c2w"'))
    pose_maths.require_rigid(poses, [f"keyframe {i}" for i in range(len(poses))])
    return Keyframes(np.array(times), np.array(poses))
