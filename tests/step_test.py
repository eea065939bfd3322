"""One training step."""

from __future__ import annotations

import dataclasses
import functools
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.field.mlp import FieldSettings, build_mlp
from nerf_tf.field.query import Field
from nerf_tf.geometry.rays import Rays
from nerf_tf.render.passes import RenderSettings
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.train import gradients, step
from nerf_tf.train.step import Trainer, falling_rate

MLP = FieldSettings(depth=2, width=16, multires=2, multires_views=1, use_viewdirs=True)
RANDOM = RenderSettings(N_samples=6, N_importance=4, perturb=1.0, raw_noise_std=1.0)
RAYS = 16


def make_trainer(rendering=RANDOM, seed=0, netchunk=1000, precision="float32", mlp=MLP, compiled=False) -> Trainer:
    fields = [Field(build_mlp(mlp, [5, i], precision), mlp, netchunk, compiled=compiled) for i in range(2)]
    return Trainer(fields[0], fields[1] if rendering.N_importance else None, rendering, falling_rate(1e-2), seed)


def make_batch(step: int, rgb: np.ndarray | None = None, count: int = RAYS) -> RayBatch:
    """Rays from around the origin in all directions; colours at random unless given."""
    rng = np.random.default_rng(step)
    origins, directions = rng.normal(size=(2, count, 3)).astype(np.float32)
    viewdirs = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    ones = np.ones([count, 1], np.float32)
    rgb = rng.random([count, 3], np.float32) if rgb is None else rgb
    return tf.nest.map_structure(
        tf.constant, RayBatch(Rays(origins, directions, viewdirs, 2 * ones, 6 * ones), np.float32(rgb))
    )


def state_of(trainer: Trainer) -> list[np.ndarray]:
    """All weights and moments, as numpy copies."""
    networks = [field.mlp for field in (trainer.coarse, trainer.fine) if field]
    variables = [v for network in networks for v in network.weights] + trainer.optimizer.variables
    return [v.numpy().copy() for v in variables] + [trainer.step.numpy(), trainer.seed.numpy()]


def set_state(trainer: Trainer, state: list[np.ndarray]) -> None:
    networks = [field.mlp for field in (trainer.coarse, trainer.fine) if field]
    variables = [v for network in networks for v in network.weights] + trainer.optimizer.variables
    for variable, value in zip([*variables, trainer.step, trainer.seed], state, strict=True):
        variable.assign(value)


def run(trainer: Trainer, steps: int) -> tuple[list[np.ndarray], list[float]]:
    """Trains on, and returns the state and the losses."""
    losses = [float(trainer.train_step(make_batch(int(trainer.step.numpy()))).loss) for _ in range(steps)]
    return state_of(trainer), losses


