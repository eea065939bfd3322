"""Contraction of space, and the cube in which grids live."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.marching.contraction import GridSpace, contract


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_unit_ball_stays_and_infinity_comes_to_radius_2(rng):
    inside = rng.uniform(-0.55, 0.55, [100, 3]).astype(np.float32)
    np.testing.assert_array_equal(contract(inside), inside)
    for distance, expected in [(2.0, 1.5), (4.0, 1.75), (1e6, 2.0)]:  # 2 - 1 / distance
        direction = np.array([0.6, 0.0, -0.8], np.float32)
        np.testing.assert_allclose(contract(distance * direction), expected * direction, rtol=1e-6)


def test_neither_value_nor_gradient_jumps_at_the_unit_sphere():
    direction = np.array([0.48, 0.6, 0.64], np.float32)
    jacobians = []
    for distance in (1.0 - 1e-4, 1.0 + 1e-4):
        point = tf.constant(distance * direction)
        with tf.GradientTape() as tape:
            tape.watch(point)
            contracted = contract(point)
        np.testing.assert_allclose(contracted, direction, atol=2e-4)
        jacobians.append(tape.jacobian(contracted, point))
    np.testing.assert_allclose(*jacobians, atol=1e-3)


def test_the_origin_has_a_gradient():
    point = tf.zeros([3])
    with tf.GradientTape() as tape:
        tape.watch(point)
        contracted = contract(point)
    np.testing.assert_array_equal(tape.jacobian(contracted, point), np.eye(3))


def test_a_box_becomes_the_unit_cube():
    space = GridSpace(np.float32([-1, 0, 2]), np.float32([1, 6, 3]))
    points = np.float32([[-1, 0, 2], [1, 6, 3], [0, 3, 2.5], [2, 3, 2.5]])
    expected = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1.5, 0.5, 0.5]]
    np.testing.assert_allclose(space.to_cube(points), expected, atol=1e-6)
    assert space.unit == 2.0


def test_contracted_space_fits_the_cube():
    space = GridSpace.around_ball([1.0, 2.0, 3.0], 0.5)
    points = np.float32([[1, 2, 3], [1.5, 2, 3], [1, 2, 3 - 1e7], [1, 3, 3]])
    expected = [[0.5, 0.5, 0.5], [0.75, 0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.875, 0.5]]
    np.testing.assert_allclose(space.to_cube(points), expected, atol=1e-6)
    assert space.unit == pytest.approx(2.0 / 3.0)
