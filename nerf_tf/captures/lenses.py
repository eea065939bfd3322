"""Cameras and lens distortion of the frames of a transforms.json, in the words of each program that writes one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nerf_tf.captures.distortion import Distortion
from nerf_tf.captures.photo_sizes import Place, Size
from nerf_tf.geometry.camera import Camera
from nerf_tf.storage import readers, transforms_files
from nerf_tf.storage.transforms_files import Split

# Accepted values of `camera_model`: models whose distortion `captures.distortion` covers.
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
MODELS = (*PINHOLES, "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
# Keys by which instant-ngp marks other kinds of lenses, and coefficients that `Distortion` does not have.
OTHER_LENSES, OTHER_DISTORTIONS = ("is_fisheye", "latlong", "ftheta_p0"), ("k4", "k5", "k6")
# Largest distortion coefficient: far beyond the thousands that long lenses have, where x and y are small.
LARGEST_COEFFICIENT = 1e7

Lens = tuple[Camera, Distortion]


def read_lens(file: Split, frame: int, photo: Size, place: Place) -> Lens:
    """Reads a frame's distortion, and its camera for the photo shrunk from its size to its place.

    Raises:
        ValueError: the camera contradicts itself, or is no pinhole with the distortion of `Distortion`.
    """
    given = file.intrinsics[frame]
    w, h = transforms_files.former_size(given, *photo)
    with readers.path_in_errors(f"{file.file}: frame {frame}"):
        record = file.meta | file.meta["frames"][frame]
        numbers = {name: value for name, (value, _) in given.items()} | _read_k(record)
        distortion = _read_distortion(record, numbers)
        sides = {"x": w, "y": h}
        fx, fy = (_agreed(numbers, (f"fl_{x}", f"K's f{x}", f"camera_angle_{x}"), sides[x]) for x in "xy")
        cx, cy = (_agreed(numbers, (f"c{x}", f"K's c{x}"), sides[x]) for x in "xy")
        cx, cy = 0.5 * w if cx is None else cx, 0.5 * h if cy is None else cy
        if fx is None and fy is None:
            raise ValueError("it has no focal length: fl_x (pixels), camera_angle_x (radians) or a 3x3 K")
        if not (0 < cx < w and 0 < cy < h):
            raise ValueError(
                f"its principal point {cx:g}, {cy:g} is outside of images of {w:g}x{h:g}; if the images were "
                "resized, add the former w and h"
            )
        across, down = place.width / w, place.height / h
        focals = (fx or fy) * across, (fy or fx) * down
        return Camera(place.height, place.width, *focals, cx * across, cy * down).checked(), distortion


def _read_k(record: dict[str, object]) -> dict[str, float]:
    """Reads the numbers of a 3x3 matrix `K`, under the names that messages use."""
    if record.get("K") is None:
        return {}
    matrix = readers.parse_matrix(record["K"], "K", ((3, 3),))
    rest = matrix * [[0, 1, 0], [1, 0, 0], [1, 1, 1]] - np.diag([0, 0, 1])
    if min(matrix[0, 0], matrix[1, 1]) <= 0 or np.abs(rest).max() > 1e-6:
        raise ValueError("K must be [fx, 0, cx], [0, fy, cy], [0, 0, 1]")
    (fx, _, cx), (_, fy, cy), _ = matrix.tolist()
    return {"K's fx": fx, "K's fy": fy, "K's cx": cx, "K's cy": cy}


def _read_distortion(record: dict[str, object], numbers: dict[str, float]) -> Distortion:
    """Reads the distortion of a frame; raises ValueError if its lens is of another kind."""
    model = record.get("camera_model") or "OPENCV"
    lens = next((name for name in OTHER_LENSES if record.get(name)), f"camera_model {str(model)[:40]!r}")
    if lens in OTHER_LENSES or not (isinstance(model, str) and model.upper() in MODELS):
        raise ValueError(f"{lens} is not one of {', '.join(MODELS)}: undistort the images, and export them again")
    given = {name: numbers[name] for name in (*Distortion._fields, *OTHER_DISTORTIONS) if numbers.get(name)}
    for name, value in given.items():
        if name in OTHER_DISTORTIONS or model.upper() in PINHOLES:
            raise ValueError(f"{name} {value:g} is no distortion of {model}: undistort the images, or correct the file")
        if not abs(value) <= LARGEST_COEFFICIENT:
            raise ValueError(f"{name} {value:g} is no coefficient of a lens")
    return Distortion(**given)


def _agreed(numbers: dict[str, float], names: Sequence[str], side: float) -> float | None:
    """Returns the length in pixels that any of `names` gives; None if none of them is in `numbers`.

    `side` is the side of the images, for fields of view.

    Raises:
        ValueError: two of them contradict each other.
    """
    found = {name: numbers[name] for name in names if name in numbers}
    lengths = [
        0.5 * side / math.tan(0.5 * value) if name.startswith("camera") else value for name, value in found.items()
    ]
    for length in lengths[1:]:
        if not abs(length - lengths[0]) <= transforms_files.TOLERANCE * abs(lengths[0]):
            said = " and ".join(f"{name} {value:g}" for name, value in found.items())
            pixels = " and ".join(f"{length:g}" for length in lengths)
            raise ValueError(f"{said} contradict each other ({pixels} pixels of {side:g}); remove or correct one")
    return lengths[0] if lengths else None
