"""The hash-grid field: multiresolution hash encoding (Mueller et al. 2022) and two small networks.

Shapes: B points, L levels of F features, S samples on each of R rays. The encoding's points are in [0, 1]^3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from nerf_tf.marching.contraction import GridSpace

# Factors of the spatial hash, one for each axis (Mueller et al. 2022, equation 4).
PRIMES = (1, 2654435761, 805459861)
# The corners of a cell [8, 3].
CORNERS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
# Features start between minus and plus this (Mueller et al. 2022, section 4).
INITIAL_FEATURE = 1e-4
# Density is the exponential of the network's output, clipped at this: exp(12) is opaque within a thousandth of a cell.
LARGEST_EXPONENT = 12.0
# Outputs of the density network besides the density: inputs of the colour network (Mueller et al. 2022, section 5.4).
GEOMETRY_FEATURES = 15
# Length of an encoded view direction: spherical harmonics up to degree 3.
SPHERICAL_HARMONICS = 16


@dataclasses.dataclass(frozen=True)
class HashGridSettings:
    """Shape of a hash-grid field.

    Attributes:
        levels: L, number of grids, of rising resolution.
        features: F, numbers stored for each corner of a cell.
        log2_table: largest number of entries in a level's table, as a power of 2. A level with no more corners than
            that has an entry for each; the others are hashed.
        base, finest: cells along a side of the first and of the last grid.
        width: units in each hidden layer of both networks.
        cells: cells along a side of the occupancy grid; even, as it is updated in `march.TURNS` equal parts.
        use_viewdirs: whether colour depends on the view direction.
    """

    levels: int = 8
    features: int = 4
    log2_table: int = 18
    base: int = 16
    finest: int = 512
    width: int = 64
    cells: int = 64
    use_viewdirs: bool = True

    @property
    def resolutions(self) -> list[int]:
        """Cells along a side of each level, in geometric progression (Mueller et al. 2022, equations 2 and 3)."""
        growth = (self.finest / self.base) ** (1.0 / max(self.levels - 1, 1))
        return [int(self.base * growth**level + 1e-6) for level in range(self.levels)]  # 1e-6: 511.99.. is 512

    @property
    def dense(self) -> list[bool]:
        """For each level, whether its table has an entry for each corner, so that it is not hashed."""
        return [(resolution + 1) ** 3 <= 2**self.log2_table for resolution in self.resolutions]

    @property
    def entries(self) -> list[int]:
        """Number of entries in each level's table."""
        return [
            (resolution + 1) ** 3 if dense else 2**self.log2_table
            for resolution, dense in zip(self.resolutions, self.dense, strict=True)
        ]


