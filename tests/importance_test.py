"""Samples spread by the occupancy grid's densities."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.marching import compositing, importance, packing
from nerf_tf.marching.contraction import GridSpace
from nerf_tf.marching.march import March, occupied_cells

CELLS, CANDIDATES, COUNT = 8, 64, 16
BOX = GridSpace(np.float32([-1, -1, -1]), np.float32([1, 1, 1]))
BALL = GridSpace.around_ball([0.0, 0.0, 0.0], 0.5)


def rays_along_x(count: int = 1, near: float = 0.5, far: float = 6.0, speed: float = 2.0) -> Rays:
    """Rays side by side from x = -3, which enter the box's cells one after the other."""
    origins = np.stack([np.full(count, -3.0), np.linspace(-0.9, 0.9, count + 2)[1:-1], np.full(count, 0.1)], axis=-1)
    viewdirs = np.tile([1.0, 0.0, 0.0], [count, 1])
    ones = np.ones([count, 1])
    return Rays(*(tf.constant(x, tf.float32) for x in (origins, speed * viewdirs, viewdirs, near * ones, far * ones)))


def densities_along_x(values: list[float]) -> tf.Tensor:
    """Densities of cells in layers across x."""
    return tf.constant(np.broadcast_to(np.float32(values)[:, None, None], [CELLS] * 3).reshape(-1))


def draw(space: GridSpace, rays: Rays, densities: tf.Tensor, jitter: float = 0.5, slots: int = 4000):
    march = March(space, CELLS, CANDIDATES, slots)
    count = rays.origins.shape[0]
    return march, *importance.draw_samples(march, densities, rays, tf.fill([count, 1], jitter), COUNT)


@pytest.mark.parametrize("jitter", [0.001, 0.5, 0.999])
def test_samples_lie_in_occupied_cells_and_their_lengths_fill_these(jitter):
    occupied = [0, 0, 50, 50, 0, 0, 50, 0]
    _, packed, samples = draw(BOX, rays_along_x(3), densities_along_x(occupied), jitter)
    assert (int(packed.rays), int(packed.samples)) == (3, 3 * COUNT)
    x = samples.points.numpy()[:, 0].reshape(3, COUNT)
    step = np.sqrt(12) / CANDIDATES / 2  # of a candidate, in the grid's coordinates
    in_cells = ((x > 2 / 8 - step) & (x < 4 / 8 + step)) | ((x > 6 / 8 - step) & (x < 7 / 8 + step))
    assert in_cells.all()
    assert (np.diff(x, axis=1) > 0).all()
    # Three cells of a quarter each; whole candidates count as in or out.
    lengths = samples.length.numpy().reshape(3, COUNT).sum(axis=1)
    np.testing.assert_allclose(lengths, 0.75 / BOX.unit, atol=2 * 2 * step / BOX.unit)


def test_half_of_the_light_gets_half_of_the_samples(monkeypatch):
    monkeypatch.setattr(importance, "EVEN_PART", 0.0)
    monkeypatch.setattr(importance, "EXPECTED_PART", 1.0)
    thin = float(np.log(2) / (0.25 / BOX.unit))  # absorbs half of the light in its cell; the other half ends behind it
    _, _, samples = draw(BOX, rays_along_x(), densities_along_x([0, thin, 0, 0, 1e4, 1e4, 1e4, 0]))
    x = samples.points.numpy()[:, 0]
    # Somewhat fewer: a surface's weight is shared with the candidates beside it.
    assert 0.3 < (x < 0.4).mean() <= 0.5


def test_what_is_drawn_absorbs_as_much_as_all_candidates_do():
    """Where density is constant in the occupied cells, the sum over samples is exact however they are spread."""
    densities = densities_along_x([0, 3, 3, 0, 0.5, 0.5, 0.5, 0])
    rays = rays_along_x(4)
    march, packed, samples = draw(BOX, rays, densities)
    jitter, occupied = tf.fill([4, 1], 0.5), occupied_cells(densities, march)
    every = packing.pack(march, occupied, rays, jitter)
    all_samples = packing.samples_in(march, rays, jitter, every)

    def acc(packed, samples) -> np.ndarray:
        weights, _ = compositing.packed_weights(march, tf.fill(samples.length.shape, 0.7), samples, packed)
        return compositing.sum_by_ray(weights[:, None], packed, 4).numpy()

    assert 0.1 < acc(every, all_samples).mean() < 0.9
    np.testing.assert_allclose(acc(packed, samples), acc(every, all_samples), rtol=2e-3)


