"""Runs killed at any moment end equal to an uninterrupted run; stopped runs lose nothing."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import tensorflow as tf
from lives import ROOT, VIEWS, Death, Launcher
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from nerf_tf.storage import checkpoint, lock, tf1_weights

SCENES = ROOT / "tests" / "data" / "portable" / "scenes"
KINDS = {"blender": [], "llff": ["--factor=2"], "deepvoxels": ["--testskip=0"]}
STEPS_A_LIFE = 6
STEPS = 4 * STEPS_A_LIFE
# Every kind of file is written often, and all randomness is on.
SETTINGS = [
    *("--netdepth=1", "--netdepth_fine=1", "--netwidth=16", "--netwidth_fine=16", "--N_samples=4"),
    *("--N_rand=16", "--raw_noise_std=1", "--perturb=1", "--i_print=1", f"--N_iters={STEPS}"),
    *("--i_weights=3", "--i_img=4", "--i_testset=5", "--i_video=6"),
]
SEED = "--random_seed=5"
# A kill within each kind of write, at moments that the test then shifts at random.
PLACES = (
    *("checkpoint", "weights", "image", "video", "scalars", "view", "fsync", "replace", "rename", "removal"),
    *("step", "step", "render", "step"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of scene, and of batch, and whether XLA compiles the steps."""

    kind: str
    batching: bool
    compiled: bool = False

    def arguments(self, basedir: Path, expname: str, *more: object) -> list[object]:
        """The command of its runs."""
        scene = [f"--dataset_type={self.kind}", f"--datadir={SCENES / self.kind}", *KINDS[self.kind]]
        # Half of them, of either kind of batch, with a fine network; those on photos with the view's directions.
        fine = ["--N_importance=4"] if self.batching == (self.kind == "llff") else []
        fine += ["--use_viewdirs"] if self.kind == "llff" else []
        batches = [] if self.batching else ["--no_batching", "--precrop_iters=8", "--precrop_frac=0.9"]
        batches += ["--jit_compile=true"] if self.compiled else []
        return [*scene, *batches, *fine, *SETTINGS, SEED, f"--basedir={basedir}", f"--expname={expname}", *more]


CASES = [Case(kind, batching) for kind in KINDS for batching in (True, False)]
# Each kind of batch, with a fine network and without; a death within each kind of file, and within steps.
BY_DEFAULT = {
    Case("blender", batching=False): [
        *(Death("checkpoint", 1, "torn"), Death("weights", 1, "after"), Death("scalars", 2, "torn")),
        Death("step", 2, delay=0.05),
    ],
    Case("llff", batching=True): [
        *(Death("image", 1, "torn"), Death("fsync", 9, "before"), Death("video", 4, "after"), Death("rename", 1)),
    ],
    Case("blender", batching=True, compiled=True): [Death("step", 4)],  # without a fine network: half to compile
}
BLENDER = next(iter(BY_DEFAULT))


@dataclasses.dataclass(frozen=True)
class History:
    """A run that died often, and its twin that never did.

    Attributes:
        basedir: where both are, as `killed` and `straight`.
        codes: how the lives of the killed one ended.
        torn: files found incomplete under their final names after a death.
        steps: of each of the two.
    """

    steps: int
    basedir: Path
    codes: list[int]
    torn: list[str]


def deaths(case: Case, places: Sequence[str]) -> list[Death]:
    """A death in each of the places, else at random."""
    rng = random.Random(f"{case} {len(places)}")
    chosen = []
    for place in places:
        moment = rng.choice(["before", "after"])
        if place in ("checkpoint", "image", "scalars", "view") and rng.random() < 0.6:
            moment = "torn"
        if place == "step":
            # At any moment, wherever the program then is, and not only between two of its own instructions.
            chosen.append(Death(place, rng.randrange(1, 6), delay=rng.uniform(0.001, 0.3)))
        else:
            most = {"fsync": 20, "replace": 12, "scalars": 5, "render": 4, "video": 6, "rename": 3}.get(place, 2)
            chosen.append(Death(place, rng.randrange(most), moment))
    return chosen


def live_through(case: Case, ends: Sequence[Death], basedir: Path, launcher: Launcher) -> History:
    """One run without harm, and one that dies all those deaths."""
    steps = max(STEPS, STEPS_A_LIFE * len(ends))
    straight, killed = (case.arguments(basedir, name, f"--N_iters={steps}") for name in ("straight", "killed"))
    assert launcher.live(*straight, log=basedir / "straight.log") == 0
    codes, torn = [], []
    for death in [*ends, None]:
        # Once there is a checkpoint, the seed is in it.
        if not case.batching and any((basedir / "killed" / "checkpoints").glob("ckpt-*")):
            killed = [argument for argument in killed if argument != SEED]
        codes.append(launcher.live(*killed, log=basedir / "killed.log", death=death))
        torn += incomplete_files(basedir)
    return History(steps, basedir, codes, torn)