def assert_equal_states(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def traced():
    """One trainer for the tests that only look at what its step does, and the state it was born with."""
    trainer = make_trainer()
    return trainer, state_of(trainer)


@pytest.fixture
def fresh(traced) -> Trainer:
    trainer, born = traced
    set_state(trainer, born)
    return trainer


# A step


def test_one_trace_serves_all_steps(fresh):
    run(fresh, 5)
    set_state(fresh, [*state_of(fresh)[:-2], np.int64(100_000), np.int64(2**32 - 1)])
    run(fresh, 2)
    assert fresh.train_step.experimental_get_tracing_count() == 1


def test_a_step_counts_and_moves_all_weights(fresh):
    before = state_of(fresh)
    after, _ = run(fresh, 1)
    assert fresh.step.numpy() == 1
    weights = len(fresh.coarse.mlp.weights) + len(fresh.fine.mlp.weights)
    for old, new in zip(before[:weights], after[:weights], strict=True):
        assert (old != new).any()


def test_a_step_reports_what_it_saw(fresh):
    result = fresh.train_step(make_batch(0))
    fine_mse, coarse_mse = 10 ** (-result.psnr / 10), 10 ** (-result.psnr0 / 10)
    np.testing.assert_allclose(result.loss, fine_mse + coarse_mse, rtol=1e-5)
    assert result.sigma.shape == [RAYS // 2, RANDOM.N_samples + RANDOM.N_importance]  # of the last half
    assert float(tf.math.reduce_std(result.sigma)) > 0


def test_steps_are_a_function_of_seed_step_and_weights(fresh):
    born = state_of(fresh)
    first, losses = run(fresh, 4)
    set_state(fresh, born)
    second, losses_again = run(fresh, 4)
    assert losses == losses_again
    assert_equal_states(first, second)


@pytest.mark.parametrize("what", ["seed", "step"])
def test_seed_and_step_decide_the_draws(fresh, what):
    born = state_of(fresh)
    loss = float(fresh.train_step(make_batch(0)).loss)
    set_state(fresh, born)
    getattr(fresh, what).assign(1)
    assert float(fresh.train_step(make_batch(0)).loss) != loss


def test_two_trainers_of_one_seed_agree_bit_for_bit(fresh):
    born = state_of(fresh)
    state, losses = run(fresh, 3)
    other = make_trainer()
    assert_equal_states(born, state_of(other))
    other_state, other_losses = run(other, 3)
    assert losses == other_losses
    assert_equal_states(state, other_state)


def test_eager_equals_graph(fresh):
    born = state_of(fresh)
    state, losses = run(fresh, 3)
    set_state(fresh, born)
    tf.config.run_functions_eagerly(True)
    try:
        eager_state, eager_losses = run(fresh, 3)
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(eager_losses, losses, rtol=1e-5)
    for a, b in zip(eager_state, state, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def assert_loss_falls(trainer: Trainer) -> None:
    colour = np.tile([[0.9, 0.5, 0.1]], [RAYS, 1])
    losses = [float(trainer.train_step(make_batch(step, colour)).loss) for step in range(60)]
    assert np.mean(losses[-10:]) < 0.25 * np.mean(losses[:5])


def test_loss_falls(fresh):
    assert_loss_falls(fresh)


def test_without_a_fine_network():
    trainer = make_trainer(RenderSettings(N_samples=6, N_importance=0), seed=2)
    result = trainer.train_step(make_batch(0))
    assert result.psnr0 is None
    np.testing.assert_allclose(result.loss, 10 ** (-result.psnr / 10), rtol=1e-5)
    assert result.sigma.shape == [RAYS // 2, 6]
    assert len(trainer.optimizer.variables) == 2 + 2 * len(trainer.coarse.mlp.weights)


# Chunks


def weights_of(trainer: Trainer) -> list[np.ndarray]:
    return [w for field in (trainer.coarse, trainer.fine) if field for w in field.mlp.get_weights()]


def train_three_steps(trainer: Trainer) -> tuple[list[list[float]], list[np.ndarray]]:
    """Total, fine and coarse losses of three steps, and the weights after them."""
    results = [trainer.train_step(make_batch(step)) for step in range(3)]
    psnrs = [[float(psnr) for psnr in (r.psnr, r.psnr0) if psnr is not None] for r in results]
    losses = [[float(r.loss), *(10 ** (-psnr / 10) for psnr in each)] for r, each in zip(results, psnrs, strict=True)]
    return losses, weights_of(trainer)


@pytest.fixture(scope="module")
def at_once(traced):
    """What `train_three_steps` returns when all rays and samples are worked on together."""
    trainer, born = traced
    set_state(trainer, born)
    return train_three_steps(trainer)


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """How many rays gradients are computed of together, each time that is traced."""
    taken, chunk_gradients = [], gradients.chunk_gradients

    def spy(*args):
        taken.append(next(arg for arg in args if isinstance(arg, RayBatch)).rgb.shape[0])
        return chunk_gradients(*args)

    monkeypatch.setattr(gradients, "chunk_gradients", spy)
    return taken


@pytest.mark.parametrize(
    ("chunk", "netchunk", "compiled", "rays"),
    [
        (3, 1000, False, 3),  # each half in 3 chunks, as even as can be: one ray of the last is repeated
        (1000, 50, False, 4),  # a tile of 50 points holds 5 rays of 10 samples: 2 chunks of each half
        (1000, 7, False, 8),  # such a tile holds none
        (5, 7, False, 4),
        (7, 25, True, 4),  # tiles of which the last is not full
    ],
)
def test_chunk_and_netchunk_do_not_change_training(at_once, taken, chunk, netchunk, compiled, rays):
    trainer = make_trainer(dataclasses.replace(RANDOM, chunk=chunk), netchunk=netchunk, compiled=compiled)
    losses, weights = train_three_steps(trainer)
    np.testing.assert_allclose(losses, at_once[0], rtol=1e-5)
    for a, b in zip(weights, at_once[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert trainer.train_step.experimental_get_tracing_count() == 1
    assert taken == [rays]  # once: it is a loop that TensorFlow knows of


def test_a_compiled_step_takes_all_rays_of_a_part_whatever_fits_a_tile(taken):
    trainer = make_trainer(netchunk=50, compiled=True)
    trainer.train_step.get_concrete_function(make_batch(0))  # traced, not compiled
    assert taken == [RAYS // 2]


def test_a_gpu_takes_all_rays_at_once(at_once, taken, monkeypatch):
    monkeypatch.setattr(step.tf.config, "list_physical_devices", lambda kind: [kind])
    trainer = make_trainer(compiled=True)
    losses, _ = train_three_steps(trainer)
    np.testing.assert_allclose(losses, at_once[0], rtol=1e-5)
    assert taken == [RAYS]
    program = trainer._compiled_gradients.experimental_get_compiler_ir(
        make_batch(0), trainer.draw(RAYS), *trainer.part_arguments(1, 0, 1)
    )
    assert "while" not in program(stage="hlo")


def test_compilation_does_not_change_training(at_once, compiled):
    losses, weights = train_three_steps(compiled)
    np.testing.assert_allclose(losses, at_once[0], rtol=1e-5)
    for a, b in zip(weights, at_once[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert compiled.train_step(make_batch(3)).sigma.shape[0] == RAYS // 2  # all of a half at once
    assert compiled.train_step.experimental_get_tracing_count() == 1


COARSE = dataclasses.replace(RANDOM, N_importance=0)


@pytest.fixture(scope="module")
def coarse_at_once():
    """What `train_three_steps` returns without a fine network when all rays are worked on together."""
    return train_three_steps(make_trainer(COARSE))


def test_chunks_do_not_change_training_without_a_fine_network(coarse_at_once):
    losses, weights = train_three_steps(make_trainer(dataclasses.replace(COARSE, chunk=7)))
    np.testing.assert_allclose(losses, coarse_at_once[0], rtol=1e-5)
    for a, b in zip(weights, coarse_at_once[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_trainer_can_be_resized_on_the_way(at_once):
    trainer = make_trainer()
    losses = [float(trainer.train_step(make_batch(0)).loss)]
    trainer.resize(chunk=7, netchunk=64)
    results = [trainer.train_step(make_batch(step)) for step in (1, 2)]
    assert results[0].sigma.shape == [4, 10]
    np.testing.assert_allclose([*losses, *(float(r.loss) for r in results)], [row[0] for row in at_once[0]], rtol=1e-5)
    for a, b in zip(weights_of(trainer), at_once[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert [(field.netchunk, field.mlp) for field in (trainer.coarse, trainer.fine)] == [
        (64, trainer.coarse.mlp),
        (64, trainer.fine.mlp),
    ]


@pytest.mark.optimised_graphs
@pytest.mark.parametrize(("chunk", "netchunk"), [(32768, 4096), (64, 65536)], ids=["netchunk", "chunk"])
def test_memory_is_flat_in_N_rand_beyond_what_is_processed_at_once(peak_memory, chunk, netchunk):
    mlp = FieldSettings(depth=3, width=64, multires=4, multires_views=2, use_viewdirs=True)
    rendering = RenderSettings(N_samples=64, chunk=chunk)
    peaks = {}
    for count in (128, 1024):  # 64 at a time
        trainer = make_trainer(rendering, netchunk=netchunk, mlp=mlp)
        step = functools.partial(trainer.train_step, make_batch(0, count=count))
        step()
        peaks[count] = peak_memory(step)
    # What runs side by side differs from run to run.
    assert peaks[1024] < 1.3 * peaks[128], peaks
    assert peaks[128] > 2**20, peaks  # TensorFlow does not count pieces of less than 256 KiB on a CPU


# Precision


@pytest.fixture(scope="module")
def traced_float16():
    """A trainer of float16 networks that takes a batch in chunks, and the state it was born with."""
    trainer = make_trainer(precision="float16", netchunk=64)
    return trainer, state_of(trainer)


@pytest.fixture
def float16(traced_float16) -> Trainer:
    trainer, born = traced_float16
    set_state(trainer, born)
    return trainer


def test_loss_falls_in_float16(float16):
    assert_loss_falls(float16)
    assert {v.dtype for v in float16.coarse.mlp.weights + float16.fine.mlp.weights} == {"float32"}
    assert float16.train_step.experimental_get_tracing_count() == 1


def test_loss_falls_in_bfloat16():
    trainer = make_trainer(precision="bfloat16")
    assert_loss_falls(trainer)
    assert {v.dtype for v in trainer.coarse.mlp.weights + trainer.fine.mlp.weights} == {"float32"}


def test_the_loss_scale_changes_nothing_but_rounding(float16):
    born, results = state_of(float16), []
    for scale in (2.0**10, 2.0**14):
        set_state(float16, born)
        float16.optimizer.dynamic_scale.assign(scale)
        results.append(train_three_steps(float16))
        assert float16.optimizer.dynamic_scale == scale
    (losses, weights), (other_losses, other_weights) = results
    assert losses[0] == other_losses[0]
    np.testing.assert_allclose(losses, other_losses, rtol=1e-2)
    moved = [np.abs(a - b).mean() for a, b in zip(weights, born, strict=False)]
    apart = [np.abs(a - b).mean() for a, b in zip(weights, other_weights, strict=True)]
    assert max(apart) < 0.1 * np.median(moved)


@pytest.mark.parametrize("scale", [2.0**60, 2.0**127], ids=["beyond float16", "beyond float32"])
def test_a_step_whose_gradients_overflow_leaves_the_weights_alone(float16, scale):
    run(float16, 2)  # now there are moments, so that a step without a gradient would move weights too
    float16.optimizer.dynamic_scale.assign(scale)
    weights, moments = weights_of(float16), [v.numpy().copy() for v in float16.optimizer.inner_optimizer.variables[2:]]
    result = float16.train_step(make_batch(2))
    assert np.isfinite(result.loss)
    assert float16.step == 3
    assert float16.optimizer.dynamic_scale == scale / 2
    assert_equal_states(weights_of(float16), weights)
    assert_equal_states([v.numpy() for v in float16.optimizer.inner_optimizer.variables[2:]], moments)
    # With a scale that fits they move again.
    float16.optimizer.dynamic_scale.assign(2.0**14)
    run(float16, 1)
    assert np.abs(weights_of(float16)[0] - weights[0]).max() > 1e-4


def check_going_on(trainer: Trainer, saved: list[np.ndarray], other: Trainer, folder: Path) -> None:
    """What a checkpoint of a trainer gives to another one leads to the same steps, bit for bit."""
    CheckpointStore(trainer.state, folder).save()
    expected, expected_losses = run(trainer, 3)
    CheckpointStore(other.state, folder).restore()
    assert_equal_states(state_of(other), saved)
    set_state(trainer, state_of(other))  # its step is traced already
    state, losses = run(trainer, 3)
    assert losses == expected_losses
    assert_equal_states(state, expected)


def test_a_checkpoint_holds_the_loss_scale_and_the_moments(float16, tmp_path):
    float16.optimizer.dynamic_scale.assign(2.0**13)
    saved, _ = run(float16, 3)
    assert float16.optimizer.dynamic_scale == 2.0**13
    assert float16.optimizer.step_counter == 3
    other = make_trainer(precision="float16", seed=99, netchunk=float16.coarse.netchunk)
    check_going_on(float16, saved, other, tmp_path)


# One compiled program


@pytest.fixture(scope="module")
def traced_compiled():
    """A trainer whose step is one compiled program, and the state it was born with."""
    trainer = make_trainer(compiled=True)
    return trainer, state_of(trainer)


@pytest.fixture
def compiled(traced_compiled) -> Trainer:
    trainer, born = traced_compiled
    set_state(trainer, born)
    trainer.counts.assign([0] * 5)
    return trainer


def test_a_compiled_step_is_two_programs_of_static_shapes(compiled):
    batch = make_batch(0)
    compiled.train_step(batch)
    # Nodes that a device has to be told of one by one, besides those of a few numbers on the host.
    quiet = {"Placeholder", "Const", "Identity", "NoOp", "ReadVariableOp", "AssignAddVariableOp"}
    nodes = compiled.train_step.get_concrete_function(batch).graph.get_operations()
    launched = [node for node in nodes if node.type not in quiet and "CPU:0" not in node.device]
    assert len(launched) <= 10, [node.name for node in launched]
    assert [node.type for node in launched].count("StatefulPartitionedCall") == 2
    draws, step = compiled.draw(RAYS), tf.constant(0, tf.int64)
    found = compiled._compiled_gradients(batch, draws, *compiled.part_arguments(2, 0, 2))
    for program in (
        compiled._compiled_gradients.experimental_get_compiler_ir(batch, draws, *compiled.part_arguments(2, 0, 2)),
        compiled._compiled_apply.experimental_get_compiler_ir(found, batch.rgb, step),
    ):
        text = program(stage="optimized_hlo")
        assert "fusion" in text
        for forbidden in ("<=", "custom-call", "infeed", "outfeed", "send(", "conditional"):  # <=: a dynamic dimension
            assert forbidden not in text, forbidden
    assert compiled.train_step.experimental_get_tracing_count() == 1


def test_a_compiled_step_that_is_bad_moves_nothing_and_counts(compiled):
    run(compiled, 2)  # so that there are moments
    before = state_of(compiled)
    result = compiled.train_step(make_batch(2, np.full([RAYS, 3], np.nan, np.float32)))
    assert not np.isfinite(result.loss)
    assert result.counts.numpy()[:2].tolist() == [1, 1]
    assert_equal_states(state_of(compiled)[:-2], before[:-2])
    assert compiled.step.numpy() == 3
    result = compiled.train_step(make_batch(3))
    assert result.counts.numpy()[:2].tolist() == [0, 1]
    assert (state_of(compiled)[0] != before[0]).any()


@pytest.mark.skipif(sys.platform != "linux" or bool(tf.config.list_physical_devices("GPU")), reason="limits the host")
def test_a_compiled_step_that_runs_out_of_memory_leaves_everything_for_a_smaller_one():
    trainer = make_trainer(RenderSettings(64, 0, perturb=0.0), mlp=dataclasses.replace(MLP, width=256), compiled=True)
    born = state_of(trainer)
    trainer.resize(10**6, 10**9)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**35, limits[1]))
    try:
        with pytest.raises(tf.errors.ResourceExhaustedError):
            trainer.train_step(make_batch(0, count=2**20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert_equal_states(state_of(trainer), born)
    assert trainer.counts.numpy().tolist() == [0] * 5

    trainer.resize(4, 2**14)
    assert np.isfinite(trainer.train_step(make_batch(0)).loss)
    assert trainer.step.numpy() == 1
    assert (state_of(trainer)[0] != born[0]).any()


def test_a_compiled_run_goes_on_bit_for_bit(compiled, tmp_path):
    saved, _ = run(compiled, 2)
    check_going_on(compiled, saved, make_trainer(seed=9, compiled=True), tmp_path)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_compiled_step_in_sixteen_bits(coarse_at_once, precision):
    trainer = make_trainer(COARSE, precision=precision, compiled=True, netchunk=64)
    losses, weights = train_three_steps(trainer)
    # Later a density next to 0 takes another sign, and with it the opacity of a last sample.
    np.testing.assert_allclose(losses[:2], coarse_at_once[0][:2], rtol=5e-3)
    assert any((a != b).any() for a, b in zip(weights, coarse_at_once[1], strict=True))
    assert {v.dtype for v in trainer.coarse.mlp.weights} == {"float32"}


# Learning rate


@pytest.mark.parametrize(
    ("decay", "step", "expected"),
    [(250, 0, 5e-4), (250, 250_000, 5e-5), (250, 125_000, 5e-4 * 10**-0.5), (500, 1_000_000, 5e-6), (0, 10**9, 5e-4)],
)
def test_learning_rate(decay, step, expected):
    rate = falling_rate(5e-4, decay)(tf.constant(step, tf.int64))
    assert float(rate) == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_reaches_the_weights(fresh):
    fresh.step.assign(500_000)  # 250 thousand steps for a tenth: a hundredth of lrate
    kernel = fresh.coarse.mlp.weights[0]
    before = kernel.numpy().copy()
    result = fresh.train_step(make_batch(0))
    moved = np.abs(kernel.numpy() - before)
    assert float(result.learning_rate) == pytest.approx(1e-4, rel=1e-4)
    # Adam's first step is the learning rate, whatever the gradient, where that is not tiny.
    assert np.median(moved[moved > 0]) == pytest.approx(1e-4, rel=0.05)
