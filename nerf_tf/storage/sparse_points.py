"""Reads points of COLMAP's sparse models, and where photos show them; binary or text."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from nerf_tf.storage import readers

# Bytes of a file: room for some millions of points.
LARGEST_FILE = 2**29
# A record of points3D.bin: the point's id, x, y, z, red, green, blue, error, length of the track. The track follows:
# for each photo its id and the index of the position in it, 4 bytes each.
_RECORD = struct.Struct("<Q3d3BdQ")
_PAIR = 8
# Words of a line of points3D.txt before the track.
_WORDS = 8
# A record of images.bin: the photo's id, rotation and translation, the camera's id. The name follows, ended by a zero
# byte, then the count of positions, then these: x, y, and the point's id, -1 for none.
_IMAGE, _COUNT = struct.Struct("<I7dI"), struct.Struct("<Q")
_POSITION = np.dtype([("x", "<f8"), ("y", "<f8"), ("point", "<i8")])
# A record of cameras.bin: the camera's id, its kind (COLMAP's model), width, height. Its parameters follow, 8 bytes
# each; below is how many each kind has.
_CAMERA = struct.Struct("<IiQQ")
_NUMBERS_OF_KIND = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12, 16)
_PINHOLES = (0, 1, "SIMPLE_PINHOLE", "PINHOLE")

T = TypeVar("T")


class Sightings(NamedTuple):
    """Where a photo shows points.

    Attributes:
        name: the photo's, as the model has it.
        height, width: the photo's.
        pixels: [K, 2] columns and rows, from the upper left corner.
        points: [K, 3] in the model's world.
    """

    name: str
    height: int
    width: int
    pixels: np.ndarray
    points: np.ndarray


def read_points(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the points of the model in a folder.

    Args:
        folder: holds points3D.bin or points3D.txt, such as sparse/0.

    Returns:
        Points [P, 3] in the model's world, and the number of photos [P] that show each.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: the file is damaged, or is none of points.
    """
    rows = _read_points(folder)
    return rows[:, 1:4], rows[:, 4].astype(np.int64)


def read_sightings(folder: Path) -> list[Sightings]:
    """Reads where photos show points; only of pinhole cameras, as the others distort.

    Args:
        folder: holds cameras, images and points3D, each .bin or .txt.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or of another kind.
    """
    cameras = _read(folder, "cameras", "cameras", _parse_cameras, _parse_text_cameras)
    images = _read(folder, "images", "photos", _parse_images, _parse_text_images)
    rows = _read_points(folder)
    rows = rows[np.argsort(rows[:, 0])]
    found = []
    for name, camera, positions in images:
        if camera not in cameras or not len(rows):
            continue
        place = np.minimum(np.searchsorted(rows[:, 0], positions[:, 2]), len(rows) - 1)
        known = (rows[place, 0] == positions[:, 2]) & np.isfinite(positions).all(axis=-1)
        found.append(Sightings(name, *cameras[camera], positions[known, :2], rows[place[known], 1:4]))
    return found


def _read(folder: Path, name: str, what: str, parse: Callable[[bytes], T], parse_text: Callable[[bytes], T]) -> T:
    """Parses a file of a model, the binary one if there are both; errors call its content `what`."""
    text, binary = folder / f"{name}.txt", folder / f"{name}.bin"
    path, parse = (text, parse_text) if text.is_file() and not binary.is_file() else (binary, parse)
    content = readers.read_bytes(path, LARGEST_FILE)
    try:
        return parse(content)
    except (*readers.PARSER_ERRORS, struct.error) as error:
        raise ValueError(f"{path}: not COLMAP's {what} ({str(error) or type(error).__name__})"[:500]) from error


def _read_points(folder: Path) -> np.ndarray:
    """Rows [P, 5] of the points whose coordinates are finite: id, x, y, z and how many photos show it."""
    rows = _read(folder, "points3D", "points", _parse_points, _parse_text_points)
    return rows[np.isfinite(rows).all(axis=-1)]


def _parse_points(content: bytes) -> np.ndarray:
    (count,) = _COUNT.unpack_from(content)
    if count * _RECORD.size > len(content):
        raise ValueError(f"it announces {count} points in {len(content)} bytes")
    rows, offset = [], _COUNT.size
    for _ in range(count):
        number, x, y, z, _, _, _, _, views = _RECORD.unpack_from(content, offset)
        offset += _RECORD.size + _PAIR * views
        if offset > len(content):
            raise ValueError("it is cut short")
        rows.append((number, x, y, z, views))
    return np.array(rows, np.float64).reshape(-1, 5)


def _parse_text_points(content: bytes) -> np.ndarray:
    rows = []
    for words in filter(None, _lines(content)):
        number, x, y, z = map(float, words[:4])
        rows.append((number, x, y, z, (len(words) - _WORDS) // 2))
    return np.array(rows, np.float64).reshape(-1, 5)


def _parse_images(content: bytes) -> list[tuple[str, int, np.ndarray]]:
    """Name, camera's id and positions [K, 3] (x, y and the point's id) of each photo."""
    (count,), offset, images = _COUNT.unpack_from(content), _COUNT.size, []
    if count * (_IMAGE.size + _COUNT.size) > len(content):
        raise ValueError(f"it announces {count} photos in {len(content)} bytes")
    for _ in range(count):
        camera, start = _IMAGE.unpack_from(content, offset)[-1], offset + _IMAGE.size
        end = content.index(b"\0", start)
        (length,), first = _COUNT.unpack_from(content, end + 1), end + 1 + _COUNT.size
        offset = first + length * _POSITION.itemsize
        if offset > len(content):
            raise ValueError("it is cut short")
        rows = np.frombuffer(content, _POSITION, length, first)
        positions = np.stack([rows[field].astype(np.float64) for field in _POSITION.names], axis=-1)
        images.append((content[start:end].decode("utf-8"), camera, positions))
    return images


def _parse_text_images(content: bytes) -> list[tuple[str, int, np.ndarray]]:
    # Two lines each; the second one, of positions, may be empty.
    lines = list(_lines(content))
    if len(lines) % 2:
        raise ValueError("it is cut short")
    images = []
    for words, positions in zip(lines[::2], lines[1::2], strict=True):
        images.append((" ".join(words[9:]), int(words[8]), np.array(positions, np.float64).reshape(-1, 3)))
    return images


def _parse_cameras(content: bytes) -> dict[int, tuple[int, int]]:
    """Height and width of the pinhole cameras, by id."""
    (count,), offset, cameras = _COUNT.unpack_from(content), _COUNT.size, {}
    if count * _CAMERA.size > len(content):
        raise ValueError(f"it announces {count} cameras in {len(content)} bytes")
    for _ in range(count):
        number, kind, width, height = _CAMERA.unpack_from(content, offset)
        if not (0 <= kind < len(_NUMBERS_OF_KIND)):
            raise ValueError(f"camera {number} is of kind {kind}")
        offset += _CAMERA.size + 8 * _NUMBERS_OF_KIND[kind]
        if kind in _PINHOLES:
            cameras[number] = (height, width)
    return cameras


def _parse_text_cameras(content: bytes) -> dict[int, tuple[int, int]]:
    rows = [words for words in _lines(content) if words]
    return {int(words[0]): (int(words[3]), int(words[2])) for words in rows if words[1] in _PINHOLES}


def _lines(content: bytes) -> list[list[str]]:
    """The words of each line that is no comment."""
    return [line.split() for line in content.decode("utf-8").splitlines() if not line.startswith("#")]
