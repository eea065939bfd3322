"""Safe reading of pickled float arrays.

A pickle can carry code. Here its calls are only recorded, never made, and arrays are built from the records. A pickle
that names anything but NumPy's arrays is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools

import numpy as np

from nerf_tf.storage import readers

# The only names in a pickled array of arrays, as NumPy 1 writes them; NumPy 2 writes `numpy._core` for `numpy.core`.
# Pickle protocol 2 writes bytes as a call of `_codecs.encode`.
_RECONSTRUCT = "numpy.core.multiarray._reconstruct"
_NDARRAY = "numpy.ndarray"
_DTYPE = "numpy.dtype"
_ENCODE = "_codecs.encode"
_ALLOWED = frozenset((_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE))

# What numpy's header reader and an unpickler can raise over a damaged or hostile file.
READING_ERRORS = (*readers.PARSER_ERRORS, pickle.UnpicklingError, ImportError)
# Far above any weight file: 26 arrays take some 800 pickle instructions.
MAX_OPCODES = 10**6


def parse(payload: bytes) -> object:
    """Reads a pickle of lists, tuples, dicts, text, numbers and arrays, with records for arrays.

    Raises:
        One of `READING_ERRORS`: it is damaged, or names anything but arrays.
    """
    measure_pickle(payload)
    return Recorder(io.BytesIO(payload), encoding="latin1").load()


def build_float_array(record: object, what: str) -> np.ndarray:
    """Builds a float array in native byte order from its record; error messages call it `what`.

    Raises:
        ValueError: the record is not that of a float array.
    """
    shape, dtype, fortran, contents = split_array_record(record, what)
    if dtype.args[0] not in ("f2", "f4", "f8"):
        raise ValueError(f"{what} is not an array of floats but of type {dtype.args[0][:20]!r}")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "="
    if order not in ("<", ">", "="):
        raise ValueError(f"{what} has an invalid byte order")
    kind = np.dtype(order + dtype.args[0])
    content = _content_bytes(contents, what)
    if len(content) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{what} has {len(content)} bytes, which is not {kind.name} of shape {list(shape)}")
    array = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
    return np.array(array, kind.newbyteorder("="), order="C")


def split_array_record(record: object, what: str) -> tuple[tuple, Call, bool, object]:
    """Splits an array's record into shape, record of the dtype, whether in Fortran order, and contents.

    Raises:
        ValueError: the record is not that of an array; the message calls it `what`.
    """
    if not (isinstance(record, Call) and record.name == _RECONSTRUCT):
        raise ValueError(f"{what} is not an array")
    state = record.state
    if not (isinstance(state, tuple) and len(state) == 5):
        raise ValueError(f"{what} is an incomplete array")
    _, shape, dtype, fortran, contents = state
    if not (isinstance(shape, tuple) and len(shape) <= 8 and all(type(s) is int and 0 < s < 2**63 for s in shape)):
        raise ValueError(f"{what} has an invalid shape")
    if not (isinstance(dtype, Call) and dtype.name == _DTYPE and dtype.args and isinstance(dtype.args[0], str)):
        raise ValueError(f"{what} has an invalid type")
    return shape, dtype, bool(fortran), contents


class Global:
    """Stands in for what a pickle refers to by name; calling it only records the call."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: object) -> Call:
        return Call(self.name, args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"it tries to change {self.name}, so it carries code")


class Call:
    """The record of a call and of the state that the pickle sets on its result."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple) -> None:
        self.name, self.args, self.state = name, args, None

    def __setstate__(self, state: object) -> None:
        self.state = state


class Recorder(pickle.Unpickler):
    """An unpickler that neither imports nor calls what the pickle names.

    Attributes:
        allowed: the names that a pickle may refer to.
    """

    allowed = _ALLOWED

    def find_class(self, module: str, name: str) -> object:
        full_name = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        if full_name not in self.allowed:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, so it carries code; nothing of it was run")
        return Global(full_name)


def measure_pickle(payload: bytes) -> int:
    """Returns the length in bytes of the pickle at the start of `payload`.

    Checks it, too: an unpickler can be made to allocate gigabytes by a few bytes.

    Raises:
        One of `READING_ERRORS`: it is damaged.
    """
    end = 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(payload)):
        end = position + 1
        if count == MAX_OPCODES:
            raise ValueError(f"it has more than {MAX_OPCODES} pickle instructions")
        if opcode.name in ("PUT", "LONG_BINPUT") and argument > len(payload):
            raise ValueError("it is damaged")
    return end


def _content_bytes(contents: object, what: str) -> bytes:
    """An array's bytes, which the pickle holds as bytes, as encoded text, or as Latin-1 text (Python 2)."""
    if isinstance(contents, Call) and contents.name == _ENCODE and contents.args[1:] in (("latin1",), ("latin-1",)):
        contents = contents.args[0]
    if isinstance(contents, str):
        return contents.encode("latin1")
    if not isinstance(contents, bytes):
        raise ValueError(f"{what} holds objects, not numbers")
    return contents
