"""Skips what cannot be seen: samples in empty space, and samples behind a surface that hides them.

A trained scene is mostly air. A grid over the space that rays live in (NDC included) remembers where a network has any
density, so that it need not be asked elsewhere. The grid errs on the safe side: a cell counts as empty only if there
is next to no density at its centre and at the centres of all cells around it, and outside the grid nothing is empty.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from nerf_tf.render.passes import FieldFunction
from nerf_tf.storage import readers
from nerf_tf.storage.atomic import complete_file

logger = logging.getLogger(__name__)

# Cells along each side: where the whole box is looked at, and where what was not empty is looked at again.
COARSE_CELLS, FINE_CELLS = 128, 256
# A cell is empty if light that crosses its longest side loses less than this part.
LEAST_OPACITY = 5e-3
# A ray is spent when less than this part of its light is left: a quarter of a step of an 8-bit image.
LEAST_TRANSMITTANCE = 1e-3
# Samples of a ray that are asked about before looking again whether it is spent.
SEGMENT = 8
# Points to ask about at once while a grid is built.
BUILD_POINTS = 2**18
# Bytes of the file, unpacked: the grids of two networks take 4 MiB.
LARGEST_FILE = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """A part of the space that rays live in.

    Attributes:
        lower, upper: [3] float32 corners.
    """

    lower: np.ndarray
    upper: np.ndarray


def find_occupied(field: FieldFunction, box: Box, description: str = "occupancy") -> np.ndarray:
    """Asks a network about the whole box, then again, more finely, about the borders of what it found.

    Args:
        field: the network.
        box: where to look.
        description: what the progress bar calls it.

    Returns:
        [FINE_CELLS] * 3 bool, by x, y, z: whether something may be in a cell.
    """
    least = -np.log1p(-LEAST_OPACITY) / (box.upper - box.lower).max()  # opacity is 1 - exp(-density * length)
    densities = _densities(field, box, np.ones([COARSE_CELLS] * 3, bool), description)
    around = _finer(dilated(densities > least * COARSE_CELLS))
    # In the midst of others that are dense enough, a closer look would find no empty space.
    within = _finer(~dilated(densities <= least * FINE_CELLS))
    found = _densities(field, box, around & ~within, description) > least * FINE_CELLS
    return dilated(found | within)


def _finer(cells: np.ndarray) -> np.ndarray:
    for axis in range(3):
        cells = cells.repeat(FINE_CELLS // COARSE_CELLS, axis)
    return cells


def _densities(field: FieldFunction, box: Box, asked: np.ndarray, description: str) -> np.ndarray:
    """Raw density at the centres of those of the box's cells [n, n, n] that are `asked` about; 0 in the others."""

    @tf.function(input_signature=[tf.TensorSpec([BUILD_POINTS, 3])], autograph=False)
    def ask(points: tf.Tensor) -> tf.Tensor:
        # Infinity: no colour is wanted. Nor do directions matter to density.
        return field(points[:, None], tf.ones_like(points), np.inf)[:, 0, 3]

    size = (box.upper - box.lower) / len(asked)
    numbers, densities = np.flatnonzero(asked), np.zeros(asked.size, np.float32)
    with tqdm(total=len(numbers), desc=description, unit="point", unit_scale=True, dynamic_ncols=True) as bar:
        for first in range(0, len(numbers), BUILD_POINTS):
            part = numbers[first : first + BUILD_POINTS]
            cells = np.stack(np.unravel_index(part, asked.shape), axis=-1)
            centres = np.zeros([BUILD_POINTS, 3], np.float32)
            centres[: len(part)] = box.lower + (cells + 0.5) * size
            densities[part] = ask(centres)[: len(part)]
            bar.update(len(part))
    return densities.reshape(asked.shape)


def dilated(cells: np.ndarray) -> np.ndarray:
    """Cells [n, n, n] and all their neighbours, those that touch at a corner too."""
    for axis in range(3):
        grown = cells.copy()
        for here, there in itertools.permutations((slice(1, None), slice(None, -1))):
            grown[(slice(None),) * axis + (here,)] |= cells[(slice(None),) * axis + (there,)]
        cells = grown
    return cells


