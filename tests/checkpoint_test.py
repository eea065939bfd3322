"""Checkpoints: a resumed run equals one that never stopped."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.data.pipeline import BatchSettings, ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.field.mlp import FieldSettings, build_mlp
from nerf_tf.field.query import Field
from nerf_tf.geometry.camera import Camera
from nerf_tf.render.passes import RenderSettings
from nerf_tf.storage import checkpoint
from nerf_tf.storage.checkpoint import STATE_FILES, CheckpointStore
from nerf_tf.train.step import Trainer, falling_rate

MLP = FieldSettings(depth=2, width=16, multires=2, multires_views=1, use_viewdirs=True)
# Every kind of randomness is on.
RANDOM = RenderSettings(N_samples=6, N_importance=4, perturb=1.0, raw_noise_std=1.0)
NEW_TRAINER_SEED = 99


def make_trainer(
    seed: int, mlp: FieldSettings = MLP, rendering: RenderSettings = RANDOM, precision: str = "float32"
) -> Trainer:
    fields = [Field(build_mlp(mlp, [seed, i], precision), mlp, 1000) for i in range(2)]
    return Trainer(fields[0], fields[1] if rendering.N_importance else None, rendering, falling_rate(), seed)


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
    CheckpointStore(trainer.state, tmp_path / "checkpoints").save()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("no_batching", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, no_batching):
    # 90 rays: the third batch of a shuffled epoch is its last, and the crop ends after the fourth step.
    settings = BatchSettings(
        N_rand=6 if no_batching else 30, no_batching=no_batching, precrop_iters=4, precrop_frac=0.9
    )
    trainer = make_trainer(seed=2**32 - 1)
    train_on(trainer, settings, 2)
    CheckpointStore(trainer.state, tmp_path).save()
    at_save = state_of(trainer)
    losses = train_on(trainer, settings, 4)

    resumed = make_trainer(NEW_TRAINER_SEED)
    CheckpointStore(resumed.state, tmp_path).restore()
    assert_equal_states(state_of(resumed), at_save)
    assert train_on(resumed, settings, 4) == losses
    assert_equal_states(state_of(resumed), state_of(trainer))


def test_restoring_works_after_the_step_was_traced(tmp_path):
    settings = BatchSettings(N_rand=30)
    trainer = make_trainer(seed=4)
    store = CheckpointStore(trainer.state, tmp_path)
    train_on(trainer, settings, 1)
    store.save()
    losses, after = train_on(trainer, settings, 2), state_of(trainer)
    store.restore()
    assert train_on(trainer, settings, 2) == losses
    assert_equal_states(state_of(trainer), after)


def test_seed_and_step_come_back(saved):
    trainer = make_trainer(NEW_TRAINER_SEED)
    CheckpointStore(trainer.state, saved).restore()
    assert trainer.seed.numpy() == 2
    assert trainer.step.numpy() == 7


def test_without_a_checkpoint(tmp_path):
    store = CheckpointStore(make_trainer(0).state, tmp_path / "none")
    assert store.newest is None
    with pytest.raises(ValueError, match="none: no checkpoint; train first"):
        store.restore()


def test_the_newest_are_kept_and_older_ones_removed(tmp_path):
    trainer = make_trainer(0)
    store = CheckpointStore(trainer.state, tmp_path)
    for step in (1, 2, 3):
        trainer.step.assign(step)
        store.save()
    again = CheckpointStore(trainer.state, tmp_path)  # as another process would find it
    assert again.newest == store.newest
    trainer.step.assign(0)
    again.restore()
    assert trainer.step == 3
    trainer.step.assign(4)
    again.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt-3", "ckpt-4"]
    last = make_trainer(0)
    CheckpointStore(last.state, tmp_path).restore()
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
    store = CheckpointStore(trainer.state, saved)
    with pytest.raises(ValueError, match="does not fit") as error:
        store.restore()
    assert str(store.newest) in str(error.value)
    assert "args.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fine_network_is_not_made_up(tmp_path):
    coarse_only = dataclasses.replace(RANDOM, N_importance=0)
    CheckpointStore(make_trainer(0, rendering=coarse_only).state, tmp_path).save()
    with pytest.raises(ValueError, match="does not fit"):
        CheckpointStore(make_trainer(0).state, tmp_path).restore()


@pytest.mark.parametrize("precisions", [("float16", "float32"), ("float32", "float16")])
def test_a_loss_scale_is_neither_dropped_nor_made_up(tmp_path, precisions):
    CheckpointStore(make_trainer(0, precision=precisions[0]).state, tmp_path).save()
    message = (
        r"ckpt-1: does not fit .*it has (a|no) loss scale, and --mixed_precision is .*float16.*args.txt.*--ft_path"
    )
    with pytest.raises(ValueError, match=message):
        CheckpointStore(make_trainer(0, precision=precisions[1]).state, tmp_path).restore()


def test_a_fine_network_is_not_dropped(saved):
    trainer = make_trainer(0, rendering=dataclasses.replace(RANDOM, N_importance=0))
    with pytest.raises(
        ValueError, match=r"ckpt-1: does not fit .*it has a fine network, and --N_importance is 0.*--ft"
    ):
        CheckpointStore(trainer.state, saved).restore()
    assert trainer.step == 0


# Damage


@pytest.fixture(scope="module")
def twice_saved(tmp_path_factory) -> Path:
    """The folder of checkpoints at steps 7 and 8."""
    folder = tmp_path_factory.mktemp("twice")
    trainer = make_trainer(seed=2)
    store = CheckpointStore(trainer.state, folder)
    for step in (7, 8):
        trainer.step.assign(step)
        store.save()
    return folder


@pytest.fixture(scope="module")
def fresh() -> Trainer:
    return make_trainer(NEW_TRAINER_SEED)


def flip(path: Path) -> None:
    """Turns a bit over in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("piece", ["state.index", "state.data-00000-of-00001", "sha256.txt"])
