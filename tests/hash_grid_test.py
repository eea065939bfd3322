"""The hash grid: dense levels in closed form, hashed ones against plain numpy, gradients against differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.hash_grid.field import (
    GEOMETRY_FEATURES,
    HashEncoding,
    HashGrid,
    HashGridField,
    HashGridSettings,
    encode_directions,
)
from nerf_tf.marching.contraction import GridSpace

SMALL = HashGridSettings(levels=3, features=2, log2_table=9, base=4, finest=16, width=8, cells=8)
PLAIN_PRIMES = (1, 2654435761, 805459861)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def plain_encoding(settings: HashGridSettings, tables: list[np.ndarray], point: np.ndarray) -> np.ndarray:
    """What `HashEncoding` says of one point, in Python's whole numbers."""
    features = []
    for level in range(settings.levels):
        side = settings.base * (settings.finest / settings.base) ** (level / (settings.levels - 1))
        side = int(side + 1e-6)
        dense = (side + 1) ** 3 <= 2**settings.log2_table
        lower = np.minimum(np.floor(point * side), side - 1).astype(int)
        fraction, total = point * side - lower, 0.0
        for corner in np.ndindex(2, 2, 2):
            x, y, z = (int(a + b) for a, b in zip(lower, corner, strict=True))
            if dense:
                row = (x * (side + 1) + y) * (side + 1) + z
            else:
                mixed = 0
                for coordinate, prime in zip((x, y, z), PLAIN_PRIMES, strict=True):
                    mixed ^= (coordinate * prime) % 2**32
                row = mixed % 2**settings.log2_table
            weight = np.prod(np.where(np.array(corner) == 1, fraction, 1 - fraction))
            total = total + weight * tables[level][row]
        features.append(total)
    return np.concatenate(features)


def fill(encoding: HashEncoding, rng: np.random.Generator) -> None:
    for table in encoding.tables:
        table.assign(rng.normal(size=table.shape))


@pytest.fixture
def encoding(rng) -> HashEncoding:
    layer = HashEncoding(SMALL, seed=0)
    fill(layer, rng)
    return layer


def test_small_levels_are_dense_and_large_ones_are_hashed():
    assert SMALL.resolutions == [4, 8, 16]
    assert SMALL.dense == [True, False, False]
    assert SMALL.entries == [125, 512, 512]
    assert HashGridSettings().resolutions[0] == 16
    assert HashGridSettings().resolutions[-1] == 512


def test_a_dense_level_is_trilinear(rng):
    """On a grid that holds a trilinear function of the corners' places, what lies between is that function."""
    settings = dataclasses.replace(SMALL, levels=1, features=1)
    layer = HashEncoding(settings, seed=0)
    x, y, z = np.meshgrid(*[np.arange(5) / 4] * 3, indexing="ij")

    def function(x, y, z):
        return 1 + 2 * x - 3 * y + 5 * z + 7 * x * y - 2 * y * z + x * z + 4 * x * y * z

    layer.tables[0].assign(function(x, y, z).reshape(-1, 1))
    points = np.concatenate([rng.uniform(size=[50, 3]), np.eye(3), np.ones([1, 3])]).astype(np.float32)
    np.testing.assert_allclose(layer(points)[:, 0], function(*points.T), atol=1e-5)


def test_all_levels_agree_with_plain_numpy(rng, encoding):
    points = np.concatenate([rng.uniform(size=[60, 3]), [[0, 0, 0], [1, 1, 1], [0.5, 1, 0]]]).astype(np.float32)
    expected = [plain_encoding(SMALL, [table.numpy() for table in encoding.tables], point) for point in points]
    np.testing.assert_allclose(encoding(points), expected, atol=1e-5)


