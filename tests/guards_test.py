"""Training that goes wrong: skipped steps, collapsed scenes, and the files that they leave."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import still_life
import tensorflow as tf
from app_test import BLENDER, LLFF, TINY, assert_one_line, files_in, run, weights_in
from golden_test import load_fields
from resume_test import contents
from resume_test import state_of as checkpoint_of
from step_test import assert_equal_states, make_batch, make_trainer, set_state, state_of
from tensorflow.python.framework.config import is_op_determinism_enabled
from tensorflow.python.util import _pywrap_determinism

from nerf_tf import build
from nerf_tf.data.pipeline import RayBatch, ray_batches
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import finish_rays
from nerf_tf.render.passes import RenderSettings
from nerf_tf.safety import diagnosis, guards
from nerf_tf.safety.guards import BadSteps, Collapse, TrainingMonitor
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import readers
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.train.counts import Counts, opacities, update_counts
from nerf_tf.train.step import Trainer, falling_rate
from nerf_tf.training import TrainingRun

NONE = Counts(0, 0, 0, 0, 0)
BEFORE = Counts(3, 7, 40, 50, 2)
# Of variance 1/4, and all alike.
PHOTOS, BACKGROUND = np.tile([[0.0], [1.0]], [8, 3]).astype(np.float32), np.ones([16, 3], np.float32)
EMPTY, SOLID, BOTH = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)


def counts_of(trainer: Trainer) -> Counts:
    return Counts(*trainer.counts.numpy().tolist())


# What a step counts


@pytest.mark.parametrize(
    ("bad", "error", "opacity", "rgb", "expected"),
    [
        (False, 0.25, EMPTY, PHOTOS, Counts(0, 7, 41, 0, 2)),
        (False, 0.25, SOLID, PHOTOS, Counts(0, 7, 0, 51, 2)),
        (False, 0.4, (0.995, 0.005), PHOTOS, Counts(0, 7, 41, 0, 2)),
        (False, 0.25, BOTH, PHOTOS, Counts(0, 7, 0, 0, 2)),
        (False, 0.2, SOLID, PHOTOS, Counts(0, 7, 0, 0, 2)),  # a room: opaque, and better than one colour
        (False, 0.9, EMPTY, BACKGROUND, Counts(0, 7, 40, 50, 2)),  # nothing to be seen, so nothing said
        (True, np.nan, EMPTY, PHOTOS, Counts(4, 8, 40, 50, 2)),
    ],
)
def test_what_a_step_counts(bad, error, opacity, rgb, expected):
    arguments = tf.constant(bad), tf.constant(error, tf.float32), tf.constant(opacity), tf.constant(rgb)
    counted = update_counts(tf.constant(BEFORE, tf.int64), *arguments)
    assert Counts(*counted.numpy().tolist()) == expected


def test_opacities_are_shares_of_the_batch():
    shares = tf.constant([0.25, 0.25, 0.25, 0.25, 0.0])  # the last ray only fills a chunk up
    found = opacities(tf.constant([0.0, 0.005, 0.5, 1.0, 1.0]), shares)
    np.testing.assert_allclose(found, [0.5, 0.25])


def test_the_monitor_warns_once_and_again_after_as_many_steps(caplog):
    monitor = TrainingMonitor("run", 0, stops=False)
    for empty in [998, 999, 1000, 1000, 1001, *range(1002, 2001)]:
        monitor.check(empty, None, NONE._replace(empty=empty))
    assert [record.getMessage().split(": the")[0] for record in caplog.records] == ["run step 1000", "run step 2000"]
    for words in ("empty space", "--precrop_iters 500", "--no_batching", "--lrate", "--raw_noise_std", "--white_bkgd"):
        assert words in caplog.text


def test_the_monitor_ends_a_run():
    monitor = TrainingMonitor("run", 3, stops=True)
    monitor.check(1, None, NONE._replace(bad=2, solid=999))
    with pytest.raises(BadSteps, match=r"step 2: .* 3 steps in a row"):
        monitor.check(2, None, NONE._replace(bad=3))
    with pytest.raises(Collapse, match="solid block"):
        monitor.check(2, None, NONE._replace(solid=1000))


# Steps that are skipped


@pytest.fixture(scope="module")
def traced():
    trainer = make_trainer()
    return trainer, state_of(trainer)


@pytest.fixture
def fresh(traced) -> Trainer:
    trainer, born = traced
    set_state(trainer, born)
    trainer.counts.assign(NONE)
    return trainer


def spoilt_batch(step: int, value: float):
    batch = make_batch(step)
    return batch._replace(rgb=tf.tensor_scatter_nd_update(batch.rgb, [[3, 1]], [value]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_step_moves_nothing_and_the_next_goes_on(fresh, value):
    fresh.train_step(make_batch(0))  # now there are moments, so that a step without a gradient would move weights too
    before = state_of(fresh)
    fresh.train_step(spoilt_batch(1, value))
    assert counts_of(fresh) == NONE._replace(bad=1, skipped=1)
    assert_equal_states(state_of(fresh)[:-2], before[:-2])
    assert fresh.step == 2
    fresh.train_step(make_batch(2))
    after = state_of(fresh)
    assert counts_of(fresh) == NONE._replace(skipped=1)
    # It is as if the bad step had never been.
    set_state(fresh, [*before[:-2], np.int64(2), before[-1]])
    fresh.train_step(make_batch(2))
    assert_equal_states(state_of(fresh), after)


def test_a_gradient_that_adam_cannot_square_is_bad(fresh):
    assert [bool(fresh._is_bad(tf.constant(1.0), [tf.constant([size, 1.0])])) for size in (1e18, 1e20)] == [False, True]


def test_float16_looks_for_its_scale_before_a_step_is_bad():
    trainer = make_trainer(precision="float16")
    scale = trainer.optimizer.dynamic_scale
    scale.assign(2.0**40)
    trainer.train_step(make_batch(0))
    assert counts_of(trainer) == NONE
    assert scale == 2.0**39
    scale.assign(1.0)
    before = state_of(trainer)
    trainer.train_step(spoilt_batch(1, 1e19))  # the loss is finite, but no scale would make the gradient so
    assert counts_of(trainer) == NONE._replace(bad=1, skipped=1)
    assert_equal_states(state_of(trainer)[:-2], before[:-2])  # the scale with them


def test_checkpoints_hold_the_counts_and_older_ones_are_read(fresh, tmp_path):
    fresh.counts.assign(BEFORE)
    CheckpointStore(fresh.state, tmp_path / "new").save()
    fine = {"fine": fresh.fine.mlp}
    old = tf.train.Checkpoint(  # as version 0.2.0 wrote it
        coarse=fresh.coarse.mlp, optimizer=fresh.optimizer, step=fresh.step, seed=fresh.seed, **fine
    )
    tf.train.CheckpointManager(old, str(tmp_path / "old"), 2).save()
    for name, expected in (("new", BEFORE), ("old", NONE)):
        other = make_trainer(seed=99)
        store = CheckpointStore(other.state, tmp_path / name)
        store.restore()
        assert counts_of(other) == expected
        assert_equal_states(state_of(other), state_of(fresh))
        store.save()
        again = make_trainer(seed=98)
        CheckpointStore(again.state, tmp_path / name).restore()
        assert counts_of(again) == expected


# A step to be looked into


def test_stages_are_those_of_the_step(fresh):
    stages = {name: tensor.numpy() for name, tensor in diagnosis.replay_step(fresh, make_batch(0))}
    result = fresh.train_step(make_batch(0))
    np.testing.assert_allclose(stages["coarse loss"] + stages["fine loss"], result.loss, rtol=1e-5)
    np.testing.assert_allclose(stages["fine raw"][-len(result.sigma) :, :, 3], result.sigma, rtol=1e-4, atol=1e-5)
    # Adam's first moment is then a tenth of the gradient.
    moments = [v.numpy() for v in fresh.optimizer.variables[2:] if "momentum" in v.path]
    gradients = [array for name, array in stages.items() if "gradient" in name]
    for moment, gradient in zip(moments, gradients, strict=True):
        np.testing.assert_allclose(moment, 0.1 * gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("layer", "found"), [(0, "coarse raw"), (None, "photos rgb")])
def test_the_first_tensor_that_is_not_finite(fresh, layer, found):
    if layer is not None:
        kernel = fresh.coarse.mlp.weights[layer]
        kernel.assign(1e38 * tf.ones_like(kernel))
    assert diagnosis.find_first_non_finite(fresh, spoilt_batch(0, 0.5 if layer is not None else np.nan)) == found


@pytest.fixture
def replay(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "tools")
    return importlib.import_module("replay_step").main


def test_a_hopeless_run_stops_and_leaves_a_step_to_replay(tmp_path, replay, capsys):
    flags_of_run = ["--lrate=1e30", "--max_bad_steps=4", "--i_img=0", "--i_weights=0", "--random_seed=1"]
    result = run(*BLENDER, f"--basedir={tmp_path}", "--expname=t", *flags_of_run)
    assert_one_line(result, 1, r"step 4: .* 4 steps in a row.*replay_step.py .*bad_step_000004\.npz")
    assert result.stderr.count("the weights stay as they are") == 1
    assert files_in(tmp_path / "t") == {"args.txt", "config.txt", "curve.png", "bad_step_000004.npz"}
    (found,) = re.findall(r"first not finite: ([^.]+)\. Look", result.stderr)
    path = tmp_path / "t" / "bad_step_000004.npz"
    assert replay([str(tmp_path / "t"), str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("step 4, random_seed 1")
    assert lines[-1] == f"first that is not finite: {found}"
    shares = {line[:36].strip(): line.split("]")[1].split()[0] for line in lines[2:-1]}
    assert shares["rays origins"] == shares["coarse trunk_0/kernel"] == "100.00%"
    assert shares[found] != "100.00%"


def bad_run(folder: Path, trainer: Trainer) -> TrainingRun:
    """A run that knows no more than giving up takes."""
    scene = SimpleNamespace(ndc=False)
    return TrainingRun(Settings(expname="x"), folder, scene, trainer, None, None, np.empty([0, 3, 4], np.float32))


def no_memory(*_: object) -> None:
    raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_bad_step_is_kept_though_there_is_no_memory_to_look_into_it(fresh, tmp_path, monkeypatch):
    error = BadSteps("step 3: no finite loss", 3, spoilt_batch(3, np.nan))
    fresh.step.assign(4)
    monkeypatch.setattr(diagnosis, "find_first_non_finite", no_memory)
    with pytest.raises(BadSteps, match=r"^step 3: no finite loss; first not finite: unknown \(memory .*replay_step"):
        bad_run(tmp_path, fresh).end_on_bad_steps(error)
    assert fresh.step == 4
    with np.load(tmp_path / "bad_step_000003.npz") as arrays:
        batch = diagnosis.load_step(arrays, make_trainer(seed=3))
    np.testing.assert_array_equal(batch.rgb, error.batch.rgb)


def test_why_training_stops_is_said_though_the_disk_is_full(fresh, tmp_path, monkeypatch):
    error = BadSteps("step 3: no finite loss", 3, spoilt_batch(3, np.nan))
    monkeypatch.setattr(os, "fsync", no_room)
    text = (
        r"^step 3: no finite loss; first not finite: photos rgb\. The step is not kept: .*000003.npz: .*No space left"
    )
    with pytest.raises(BadSteps, match=text):
        bad_run(tmp_path, fresh).end_on_bad_steps(error)
    assert files_in(tmp_path) == set()


def test_replay_refuses_other_files(tmp_path, replay, capsys):
    (tmp_path / "bad_step_000001.npz").write_bytes(b"no npz")
    assert replay([str(tmp_path), str(tmp_path / "bad_step_000001.npz")]) == 1
    assert "bad_step_000001.npz: cannot be read as an npz file" in capsys.readouterr().err


def test_a_step_of_other_shapes_is_refused(fresh, tmp_path):
    diagnosis.save_step(tmp_path / "step.npz", fresh, make_batch(0, count=30), 4, ndc=False)
    arrays = readers.read_npz(tmp_path / "step.npz")
    assert len(diagnosis.load_step(arrays, fresh).rgb) == 30
    for name, value, message in (
        ("rays_near", np.ones([5, 1], np.float32), r"its rays_near is float32 of shape \[5, 1\], not of \[30, 1\]"),
        ("rays_viewdirs", np.ones([30, 2], np.float32), r"rays_viewdirs is .* \[30, 2\], not of \[30, 3\]"),
        ("rays_origins", np.full([30, 3], "x"), "rays_origins is <U1"),
        ("rgb", np.ones([0, 3], np.float32), r"rgb is .* \[0, 3\]"),
        ("rgb", np.array(1, np.float32), r"rgb is .* \[\], not of \[None, 3\]"),
        ("seed", np.array(1, np.float32), "seed is float32"),
        ("step", np.ones(2, np.int64), r"step is int64 of shape \[2\]"),
        ("coarse_00", np.ones([1, 1], np.float32), r"coarse_00 is float32 of shape \[1, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            diagnosis.load_step(arrays | {name: value}, fresh)
    del arrays["fine_01"]
    with pytest.raises(ValueError, match="it lacks fine_01"):
        diagnosis.load_step(arrays, fresh)


# Scenes that collapse


def longest(arguments: list[str], steps: int) -> tuple[int, int]:
    """For how many steps in a row training saw an empty, and a solid scene."""
    values = parsing.parse_settings(["--expname=t", "--random_seed=0", *arguments])
    scene = build.load_scene(values)
    trainer = build.make_trainer(values, scene.ndc)
    build.plan_training(values, trainer)
    seen = [
        counts[2:4]
        for batch in ray_batches(scene, build.batch_settings(values), 0).take(steps)
        for counts in [trainer.train_step(batch).counts.numpy().tolist()]
    ]
    return max(empty for empty, _ in seen), max(solid for _, solid in seen)


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> list[str]:
    """Arguments that name the built-in scene, small, on white."""
    folder = tmp_path_factory.mktemp("toys")
    still_life.write_blender(folder, 16, 16, n_train=8, n_val=1, n_test=1, seed=0, workers=1)
    config_file = Path(__file__).parent.parent / "configs" / "demo.txt"
    return [f"--config={config_file}", f"--datadir={folder}", *TINY.split()]


def test_a_healthy_run_raises_no_alarm(toys):
    assert max(longest(toys, 200)) < 20


def real_trainer(weights: Path, settings: RenderSettings) -> Trainer:
    return Trainer(*load_fields(weights), settings, falling_rate(1e-12), seed=0)


def test_trained_scenes_raise_no_alarm(real_data):
    golden = np.load(real_data / "golden" / "train_lego.npz")
    lego = real_trainer(real_data / "weights" / "lego_example", RenderSettings(64, 64, white_bkgd=True))
    height, width, focal = golden["hwf"]
    camera = Camera.centred(int(height), int(width), float(focal))
    origins, directions, rgb = (tf.constant(golden[name][0, ::4]) for name in ("origins", "directions", "rgb"))
    lego.train_step(RayBatch(finish_rays(camera, origins, directions, 2.0, 6.0, False), rgb))
    assert counts_of(lego) == NONE

    folder = real_data / "data" / "nerf_llff_data" / "fern"
    values = parsing.parse_settings(["--expname=t", f"--datadir={folder}", "--N_rand=64"])
    scene = build.load_scene(values)
    fern = real_trainer(real_data / "weights" / "fern_example", RenderSettings(64, 64, raw_noise_std=1.0))
    fern.counts.assign(NONE._replace(solid=5))
    for batch in ray_batches(scene, build.batch_settings(values), 0).take(2):
        fern.train_step(batch)
        assert counts_of(fern) == NONE  # and yet nearly all of its rays are opaque


# At a fraction of the steps that it really takes.
@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(guards, "COLLAPSE_STEPS", 20)


HOPELESS = ["--lrate=0.1", "--i_img=0", "--i_print=10", "--i_weights=10"]


def test_a_collapse_ends_a_run(tmp_path, impatient, monkeypatch):
    """To a solid block; errors_test.py has the runs that collapse to empty space."""
    monkeypatch.setattr(guards, "MAX_RESTARTS", 0)
    flags_of_run = [f"--basedir={tmp_path}", "--expname=t", *HOPELESS, "--random_seed=2", "--N_iters=100"]
    result = run(*LLFF, *flags_of_run, "--on_collapse=restart")
    text = (
        r"step \d+: the scene has collapsed to a solid block: for 20 steps.*--precrop_iters 500.*"
        r"\(after 0 restarts, each with another seed\)$"
    )
    assert_one_line(result, 1, text)
    assert not (tmp_path / "t" / "collapsed_1").exists()


def test_a_collapse_starts_over_with_the_next_seed(tmp_path, impatient):
    flags_of_run = [*LLFF, f"--basedir={tmp_path}", *HOPELESS, "--N_iters=25"]
    restarted = run(*flags_of_run, "--expname=t", "--random_seed=2", "--on_collapse=restart")
    assert restarted.code == 0, restarted.stderr
    assert "starting over with random_seed 3; the files so far are in" in restarted.stderr
    direct = run(*flags_of_run, "--expname=direct", "--random_seed=3")
    assert direct.code == 0
    for a, b in zip(weights_in(tmp_path / "t", 24), weights_in(tmp_path / "direct", 24), strict=True):
        np.testing.assert_array_equal(a, b)
    archived = files_in(tmp_path / "t" / "collapsed_1")
    assert {"model_000010.npy", "model_fine_000010.npy"} <= archived
    assert list((tmp_path / "summaries" / "t_collapsed_1").glob("events*"))
    assert list((tmp_path / "summaries" / "t").glob("events*"))
    # A run that continues keeps the seed that it has come to, whatever args.txt says.
    resumed = run(f"--config={tmp_path / 't' / 'args.txt'}")
    assert "continues at step 25\nrandom_seed 3\n" in resumed.stderr


# Starting over, cut short


class Killed(BaseException):
    """The process dies: nothing of the program runs any more."""


FILE_OPERATIONS = ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink")


class Killer:
    """Within `with`, kills at one of the file operations, before or after it; or fills the disk from there on.

    A number beyond them does nothing.
    """

    def __init__(self, at: int, after: bool, reason: type[BaseException] = Killed) -> None:
        self._at, self._after, self._reason = at, after, reason
        self._count, self.struck = 0, False

    def __enter__(self) -> Killer:
        self._patches = pytest.MonkeyPatch()
        for name in FILE_OPERATIONS:
            self._patches.setattr(os, name, functools.partial(self._counted, getattr(os, name)))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._patches.undo()
        return kind is Killed

    def _counted(self, function: Callable[..., object], *arguments: object, **keywords: object) -> object:
        number, self._count = self._count, self._count + 1
        if number < self._at:
            return function(*arguments, **keywords)
        self.struck = True
        if self._after and number == self._at:
            function(*arguments, **keywords)
        raise self._reason(errno.ENOSPC, os.strerror(errno.ENOSPC))


NAME = "a*?"  # no pattern, though it looks like one
OLD_FILES = (
    *("model_000020.npy", "model_fine_000020.npy", "testset_000020/000.png", "testset_000040/000.png"),
    *("tboard_val_imgs/000020.png", f"{NAME}_spiral_000020_rgb.mp4", f"{NAME}_spiral_000020_rgb/000.png"),
    *("metrics.json", "curve.png", "latest.png"),
)


def write_collapsed_run(basedir: Path) -> dict[str, bytes]:
    """A run's files, each with its name in it; returns what they must be once archived."""
    run, summaries = Path(NAME), Path("summaries") / NAME
    old = [*(run / name for name in OLD_FILES), *(run / "checkpoints" / f"ckpt-{i}" / "state.index" for i in (3, 4))]
    archived = {str(run / "collapsed_1" / path.relative_to(run)): str(path).encode() for path in old}
    kept = [run / "args.txt", run / "checkpoints" / "ckpt-5" / "state.index", run / "renderonly_path_000020" / "0.png"]
    kept += [run / "abc_spiral_000020_rgb.mp4", summaries.with_name("a1") / "events"]
    for path in [*old, *kept, summaries / "events"]:
        (basedir / path).parent.mkdir(parents=True, exist_ok=True)
        (basedir / path).write_text(str(path))
    events = {f"{summaries}_collapsed_1/events": str(summaries / "events").encode()}
    return archived | events | {str(path): str(path).encode() for path in kept}