@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
def test_the_one_before_a_damaged_checkpoint_is_used(tmp_path, twice_saved, fresh, caplog, piece, damage):
    folder = shutil.copytree(twice_saved, tmp_path / "checkpoints")
    damage(folder / "ckpt-2" / piece)
    before = contents(folder)
    store = CheckpointStore(fresh.state, folder)
    assert store.restore() == folder / "ckpt-1"
    assert fresh.step == 7
    # TensorFlow may also report what it collects just now: checkpoints of other tests.
    assert len([record for record in caplog.records if record.name.startswith("nerf_tf")]) == 1
    named = piece if damage is Path.unlink else r"state\..* differs from its SHA-256 in sha256.txt"
    assert re.search(rf"ckpt-2: damaged \(.*{named}.*\); going back to ckpt-1", caplog.text)
    assert contents(folder) == before
    # What comes after has a number of its own, and two whole ones stay beside the damaged one.
    store.save()
    store.save()
    assert sorted(path.name for path in folder.iterdir()) == ["ckpt-2", "ckpt-3", "ckpt-4"]


@pytest.mark.parametrize("part", ["optimizer", "coarse"])
def test_a_checkpoint_without_a_part_does_not_fit(tmp_path, fresh, part):
    parts = {"coarse": fresh.coarse.mlp, "fine": fresh.fine.mlp, "optimizer": fresh.optimizer, "step": fresh.step}
    del parts[part]
    folder = tmp_path / "checkpoints" / "ckpt-1"
    folder.mkdir(parents=True)
    tf.train.Checkpoint(**parts).write(str(folder / checkpoint.STATE))
    (folder / checkpoint.CHECKSUM_FILE).write_text("".join(f"{line}\n" for line in checkpoint._checksums(folder)))
    with pytest.raises(ValueError, match="ckpt-1: does not fit the networks"):
        CheckpointStore(fresh.state, tmp_path / "checkpoints").restore()


def test_every_flipped_bit_is_seen(tmp_path, twice_saved):
    folder = shutil.copytree(twice_saved / "ckpt-2", tmp_path / "ckpt-2")
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("state.*")):
        whole = path.read_bytes()
        for bit in rng.integers(0, 8 * len(whole), 100):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(data)
            assert checkpoint._find_damage(folder)
        path.write_bytes(whole)
    assert checkpoint._find_damage(folder) is None