def files_of(folder: Path) -> set[str]:
    """Names of the files in a run's folder, without those of checkpoints and those that never got a name."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not re.search(r"checkpoints/|/\.|^\.|run\.lock", name)}


def incomplete_files(basedir: Path) -> list[str]:
    """Files of the killed run that cannot be read to their end."""
    wrong = []
    for name in sorted(files_of(basedir / "killed")):
        path = basedir / "killed" / name
        try:
            if path.suffix == ".npy":
                tf1_weights.load(path)
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".mp4":
                assert imageio_ffmpeg.count_frames_and_secs(str(path))[0] == VIEWS
            else:
                assert path.read_text().endswith(("\n", "}"))
        except (ValueError, OSError, AssertionError, RuntimeError) as error:
            wrong.append(f"{name}: {error}")
    for path in (basedir / "killed" / "checkpoints").glob("ckpt-*"):
        damage = checkpoint._find_damage(path)
        wrong += [f"{path.name}: {damage}"] if damage else []
    return wrong


def events_in(folder: Path) -> list[tuple[str, int, float]]:
    """Every scalar that was written, in all files, up to where one is torn."""
    found = []
    for path in sorted(folder.glob("events.*")):
        try:
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "scalars":
                        found.append((value.tag, event.step, float(tf.make_ndarray(value.tensor))))
        except tf.errors.DataLossError:
            pass
    return found


def state_of(run: Path) -> dict[str, np.ndarray]:
    """All that is in a run's last checkpoint."""
    last = max((run / "checkpoints").glob("ckpt-*"), key=lambda path: int(path.name.removeprefix("ckpt-")))
    reader = tf.train.load_checkpoint(str(last / "state"))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if name != "_CHECKPOINTABLE_OBJECT_GRAPH"}


def check(case: Case, history: History, kills: int) -> None:
    """A killed run must be the one that never was killed, to the last bit, and nothing of it may be half."""
    killed, straight = history.basedir / "killed", history.basedir / "straight"
    assert history.codes == [-signal.SIGKILL] * kills + [0], (history.basedir / "killed.log").read_text()[-3000:]
    assert history.torn == []
    assert {"perturb = 1.0", "raw_noise_std = 1.0"} <= set((killed / "args.txt").read_text().splitlines())
    expected, state = state_of(straight), state_of(killed)
    assert state["step/.ATTRIBUTES/VARIABLE_VALUE"] == history.steps
    assert any("optimizer/_variables" in name for name in state)
    assert state.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(state[name], values, err_msg=name)

    summaries = history.basedir / "summaries"
    for tag, interval in (("loss", 1), ("psnr", 1), ("psnr_holdout", 4)):
        values = {step: value for name, step, value in events_in(summaries / "straight") if name == tag}
        assert sorted(values) == list(range(0, history.steps, interval))
        # Steps that were done twice had the same loss twice.
        ours = {(step, value) for name, step, value in events_in(summaries / "killed") if name == tag}
        assert sorted(ours) == sorted(values.items()), tag
    shown = EventAccumulator(str(summaries / "killed"), size_guidance={"tensors": 0})  # as TensorBoard's page has it
    shown.Reload()
    assert [event.step for event in shown.Tensors("loss")] == list(range(history.steps))

    assert files_of(killed) == {name.replace("straight_", "killed_") for name in files_of(straight)}
    assert list(history.basedir.rglob(".*")) == [], "a death left them, and the next life did not see to it"
    for name in files_of(killed):
        # The curve shows when a step was done twice, if only in its last bits.
        if name.endswith((".png", ".npy")) and name != "curve.png":
            assert (killed / name).read_bytes() == (straight / name).read_bytes(), name


