"""One training step of a hash grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.geometry.rays import Rays
from nerf_tf.hash_grid import packed_step
from nerf_tf.hash_grid.field import HashGrid, HashGridField, HashGridSettings
from nerf_tf.hash_grid.packed_step import PackedGradients, PackedTrainer, PackedTrainSettings
from nerf_tf.marching import compositing
from nerf_tf.marching.contraction import GridSpace
from nerf_tf.marching.march import March
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.train.step import StepResult

GRID = HashGridSettings(levels=3, features=2, log2_table=9, base=4, finest=16, width=8, cells=8)
BOX = GridSpace(np.float32([-1, -1, -1]), np.float32([1, 1, 1]))
BALL = GridSpace.around_ball([0.0, 0.0, 0.0], 0.5)
RAYS = 64


def make_trainer(space=BOX, seed: int = 0, slots: int = 400, **settings) -> PackedTrainer:
    settings = PackedTrainSettings(**({"slots": slots, "steps": 200} | settings))
    field = HashGridField(HashGrid(GRID, [5, 0]), space)
    return PackedTrainer(field, March(space, GRID.cells, 32, 2 * slots), settings, seed)


def make_batch(step: int) -> RayBatch:
    """Rays from around the box towards its middle; what they should see is red on white."""
    rng = np.random.default_rng(step)
    origins = rng.normal(size=[RAYS, 3])
    origins *= 3 / np.linalg.norm(origins, axis=-1, keepdims=True)
    directions = rng.uniform(-1, 1, [RAYS, 3]) - origins
    viewdirs = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    nearest = np.linalg.norm(np.cross(origins, viewdirs), axis=-1, keepdims=True)
    rgb = np.where(nearest < 0.5, [0.9, 0.2, 0.1], 1.0)
    ones = np.ones([RAYS, 1])
    rays = Rays(origins, directions, viewdirs, 0.1 * ones, 3 * ones)
    return tf.nest.map_structure(lambda x: tf.constant(x, tf.float32), RayBatch(rays, rgb))


def variables(trainer: PackedTrainer) -> list:
    """All that training changes."""
    moments = [*trainer.optimizer.first, *trainer.optimizer.second]
    return [*trainer.coarse.mlp.weights, *moments, trainer.step, trainer.seed, trainer.counts, trainer.seconds]


def values(trainer: PackedTrainer) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables(trainer)]


@pytest.mark.parametrize("ray_samples", [None, 16])
def test_compiled_and_eager_gradients_agree(ray_samples):
    trainer = make_trainer(BALL, distortion=0.01, random_background=True, ray_samples=ray_samples)
    batch, draws = make_batch(0), trainer.draw(RAYS)
    eager = trainer.gradients(batch, draws)
    compiled = tf.function(trainer.gradients, jit_compile=True)(batch, draws)
    assert 0 < int(eager.rays) < RAYS, "some do not fit"
    for one, other in zip(tf.nest.flatten(eager), tf.nest.flatten(compiled), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


def test_distortion_counts_less_for_rays_with_many_samples():
    trainer = make_trainer(BALL, distortion=0.16)
    batch, draws = make_batch(0), trainer.draw(RAYS)
    found = trainer.gradients(batch, draws)
    packed, samples = trainer._samples(batch.rays, draws.jitter)
    weights, _ = compositing.packed_weights(trainer.march, found.density, samples, packed)
    spread = compositing.distortion(weights, samples, packed, RAYS)[: packed.rays]
    count = np.bincount(packed.ray[packed.in_use])
    np.testing.assert_allclose(found.loss - found.error, 0.16 * np.mean(spread / count), rtol=1e-4)


def test_rays_that_do_not_fit_do_not_count():
    trainer = make_trainer()
    batch, draws = make_batch(0), trainer.draw(RAYS)
    found = trainer.gradients(batch, draws)
    fit = int(found.rays)
    other = batch._replace(rgb=tf.where((tf.range(RAYS) < fit)[:, None], batch.rgb, 0.0))
    np.testing.assert_array_equal(trainer.gradients(other, draws).loss, found.loss)
    other = batch._replace(rgb=tf.where((tf.range(RAYS) < fit - 1)[:, None], batch.rgb, 0.0))
    assert float(trainer.gradients(other, draws).loss) != float(found.loss)


class Learned(NamedTuple):
    """A trainer after 200 steps, and what they returned; the first step's gradients, eagerly and by its moments."""

    trainer: PackedTrainer
    steps: list[StepResult]
    eager: PackedGradients
    compiled: list[np.ndarray]


@pytest.fixture(scope="module")
def learned() -> Learned:
    trainer = make_trainer(white_bkgd=True)
    eager = trainer.gradients(make_batch(0), trainer.draw(RAYS))
    first = trainer.train_step(make_batch(0))
    compiled = [moment.numpy() / (1 - packed_step.BETA_1) for moment in trainer.optimizer.first]
    return Learned(trainer, [first, *(trainer.train_step(make_batch(step)) for step in range(1, 200))], eager, compiled)