class OccupiedField:
    """A network that is asked only about what may be seen; for rendering, not for training.

    Samples in empty cells, and those of rays that are spent, get no density. Samples of a ray have to be in order.

    Attributes:
        field: the network.
        occupied: bool variable [FINE_CELLS ** 3 + 1]: the cells, and one more for all that is outside of them.
    """

    def __init__(self, field: FieldFunction, box: Box, occupied: tf.Variable):
        self.field, self.occupied = field, occupied
        self._lower = tf.constant(box.lower)
        self._cells_per_length = tf.constant(FINE_CELLS / (box.upper - box.lower))

    def is_occupied(self, points: tf.Tensor) -> tf.Tensor:
        """Whether something may be at points [..., 3]."""
        cell = tf.cast(tf.floor((points - self._lower) * self._cells_per_length), tf.int32)
        inside = tf.reduce_all((cell >= 0) & (cell < FINE_CELLS), axis=-1)
        number = (cell[..., 0] * FINE_CELLS + cell[..., 1]) * FINE_CELLS + cell[..., 2]
        return tf.gather(self.occupied, tf.where(inside, number, FINE_CELLS**3))

    def __call__(
        self, points: tf.Tensor, viewdirs: tf.Tensor, visible_above: tf.Tensor | float | None = None
    ) -> tf.Tensor:
        """Raw colour and density [R, S, 4], as `FieldFunction` says; `visible_above` is a scalar or None."""
        samples = points.shape[1]
        segments = -(-samples // SEGMENT)
        # The last sample's interval is infinite, but nothing comes behind it.
        intervals = tf.pad(tf.norm(points[:, 1:] - points[:, :-1], axis=-1), [[0, 0], [0, 1]])  # [R, S]

        def in_segments(values: tf.Tensor) -> tf.Tensor:
            values = tf.pad(values, [[0, 0], [0, segments * SEGMENT - samples]] + [[0, 0]] * (len(values.shape) - 2))
            return tf.reshape(values, [-1, segments, SEGMENT, *values.shape[2:]])

        points, intervals, wanted = map(in_segments, (points, intervals, self.is_occupied(points)))

        # A loop of the graph, for unrolled it takes several seconds to trace.
        def add_segment(i: tf.Tensor, optical_depth: tf.Tensor, parts: tf.TensorArray):
            spent = optical_depth > -np.log(LEAST_TRANSMITTANCE)
            raw = self._ask(points[:, i], viewdirs, wanted[:, i] & ~spent[:, None], visible_above)
            optical_depth += tf.reduce_sum(tf.nn.relu(raw[..., 3]) * intervals[:, i], axis=-1)
            return i + 1, optical_depth, parts.write(i, raw)

        parts = tf.TensorArray(tf.float32, segments, element_shape=[points.shape[0], SEGMENT, 4])
        start = (0, tf.zeros_like(intervals[:, 0, 0]), parts)
        _, _, parts = tf.while_loop(lambda i, *_: i < segments, add_segment, start, parallel_iterations=1)
        raw = tf.transpose(parts.stack(), [1, 0, 2, 3])  # [R, segments, SEGMENT, 4]
        return tf.reshape(raw, [-1, segments * SEGMENT, 4])[:, :samples]

    def _ask(self, points: tf.Tensor, viewdirs: tf.Tensor, wanted: tf.Tensor, visible_above) -> tf.Tensor:
        """Raw [R, S, 4] where `wanted` [R, S] says so; elsewhere zeros, so no density."""
        rows = tf.where(wanted)
        raw = self.field(tf.gather_nd(points, rows)[:, None], tf.gather(viewdirs, rows[:, 0]), visible_above)
        return tf.scatter_nd(rows, raw[:, 0], tf.concat([tf.shape(points, tf.int64)[:2], [4]], axis=0))


class Occupancy:
    """The grids of a scene's networks, kept in a file beside the weights and made anew when these change.

    Attributes:
        box: the space they cover.
    """

    def __init__(self, box: Box, path: Path, networks: int):
        """Begins with nothing known to be empty.

        Args:
            box: the space to cover.
            path: the file (npz) to keep the grids in.
            networks: how many there are.
        """
        self.box, self._path, self._key = box, path, ""
        self._grids = [tf.Variable(tf.ones([FINE_CELLS**3 + 1], tf.bool), trainable=False) for _ in range(networks)]

    def restrict(self, fields: Sequence[FieldFunction]) -> list[FieldFunction]:
        """The same networks, asked only where they have something to say."""
        return [OccupiedField(field, self.box, grid) for field, grid in zip(fields, self._grids, strict=True)]

    def update(self, fields: Sequence[FieldFunction], weights: Sequence[Sequence[np.ndarray]]) -> None:
        """Makes the grids fit the weights: from the file if it is about them, else by asking the networks.

        Args:
            fields: the networks, unrestricted.
            weights: the weights of each.
        """
        key = self._key_of(weights)
        if key == self._key:
            return
        grids = self._load(key)
        if grids is None:
            names = ["occupancy, coarse", "occupancy, fine"]
            grids = [find_occupied(field, self.box, name) for field, name in zip(fields, names, strict=False)]
            try:
                self._save(key, grids)
            except OSError as error:
                logger.warning("%s; the grids are made anew the next time", error)
        for variable, grid in zip(self._grids, grids, strict=True):
            variable.assign(np.append(grid.reshape(-1), True))
        parts = ", ".join(f"{100 * (1 - grid.mean()):.1f} %" for grid in grids)
        logger.info("%s: empty, by network: %s", self._path, parts)
        self._key = key

    def _key_of(self, weights: Sequence[Sequence[np.ndarray]]) -> str:
        """Names all that the grids follow from."""
        digest = hashlib.sha256(repr((COARSE_CELLS, FINE_CELLS, LEAST_OPACITY)).encode())
        for array in (self.box.lower, self.box.upper, *itertools.chain(*weights)):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def _load(self, key: str) -> list[np.ndarray] | None:
        """The file's grids; None when there are none, or they are of other weights, or broken."""
        names = [f"grid_{i}" for i in range(len(self._grids))]
        try:
            arrays = readers.read_npz(self._path, ["key", *names], LARGEST_FILE)
            if str(arrays["key"]) != key:
                return None
            return [_unpacked(arrays[name]) for name in names]
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s: unreadable, made anew (%s)", self._path, " ".join(str(error).split()))
            return None

    def _save(self, key: str, grids: Sequence[np.ndarray]) -> None:
        arrays = {f"grid_{i}": np.packbits(grid.reshape(-1)) for i, grid in enumerate(grids)}
        with complete_file(self._path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, key=np.array(key), **arrays)


def _unpacked(bits: np.ndarray) -> np.ndarray:
    """The cells [FINE_CELLS] * 3 of a grid that was stored as bits."""
    if bits.dtype != np.uint8 or bits.shape != (FINE_CELLS**3 // 8,):
        raise ValueError(f"a grid is {bits.dtype} of shape {bits.shape}")
    return np.unpackbits(bits).astype(bool).reshape([FINE_CELLS] * 3)