def archive(basedir: Path) -> Path:
    folder = basedir / NAME
    return guards.archive_collapsed_run(folder, basedir / "summaries" / NAME, 1, keep=folder / "checkpoints" / "ckpt-5")


def test_archiving_a_run_may_be_cut_short_anywhere(tmp_path):
    at, struck = 0, True
    while struck:
        for after in (False, True):
            basedir = tmp_path / f"{at}_{after}"
            expected = write_collapsed_run(basedir)
            with Killer(at, after) as killer:
                archive(basedir)
            struck = killer.struck
            with Killer(at // 2, after):
                archive(basedir)
            assert archive(basedir) == basedir / NAME / "collapsed_1"
            assert contents(basedir) == expected
        at += 1
    assert at > 20


def test_archiving_a_run_on_a_full_disk_is_done_later(tmp_path):
    for at in range(0, 20, 3):
        basedir = tmp_path / str(at)
        expected = write_collapsed_run(basedir)
        with (
            pytest.raises(OSError, match=r"collapsed_1: .* cannot be moved there \(No space left"),
            Killer(at, False, OSError),
        ):
            archive(basedir)
        archive(basedir)
        assert contents(basedir) == expected


def start(basedir: Path, trainer: Trainer) -> TrainingRun:
    """The program's start, up to training."""
    values = parsing.parse_settings([*BLENDER, f"--basedir={basedir}", f"--expname={NAME}", "--on_collapse=restart"])
    store = CheckpointStore(trainer.state, basedir / NAME / "checkpoints")
    store.restore()
    return TrainingRun(values, basedir / NAME, None, trainer, store, None, np.empty([0, 3, 4], np.float32))


def collapse_again(run: TrainingRun) -> None:
    """What a start comes to: the old run's collapse, or the new run's first step."""
    run.archive_collapsed_run()
    if run.start > 0:
        run.start_over(Collapse("the scene has collapsed"))
        run.archive_collapsed_run()


def test_a_start_finds_the_old_run_whole_or_the_new_one_begun(fresh, tmp_path, monkeypatch):
    newcomer = make_trainer()
    monkeypatch.setattr(build, "trainer_for", lambda settings, scene, seed: newcomer.seed.assign(seed) and newcomer)
    template = tmp_path / "template"
    write_collapsed_run(template)
    shutil.rmtree(template / NAME / "checkpoints")
    fresh.seed.assign(7)
    store = CheckpointStore(fresh.state, template / NAME / "checkpoints")
    for step in (10, 20):
        fresh.step.assign(step)
        store.save()
        store.commit()
    before = contents(template)

    at, struck, old_runs = 0, True, 0
    while struck:
        basedir = shutil.copytree(template, tmp_path / str(at))
        with Killer(at, after=bool(at % 2)) as killer:
            collapse_again(start(basedir, fresh))
        struck = killer.struck
        if start(basedir, fresh).start > 0:
            old_runs += 1
            assert before.items() <= contents(basedir).items()
        with Killer(at // 2, after=bool(at % 2)):
            collapse_again(start(basedir, fresh))
        collapse_again(run := start(basedir, fresh))
        assert (run.start, run.seed, counts_of(fresh)) == (0, 8, NONE._replace(restarts=1))
        assert not run.store.uncommitted
        assert [path.name for path in (basedir / NAME / "checkpoints").glob("ckpt-*")] == [run.store.path.name]
        archived = contents(basedir / NAME / "collapsed_1")
        assert {name.replace("checkpoints/ckpt-2/", "") for name in archived} >= {*OLD_FILES, "sha256.txt", "settled"}
        assert not (basedir / "summaries" / NAME).exists()
        at += 5  # all of them take half a minute
    assert at > 5 * old_runs > 5


def test_a_disk_that_is_full_leaves_the_old_run_as_it_was(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "trainer_for", lambda *_: make_trainer())
    write_collapsed_run(tmp_path)
    shutil.rmtree(tmp_path / NAME / "checkpoints")
    fresh.step.assign(20)
    CheckpointStore(fresh.state, tmp_path / NAME / "checkpoints").save()
    before, run = contents(tmp_path), start(tmp_path, fresh)
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match=r"ckpt-2: cannot be written \(No space left.*earlier checkpoints are unchanged$"):
        run.start_over(Collapse("the scene has collapsed"))
    assert contents(tmp_path) == before


@pytest.mark.long
@pytest.mark.parametrize(("seed", "kind"), [(1, "a solid block"), (2, "empty space")])
def test_a_collapse_is_noticed_within_2000_steps(tmp_path, seed, kind):
    flags_of_run = [f"--basedir={tmp_path}", "--expname=t", "--lrate=0.1", "--i_img=0", f"--random_seed={seed}"]
    result = run(*BLENDER, *flags_of_run, "--on_collapse=stop", "--N_iters=2000")
    assert_one_line(result, 1, rf"step 1\d\d\d: the scene has collapsed to {kind}:")


@pytest.mark.long
def test_a_solid_block_is_noticed_within_2000_steps_and_started_over_once(tmp_path):
    flags_of_run = [f"--basedir={tmp_path}", "--expname=t", "--lrate=0.1", "--i_img=0", "--i_weights=500"]
    result = run(*LLFF, *flags_of_run, "--random_seed=2", "--on_collapse=restart", "--N_iters=1100")
    assert result.code == 0, result.stderr
    assert len(re.findall(r"t step 1\d\d\d: the scene has collapsed to a solid block", result.stderr)) == 1
    assert result.stderr.count("starting over with random_seed 3") == result.stderr.count("starting over") == 1
    assert {"model_000000.npy", "model_000500.npy"} <= files_in(tmp_path / "t" / "collapsed_1")
    assert (tmp_path / "t" / "model_001099.npy").exists()


@pytest.mark.long
def test_two_thousand_healthy_steps_raise_no_alarm(toys):
    assert max(longest(toys, 2000)) < 20


# Two runs that are one


def test_deterministic_runs_are_equal_bit_for_bit(tmp_path):
    flags_of_run = [f"--basedir={tmp_path}", "--deterministic", "--random_seed=5", "--N_iters=8"]
    before = is_op_determinism_enabled()  # where there is a GPU it always is, see conftest.py
    _pywrap_determinism.enable(False)
    try:
        for name in ("a", "b"):
            assert run(*LLFF, *flags_of_run, "--i_img=0", "--i_print=1", f"--expname={name}").code == 0
        assert is_op_determinism_enabled()
    finally:
        _pywrap_determinism.enable(before)  # TensorFlow has no public way back
    a, b = ([scalars_of(tmp_path, name), checkpoint_of(tmp_path / name)] for name in ("a", "b"))
    assert len(a[0]) == 8
    assert a[0] == b[0]
    assert any("optimizer/_variables" in name for name in a[1])
    assert a[1].keys() == b[1].keys()
    for name, values in a[1].items():
        np.testing.assert_array_equal(b[1][name], values, err_msg=name)


def scalars_of(basedir: Path, name: str) -> list[float]:
    """The losses of a run, as it wrote them for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(basedir / "summaries" / name), size_guidance={"tensors": 0}).Reload()
    return [float(make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")]
