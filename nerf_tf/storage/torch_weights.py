"""Checkpoints of PyTorch (`200000.tar` of nerf-pytorch), in and out, without PyTorch.

Such a file is a pickle of dicts, and the bytes of the tensors that it refers to. Since PyTorch 1.6 both are in a zip
archive (`NAME/data.pkl`, `NAME/data/0` and so on); before that the file is one pickle after another. A pickle can carry
code, so it is read into records only, as in `pickled_arrays`: nothing that it names is imported or called.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nerf_tf.storage import pickled_arrays, readers
from nerf_tf.storage.atomic import complete_file

# A checkpoint holds weights and the optimizer's two moments: three times the largest file of weights alone.
LARGEST_FILE = 3 * 2**30
_LARGEST_PICKLE = 2**24  # bytes; one of nerf-pytorch takes 20,000
_MOST_TENSORS = 1000  # of one network; nerf-pytorch's has 24

_ZIP_START, _PICKLE_NAME = b"PK\x03\x04", "data.pkl"
# How PyTorch before 1.6 begins a file: the pickle of a number.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_OLD_START = pickle.dumps(_MAGIC_NUMBER, protocol=2)

_TENSOR = "torch._utils._rebuild_tensor_v2"
_ORDERED_DICT = "collections.OrderedDict"
# The types of storages. Counts of an optimizer may be of those that are no floats; they are not read.
_TYPES = {
    **{"torch.FloatStorage": "f4", "torch.DoubleStorage": "f8", "torch.HalfStorage": "f2"},
    **{"torch.LongStorage": "i8", "torch.IntStorage": "i4", "torch.BoolStorage": "b1", "torch.ByteStorage": "u1"},
}

_READING_ERRORS = (*pickled_arrays.READING_ERRORS, *readers.ZIP_ERRORS)


def describe_torch_file(path: str | os.PathLike) -> str | None:
    """What a checkpoint of PyTorch or a zip archive is, and what to do with it; None for anything else.

    Reads the file's first kilobyte only.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:
        return None
    # The name of a zip archive's first member begins at byte 30, its length is in bytes 26 and 27. PyTorch's first
    # member is the pickle.
    name = start[30 : 30 + int.from_bytes(start[26:28], "little")].decode("latin1")
    if start.startswith(_OLD_START) or (start.startswith(_ZIP_START) and name.endswith(f"/{_PICKLE_NAME}")):
        return (
            "a checkpoint of PyTorch, as nerf-pytorch writes it, not weights of the original; convert it with "
            f"python tools/convert_weights.py {path} --out DIR"
        )
    if start.startswith(_ZIP_START):
        return "a zip archive, not weights of the original; unpack it, or name the model_NNNNNN.npy that is meant"
    return None


def load(path: str | os.PathLike, wanted: Sequence[str]) -> dict[str, object]:
    """Reads entries of a checkpoint; runs nothing that it carries.

    Args:
        path: a file of `torch.save`, of a dict whose keys are text.
        wanted: the keys to read; those that it lacks are left out.

    Returns:
        By key: of a state dict {name: float array}; anything else as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, is damaged, carries code, or holds something other than floats under a key.
    """
    path = Path(path)
    readers.require_file(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE} bytes")
        with path.open("rb") as file:
            is_archive = file.read(len(_ZIP_START)) == _ZIP_START
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                return _entries(*_open_archive(archive), wanted, path.stat().st_size)
        return _entries(*_open_old(path.read_bytes()), wanted, path.stat().st_size)
    except _READING_ERRORS as error:
        reason = (str(error) or type(error).__name__)[:300]
        raise ValueError(f"{path}: not a checkpoint of PyTorch that can be read: {reason}") from None


def save(path: str | os.PathLike, content: Mapping[str, object]) -> None:
    """Writes a checkpoint that `torch.load` reads, with and without `weights_only`.

    Args:
        content: dicts with text or whole numbers as keys, lists, tuples, text, numbers and float32 arrays.

    Raises:
        OSError: it cannot be written.
        TypeError: something in it is of another type.
    """
    arrays: list[np.ndarray] = []
    payload = b"\x80\x02" + _pickled(content, arrays) + b"."
    folder = Path(path).stem
    with complete_file(Path(path)) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(f"{folder}/{_PICKLE_NAME}", payload)
        archive.writestr(f"{folder}/byteorder", "little")
        for i, array in enumerate(arrays):
            archive.writestr(f"{folder}/data/{i}", array.tobytes())
        archive.writestr(f"{folder}/version", "3\n")