def test_without_any_whole_checkpoint_there_is_one_line(tmp_path, twice_saved, fresh):
    folder = shutil.copytree(twice_saved, tmp_path / "checkpoints")
    for path in folder.glob("ckpt-*/*.data-*"):
        cut(path)
    with pytest.raises(
        ValueError, match=r"damaged \(.*\), and there is no older checkpoint; start over with --no_reload$"
    ):
        CheckpointStore(fresh.state, folder).restore()
    (tmp_path / "model_000012.npy").touch()
    with pytest.raises(ValueError, match=r"--ft_path .*/model_000012\.npy, or start over with --no_reload$") as error:
        CheckpointStore(fresh.state, folder).restore()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def of_old(tmp_path_factory) -> Path:
    """The folder of two checkpoints as versions before 0.3.0 wrote them, at steps 7 and 8."""
    folder = tmp_path_factory.mktemp("old")
    trainer = make_trainer(seed=2)
    state = tf.train.Checkpoint(
        coarse=trainer.coarse.mlp,
        fine=trainer.fine.mlp,
        optimizer=trainer.optimizer,
        step=trainer.step,
        seed=trainer.seed,
    )
    manager = tf.train.CheckpointManager(state, str(folder), max_to_keep=2)
    for step in (7, 8):
        trainer.step.assign(step)
        manager.save()
    return folder


def test_a_checkpoint_of_an_older_version(tmp_path, of_old, fresh):
    folder = shutil.copytree(of_old, tmp_path / "checkpoints")
    store = CheckpointStore(fresh.state, folder)
    assert store.restore().name == "ckpt-2"
    assert (fresh.step, fresh.seed) == (8, 2)
    store.save()
    names = {path.name for path in folder.iterdir()}
    assert names == {"checkpoint", "ckpt-2.index", "ckpt-2.data-00000-of-00001", "ckpt-3"}


@pytest.mark.parametrize("piece", ["ckpt-2.index", "ckpt-2.data-00000-of-00001"])
@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
def test_a_damaged_checkpoint_of_an_older_version(tmp_path, of_old, fresh, caplog, piece, damage):
    folder = shutil.copytree(of_old, tmp_path / "checkpoints")
    damage(folder / piece)
    assert CheckpointStore(fresh.state, folder).restore().name == "ckpt-1"
    assert (fresh.step, fresh.seed) == (7, 2)
    assert "ckpt-2: damaged (" in caplog.text


def test_saving_and_restoring_take_no_copy_in_memory(tmp_path):
    large = tf.Variable(tf.zeros([2**22]))  # 16 MiB
    state = {"large": large, "step": tf.Variable(0, dtype=tf.int64), "counts": tf.Variable([0])}
    store = CheckpointStore({**state, "optimizer": tf.Module()}, tmp_path)
    tracemalloc.start()  # sees what Python and NumPy allocate
    try:
        store.save()
        store.restore()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**22


# Order of writing


def test_a_name_is_given_only_to_what_is_on_the_disk(tmp_path, monkeypatch):
    calls = []

    def record(name: str) -> None:
        function = getattr(os, name)

        def recorded(first, *rest):
            target = Path(f"/proc/self/fd/{first}").readlink() if name == "fsync" else Path(rest[0])
            calls.append((name, target.relative_to(tmp_path).as_posix()))
            return function(first, *rest)

        monkeypatch.setattr(os, name, recorded)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs Linux's /proc")
    trainer = make_trainer(seed=2)
    for name in ("fsync", "rename"):
        record(name)
    CheckpointStore(trainer.state, tmp_path).save()
    named = calls.index(("rename", "ckpt-1"))
    unfinished = calls[named - 1][1]
    assert unfinished.startswith(".unfinished-")
    expected = {unfinished, *(f"{unfinished}/{name}" for name in (*STATE_FILES, checkpoint.CHECKSUM_FILE))}
    assert set(calls[:named]) == {("fsync", name) for name in expected}
    assert calls[named + 1] == ("fsync", ".")
