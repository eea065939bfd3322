"""Faster rendering: skips samples in empty space, by a grid, and behind opaque surfaces.

A trained scene is mostly empty. A grid over the space of the rays (NDC included) stores where a network has density, so
that it is not evaluated elsewhere. A cell is empty only if the densities at its centre and at those of all cells around
it are next to nothing; outside of the grid nothing counts as empty.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from nerf_tf.compaction import compact
from nerf_tf.marching.visible_space import Box
from nerf_tf.render.passes import FieldFunction
from nerf_tf.storage import readers
from nerf_tf.storage.atomic import complete_file

logger = logging.getLogger(__name__)

# Cells along each side: of the first grid, over the whole box, and of the final one, evaluated where the first is not
# empty.
COARSE_CELLS, FINE_CELLS = 128, 256
# A cell is empty if its opacity along its longest side is less: about one step of an 8-bit image.
MIN_OPACITY = 5e-3
# A ray ends when its transmittance is less: a quarter of a step of an 8-bit image.
MIN_TRANSMITTANCE = 1e-3
# Number of a ray's samples that are evaluated before it is checked again whether the ray has ended.
SEGMENT = 8
# Number of points to evaluate at once while a grid is built.
BUILD_POINTS = 2**18
# Most bytes of the unpacked file; the grids of two networks take 4 MiB.
MAX_FILE_SIZE = 2**24


def find_occupied(field: FieldFunction, box: Box, description: str | None = "occupancy") -> np.ndarray:
    """Finds the occupied cells: evaluates a coarse grid, then a fine one where the coarse is not empty.

    `description` is the text of the progress bar; None: no bar.

    Returns:
        [FINE_CELLS] * 3 bool, by x, y, z: whether each cell may contain anything.
    """
    min_density = -np.log1p(-MIN_OPACITY) / (box.upper - box.lower).max()  # opacity is 1 - exp(-density * length)
    densities = _evaluate_densities(field, box, np.ones([COARSE_CELLS] * 3, bool), description)
    candidates = _upsample(dilate(densities > min_density * COARSE_CELLS))
    # Cells that, like all their neighbours, are dense enough for the fine grid too are occupied without evaluating it.
    interior = _upsample(~dilate(densities <= min_density * FINE_CELLS))
    found = _evaluate_densities(field, box, candidates & ~interior, description) > min_density * FINE_CELLS
    return dilate(found | interior)


def _upsample(cells: np.ndarray) -> np.ndarray:
    """Converts coarse cells [COARSE_CELLS] * 3 to the fine cells [FINE_CELLS] * 3 that they contain."""
    for axis in range(3):
        cells = cells.repeat(FINE_CELLS // COARSE_CELLS, axis)
    return cells


def _evaluate_densities(field: FieldFunction, box: Box, selected: np.ndarray, description: str | None) -> np.ndarray:
    """Evaluates raw density at the centres of the `selected` cells [n, n, n] of the box; 0 elsewhere."""

    @tf.function(input_signature=[tf.TensorSpec([BUILD_POINTS, 3])], autograph=False)
    def density_at(points: tf.Tensor) -> tf.Tensor:
        # No density is above infinity, so no colour is computed. Density does not depend on directions.
        return field(points[:, None], tf.ones_like(points), np.inf)[:, 0, 3]

    size = (box.upper - box.lower) / len(selected)
    numbers, densities = np.flatnonzero(selected), np.zeros(selected.size, np.float32)
    how = {"unit": "point", "unit_scale": True, "dynamic_ncols": True, "disable": description is None}
    with tqdm(total=len(numbers), desc=description, **how) as bar:
        for first in range(0, len(numbers), BUILD_POINTS):
            part = numbers[first : first + BUILD_POINTS]
            cells = np.stack(np.unravel_index(part, selected.shape), axis=-1)
            centres = np.zeros([BUILD_POINTS, 3], np.float32)
            centres[: len(part)] = box.lower + (cells + 0.5) * size
            densities[part] = density_at(centres)[: len(part)]
            bar.update(len(part))
    return densities.reshape(selected.shape)


def dilate(cells: np.ndarray) -> np.ndarray:
    """Adds to cells [n, n, n] bool all 26 neighbours of each."""
    for axis in range(3):
        grown = cells.copy()
        for here, there in itertools.permutations((slice(1, None), slice(None, -1))):
            grown[(slice(None),) * axis + (here,)] |= cells[(slice(None),) * axis + (there,)]
        cells = grown
    return cells


class OccupiedField:
    """A network that is evaluated only where it may be seen; for rendering, not for training.

    Samples in empty cells, and those after the end of their ray, get raw 0. A ray's samples must be in the order of t.

    Attributes:
        field: the network.
        occupied: bool variable [FINE_CELLS ** 3 + 1]: the cells, and one element for everything outside.
        tile: in a program that XLA compiles, how many samples are evaluated at once; None: not in such a program.
    """

    def __init__(self, field: FieldFunction, box: Box, occupied: tf.Variable, tile: int | None = None):
        self.field, self.occupied, self.tile = field, occupied, tile
        self._lower = tf.constant(box.lower)
        self._cells_per_length = tf.constant(FINE_CELLS / (box.upper - box.lower))

    def is_occupied(self, points: tf.Tensor) -> tf.Tensor:
        """Whether points [..., 3] are in occupied cells."""
        cell = tf.cast(tf.floor((points - self._lower) * self._cells_per_length), tf.int32)
        inside = tf.reduce_all((cell >= 0) & (cell < FINE_CELLS), axis=-1)
        number = (cell[..., 0] * FINE_CELLS + cell[..., 1]) * FINE_CELLS + cell[..., 2]
        return tf.gather(self.occupied, tf.where(inside, number, FINE_CELLS**3))

    def __call__(
        self, points: tf.Tensor, viewdirs: tf.Tensor, visible_above: tf.Tensor | float | None = None
    ) -> tf.Tensor:
        """Computes raw [R, S, 4] as a `FieldFunction`; `visible_above` is a scalar or None."""
        samples = points.shape[1]
        segments = -(-samples // SEGMENT)
        # 0 for the last sample, after which there is none.
        intervals = tf.pad(tf.norm(points[:, 1:] - points[:, :-1], axis=-1), [[0, 0], [0, 1]])  # [R, S]

        def split_into_segments(values: tf.Tensor) -> tf.Tensor:
            values = tf.pad(values, [[0, 0], [0, segments * SEGMENT - samples]] + [[0, 0]] * (len(values.shape) - 2))
            return tf.reshape(values, [-1, segments, SEGMENT, *values.shape[2:]])

        points, intervals, wanted = map(split_into_segments, (points, intervals, self.is_occupied(points)))

        # A loop of the graph; unrolled it would take several seconds to trace.
        def add_segment(i: tf.Tensor, optical_depth: tf.Tensor, parts: tf.TensorArray):
            has_ended = optical_depth > -np.log(MIN_TRANSMITTANCE)
            raw = self._evaluate_where(wanted[:, i] & ~has_ended[:, None], points[:, i], viewdirs, visible_above)
            optical_depth += tf.reduce_sum(tf.nn.relu(raw[..., 3]) * intervals[:, i], axis=-1)
            return i + 1, optical_depth, parts.write(i, raw)

        parts = tf.TensorArray(tf.float32, segments, element_shape=[points.shape[0], SEGMENT, 4])
        start = (0, tf.zeros_like(intervals[:, 0, 0]), parts)
        _, _, parts = tf.while_loop(lambda i, *_: i < segments, add_segment, start, parallel_iterations=1)
        raw = tf.transpose(parts.stack(), [1, 0, 2, 3])  # [R, segments, SEGMENT, 4]
        return tf.reshape(raw, [-1, segments * SEGMENT, 4])[:, :samples]

    def _evaluate_where(self, wanted: tf.Tensor, points: tf.Tensor, viewdirs: tf.Tensor, visible_above) -> tf.Tensor:
        """Evaluates raw [R, S, 4] where `wanted` [R, S]; 0 elsewhere."""
        if self.tile is not None:
            return self._evaluate_in_tiles(wanted, points, viewdirs)
        rows = tf.where(wanted)
        raw = self.field(tf.gather_nd(points, rows)[:, None], tf.gather(viewdirs, rows[:, 0]), visible_above)
        return tf.scatter_nd(rows, raw[:, 0], tf.concat([tf.shape(points, tf.int64)[:2], [4]], axis=0))

    def _evaluate_in_tiles(self, wanted: tf.Tensor, points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
        """What `_evaluate_where` does, with static shapes: as many tiles as it takes, the last one padded."""
        samples, total = wanted.shape[1], wanted.shape[0] * wanted.shape[1]
        rows, count = compact(tf.reshape(wanted, [-1]))
        points, size = tf.reshape(points, [-1, 3]), min(self.tile, total)

        def evaluate_tile(i: tf.Tensor, raw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            """Evaluates the i-th tile's samples and writes them to their places in `raw` [total + 1, 4]."""
            numbers = i * size + tf.range(size)
            row = tf.gather(rows, tf.minimum(numbers, count - 1))
            found = self.field(tf.gather(points, row)[:, None], tf.gather(viewdirs, row // samples), None)
            # Padding is written to the place after the samples.
            place = tf.where(numbers < count, row, total)
            return i + 1, tf.tensor_scatter_nd_update(raw, place[:, None], found[:, 0])

        start = (0, tf.zeros([total + 1, 4]))
        _, raw = tf.while_loop(lambda i, _: i * size < count, evaluate_tile, start, parallel_iterations=1)
        return tf.reshape(raw[:total], [-1, samples, 4])


class Occupancy:
    """The grids of a scene's networks in a box, cached in a file and rebuilt when the weights change."""

    def __init__(self, box: Box, path: Path | None, networks: int):
        """Starts with all cells occupied.

        `path` is the npz file for the grids of so many networks; None: there is no file, and nothing is reported.
        """
        self.box, self._path, self._key = box, path, ""
        self._grids = [tf.Variable(tf.ones([FINE_CELLS**3 + 1], tf.bool), trainable=False) for _ in range(networks)]

    def restrict(self, fields: Sequence[FieldFunction], tile: int | None = None) -> list[FieldFunction]:
        """Returns the networks as `OccupiedField`s with this `tile`."""
        return [OccupiedField(field, self.box, grid, tile) for field, grid in zip(fields, self._grids, strict=True)]

    def update(self, fields: Sequence[FieldFunction], weights: Sequence[Sequence[np.ndarray]]) -> None:
        """Updates the grids for new weights, from the file if it fits, otherwise from the networks.

        `fields` are the networks themselves, not what `restrict` returns.
        """
        key = self._hash(weights)
        if key == self._key:
            return
        grids = None if self._path is None else self._load(key)
        if grids is None:
            names = [None] * 2 if self._path is None else ["occupancy, coarse", "occupancy, fine"]
            grids = [find_occupied(field, self.box, name) for field, name in zip(fields, names, strict=False)]
            try:
                if self._path is not None:
                    self._save(key, grids)
            except OSError as error:
                logger.warning("%s; the grids are made anew the next time", error)
        for variable, grid in zip(self._grids, grids, strict=True):
            variable.assign(np.append(grid.reshape(-1), True))
        if self._path is not None:
            parts = ", ".join(f"{100 * (1 - grid.mean()):.1f} %" for grid in grids)
            logger.info("%s: empty, by network: %s", self._path, parts)
        self._key = key

    def _hash(self, weights: Sequence[Sequence[np.ndarray]]) -> str:
        """Computes a hash of everything that the grids depend on."""
        digest = hashlib.sha256(repr((COARSE_CELLS, FINE_CELLS, MIN_OPACITY)).encode())
        for array in (self.box.lower, self.box.upper, *itertools.chain(*weights)):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def _load(self, key: str) -> list[np.ndarray] | None:
        """Reads the grids; returns None if there is no file, or a broken one, or one for other weights."""
        names = [f"grid_{i}" for i in range(len(self._grids))]
        try:
            arrays = readers.read_npz(self._path, ["key", *names], MAX_FILE_SIZE)
            if str(arrays["key"]) != key:
                return None
            return [_unpack_grid(arrays[name]) for name in names]
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s: unreadable, made anew (%s)", self._path, " ".join(str(error).split()))
            return None

    def _save(self, key: str, grids: Sequence[np.ndarray]) -> None:
        arrays = {f"grid_{i}": np.packbits(grid.reshape(-1)) for i, grid in enumerate(grids)}
        with complete_file(self._path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, key=np.array(key), **arrays)


def _unpack_grid(bits: np.ndarray) -> np.ndarray:
    """Converts packed bits to cells [FINE_CELLS] * 3."""
    if bits.dtype != np.uint8 or bits.shape != (FINE_CELLS**3 // 8,):
        raise ValueError(f"a grid is {bits.dtype} of shape {bits.shape}")
    return np.unpackbits(bits).astype(bool).reshape([FINE_CELLS] * 3)