class _Storage(NamedTuple):
    """The record of a tensor's storage: its type, the key of its bytes, and how many numbers it has."""

    type: np.dtype
    key: str
    count: int


# Gives the bytes of a storage, and their byte order: < or >.
_ReadStorage = Callable[[_Storage], tuple[bytes, str]]


class _OrderedDict(dict):
    """A dict that takes no attributes from a pickle."""

    def __setstate__(self, state: object) -> None:
        """State dicts have a version of their layout as an attribute, which nobody needs here."""


class _Recorder(pickled_arrays.Recorder):
    """Also records the type of each storage that the pickle refers to, by its key, in `types`."""

    allowed = frozenset((_TENSOR, _ORDERED_DICT, *_TYPES))

    def __init__(self, payload: bytes) -> None:
        super().__init__(io.BytesIO(payload), encoding="latin1")
        self.types: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> object:
        found = super().find_class(module, name)
        return _OrderedDict if found.name == _ORDERED_DICT else found

    def persistent_load(self, pid: object) -> _Storage:
        """Reads a reference to a tensor's numbers, which lie outside the pickle."""
        # The sixth item of an old file is None, but for storages that share another's bytes.
        match pid:
            case ("storage", pickled_arrays.Global(name=kind), str(key), str(), int(count), *rest):
                if kind in _TYPES and count >= 0 and rest in ([], [None]):
                    self.types[key] = np.dtype(_TYPES[kind])
                    return _Storage(self.types[key], key, count)
        raise pickle.UnpicklingError("it refers to something that is no tensor's storage")


def _read_pickle(payload: bytes) -> tuple[object, dict[str, np.dtype], int]:
    """What the first pickle in `payload` holds, the types of its storages by key, and the bytes that it takes."""
    size = pickled_arrays.measure_pickle(payload)
    recorder = _Recorder(payload[:size])
    return recorder.load(), recorder.types, size


def _open_archive(archive: zipfile.ZipFile) -> tuple[object, _ReadStorage]:
    members = {member.filename: member for member in archive.infolist()}
    name = next((name for name in members if name.endswith(f"/{_PICKLE_NAME}")), None)
    if name is None:
        raise ValueError("it is a zip archive without data.pkl")
    folder = name.removesuffix(_PICKLE_NAME)

    def read(name: str, largest: int) -> bytes:
        """Reads a member of the archive of at most `largest` bytes."""
        member = members.get(name)
        if member is None:
            raise ValueError(f"it lacks {name}")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{name} is compressed, as PyTorch never does")
        if member.file_size > largest:
            raise ValueError(f"{name} has {member.file_size} bytes; expected {largest} at most")
        return archive.read(member)

    order = "<"
    if f"{folder}byteorder" in members and read(f"{folder}byteorder", 6) == b"big":
        order = ">"

    def storage(record: _Storage) -> tuple[bytes, str]:
        return read(f"{folder}data/{record.key}", record.count * record.type.itemsize), order

    return _read_pickle(read(name, _LARGEST_PICKLE))[0], storage


def _open_old(payload: bytes) -> tuple[object, _ReadStorage]:
    """Opens a file of before 1.6.

    It holds magic number, version, system, content and keys of storages; then count and bytes of each storage.
    """
    if not payload.startswith(_OLD_START):
        raise ValueError("it begins as no file of PyTorch does")
    place, pickles, types = 0, [], {}
    for _ in range(5):
        found, its_types, size = _read_pickle(payload[place : place + _LARGEST_PICKLE])
        pickles.append(found)
        types |= its_types
        place += size
    _, version, system, content, keys = pickles
    if version != 1001 or not (isinstance(system, dict) and system.get("little_endian") is True):
        raise ValueError(f"it is of version {version!r}, or from a machine of another byte order")
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise ValueError("it has no list of storages")
    if not types.keys() >= set(keys):
        raise ValueError("it has a storage that no tensor uses")
    pieces = {}
    for key in keys:
        (count,), width = struct.unpack_from("<q", payload, place), types[key].itemsize
        place += 8
        if not 0 <= count <= (len(payload) - place) // width:
            raise ValueError(f"storage {key[:80]!r} is cut short")
        pieces[key] = payload[place : place + count * width]
        place += count * width
    return content, lambda record: (pieces[record.key], "<")


