"""Reads the points of PLY files, as COLMAP and nerfstudio write sparse clouds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from nerf_tf.storage import readers

# Bytes of a file: room for ten million points with colours and normals.
LARGEST_FILE = 2**29
_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"), **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"), **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"), **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"), **dict.fromkeys(("double", "float64"), "f8"),
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}


def read_points(path: Path) -> np.ndarray:
    """Reads the vertices of a PLY file, text or binary, float64 [P, 3].

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no PLY file, its first element is not `vertex` with x, y and z, or it is cut short.
    """
    content = readers.read_bytes(path, LARGEST_FILE)
    try:
        return _parse(content)
    except readers.PARSER_ERRORS as error:
        raise ValueError(f"{path}: not a PLY file of points ({str(error) or type(error).__name__})"[:500]) from error


def _parse(content: bytes) -> np.ndarray:
    header, end, body = content.partition(b"end_header")
    lines = [line.split() for line in header.decode("ascii").splitlines()]
    if not end or lines[0] != ["ply"]:
        raise ValueError("it has no header")
    elements = [i for i, line in enumerate(lines) if line[:1] == ["element"]]
    layout = next((line[1] for line in lines if line[:1] == ["format"]), "of no format")
    if not elements or lines[elements[0]][1] != "vertex":
        raise ValueError("its first element is not vertex")
    count = int(lines[elements[0]][2])
    last = elements[1] if len(elements) > 1 else len(lines)
    columns = [(line[-1], _TYPES[line[1]]) for line in lines[elements[0] + 1 : last] if line[:1] == ["property"]]
    names = [name for name, _ in columns]
    where = [names.index(name) for name in "xyz"]
    body = body.partition(b"\n")[2]
    if layout == "ascii":
        if not 0 <= count * len(columns) <= len(body):
            raise ValueError(f"it announces {count} points, and {len(body)} bytes follow")
        return np.loadtxt(io.BytesIO(body), max_rows=count, usecols=where, ndmin=2).reshape(count, 3)
    kind = np.dtype([(str(i), _ORDERS[layout] + code) for i, (_, code) in enumerate(columns)])
    if not 0 <= count * kind.itemsize <= len(body):
        raise ValueError(f"it announces {count} points of {kind.itemsize} bytes, and {len(body)} bytes follow")
    rows = np.frombuffer(body, kind, count)
    return np.stack([rows[str(i)].astype(np.float64) for i in where], axis=-1)
