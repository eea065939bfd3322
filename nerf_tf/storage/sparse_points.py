"""Reads the 3D points of COLMAP's sparse models, binary or text. The models' other files are not needed."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from nerf_tf.storage import readers

# Bytes of a file: room for some millions of points.
LARGEST_FILE = 2**29
# A record of points3D.bin: number, x, y, z, red, green, blue, error, length of the track; the track follows, of pairs
# of numbers of 4 bytes.
_RECORD = struct.Struct("<Q3d3BdQ")
_PAIR = 8
# Words of a line of points3D.txt before the track.
_WORDS = 8


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
    text, binary = folder / "points3D.txt", folder / "points3D.bin"
    path, parse = (text, _parse_text) if text.is_file() and not binary.is_file() else (binary, _parse_binary)
    content = readers.read_bytes(path, LARGEST_FILE)
    try:
        rows = np.array(parse(content), np.float64).reshape(-1, 4)
    except (*readers.PARSER_ERRORS, struct.error) as error:
        raise ValueError(f"{path}: not COLMAP's points ({str(error) or type(error).__name__})"[:500]) from error
    rows = rows[np.isfinite(rows).all(axis=-1)]
    return rows[:, :3], rows[:, 3].astype(np.int64)


def _parse_binary(content: bytes) -> list[tuple[float, ...]]:
    (count,) = struct.unpack_from("<Q", content)
    if count * _RECORD.size > len(content):
        raise ValueError(f"it announces {count} points in {len(content)} bytes")
    rows, offset = [], 8
    for _ in range(count):
        _, x, y, z, _, _, _, _, views = _RECORD.unpack_from(content, offset)
        offset += _RECORD.size + _PAIR * views
        if offset > len(content):
            raise ValueError("it is cut short")
        rows.append((x, y, z, views))
    return rows


def _parse_text(content: bytes) -> list[tuple[float, ...]]:
    rows = []
    for line in content.decode("utf-8").splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            x, y, z = map(float, words[1:4])
            rows.append((x, y, z, (len(words) - _WORDS) // 2))
    return rows