def _entries(content: object, storage: _ReadStorage, wanted: Sequence[str], most: int) -> dict[str, object]:
    """Builds the entries, of `most` bytes together: a pickle can name one storage many times."""
    if not isinstance(content, dict):
        raise ValueError("it holds no dict")
    entries: dict[str, object] = {}
    total = 0
    for key in wanted:
        entry = content.get(key)
        if isinstance(entry, dict):
            if len(entry) > _MOST_TENSORS:
                raise ValueError(f"{key} has {len(entry)} entries; expected {_MOST_TENSORS} at most")
            arrays = {}
            for name, record in entry.items():
                if not isinstance(name, str):
                    raise ValueError(f"{key} has a key that is no text")
                arrays[name] = _array(record, storage, f"{key}: {name[:80]}")
                total += arrays[name].nbytes
                if total > most:
                    raise ValueError(f"it has {most} bytes, but tensors for more")
            entry = arrays
        if entry is not None:
            entries[key] = entry
    return entries


def _array(record: object, storage: _ReadStorage, what: str) -> np.ndarray:
    if not (isinstance(record, pickled_arrays.Call) and record.name == _TENSOR and len(record.args) >= 4):
        raise ValueError(f"{what} is not a tensor")
    source, offset, shape, strides = record.args[:4]
    if not isinstance(source, _Storage) or source.type.kind != "f":
        raise ValueError(f"{what} is not a tensor of floats")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 8):
        raise ValueError(f"{what} has no proper shape")
    if not all(type(n) is int and 0 <= n < 2**48 for n in (offset, *shape, *strides)):
        raise ValueError(f"{what} has no proper shape")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if 0 in shape or math.prod(shape) > source.count or last >= source.count:
        raise ValueError(f"{what} of shape {list(shape)} does not lie within its storage of {source.count} numbers")
    payload, order = storage(source)
    kind = source.type.newbyteorder(order)
    if len(payload) != source.count * kind.itemsize:
        raise ValueError(f"{what} has {len(payload)} bytes; expected {source.count * kind.itemsize}")
    numbers = np.frombuffer(payload, kind)[offset:]
    view = np.lib.stride_tricks.as_strided(numbers, shape, [stride * kind.itemsize for stride in strides])
    array = np.array(view, kind.newbyteorder("="), order="C")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{what} holds NaN or infinity: training that wrote it had failed")
    return array


def _pickled(value: object, arrays: list[np.ndarray]) -> bytes:
    """Pickle instructions of protocol 2 that make `value`.

    Its arrays, the tensors' storages, are added to `arrays`. Written by hand, because `pickle` refers only to
    names that it can import, and PyTorch need not be installed.
    """

    def all_of(items: Sequence[object]) -> bytes:
        return b"".join(_pickled(item, arrays) for item in items)

    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case tuple():
            return b"(" + all_of(value) + b"t"
        case list():
            return b"](" + all_of(value) + b"e"
        case dict():
            return b"}(" + all_of([x for item in value.items() for x in item]) + b"u"
        case np.ndarray():
            array = np.ascontiguousarray(value, "<f4")
            strides = tuple(stride // array.itemsize for stride in array.strides)
            arrays.append(array)
            storage = _pickled("storage", arrays) + b"ctorch\nFloatStorage\n"
            storage += all_of([str(len(arrays) - 1), "cpu", array.size])
            place = all_of([0, array.shape, strides, False])
            hooks = b"ccollections\nOrderedDict\n)R"
            return b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + place + hooks + b"tR"
    raise TypeError(f"{type(value).__name__} has no place in a checkpoint")
