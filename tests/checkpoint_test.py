"""A run that stopped and went on is the run that never stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nerf_tf.data.pipeline import BatchSettings, ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.field.mlp import FieldSettings, build_mlp
from nerf_tf.field.query import Field
from nerf_tf.geometry.camera import Camera
from nerf_tf.render.renderer import RenderSettings
from nerf_tf.train.checkpoint import CheckpointStore
from nerf_tf.train.trainer import Trainer, TrainSettings

MLP = FieldSettings(depth=2, width=16, multires=2, multires_views=1, use_viewdirs=True)
# Every kind of randomness is on.
RANDOM = RenderSettings(N_samples=6, N_importance=4, perturb=1.0, raw_noise_std=1.0)
NEW_TRAINER_SEED = 99


def make_trainer(seed: int, mlp: FieldSettings = MLP, rendering: RenderSettings = RANDOM) -> Trainer:
    fields = [Field(build_mlp(mlp, [seed, i]), mlp, 1000) for i in range(2)]
    return Trainer(fields[0], fields[1] if rendering.N_importance else None, rendering, TrainSettings(), seed)


def make_scene() -> Scene:
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4, dtype=np.float32)[:3], [3, 1, 1])
    poses[:, :, 3] = rng.normal(size=[3, 3])
    return Scene(
        images=rng.random([3, 6, 5, 3], np.float32),
        poses=poses,
        cameras=(Camera.centred(6, 5, 6.0),) * 3,
        near=2.0,
        far=6.0,
        ndc=False,
        i_train=np.arange(3),
        i_val=np.arange(1),
        i_test=np.arange(1),
        render_poses=poses,
    )


def train_on(trainer: Trainer, settings: BatchSettings, steps: int) -> list[float]:
    """Trains on from the trainer's own step and seed, and returns the losses."""
    batches = ray_batches(make_scene(), settings, int(trainer.seed.numpy()), int(trainer.step.numpy()))
    return [float(trainer.train_step(batch).loss) for batch in batches.take(steps)]


def state_of(trainer: Trainer) -> list[np.ndarray]:
    variables = [*trainer.coarse.mlp.weights, *trainer.fine.mlp.weights, *trainer.optimizer.variables]
    return [variable.numpy().copy() for variable in variables] + [trainer.step.numpy(), trainer.seed.numpy()]


def assert_equal_states(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def saved(tmp_path) -> Path:
    """The folder of a checkpoint at step 7."""
    trainer = make_trainer(seed=2)
    trainer.step.assign(7)
    CheckpointStore(trainer, tmp_path / "checkpoints").save()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("no_batching", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, no_batching):
    # 90 rays: the third batch of a shuffled epoch is its last, and the crop ends after the fourth step.
    settings = BatchSettings(
        N_rand=6 if no_batching else 30, no_batching=no_batching, precrop_iters=4, precrop_frac=0.9
    )
    trainer = make_trainer(seed=2**32 - 1)
    train_on(trainer, settings, 2)
    CheckpointStore(trainer, tmp_path).save()
    at_save = state_of(trainer)
    losses = train_on(trainer, settings, 4)

    resumed = make_trainer(NEW_TRAINER_SEED)
    CheckpointStore(resumed, tmp_path).restore()
    assert_equal_states(state_of(resumed), at_save)
    assert train_on(resumed, settings, 4) == losses
    assert_equal_states(state_of(resumed), state_of(trainer))


def test_restoring_works_after_the_step_was_traced(tmp_path):
    settings = BatchSettings(N_rand=30)
    trainer = make_trainer(seed=4)
    store = CheckpointStore(trainer, tmp_path)
    train_on(trainer, settings, 1)
    store.save()
    losses, after = train_on(trainer, settings, 2), state_of(trainer)
    store.restore()
    assert train_on(trainer, settings, 2) == losses
    assert_equal_states(state_of(trainer), after)


def test_seed_and_step_come_back(saved):
    trainer = make_trainer(NEW_TRAINER_SEED)
    CheckpointStore(trainer, saved).restore()
    assert trainer.seed.numpy() == 2
    assert trainer.step.numpy() == 7


def test_without_a_checkpoint(tmp_path):
    store = CheckpointStore(make_trainer(0), tmp_path / "none")
    assert store.newest is None


def test_the_newest_are_kept_and_older_ones_removed(tmp_path):
    trainer = make_trainer(0)
    store = CheckpointStore(trainer, tmp_path)
    for step in (1, 2, 3):
        trainer.step.assign(step)
        store.save()
    again = CheckpointStore(trainer, tmp_path)  # as another process would find it
    assert again.newest == store.newest
    trainer.step.assign(0)
    again.restore()
    assert trainer.step == 3
    trainer.step.assign(4)
    again.save()
    assert sorted(path.name for path in tmp_path.glob("*.index")) == ["ckpt-3.index", "ckpt-4.index"]
    last = make_trainer(0)
    CheckpointStore(last, tmp_path).restore()
    assert last.step == 4


@pytest.mark.parametrize(
    ("mlp", "rendering"),
    [
        ({"width": 12}, {}),
        ({"depth": 3}, {}),
        ({"multires": 3}, {}),
        ({"multires_views": 2}, {}),
        ({"use_viewdirs": False}, {}),
    ],
)
def test_another_network_does_not_fit(saved, mlp, rendering):
    trainer = make_trainer(0, dataclasses.replace(MLP, **mlp), dataclasses.replace(RANDOM, **rendering))
    store = CheckpointStore(trainer, saved)
    with pytest.raises(ValueError, match="does not fit") as error:
        store.restore()
    assert store.newest in str(error.value)
    assert "args.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fine_network_is_not_made_up(tmp_path):
    coarse_only = dataclasses.replace(RANDOM, N_importance=0)
    CheckpointStore(make_trainer(0, rendering=coarse_only), tmp_path).save()
    with pytest.raises(ValueError, match="does not fit"):
        CheckpointStore(make_trainer(0), tmp_path).restore()


def test_a_damaged_checkpoint_is_named(saved):
    (data,) = saved.glob("ckpt-*.data-*")
    data.write_bytes(data.read_bytes()[:100])
    store = CheckpointStore(make_trainer(0), saved)
    with pytest.raises(ValueError, match=r"ckpt-1") as error:
        store.restore()
    assert "\n" not in str(error.value)