def test_a_compiled_step_in_a_box_is_the_eager_one(learned):
    eager, first = learned.eager, learned.steps[0]
    assert 0 < int(eager.rays) < RAYS, "some do not fit"
    np.testing.assert_allclose(first.loss, eager.loss, rtol=1e-5)
    np.testing.assert_allclose(first.sigma[0], eager.density, atol=1e-5, rtol=1e-5)
    for one, other in zip(eager.gradients, learned.compiled, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)
        assert np.any(other != 0)


def test_it_learns_and_empties_what_is_empty(learned):
    trainer, psnrs = learned.trainer, [float(result.psnr) for result in learned.steps]
    assert np.mean(psnrs[-10:]) > np.mean(psnrs[:10]) + 8
    cells = trainer.coarse.mlp.occupancy.numpy().reshape([GRID.cells] * 3)
    assert np.mean(cells[3:5, 3:5, 3:5]) > 2 * np.mean(cells[:2, :2, :2])


def test_a_run_goes_on_bit_for_bit(monkeypatch):
    monkeypatch.setattr(packed_step, "EARLY_FROM", 0)  # the occupancy grid is updated within these steps
    trainer, ends = make_trainer(seed=3), []
    for step in range(5):
        trainer.train_step(make_batch(step))
    saved = values(trainer)
    for _ in range(2):  # the same one, which spares a compilation
        for variable, value in zip(variables(trainer), saved, strict=True):
            variable.assign(value)
        for step in range(5, 10):
            trainer.train_step(make_batch(step))
        ends.append(values(trainer))
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_holds_all_that_training_changes(tmp_path):
    one, other = make_trainer(seed=3), make_trainer(seed=4)
    rng = np.random.default_rng(0)
    for variable in variables(one):
        variable.assign(rng.integers(9, size=variable.shape))
    CheckpointStore(one.state, tmp_path).save()
    CheckpointStore(other.state, tmp_path).restore()
    for mine, its in zip(values(one), values(other), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_draws_follow_from_seed_and_step():
    trainer, same, other = make_trainer(seed=3), make_trainer(seed=3), make_trainer(seed=4)
    first = trainer.draw(8).jitter
    np.testing.assert_array_equal(first, same.draw(8).jitter)
    assert np.all(first != other.draw(8).jitter)
    trainer.step.assign_add(1)
    assert np.all(first != trainer.draw(8).jitter)


def test_a_bad_step_is_skipped_and_counted(learned):
    trainer = learned.trainer
    step, before = int(trainer.step.numpy()), values(trainer)
    bad = make_batch(1)
    result = trainer.train_step(bad._replace(rgb=bad.rgb * np.nan))
    assert result.counts.numpy().tolist() == [1, 1, 0, 0, 0]
    after = values(trainer)
    for one, two in zip(before[:-4], after[:-4], strict=True):
        np.testing.assert_array_equal(one, two)
    assert int(trainer.step.numpy()) == step + 1
    assert trainer.train_step(make_batch(2)).counts.numpy().tolist() == [0, 1, 0, 0, 0]


def test_weights_move_by_adams_rule():
    trainer, rate = make_trainer(), tf.constant(0.01)
    grid, random = trainer.coarse.mlp, np.random.default_rng(0)
    before = [variable.numpy() for variable in grid.trainable_variables]
    first, second = ([random.normal(size=value.shape).astype(np.float32) for value in before] for _ in range(2))
    for step, gradients in enumerate((first, second)):
        trainer.apply([tf.constant(g) for g in gradients], rate, tf.constant(step, tf.int64), tf.constant(False))
    for variable, value, one, two in zip(grid.trainable_variables, before, first, second, strict=True):
        mean = (0.9 * one + two) / 1.9  # Kingma and Ba 2015, algorithm 1, with bias correction
        square = (0.99 * one**2 + two**2) / 1.99
        np.testing.assert_allclose(variable, value - 0.01 * (np.sign(one) + mean / np.sqrt(square)), atol=1e-6)


def test_the_learning_rate_rises_and_falls_to_the_end():
    trainer = make_trainer(steps=1000)
    rates = []
    for step in (0, packed_step.WARMUP - 1, 500, 1000):
        trainer.step.assign(step)
        rates.append(float(trainer.learning_rate()))
    assert rates[0] < rates[1] > rates[2] > rates[3]
    np.testing.assert_allclose(rates[3], PackedTrainSettings().lrate * packed_step.FINAL_RATE, rtol=1e-5)


def test_the_learning_rate_may_go_by_the_clock():
    trainer = make_trainer(steps=100000, minutes=2.0)
    trainer.step.assign(1000)
    rates = []
    for seconds in (0, 60, 60):
        assert trainer.spend(seconds) == (len(rates) == 2)
        rates.append(float(trainer.learning_rate()))
    np.testing.assert_allclose(rates[1] / rates[0], (1.0 + packed_step.FINAL_RATE) / 2.0, rtol=0.02)
    np.testing.assert_allclose(rates[2] / rates[0], packed_step.FINAL_RATE, rtol=0.02)


def test_samples_are_jittered_only_if_wanted():
    for perturb in (True, False):
        draws = make_trainer(perturb=perturb).draw(8)
        assert (len(np.unique(draws.jitter)) == 1) != perturb