def test_gradients_agree_with_differences(rng):
    grid = HashGrid(SMALL, [0, 0])
    fill(grid.encoding, rng)
    points = rng.uniform(size=[20, 3]).astype(np.float32)
    viewdirs = rng.normal(size=[20, 3]).astype(np.float32)
    viewdirs /= np.linalg.norm(viewdirs, axis=-1, keepdims=True)

    def loss() -> tf.Tensor:
        density, rgb = grid(points, viewdirs)
        return tf.reduce_sum(tf.math.log(density)) + tf.reduce_sum(tf.sin(rgb))

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, [variable.value for variable in grid.trainable_variables])
    for variable, gradient in zip(grid.trainable_variables, gradients, strict=True):
        before, gradient = variable.numpy(), gradient.numpy()
        direction = rng.normal(size=before.shape).astype(np.float32)
        differences = []
        for sign in (1, -1):
            variable.assign(before + sign * 2e-4 * direction)
            differences.append(sign * float(loss()))
        variable.assign(before)
        np.testing.assert_allclose(sum(differences) / 4e-4, np.sum(gradient * direction), rtol=0.05, atol=0.1)


def test_compiled_and_eager_agree(rng, encoding):
    points = tf.constant(rng.uniform(size=[200, 3]), tf.float32)
    upstream = tf.constant(rng.normal(size=[200, 6]), tf.float32)

    def evaluate() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            features = encoding(points)
        gradients = tape.gradient(features, [table.value for table in encoding.tables], upstream)
        return [features, *map(tf.convert_to_tensor, gradients)]

    for eager, compiled in zip(evaluate(), tf.function(evaluate, jit_compile=True)(), strict=True):
        np.testing.assert_allclose(eager, compiled, atol=1e-5)


def test_directions_are_encoded_orthonormally():
    """The mean over the sphere of a product of two of them is 1 / 4 pi where they are the same, and 0 otherwise."""
    z = np.linspace(-1, 1, 401)[:, None]
    z = 0.5 * (z[1:] + z[:-1])
    phi = np.arange(64) / 64 * 2 * np.pi
    xy = np.sqrt(1 - z**2)
    directions = np.stack([xy * np.cos(phi), xy * np.sin(phi), z + 0 * phi], axis=-1).reshape(-1, 3)
    basis = encode_directions(tf.constant(directions)).numpy()
    np.testing.assert_allclose(4 * np.pi * basis.T @ basis / len(basis), np.eye(16), atol=1e-3)


def test_the_field_keeps_to_the_contract_of_the_renderer(rng):
    grid = HashGrid(SMALL, [0, 0])
    space = GridSpace(np.float32([-1, -1, -1]), np.float32([1, 1, 1]))
    field = HashGridField(grid, space, netchunk=7)
    points = rng.uniform(-1.5, 1.5, [6, 5, 3]).astype(np.float32)
    viewdirs = np.float32([[0, 0, 1]] * 6)
    raw = tf.function(field)(tf.constant(points), tf.constant(viewdirs)).numpy()
    assert raw.shape == (6, 5, 4)
    outside = np.any(np.abs(points) > 1, axis=-1)
    assert np.all(raw[outside, 3] == 0)
    assert np.all(raw[~outside, 3] > 0)
    one = points[~outside][:1]
    density, rgb = grid((one + 1) / 2, viewdirs[:1])
    np.testing.assert_allclose(raw[~outside][0], [*rgb.numpy()[0], density.numpy()[0] / space.unit], rtol=1e-5)


def test_colour_depends_on_the_view_only_where_it_shall(rng):
    points, features = np.float32([[0.2, 0.4, 0.6]] * 2), np.ones([2, GEOMETRY_FEATURES], np.float32)
    viewdirs = np.float32([[0, 0, 1], [1, 0, 0]])
    for use_viewdirs in (True, False):
        grid = HashGrid(dataclasses.replace(SMALL, use_viewdirs=use_viewdirs), [0, 0])
        density, rgb = grid(points, viewdirs)
        assert density[0] == density[1]
        assert np.allclose(*grid.colour(features, encode_directions(viewdirs))) != use_viewdirs
        assert np.isfinite(rgb).all()