class HashEncoding(keras.layers.Layer):
    """Encodes points as features, interpolated trilinearly between the corners of their cells.

    Each level has a grid of its own, and a table with the features of its corners.

    Attributes:
        table_0, table_1, ...: weights [entries, F] of each level.
    """

    def __init__(self, settings: HashGridSettings, seed: int, **keywords):
        super().__init__(**keywords)
        self._settings = settings
        seeds = np.random.SeedSequence(seed).generate_state(settings.levels).tolist()
        for level, (entries, seed) in enumerate(zip(settings.entries, seeds, strict=True)):
            table = self.add_weight(
                name=f"table_{level}",
                shape=(entries, settings.features),
                initializer=keras.initializers.RandomUniform(-INITIAL_FEATURE, INITIAL_FEATURE, seed=seed),
            )
            setattr(self, table.name, table)  # TensorFlow's checkpoints do not see weights in a list
        self.built = True

    @property
    def tables(self) -> list[keras.Variable]:
        """The tables of all levels."""
        return [getattr(self, f"table_{level}") for level in range(self._settings.levels)]

    def call(self, points: tf.Tensor) -> tf.Tensor:
        """Encodes points [B, 3] in [0, 1] as features [B, L * F]; gradients flow to the tables only."""
        # An operation for each level rather than one for all: while one core adds up the gradient of a table, others
        # can work on another level.
        levels = (self._interpolate(table, *self._corners(level, points)) for level, table in enumerate(self.tables))
        return tf.concat([*levels], axis=-1)

    def _interpolate(self, table: keras.Variable, index: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        """Adds up rows `index` [B, 8] of a table with `weight` [B, 8]: features [B, F] of points."""
        index, weight = _compute_once(index, weight)
        entries, features = table.shape

        @tf.custom_gradient
        def interpolate(table: tf.Tensor):
            """The features, and the function that computes their gradient."""

            def gradient(upstream: tf.Tensor) -> tf.Tensor:
                """Computes the table's gradient [entries, F] from that of the features [B, F]."""
                shares = tf.reshape(weight[..., None] * upstream[:, None], [-1, features])
                return tf.math.unsorted_segment_sum(shares, tf.reshape(index, [-1]), entries)

            return tf.reduce_sum(weight[..., None] * tf.gather(table, index), axis=1), gradient

        return interpolate(tf.convert_to_tensor(table.value))

    def _corners(self, level: int, points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Finds the corners around points [B, 3]: rows in the level's table [B, 8], and weights [B, 8]."""
        settings, resolution = self._settings, self._settings.resolutions[level]
        position = points * resolution
        lower = tf.clip_by_value(tf.floor(position), 0.0, resolution - 1.0)  # the upper faces belong to the last cells
        fraction = (position - lower)[:, None]
        weight = tf.reduce_prod(tf.where(CORNERS == 1, fraction, 1.0 - fraction), axis=-1)
        corner = tf.cast(lower, tf.int32)[:, None] + CORNERS  # [B, 8, 3]
        if settings.dense[level]:
            x, y, z = tf.unstack(corner, axis=-1)
            return (x * (resolution + 1) + y) * (resolution + 1) + z, weight
        x, y, z = tf.unstack(tf.bitcast(corner, tf.uint32) * tf.constant(PRIMES, tf.uint32), axis=-1)
        mixed = tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(x, y), z)
        return tf.bitcast(mixed & tf.constant(2**settings.log2_table - 1, tf.uint32), tf.int32), weight


def _compute_once(index: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns its arguments, computed once under XLA.

    XLA would fuse their computation into each of its uses, and repeat it for every feature and in the gradient. It does
    not fuse across a loop, so they pass through one that never runs, which XLA cannot know. That takes 7 ms instead of
    16 for 16,384 points on two cores.
    """
    never = tf.reduce_min(weight[:1]) < -1.0  # weights are in [0, 1]

    def change(_: tf.Tensor, index: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The body of the loop: it changes what passes through, or XLA would drop the loop."""
        return tf.constant(False), index + 1, weight + 1.0

    return tf.while_loop(lambda going, *_: going, change, (never, index, weight))[1:]


class OccupancyGrid(keras.layers.Layer):
    """The densities of cells [cells ** 3]: weights that training updates, but not by gradients."""

    def __init__(self, cells: int, **keywords):
        super().__init__(**keywords)
        # Just below 1, the density that the network starts with: no cell counts as empty before it has been updated.
        start = keras.initializers.Constant(0.9)
        self.densities = self.add_weight(name="densities", shape=(cells**3,), initializer=start, trainable=False)
        self.built = True


class HashGrid(keras.Model):
    """The field's weights: encoding, density network, colour network, and the occupancy grid.

    `get_weights()` is in this order: each level's table; kernel and bias of both density layers and of the three colour
    layers; and the occupancy grid.

    Attributes:
        settings: the shape.
    """

    def __init__(self, settings: HashGridSettings, seed: int | Sequence[int]):
        """Makes the weights; `seed` is one or more whole numbers >= 0."""
        super().__init__()
        self.settings = settings
        seeds = iter(np.random.SeedSequence(seed).generate_state(6).tolist())

        def dense(inputs: int, units: int, name: str, activation: str | None = None) -> keras.layers.Dense:
            """A layer with He initialisation: with Glorot's, networks as small as these start slower."""
            initializer = keras.initializers.HeUniform(seed=next(seeds))
            layer = keras.layers.Dense(units, activation=activation, kernel_initializer=initializer, name=name)
            layer.build((None, inputs))
            return layer

        width, directions = settings.width, SPHERICAL_HARMONICS if settings.use_viewdirs else 0
        self.encoding = HashEncoding(settings, next(seeds), name="encoding")
        # One attribute each: TensorFlow's checkpoints do not see layers that Keras keeps in a list.
        self.density_0 = dense(settings.levels * settings.features, width, "density_0", "relu")
        self.density_1 = dense(width, 1 + GEOMETRY_FEATURES, "density_1")
        self.colour_0 = dense(GEOMETRY_FEATURES + directions, width, "colour_0", "relu")
        self.colour_1 = dense(width, width, "colour_1", "relu")
        self.colour_2 = dense(width, 3, "colour_2")
        self.occupancy_grid = OccupancyGrid(settings.cells, name="occupancy")
        self.built = True

    @property
    def occupancy(self) -> keras.Variable:
        """Fading maximum of the density of each cell [cells ** 3], see `march.update_densities`."""
        return self.occupancy_grid.densities

    def density(self, points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes density [B] per `GridSpace.unit` of length, and features [B, 15] that colour depends on.

        Args:
            points: [B, 3] in [0, 1].
        """
        hidden = self.density_1(self.density_0(self.encoding(points)))
        return tf.exp(tf.minimum(hidden[:, 0], LARGEST_EXPONENT)), hidden[:, 1:]

    def colour(self, features: tf.Tensor, directions: tf.Tensor) -> tf.Tensor:
        """Computes raw colour [B, 3], before the sigmoid.

        Args:
            features: [B, 15] of `density`.
            directions: [B, 16] `encode_directions` of each point's view direction; ignored without `use_viewdirs`.
        """
        inputs = tf.concat([features, directions], axis=-1) if self.settings.use_viewdirs else features
        return self.colour_2(self.colour_1(self.colour_0(inputs)))

    def call(self, points: tf.Tensor, viewdirs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes density [B] and raw colour [B, 3] of points [B, 3] in [0, 1] for unit viewdirs [B, 3]."""
        density, features = self.density(points)
        return density, self.colour(features, encode_directions(viewdirs))


def encode_directions(directions: tf.Tensor) -> tf.Tensor:
    """Computes the real spherical harmonics up to degree 3, [..., 16], of unit directions [..., 3]."""
    x, y, z = tf.unstack(directions, axis=-1)
    xx, yy, zz = x * x, y * y, z * z
    return tf.stack(
        [
            0.28209479177387814 * tf.ones_like(x),
            -0.4886025119029199 * y,
            0.4886025119029199 * z,
            -0.4886025119029199 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3.0 * zz - 1.0),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
            -0.5900435899266435 * y * (3.0 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5.0 * zz - 1.0),
            0.3731763325901154 * z * (5.0 * zz - 3.0),
            -0.4570457994644658 * x * (5.0 * zz - 1.0),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3.0 * yy),
        ],
        axis=-1,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class HashGridField:
    """A hash grid as a function of points in the world: a `render.passes.FieldFunction`.

    It is for programs that evaluate a trained field, as for a mesh; training and views evaluate the `HashGrid` itself.

    Attributes:
        mlp: the weights.
        space: where in the world the grid lies.
        netchunk: largest number of points to evaluate at once.
    """

    mlp: HashGrid
    space: GridSpace
    netchunk: int = 2**16

    def __call__(
        self, points: tf.Tensor, viewdirs: tf.Tensor, visible_above: tf.Tensor | float | None = None
    ) -> tf.Tensor:
        """Computes raw colour and density.

        Args:
            points: [R, S, 3].
            viewdirs: [R, 3] unit directions.
            visible_above: ignored: colour costs too little to be left out.

        Returns:
            [R, S, 4] colour before the sigmoid, and density per unit of length of the world: never negative, and 0
            outside of the grid.
        """
        del visible_above
        samples = points.shape[1]
        flat = tf.reshape(points, [-1, 3])
        count = tf.shape(flat)[0]
        tiles = -(-count // self.netchunk)
        size = -(-count // tf.maximum(tiles, 1))

        def evaluate_tile(i: tf.Tensor, raw: tf.TensorArray):
            """Adds the i-th tile's raw [size, 4]; the last tile is filled up with the last point."""
            rows = tf.minimum(i * size + tf.range(size), count - 1)
            return i + 1, raw.write(i, self._raw(tf.gather(flat, rows), tf.gather(viewdirs, rows // samples)))

        raw = tf.TensorArray(tf.float32, tiles, element_shape=[None, 4])
        _, raw = tf.while_loop(lambda i, _: i < tiles, evaluate_tile, (0, raw), parallel_iterations=1)
        return tf.reshape(raw.concat()[:count], [-1, samples, 4])

    def _raw(self, points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
        """Computes raw [B, 4] of points [B, 3] in the world for `viewdirs` [B, 3]."""
        in_cube = self.space.to_cube(points)
        inside = tf.reduce_all((in_cube >= 0.0) & (in_cube <= 1.0), axis=-1)
        density, rgb = self.mlp(tf.clip_by_value(in_cube, 0.0, 1.0), viewdirs)
        sigma = tf.where(inside, density / self.space.unit, 0.0)
        return tf.concat([rgb, sigma[:, None]], axis=-1)
