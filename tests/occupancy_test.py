"""Skipping empty space and hidden samples: what is skipped, and when grids are made anew."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.marching import occupancy
from nerf_tf.marching.occupancy import Occupancy, OccupiedField, dilate, find_occupied
from nerf_tf.marching.visible_space import Box
from nerf_tf.render.passes import RenderSettings, render_rays

BOX = Box(np.float32([-1, -1, -1]), np.float32([1, 1, 1]))
SETTINGS = RenderSettings(N_samples=32, perturb=0.0)


@pytest.fixture(autouse=True)
def _few_cells(monkeypatch):
    monkeypatch.setattr(occupancy, "COARSE_CELLS", 16)
    monkeypatch.setattr(occupancy, "FINE_CELLS", 32)
    monkeypatch.setattr(occupancy, "BUILD_POINTS", 2048)


class Ball:
    """A red ball of radius 0.5 in a vacuum, which counts what it is asked."""

    def __init__(self, density: float = 50.0):
        self.asked = tf.Variable(0, dtype=tf.int64)
        self._density = density

    def __call__(self, points, viewdirs, visible_above=None):
        self.asked.assign_add(tf.size(points[..., 0], tf.int64))
        inside = tf.cast(tf.norm(points, axis=-1) < 0.5, tf.float32)
        colour = tf.stack([10.0 * inside, -10.0 * inside, -10.0 * inside], axis=-1)
        return tf.concat([colour, (2.0 * inside - 1.0)[..., None] * self._density], axis=-1)


def rays_along_z(offsets: np.ndarray) -> Rays:
    """Rays from z = 2 downwards, at (x, 0)."""
    count = len(offsets)
    origins = np.stack([offsets, np.zeros(count), np.full(count, 2.0)], axis=-1).astype(np.float32)
    down = np.tile(np.float32([0, 0, -1]), (count, 1))
    return Rays(*(tf.constant(x) for x in (origins, down, down, np.full([count, 1], 1.01, np.float32),
                                           np.full([count, 1], 2.99, np.float32))))  # fmt: skip


def grid(occupied: np.ndarray) -> tf.Variable:
    return tf.Variable(np.append(occupied.reshape(-1), True))


def test_dilation_takes_all_neighbours():
    cells = np.zeros([5, 5, 5], bool)
    cells[2, 2, 2] = cells[0, 0, 4] = True
    expected = np.zeros_like(cells)
    expected[1:4, 1:4, 1:4] = expected[0:2, 0:2, 3:5] = True
    np.testing.assert_array_equal(dilate(cells), expected)


def test_cells_are_by_x_y_z():
    occupied = np.zeros([32, 32, 32], bool)
    occupied[3, 10, 30] = True
    field = OccupiedField(Ball(), BOX, grid(occupied))
    centre = BOX.lower + (np.array([3, 10, 30]) + 0.5) * 2 / 32
    points = np.stack([centre, centre[[1, 0, 2]], centre + np.array([0.04, 0, 0])]).astype(np.float32)
    np.testing.assert_array_equal(field.is_occupied(points), [True, False, False])


def test_outside_of_the_grid_nothing_is_empty():
    field = OccupiedField(Ball(), BOX, grid(np.zeros([32, 32, 32], bool)))
    points = [list(p) for p in itertools.product((-1.01, 0.0, 1.01), repeat=3)]
    expected = [max(abs(x) for x in p) > 1 for p in points]
    np.testing.assert_array_equal(field.is_occupied(tf.constant(points)), expected)


def test_all_cells_of_a_ball_are_found_and_air_is_not():
    occupied = find_occupied(Ball(), BOX)
    centres = (np.stack(np.meshgrid(*[np.arange(32)] * 3, indexing="ij"), -1) + 0.5) / 16 - 1
    distance = np.linalg.norm(centres, axis=-1)
    side = 2 / 32
    assert occupied[distance < 0.5 + np.sqrt(3) / 2 * side].all()  # whatever the ball reaches into
    assert not occupied[distance > 0.5 + 3 * np.sqrt(3) * side].any()


def test_what_is_too_thin_to_see_is_empty():
    least = -np.log1p(-occupancy.MIN_OPACITY) * 16  # of a cell of side 1 / 16
    assert find_occupied(Ball(1.01 * least), BOX).any()
    assert not find_occupied(Ball(0.99 * least), BOX).any()


@pytest.mark.parametrize(("how", "tile"), [("eager", None), ("graph", None), ("eager", 32), ("compiled", 32)])
def test_a_ball_looks_the_same_for_less(how, tile):
    rays, plain, counted = rays_along_z(np.linspace(-0.95, 0.95, 40)), Ball(), Ball()
    field = OccupiedField(counted, BOX, grid(find_occupied(plain, BOX)), tile)
    render = render_rays if how == "eager" else tf.function(render_rays, jit_compile=how == "compiled")
    expected = render_rays(plain, None, rays, SETTINGS).fine
    result = render(field, None, rays, SETTINGS).fine
    for name in ("rgb", "acc", "depth"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), atol=3 * occupancy.MIN_TRANSMITTANCE)
    assert int(counted.asked) < 0.4 * 40 * 32


def test_a_full_grid_changes_nothing_where_light_gets_through():
    rays, thin = rays_along_z(np.linspace(-0.9, 0.9, 20)), Ball(1.0)
    field = OccupiedField(thin, BOX, grid(np.ones([32, 32, 32], bool)))
    expected = render_rays(thin, None, rays, SETTINGS, keep_raw=True).raw
    np.testing.assert_array_equal(render_rays(field, None, rays, SETTINGS, keep_raw=True).raw, expected)


def test_nothing_is_asked_of_an_empty_grid():
    rays, ball = rays_along_z(np.linspace(-0.9, 0.9, 20)), Ball()
    result = render_rays(OccupiedField(ball, BOX, grid(np.zeros([32, 32, 32], bool))), None, rays, SETTINGS).fine
    assert int(ball.asked) == 0
    np.testing.assert_array_equal(result.acc, np.zeros(20))


def test_spent_rays_are_not_followed():
    rays, ball = rays_along_z(np.zeros(1)), Ball(1000.0)
    render_rays(OccupiedField(ball, BOX, grid(np.ones([32, 32, 32], bool))), None, rays, SETTINGS)
    # The ball begins in the second eight of 32 samples (t = 1.5 of 1.01 to 2.99).
    assert int(ball.asked) == 16


class Constant:
    """A network with one density everywhere, and its only weight."""

    def __init__(self, density: float):
        self.weights, self.calls = [np.float32([density])], 0

    def __call__(self, points, viewdirs, visible_above=None):
        self.calls += 1  # at tracing
        return tf.fill(tf.concat([tf.shape(points)[:2], [4]], 0), self.weights[0][0])


def updated(path, network: Constant) -> Occupancy:
    made = Occupancy(BOX, path, 1)
    made.update([network], [network.weights])
    return made


def is_empty(made: Occupancy, network: Constant) -> bool:
    return not bool(made.restrict([network])[0].is_occupied(tf.zeros([3])))


def test_the_file_serves_until_the_weights_change(tmp_path):
    path, air, wall = tmp_path / "occupancy.npz", Constant(0.0), Constant(9.0)
    made = updated(path, air)
    assert is_empty(made, air)
    written, calls = path.read_bytes(), air.calls
    made.update([air], [air.weights])
    assert is_empty(updated(path, air), air)
    assert (air.calls, path.read_bytes()) == (calls, written)
    made.update([wall], [wall.weights])
    assert not is_empty(made, wall)
    assert wall.calls > 0
    assert path.read_bytes() != written


def test_a_file_that_cannot_be_written_is_done_without(tmp_path, caplog):
    air = Constant(0.0)
    (tmp_path / "run").write_text("a file")
    assert is_empty(updated(tmp_path / "run" / "occupancy.npz", air), air)
    assert "occupancy.npz: cannot be written" in caplog.text


def test_grids_follow_the_box(tmp_path):
    path, air = tmp_path / "occupancy.npz", Constant(0.0)
    updated(path, air)
    calls = air.calls
    other = Occupancy(Box(2 * BOX.lower, 2 * BOX.upper), path, 1)
    other.update([air], [air.weights])
    assert air.calls > calls


def test_before_the_first_update_all_is_asked(tmp_path):
    air = Constant(0.0)
    assert not is_empty(Occupancy(BOX, tmp_path / "occupancy.npz", 1), air)


def in_the_stream(content: bytes) -> bytes:
    """A npz file whose first array is compressed as nothing can be: its blocks are of a kind that there is not."""
    name, extra = struct.unpack("<HH", content[26:30])
    return content[: 30 + name + extra] + b"\xff" + content[31 + name + extra :]


@pytest.mark.parametrize(
    "damage", ["truncated", "text", "empty", "stream", "other arrays", "short grid", "no grid", "pickle"]
)
def test_a_broken_file_is_replaced(tmp_path, caplog, damage):
    path, air = tmp_path / "occupancy.npz", Constant(0.0)
    updated(path, air)
    whole = path.read_bytes()
    with np.load(path) as file:
        key = file["key"]
    if damage == "other arrays":
        np.savez(path, key=key, grid_0=np.zeros(3))
    elif damage == "short grid":
        np.savez(path, key=key, grid_0=np.zeros(3, np.uint8))
    elif damage == "no grid":
        np.savez(path, key=key)
    elif damage == "pickle":
        np.savez(path, key=np.array([{}], object))
    else:
        contents = {
            "truncated": whole[: len(whole) // 2],
            "text": b"hello",
            "empty": b"",
            "stream": in_the_stream(whole),
        }
        path.write_bytes(contents[damage])
    assert is_empty(updated(path, air), air)
    assert "unreadable, made anew" in caplog.text
    assert path.read_bytes() == whole
