"""Marching through an occupancy grid, packing into slots, and compositing what was packed."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.marching import compositing, packing
from nerf_tf.marching.contraction import GridSpace
from nerf_tf.marching.march import DECAY, TURNS, March, cells_in_turn, occupied_cells, update_densities

CELLS, SAMPLES = 8, 24
BOX = GridSpace(np.float32([-1, -1, -1]), np.float32([1, 1, 1]))
BALL = GridSpace.around_ball([0.0, 0.0, 0.0], 0.5)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def make_rays(rng: np.random.Generator, count: int = 40, near: float = 0.5, far: float = 6.0) -> Rays:
    """Rays from around the box to points within it, of different speeds."""
    origins = rng.normal(size=[count, 3])
    origins *= 3 / np.linalg.norm(origins, axis=-1, keepdims=True)
    directions = (rng.uniform(-0.8, 0.8, [count, 3]) - origins) * rng.uniform(0.3, 1, [count, 1])
    viewdirs = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    ones = np.ones([count, 1])
    return Rays(*(tf.constant(x, tf.float32) for x in (origins, directions, viewdirs, near * ones, far * ones)))


def march_of(space: GridSpace, slots: int = 4000) -> March:
    return March(space, CELLS, SAMPLES, slots)


def met_by(march: March, rays: Rays, jitter: np.ndarray, occupied: np.ndarray) -> list[tuple[int, int, float]]:
    """Ray, number and t of all candidates in occupied cells of a box, one after the other."""
    found = []
    for ray, (o, d, near, far) in enumerate(
        zip(rays.origins.numpy(), rays.directions.numpy(), rays.near.numpy(), rays.far.numpy(), strict=True)
    ):
        to_faces = np.sort(np.stack([(face - o) / d for face in (-1.0, 1.0)]), axis=0)
        first, last = max(to_faces[0].max(), near[0]), min(to_faces[1].min(), far[0])
        for k in range(SAMPLES):
            t = first + (k + jitter[ray, 0]) * np.sqrt(12) / SAMPLES / np.linalg.norm(d)
            cell = tuple(np.clip((o + t * d + 1) / 2 * CELLS, 0, CELLS - 1).astype(int))
            if t < last and occupied[cell]:
                found.append((ray, k, t))
    return found


def test_slots_hold_what_rays_meet(rng):
    rays, march = make_rays(rng), march_of(BOX)
    jitter, occupied = rng.uniform(size=[40, 1]).astype(np.float32), rng.uniform(size=[CELLS] * 3) < 0.3
    expected = met_by(march, rays, jitter, occupied)
    packed = packing.pack(march, tf.constant(occupied.reshape(-1)), rays, tf.constant(jitter))
    samples = packing.samples_in(march, rays, tf.constant(jitter), packed)
    assert int(packed.samples) == len(expected) > 100
    assert int(packed.rays) == 40
    assert packed.in_use.numpy().sum() == len(expected)
    for slot, (ray, k, t) in enumerate(expected):
        assert (packed.ray[slot], packed.k[slot]) == (ray, k)
        np.testing.assert_allclose(samples.t[slot], t, rtol=1e-4)
        assert packed.first[slot] == next(i for i, found in enumerate(expected) if found[0] == ray)


def test_rays_are_taken_while_they_fit(rng, monkeypatch):
    monkeypatch.setattr(packing, "BLOCK", 7)  # several blocks, of which the last is not whole
    rays, jitter = make_rays(rng), np.full([40, 1], 0.5, np.float32)
    occupied = rng.uniform(size=[CELLS] * 3) < 0.3
    expected = met_by(march_of(BOX), rays, jitter, occupied)
    slots = 100
    fit = next(ray for i, (ray, _, _) in enumerate(expected) if i >= slots)
    for first in (0, 11):
        packed = packing.pack(march_of(BOX, slots), tf.constant(occupied.reshape(-1)), rays, tf.constant(jitter), first)
        wanted = [found[:2] for found in expected if found[0] >= first]
        fit = next(ray for i, (ray, _) in enumerate(wanted) if i >= slots)
        wanted = [found for found in wanted if found[0] < fit]
        assert int(packed.rays) == fit - first
        assert int(packed.samples) == len(wanted)
        used = packed.in_use.numpy()
        pairs = zip(packed.ray.numpy()[used].tolist(), packed.k.numpy()[used].tolist(), strict=True)
        assert list(pairs) == wanted


def test_a_ray_always_fits():
    with pytest.raises(ValueError, match="23 slots do not hold the 24 samples"):
        march_of(BOX, SAMPLES - 1)


def composited(sigma: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    alpha = 1 - np.exp(-sigma * lengths)
    return alpha * np.concatenate([[1.0], np.cumprod(1 - alpha)[:-1]])


@pytest.mark.parametrize("space", [BOX, BALL])
def test_weights_and_distortion_are_those_of_each_ray_by_itself(rng, space):
    rays, march, jitter = make_rays(rng), march_of(space), tf.constant(rng.uniform(size=[40, 1]), tf.float32)
    occupied = tf.constant(rng.uniform(size=CELLS**3) < 0.4)
    packed = packing.pack(march, occupied, rays, jitter)
    samples = packing.samples_in(march, rays, jitter, packed)
    density = rng.exponential(size=march.slots).astype(np.float32)
    weights, light = compositing.packed_weights(march, tf.constant(density), samples, packed)
    spread = compositing.distortion(weights, samples, packed, 40).numpy()
    acc = compositing.sum_by_ray(weights[:, None], packed, 40)[:, 0].numpy()
    light, weights, place, used = light.numpy(), weights.numpy(), samples.place.numpy(), packed.in_use.numpy()
    assert np.all(weights[~used] == 0)
    for ray in range(40):
        mine = used & (packed.ray.numpy() == ray)
        sigma = density[mine].astype(np.float64)
        if space.contracted:
            sigma[-1] = 1e9
            assert acc[ray] == pytest.approx(1.0, abs=1e-5)
        expected = composited(sigma, samples.length.numpy()[mine])
        np.testing.assert_allclose(weights[mine], expected, atol=1e-5)
        np.testing.assert_allclose(light[mine], 1 - np.cumsum(expected) + expected, atol=1e-5)
        w, s = weights[mine].astype(np.float64), place[mine].astype(np.float64)
        expected = np.sum(w[:, None] * w * np.abs(s[:, None] - s)) + np.sum(w**2) / SAMPLES / 3
        np.testing.assert_allclose(spread[ray], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("slots", [4000, 60])
def test_what_light_reaches_is_packed_again(rng, slots):
    """The same samples, in the same order, of as many rays as fit; the image stays the same."""
    rays, march, jitter = make_rays(rng), march_of(BOX), tf.constant(rng.uniform(size=[40, 1]), tf.float32)
    packed = packing.pack(march, tf.constant(rng.uniform(size=CELLS**3) < 0.6), rays, jitter)
    samples = packing.samples_in(march, rays, jitter, packed)
    density = 30.0 * tf.constant(rng.exponential(size=march.slots), tf.float32)
    weights, light = compositing.packed_weights(march, density, samples, packed)
    again = packing.keep_visible(march, packed, light, 40, slots)
    seen = packed.in_use.numpy() & (light.numpy() > packing.LEAST_LIGHT)
    each = np.bincount(packed.ray.numpy()[seen], minlength=40)
    fit = int(np.sum(np.cumsum(each) <= slots))
    assert int(again.rays) == fit
    assert (fit == 40) == (slots == 4000)
    seen &= packed.ray.numpy() < fit
    assert int(again.samples) == seen.sum() < 0.9 * int(packed.samples)
    for name in ("ray", "k"):
        np.testing.assert_array_equal(getattr(again, name)[: seen.sum()], getattr(packed, name)[seen])
    density = tf.pad(tf.boolean_mask(density, seen), [[0, slots - int(seen.sum())]])
    their, _ = compositing.packed_weights(march, density, packing.samples_in(march, rays, jitter, again), again)
    acc, before = (compositing.sum_by_ray(w[:, None], p, 40)[:fit] for w, p in ((their, again), (weights, packed)))
    np.testing.assert_allclose(acc, before, atol=packing.LEAST_LIGHT)


def test_contracted_rays_go_evenly_in_disparity_from_near_to_far(rng):
    rays, march = make_rays(rng, near=0.5, far=100.0), march_of(BALL)
    packed = packing.pack(march, tf.ones([CELLS**3], tf.bool), rays, tf.zeros([40, 1]))
    samples = packing.samples_in(march, rays, tf.zeros([40, 1]), packed)
    t = samples.t.numpy()[: 40 * SAMPLES].reshape(40, SAMPLES)
    np.testing.assert_allclose(t, np.tile(1 / np.linspace(2, 0.01, SAMPLES, endpoint=False), (40, 1)), rtol=1e-4)
    lengths = samples.length.numpy()[: 40 * SAMPLES].reshape(40, SAMPLES).sum(axis=1) * BALL.unit
    speed = np.linalg.norm(rays.directions, axis=-1)
    np.testing.assert_allclose(lengths, 99.5 * speed, rtol=1e-3)


def fog(points: tf.Tensor, viewdirs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return 3.0 * tf.reduce_sum(points, axis=-1), points + viewdirs


@pytest.mark.parametrize("space", [BOX, BALL])
def test_no_ray_is_lost_however_few_slots_there_are(rng, space):
    rays, occupied = make_rays(rng, far=20.0), tf.constant(rng.uniform(size=CELLS**3) < 0.6)
    few, many = (
        compositing.render_rays(march_of(space, slots), fog, occupied, rays, white_bkgd=True) for slots in (50, 4000)
    )
    for name, one, other in zip(few._fields, few, many, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, err_msg=name)
    assert few.acc.numpy().min() > 0.1


def test_rays_that_meet_nothing_show_the_background(rng):
    for white, expected in ((True, 1.0), (False, 0.0)):
        seen = compositing.render_rays(march_of(BOX), fog, tf.zeros([CELLS**3], tf.bool), make_rays(rng), white)
        np.testing.assert_array_equal(seen.rgb, expected)
        np.testing.assert_array_equal(seen.disp, 0.0)


def test_cells_are_asked_in_turns_and_densities_fade(rng):
    march = march_of(BOX)
    densities = tf.fill([CELLS**3], 0.9)
    assert np.all(occupied_cells(densities, march)), "nothing is empty before it was asked about"
    asked = []
    for turn in range(TURNS):
        u = tf.constant(rng.uniform(size=[CELLS**3 // TURNS, 3]), tf.float32)
        points = cells_in_turn(CELLS, turn, u)
        asked.append(np.floor(points.numpy() * CELLS).astype(int))
        dense = tf.cast(points[:, 0] < 0.5, tf.float32) * 20.0
        densities = update_densities(densities, turn, dense)
    assert len(np.unique(np.concatenate(asked), axis=0)) == CELLS**3, "each cell once"
    grid = densities.numpy().reshape(CELLS, CELLS, CELLS)
    np.testing.assert_allclose(grid[: CELLS // 2], 20.0)
    np.testing.assert_allclose(grid[CELLS // 2 :], 0.9 * DECAY, rtol=1e-6)
    for _ in range(20):
        for turn in range(TURNS):
            densities = update_densities(densities, turn, tf.zeros([CELLS**3 // TURNS]))
    occupied = occupied_cells(densities, march).numpy().reshape(CELLS, CELLS, CELLS)
    assert occupied[: CELLS // 2].all()
    assert not occupied[CELLS // 2 :].any()
