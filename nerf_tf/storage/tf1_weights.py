"""Reading and writing the original's weight files (`model_200000.npy`).

Such a file is a NumPy object array of float arrays, stored as a pickle. `load` runs no code in it (see
`pickled_arrays`).
"""

from __future__ import annotations

import itertools
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from nerf_tf.storage import pickled_arrays, readers, torch_weights
from nerf_tf.storage.atomic import complete_file

LARGEST_FILE = 2**30  # bytes; a trunk of 8 layers of 4096 units takes half of them

_FLAGS_HINT = (
    "check --netdepth, --netwidth, --netdepth_fine, --netwidth_fine, --multires, --multires_views, --i_embed "
    "and --use_viewdirs against the run that wrote the file"
)


def load(path: str | os.PathLike) -> list[np.ndarray]:
    """Reads a weight file written by the original code or by `save`, with NumPy 1 or 2.

    Returns:
        The arrays in the file's order: for each layer its kernel [in, out], then its bias [out].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a list of float arrays, or holds NaN or infinity; the message says what it is instead.
    """
    path = Path(path)
    readers.require_file(path, "; expected weights, as in model_200000.npy")
    other = torch_weights.describe_torch_file(path)
    if other is not None:
        raise ValueError(f"{path}: {other}")
    try:
        with path.open("rb") as file:
            shape, _, dtype = readers.read_npy_header(file)
            if dtype.kind != "O" or len(shape) != 1:
                raise ValueError(f"it holds one array of {dtype} of shape {list(shape)}, not a list of arrays")
            if path.stat().st_size > LARGEST_FILE:
                raise ValueError(f"it is larger than {LARGEST_FILE} bytes")
            payload = file.read()
        return _float_arrays(pickled_arrays.parse(payload), *shape, len(payload))
    except pickled_arrays.READING_ERRORS as error:
        raise ValueError(f"{path}: not a weight file: {str(error) or type(error).__name__}") from None


def save(path: str | os.PathLike, weights: Sequence[np.ndarray]) -> None:
    """Writes weights in the original's format; the file appears only when complete.

    Its pickle uses protocol 3 and NumPy 1's names, so that the original code can read it.

    Args:
        weights: arrays as `model.get_weights()` returns them.

    Raises:
        OSError: it cannot be written.
    """
    array = np.empty(len(weights), object)
    for i, weight in enumerate(weights):
        array[i] = np.ascontiguousarray(weight)
    # The pickle spells the name once and refers back to it later, so one replacement is enough.
    payload = pickle.dumps(array, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
    with complete_file(Path(path)) as temporary, temporary.open("wb") as file:
        npy_format.write_array_header_1_0(file, npy_format.header_data_from_array_1_0(array))
        file.write(payload)


def fine_path(path: str | os.PathLike) -> Path:
    """The fine network's file that belongs to a coarse one: model_200000.npy -> model_fine_200000.npy.

    Raises:
        ValueError: the name does not end in a step.
    """
    path = Path(path)
    digits = _step_digits(path)
    return path.with_name(path.name.removesuffix(f"{digits}.npy") + f"fine_{digits}.npy")


def step_of(path: str | os.PathLike) -> int:
    """Reads the training step from a weight file's name: model_200000.npy -> 200000.

    Raises:
        ValueError: the name does not end in a step of at most 18 digits.
    """
    digits = _step_digits(Path(path))
    if len(digits) > 18:
        raise ValueError(f"{path}: the step in its name has more than 18 digits; rename it as in model_200000.npy")
    return int(digits)


def newest(folder: str | os.PathLike) -> Path | None:
    """Finds the coarse weight file of the largest step in a run's folder; None if there is none.

    A number of more than 18 digits is no step.
    """
    files = (file for file in Path(folder).glob("model_*.npy") if re.fullmatch(r"model_\d{1,18}\.npy", file.name))
    return max(files, key=step_of, default=None)


def assign(model: Any, weights: Sequence[np.ndarray], path: str | os.PathLike) -> None:
    """Sets a Keras model's weights to what `load` returned for the path, checking their number and shapes.

    Raises:
        ValueError: number or shapes differ; the message names the layer, both shapes, and flags to check.
    """
    slots = [(layer.name, array.shape) for layer in model.layers for array in layer.get_weights()]
    for index, (slot, weight) in enumerate(itertools.zip_longest(slots, weights)):
        if slot is not None and weight is not None and slot[1] == weight.shape:
            continue
        expected = "no more layers" if slot is None else f"layer {slot[0]!r} of shape {list(slot[1])}"
        found = "nothing" if weight is None else f"shape {list(weight.shape)}"
        raise ValueError(
            f"{path}: expected {expected}, found {found} at array {index} "
            f"(network: {len(slots)} arrays, file: {len(weights)}); {_FLAGS_HINT}"
        )
    model.set_weights(list(weights))


def _step_digits(path: Path) -> str:
    match = re.search(r"(\d+)\.npy$", path.name)
    if match is None:
        expected = "a weight file's name must end in its training step, as in model_200000.npy"
        if path.suffix != ".npy":
            expected = "weights are .npy files of the original or of this program, such as model_200000.npy; name one"
        raise ValueError(f"{path}: {torch_weights.describe_torch_file(path) or expected}")
    return match[1]


def _float_arrays(record: object, count: int, most: int) -> list[np.ndarray]:
    """Builds `count` arrays of together at most `most` bytes: a small pickle can refer to one array many times."""
    shape, dtype, _, items = pickled_arrays.split_array_record(record, "its content")
    if not dtype.args[0].startswith("O") or shape != (count,) or not isinstance(items, list) or len(items) != count:
        raise ValueError(f"its content is not the list of {count} arrays that its header announces")
    arrays, total = [], 0
    for i, item in enumerate(items):
        what = f"array {i} of {len(items)}"
        arrays.append(pickled_arrays.build_float_array(item, what))
        total += arrays[-1].nbytes
        if total > most:
            raise ValueError(f"it has {most} bytes, but arrays for {total}")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity
            if not np.all(np.isfinite(arrays[-1].astype(np.float32))):
                raise ValueError(f"{what} holds NaN or infinity: training that wrote it had failed")
    return arrays
