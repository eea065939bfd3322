"""Readers for untrusted files: text, JSON and arrays, limited in size, with errors that name the file."""

from __future__ import annotations

import contextlib
import io
import json
import math
import reprlib
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format

# Most bytes of an npy header that are read; numpy refuses longer ones too.
_LARGEST_HEADER = 2**14
# Most bytes of an npz file and all its arrays, and of an npy file: more than any view or network takes.
_LARGEST_ARCHIVE, _LARGEST_ARRAY = 2**30, 2**28
# Most characters of a parser's message that are repeated; it may quote the file at length.
_LONGEST_REASON = 300

# What any parser can raise over a damaged or hostile file; callers may add the errors of their parser.
PARSER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)
# The same of a zip archive.
ZIP_ERRORS = (*PARSER_ERRORS, OSError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


@contextlib.contextmanager
def path_in_errors(path: Path | str) -> Iterator[None]:
    """Puts the file's name, or a place in it, before the message of a ValueError raised by the block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def require_file(path: Path, hint: str = "") -> None:
    """Checks that `path` is a regular file, as reading a pipe or device may never end.

    Raises:
        FileNotFoundError: there is no such file; the message ends in `hint`.
        ValueError: it is a folder, a device, a pipe or a broken link, or cannot be opened.
    """
    try:
        if path.is_file():
            return
        path.lstat()
        found = "a folder" if path.is_dir() else "a device, a pipe or a broken link"
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file{hint}") from None
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ValueError(f"{path}: cannot be opened ({reason})") from error
    raise ValueError(f"{path}: is {found}, not a file")


def read_text(path: Path, largest: int, hint: str = "") -> str:
    """Reads a UTF-8 file, with or without a byte order mark.

    Args:
        largest: most characters that it may hold.
        hint: end of the message if there is no such file.

    Raises:
        FileNotFoundError, ValueError: as `require_file`; or it is longer, or not UTF-8.
    """
    require_file(path, hint)
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(largest + 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    if len(text) > largest:
        raise ValueError(f"{path}: longer than {largest} characters, the limit for a file of this kind")
    return text


def read_bytes(path: Path, largest: int, hint: str = "") -> bytes:
    """Reads a file of at most `largest` bytes.

    Raises:
        FileNotFoundError, ValueError: as `require_file`; or it is larger.
    """
    require_file(path, hint)
    if path.stat().st_size > largest:
        raise ValueError(f"{path}: larger than {largest} bytes, the limit for a file of this kind")
    return path.read_bytes()


def read_json(path: Path, largest: int, hint: str = "") -> object:
    """Reads a JSON file; arguments and errors as `read_text`, and ValueError if it is not JSON."""
    text = read_text(path, largest, hint)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def parse_number(value: object, name: str) -> float:
    """Converts a value from JSON to a float, which may be infinite or NaN; error messages call it `name`.

    Raises:
        ValueError: it is no number, or a whole number too large for a float.
    """
    try:
        if not isinstance(value, bool) and isinstance(value, int | float):
            return float(value)
    except OverflowError:
        pass
    raise ValueError(f"{name} is {reprlib.repr(value)}, which is not a number")


def parse_matrix(value: object, name: str, shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Converts a matrix of one of `shapes` from JSON to float64, all finite.

    Raises:
        ValueError: it is no such matrix; the message begins with its `name`.
    """
    try:
        matrix = np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} is not a matrix of numbers") from error
    if matrix.shape not in shapes:
        expected = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
        raise ValueError(f"{name} has shape {matrix.shape}; it must be {expected}")
    if not np.all(np.isfinite(matrix)):
        raise ValueError(f"{name} holds NaN or infinity")
    return matrix


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads shape, Fortran order and dtype of an npy file; leaves `file` where the data begins.

    Raises:
        ValueError: there is no such header, or its version is for structured arrays only.
    """
    # From a copy of limited size: the file could announce a header of gigabytes, which numpy would allocate.
    start = io.BytesIO(file.read(_LARGEST_HEADER))
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    try:
        version = npy_format.read_magic(start)
        if version not in readers:
            raise ValueError(f"npy format {version} is not that of plain arrays")
        header = readers[version](start)
    except PARSER_ERRORS as error:
        raise ValueError(str(error) or type(error).__name__) from error
    file.seek(start.tell())
    return header


def read_npy(path: Path, hint: str = "") -> np.ndarray:
    """Reads the real numbers of an npy file, without pickle, in no more memory than the file has bytes.

    Raises:
        FileNotFoundError, ValueError: as `require_file`; or it is no npy file, does not hold real numbers, or holds
            fewer than its header announces.
    """
    require_file(path, hint)
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise ValueError("an npz archive of several arrays; save one with np.save")
            file.seek(0)
            if path.stat().st_size > _LARGEST_ARRAY:
                raise ValueError(f"it is larger than {_LARGEST_ARRAY} bytes")
            return _plain_array(file, path.stat().st_size, kinds="fiu")
    except ValueError as error:
        raise ValueError(f"{path}: not an npy file of plain numbers ({error})") from error


def read_npz(
    path: Path, names: Sequence[str] = (), largest: int = _LARGEST_ARCHIVE, hint: str = ""
) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz file by name, without pickle: numbers, booleans and text.

    Args:
        names: arrays that it must hold, among others.
        largest: most bytes of the file, and of all its arrays unpacked.
        hint: end of the message if there is no such file.

    Raises:
        FileNotFoundError, ValueError: as `require_file`; or it is larger, damaged, no npz file, lacks one of `names`,
            or holds other types.
    """
    require_file(path, hint)
    try:
        if path.stat().st_size > largest:
            raise ValueError(f"it is larger than {largest} bytes")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
                raise ValueError("its compression is not one that np.savez uses")
            if sum(member.file_size for member in members) > largest:
                raise ValueError(f"it announces more than {largest} bytes of arrays")
            arrays = {member.filename.removesuffix(".npy"): _member_array(archive, member) for member in members}
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ValueError(f"it lacks {missing[0]!r}")
        return arrays
    except ZIP_ERRORS as error:
        reason = (str(error) or type(error).__name__)[:_LONGEST_REASON]
        raise ValueError(f"{path}: cannot be read as an npz file of plain arrays ({reason})") from error


def _member_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        # Unpacks no more than announced; a truncated member fails its checksum.
        content = file.read(member.file_size)
    array = _plain_array(io.BytesIO(content), len(content), kinds="biufU")
    if array.dtype.kind == "U":
        characters = array.reshape(-1).view(f"{array.dtype.byteorder}u4")
        # A Python string cannot hold larger code points, and fails only when it is read.
        if np.any(characters > sys.maxunicode):
            raise ValueError("it holds invalid Unicode characters")
    return array


def _plain_array(file: BinaryIO, size: int, kinds: str) -> np.ndarray:
    """Reads an npy file of `size` bytes whose `dtype.kind` is one of the letters `kinds`."""
    shape, fortran, dtype = read_npy_header(file)
    if dtype.kind not in kinds:
        raise ValueError(f"it holds {'pickled objects' if dtype.hasobject else dtype}, not numbers")
    announced = math.prod(shape) * dtype.itemsize
    left = size - file.tell()
    if min(shape, default=0) < 0 or announced > left:
        raise ValueError(f"it announces shape {shape} of {dtype}, but {left} bytes follow")
    return np.frombuffer(file.read(announced), dtype).reshape(shape, order="F" if fortran else "C")