@pytest.fixture(scope="module")
def launcher(tmp_path_factory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("temporary"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def histories(tmp_path_factory, launcher) -> Callable[[Case], History]:
    """Runs that together die ten times, each lived when it is first asked for."""
    return functools.cache(lambda case: live_through(case, BY_DEFAULT[case], tmp_path_factory.mktemp("life"), launcher))


@pytest.mark.parametrize("case", BY_DEFAULT, ids=str)
def test_a_run_that_dies_is_the_run_that_does_not(histories, case):
    check(case, histories(case), len(BY_DEFAULT[case]))


def run_lock(basedir: Path) -> Path:
    return basedir / "stopped" / "run.lock"


def test_whoever_stops_a_run_loses_nothing(histories, launcher):
    """Ctrl-C within a step, SIGTERM within a video, twice at once, and once more within the save that it waits for."""
    case = BLENDER
    basedir = histories(case).basedir
    straight, stopped, log = basedir / "straight", basedir / "stopped", basedir / "stopped.log"

    def live(death: Death | None, then: Death | None = None) -> int:
        log.unlink(missing_ok=True)
        return launcher.live(*case.arguments(basedir, "stopped"), log=log, death=death, then=then)

    assert live(Death("step", 4, signals=(signal.SIGINT,))) == 130
    assert "SIGINT: stopping after this step; a second one stops at once" in log.read_text()
    assert "stopped: SIGINT, saved at step 5; the same command continues" in log.read_text()
    assert "Traceback" not in log.read_text()

    # Step 5 is a test set; step 6 is the first video, of 3 views.
    assert live(Death("render", 4, signals=(signal.SIGTERM,))) == 143
    assert "continues at step 5" in log.read_text()
    assert "stopped: SIGTERM, saved at step 7" in log.read_text()
    assert not list(stopped.glob("*.mp4"))
    assert not run_lock(basedir).exists()

    assert live(Death("step", 4, signals=(signal.SIGTERM, signal.SIGTERM))) == 143
    assert "continues at step 7" in log.read_text()
    assert list(stopped.glob("*_000006_rgb.mp4"))  # what the second life had still to write
    assert "saved at" not in log.read_text()
    assert run_lock(basedir).exists()

    before = contents(stopped / "checkpoints")
    second = Death("checkpoint", 0, "torn", signals=(signal.SIGTERM,))
    assert live(Death("step", 1, signals=(signal.SIGINT,)), then=second) == 143
    assert "SIGINT: stopping after this step" in log.read_text()
    assert "continues at step 10" in log.read_text()
    assert "saved at" not in log.read_text()
    left = contents(stopped / "checkpoints")
    unfinished = {name for name in left if ".unfinished-" in name}
    assert unfinished
    assert {name: left[name] for name in left.keys() - unfinished} == before

    assert live(None) == 0
    assert "continues at step 10" in log.read_text()
    assert files_of(stopped) == {name.replace("straight_", "stopped_") for name in files_of(straight)}
    for name, values in state_of(straight).items():
        np.testing.assert_array_equal(state_of(stopped)[name], values)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_runs_do_not_share_a_folder_but_rendering_may(histories, launcher):
    case = BLENDER
    basedir = histories(case).basedir
    log = basedir / "second.log"
    with lock.lock_run(basedir / "straight"):
        folders = basedir / "straight", basedir / "summaries"
        before = [contents(folder) for folder in folders]
        assert launcher.live(*case.arguments(basedir, "straight", "--N_iters=99"), log=log) == 1
        line = log.read_text().splitlines()[-1]
        assert re.search(
            rf"^nerf_tf: .*run.lock: pid {os.getpid()} on .* has been training here since .*--expname", line
        )
        assert [contents(folder) for folder in folders] == before
        assert launcher.live(*case.arguments(basedir, "straight", "--render_only"), log=log) == 0
        assert f"renderonly_path_{STEPS:06d}/video.mp4" in files_of(basedir / "straight")
        assert (basedir / "straight" / "run.lock").exists()


def test_a_checkpoint_that_cannot_be_written_stops_a_run_and_other_files_do_not(histories, launcher, tmp_path):
    case = BLENDER
    straight = histories(case).basedir / "straight"
    largest = max(file.stat().st_size for file in straight.rglob("ckpt-*/*"))
    log = tmp_path / "log"
    arguments = case.arguments(tmp_path, "full", "--i_video=0")
    assert launcher.live(*arguments, log=log, largest_file=largest - 1) == 1
    lines = log.read_text().splitlines()
    assert re.search(r"nerf_tf: .*ckpt-1: cannot be written \(.*\); earlier checkpoints are unchanged$", lines[-1])
    assert "Traceback" not in log.read_text()
    assert files_of(tmp_path / "full") == {"args.txt"}
    assert launcher.live(*arguments, log=log, death=Death("image", moment="full")) == 0
    assert "000004.png: cannot be written (No space left on device); training continues" in log.read_text()
    assert "Traceback" not in log.read_text()
    weights = {name for name in files_of(straight) if name.endswith(".npy")}
    assert weights | {"args.txt"} == files_of(tmp_path / "full") - {"curve.png"}
    for name, values in state_of(straight).items():
        np.testing.assert_array_equal(state_of(tmp_path / "full")[name], values)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_survives_twenty_deaths(tmp_path, launcher, case):
    # In all of the places, and in some twice.
    check(case, live_through(case, deaths(case, (PLACES * 2)[:20]), tmp_path, launcher), 20)