def test_contracted_rays_end_at_an_opaque_sample():
    march, packed, samples = draw(BALL, rays_along_x(5, near=0.5, far=40.0), tf.zeros([CELLS**3]))
    weights, _ = compositing.packed_weights(march, tf.zeros(samples.length.shape), samples, packed)
    np.testing.assert_allclose(compositing.sum_by_ray(weights[:, None], packed, 5), 1.0, rtol=1e-6)
    assert (samples.is_last.numpy().reshape(5, COUNT) == (np.arange(COUNT) == COUNT - 1)).all()
    t = samples.t.numpy()
    assert np.isfinite(t).all()
    assert (t >= 0.5).all()
    assert (t <= 40.0).all()


def test_rays_that_meet_nothing_absorb_nothing():
    origin = tf.constant([[0.0, 5.0, 0.0], [-3.0, 0.1, 0.1]])  # the first passes by the box
    direction = tf.constant([[1.0, 0.0, 0.0]] * 2)
    rays = Rays(origin, direction, direction, tf.fill([2, 1], 0.5), tf.fill([2, 1], 6.0))
    for densities in (tf.fill([CELLS**3], 1.0), tf.zeros([CELLS**3])):
        march, packed, samples = draw(BOX, rays, densities)
        weights, _ = compositing.packed_weights(march, tf.fill(samples.length.shape, 100.0), samples, packed)
        acc = compositing.sum_by_ray(weights[:, None], packed, 2).numpy()[:, 0]
        assert np.isfinite(samples.points.numpy()).all()
        np.testing.assert_allclose(acc, [0.0, float(densities[0])], atol=1e-6)


def test_rays_are_taken_while_they_fit():
    _, packed, samples = draw(BOX, rays_along_x(9), tf.fill([CELLS**3], 1.0), slots=5 * COUNT + 3)
    assert int(packed.rays) == 5
    assert samples.t.shape == [5 * COUNT]


def test_distortion_counts_intervals_as_they_are():
    """One opaque sample in an interval of the whole ray: its own spread is a third of the interval's length."""
    march, packed, samples = draw(BOX, rays_along_x(2), tf.fill([CELLS**3], 1.0))
    weights = tf.cast(packed.k == 3, tf.float32)
    spread = compositing.distortion(weights, samples, packed, 2).numpy()
    extent = samples.extent.numpy().reshape(2, COUNT)
    np.testing.assert_allclose(spread, extent[:, 3] / 3, rtol=1e-5)
    inside = 2.0 / (march.step * CANDIDATES)  # the part of the candidates that lies in the box
    np.testing.assert_allclose(extent.sum(axis=1), inside, atol=1 / CANDIDATES)


def test_views_show_what_their_samples_hold():
    """An opaque field of one colour fills the pixels of rays that meet it, and the others show the background."""
    rays = rays_along_x(3)
    rays = rays._replace(origins=rays.origins + tf.constant([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]]))
    march, packed, samples = draw(BOX, rays, tf.fill([CELLS**3], 1.0))
    colour = tf.constant([0.2, -1.0, 3.0])

    def field(points, viewdirs):
        """Opaque everywhere."""
        return tf.fill(points.shape[:1], 1e4), tf.tile(colour[None], [points.shape[0], 1])

    rgb, disp, acc, depth = compositing.render_packed(march, field, rays, packed, samples, white_bkgd=True)
    np.testing.assert_allclose(rgb, [tf.sigmoid(colour), [1.0] * 3, tf.sigmoid(colour)], rtol=1e-5)
    np.testing.assert_allclose(acc, [1.0, 0.0, 1.0], atol=1e-5)
    assert 1.0 <= depth[0] < 1.0 + march.step / 2  # the box begins 2 units away, and rays go 2 units for each t
    np.testing.assert_allclose(disp, [1 / depth[0], 0.0, 1 / depth[2]], rtol=1e-5)
