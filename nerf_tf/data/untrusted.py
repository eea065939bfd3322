"""Text and arrays from files that a stranger may have written: small enough, whole, and plain, or refused by name."""

from __future__ import annotations

import contextlib
import io
import math
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format

# Bytes in which the header of an npy file must end; numpy reads no longer ones.
_LARGEST_HEADER = 2**14

# What parsers of other packages can raise over a damaged or hostile file; those who call them may know of more.
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


@contextlib.contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Puts the file's name before what a ValueError raised by the block says."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def require_file(path: Path, hint: str = "") -> None:
    """Checks that `path` is a regular file, so that reading it neither waits nor goes on for ever.

    Raises:
        FileNotFoundError: there is nothing of that name; the message ends in `hint`.
        ValueError: there is, but it is a folder, a device, a link to itself, or out of reach.
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
    """The text of a UTF-8 file, with or without a byte order mark.

    Args:
        path: the file.
        largest: most characters that it may hold.
        hint: what to add where there is no such file.

    Raises:
        FileNotFoundError, ValueError: as for `require_file`; it is longer, or not UTF-8.
    """
    require_file(path, hint)
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(largest + 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    if len(text) > largest:
        raise ValueError(f"{path}: longer than {largest} characters, so it is not what it should be")
    return text


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type that an npy file announces; `file`, at its start, is left where its data begins.

    Raises:
        ValueError: it has no such header, or of a version that only structured arrays need.
    """
    # Not from the file itself, which could announce a header of gigabytes and have room made for it.
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


def read_array(path: Path, hint: str = "") -> np.ndarray:
    """The array of real numbers in an npy file. No pickle is read, and no more memory taken than the file has bytes.

    Raises:
        FileNotFoundError, ValueError: as for `require_file`; it is no npy file, holds something other than real
            numbers, or fewer of them than it announces.
    """
    require_file(path, hint)
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise ValueError("an npz archive of several arrays; save one with np.save")
            file.seek(0)
            shape, fortran, dtype = read_npy_header(file)
            if dtype.kind not in "fiu":
                raise ValueError(f"it holds {'pickled objects' if dtype.hasobject else dtype}, not numbers")
            announced = math.prod(shape) * dtype.itemsize
            left = path.stat().st_size - file.tell()
            if min(shape, default=0) < 0 or announced > left:
                raise ValueError(f"it announces shape {shape} of {dtype}, but {left} bytes follow")
            return np.frombuffer(file.read(announced), dtype).reshape(shape, order="F" if fortran else "C")
    except ValueError as error:
        raise ValueError(f"{path}: not an npy file of plain numbers ({error})") from error
