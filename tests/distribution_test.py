"""Training on several devices and by several processes: equal to training on one, and safe when a worker dies."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from lives import ROOT, Death, Launcher
from step_test import assert_equal_states, make_trainer, state_of

from nerf_tf import build
from nerf_tf.distribution import workers
from nerf_tf.distribution.replica_views import NotWritten, Views
from nerf_tf.distribution.replicas import ReplicaTrainer
from nerf_tf.geometry.camera import Camera
from nerf_tf.render.renderer import Image
from nerf_tf.safety import worker_checks
from nerf_tf.safety.stop import Stopped
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import tf1_weights
from nerf_tf.training import TrainingRun

STEPS = 30
WORKERS = 2
# N_rand is odd, so that one of two replicas has a ray less; every kind of randomness is on.
FLAGS = [
    *("--dataset_type=blender", f"--datadir={ROOT}/tests/data/portable/scenes/blender", "--N_samples=4"),
    *("--netdepth=1", "--netwidth=16", "--N_rand=15", "--raw_noise_std=1", "--random_seed=5"),
    *("--i_print=1", "--i_weights=12", "--i_img=25", "--i_testset=20", "--i_video=25", f"--N_iters={STEPS}"),
]
# A grid that compiles fast. Its steps do not end by their number.
GRID = [
    *("--field=hash_grid", "--use_viewdirs", "--grid_levels=2", "--grid_features=2", "--grid_log2_table=8"),
    *("--grid_finest=24", "--grid_samples=24", "--grid_slots=1024"),
    *("--i_weights=10000", "--i_img=0", "--i_testset=0", "--i_video=0", "--N_iters=100000", "--train_minutes=0.02"),
]


class Cluster:
    """Two workers on this machine, each of which lives many lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        addresses = []
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(WORKERS)]
        for each in sockets:
            addresses.append(f"127.0.0.1:{each.getsockname()[1]}")
        for each in sockets:
            each.close()
        configs = [
            {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}} for index in range(WORKERS)
        ]
        self.launchers = [Launcher(folder, TF_CONFIG=json.dumps(config)) for config in configs]

    def alone(self, name: str, *more: str, devices: int = 1) -> int:
        """A run by one process; returns its exit code."""
        arguments = [*FLAGS, f"--basedir={self.folder}", f"--expname={name}", *more]
        return self.launchers[0].live(*arguments, log=self.log(name, 0), devices=devices)

    def together(self, name: str, *more: Sequence[str], deaths: Sequence[Death | None] = (None, None)) -> list[int]:
        """A run by both, the second with flags of its own if there are two lists; returns their exit codes."""
        codes = [0] * WORKERS

        def live(index: int) -> None:
            flags = more[min(index, len(more) - 1)] if more else []
            arguments = [*FLAGS, "--distribute=multi_worker", f"--basedir={self.folder}", f"--expname={name}", *flags]
            codes[index] = self.launchers[index].live(*arguments, log=self.log(name, index), death=deaths[index])

        threads = [threading.Thread(target=live, args=(index,)) for index in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return codes

    def log(self, name: str, index: int) -> Path:
        return self.folder / f"{name}_{index}.log"

    def said(self, name: str, index: int) -> str:
        return self.log(name, index).read_text(encoding="utf-8")

    def weights(self, name: str) -> list[np.ndarray]:
        """The last step's weights."""
        return tf1_weights.load(self.folder / name / f"model_{STEPS - 1:06d}.npy")

    def losses(self, name: str) -> dict[int, float]:
        """The losses that the chief printed, by step."""
        found = re.findall(rf"{name} step (\d+) psnr \S+ loss (\S+)", self.said(name, 0))
        return {int(step): float(loss) for step, loss in found}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    assert cluster.alone("one") == 0
    yield cluster
    for launcher in cluster.launchers:
        launcher.close()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> list[np.ndarray]:
    """The weights of a run by both workers that nothing disturbed."""
    assert cluster.together("two") == [0, 0]
    return cluster.weights("two")


def assert_like_one(cluster: Cluster, name: str) -> None:
    for mine, its in zip(cluster.weights("one"), cluster.weights(name), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert cluster.losses("one") == cluster.losses(name)
    assert list(cluster.losses(name)) == list(range(STEPS))


def files_in(folder: Path) -> list[str]:
    """The names of all files below a run's folder, without the run's own name."""
    return sorted(str(path.relative_to(folder)).replace(folder.name, "") for path in folder.rglob("*"))


def test_two_devices_go_on_with_a_run_as_one(cluster: Cluster):
    assert cluster.alone("mirrored", f"--N_iters={STEPS // 2}") == 0
    assert cluster.alone("mirrored", "--distribute=mirrored", devices=2) == 0
    assert "split over 2 devices: CPU:0, CPU:1" in cluster.said("mirrored", 0)
    assert_like_one(cluster, "mirrored")


def test_two_processes_train_as_one_and_only_the_chief_writes(cluster: Cluster, undisturbed: list[np.ndarray]):
    assert_like_one(cluster, "two")
    assert "step" not in cluster.said("two", 1)
    assert files_in(cluster.folder / "two") == files_in(cluster.folder / "one")
    assert len(list((cluster.folder / "summaries" / "two").glob("*.v2"))) == 1


def test_a_run_whose_workers_die_goes_on_to_the_same_weights(cluster: Cluster, undisturbed: list[np.ndarray]):
    name, few = "killed", ["--i_video=0", "--i_img=0"]
    assert cluster.together(name, few, deaths=[None, Death("step", 14)]) == [1, -signal.SIGKILL]
    assert last_line(cluster, name, 0).startswith("nerf_tf: worker 0 of 2 stops: worker 1 is gone")
    # The chief dies when test views are rendered.
    assert cluster.together(name, few, deaths=[Death("render"), None]) == [-signal.SIGKILL, 1]
    assert last_line(cluster, name, 1).startswith("nerf_tf: worker 1 of 2 stops: worker 0 is gone")
    # A request to stop that reaches one of them stops both.
    stop = Death("step", 3, signals=(signal.SIGTERM,))
    assert cluster.together(name, few, deaths=[None, stop]) == [128 + signal.SIGTERM] * 2
    assert "the same command continues" in last_line(cluster, name, 0)
    assert cluster.together(name, few) == [0, 0]
    for mine, its in zip(undisturbed, cluster.weights(name), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_workers_with_other_flags_are_refused(cluster: Cluster):
    assert cluster.together("other", [], ["--lrate=0.1", "--basedir=/elsewhere"]) == [1, 1]
    for index in range(WORKERS):
        assert "worker 1 has --lrate 0.1, worker 0 has 0.0005; start all workers with" in last_line(
            cluster, "other", index
        )
    assert not (cluster.folder / "other").exists()


def test_bad_steps_end_all_workers(cluster: Cluster):
    deep = ["--netdepth=2", "--use_viewdirs"]  # so that products of weights overflow
    assert cluster.together("bad", ["--lrate=1e30", "--max_bad_steps=3", *deep]) == [1, 1]
    for index in range(WORKERS):
        assert "loss or gradient was not finite in 3 steps in a row" in last_line(cluster, "bad", index)
    assert len(list((cluster.folder / "bad").glob("bad_step_*.npz"))) == 1


def last_line(cluster: Cluster, name: str, index: int) -> str:
    return cluster.said(name, index).splitlines()[-1]


@pytest.mark.parametrize(("what", "folder"), [("--eval_only", "testset"), ("--render_only", "renderonly_path")])
def test_two_processes_render_the_views_of_one(cluster: Cluster, what: str, folder: str):
    flags = [
        what,
        "--save_arrays",
        "--testskip=1",
        f"--ft_path={cluster.folder / 'one' / f'model_{STEPS - 1:06d}.npy'}",
    ]
    assert cluster.alone(f"one{what}", *flags) == 0
    assert cluster.together(f"two{what}", flags) == [0, 0]
    one, two = (cluster.folder / f"{name}{what}" for name in ("one", "two"))
    assert files_in(one) == files_in(two)
    (views,) = one.glob(f"{folder}_*")
    assert len(list(views.glob("*.png"))) == 3, "an odd number"
    for path in views.iterdir():
        assert path.read_bytes() == (two / views.name / path.name).read_bytes(), path.name
    if what == "--eval_only":
        mine, its = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
        for name in ("psnr_float", "psnr_8bit"):
            assert mine[name] == its[name]
    assert "ray/s" not in cluster.said(f"two{what}", 1)
    assert "views 3 to 3 of 3" in cluster.said(f"two{what}", 0)


def test_two_processes_train_a_hash_grid_by_the_chiefs_clock(cluster: Cluster):
    assert cluster.together("grid", GRID) == [0, 0]
    (trained,) = re.findall(r"trained to step (\d+)", cluster.said("grid", 0))
    assert int(trained) < 99_999
    assert cluster.together("grid", GRID) == [0, 0]
    assert f"grid is at step {int(trained) + 1} already; raise --train_minutes" in cluster.said("grid", 0)


PORTABLE = ROOT / "tests" / "data" / "portable"


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("views", []),
        ("hash_grid", []),
        ("precision", ["bfloat16", False, 4]),
        ("precision", ["bfloat16", True, 0]),
        ("precision", ["float16", False, 0]),
        ("golden", [str(PORTABLE / "train_views_white.npz"), "initial_", False]),
        ("golden", [str(PORTABLE / "train_ndc_noviews.npz"), "initial_", False]),
        ("golden", [str(PORTABLE / "train_ndc_noviews.npz"), "initial_", True]),
    ],
)
def test_two_devices_compute_what_one_does(cluster: Cluster, function: str, arguments: list[object]):
    run_case(cluster, function, arguments)


def test_two_devices_train_on_lego_as_one(cluster: Cluster, real_data: Path):
    run_case(cluster, "golden", [str(real_data / "golden" / "train_lego.npz"), "", False])


def run_case(cluster: Cluster, function: str, arguments: list[object]) -> None:
    """Calls a function of `replica_cases.py` in a process with two devices."""
    log = cluster.log("case", 0)
    log.unlink(missing_ok=True)
    code = cluster.launchers[0].call(f"replica_cases.{function}", *arguments, log=log, devices=2)
    assert code == 0, log.read_text(encoding="utf-8")


class Exchange:
    """What two threads tell each other, as workers do."""

    def __init__(self) -> None:
        self.barrier, self.values = threading.Barrier(2, timeout=60), [np.zeros(0)] * 2


@dataclasses.dataclass(frozen=True, eq=False)
class ThreadWorkers(workers.Workers):
    """A worker that is a thread of this process."""

    exchange: Exchange = dataclasses.field(default_factory=Exchange, kw_only=True)
    replicas = 2
    devices = (None,)

    def gather(self, values: np.ndarray) -> np.ndarray:
        self.exchange.values[self.index] = values
        self.exchange.barrier.wait()
        found = np.stack(self.exchange.values)
        self.exchange.barrier.wait()
        return found

    gather_pixels = gather


class StubRenderer:
    """Renders views that say which one they are."""

    prepare = None

    def image(self, camera: Camera, c2w: np.ndarray, viewdirs: None, progress: Callable[[int], object]) -> Image:
        ones = np.ones([camera.height, camera.width], np.float32)
        return Image(c2w[0, 3] * ones[..., None].repeat(3, -1), *[ones] * 3, depth_ray=ones, depth_z=ones)


def rendered_by_two_threads(body: Callable[[TrainingRun, Iterator[Image]], None]) -> list[BaseException | None]:
    """Renders five views, of which each worker's `body` gets the iterator; returns what was raised."""
    poses = np.zeros([5, 3, 4], np.float32)
    poses[:, 0, 3] = range(5)
    views, exchange = Views([Camera.centred(2, 3, 1.0)] * 5, poses), Exchange()
    raised: list[BaseException | None] = [None] * 2

    def work(index: int) -> None:
        own = ThreadWorkers(None, index, 2, exchange=exchange)
        run = TrainingRun(Settings(expname="x"), None, None, None, None, [StubRenderer()], poses, workers=own)
        try:
            with run.rendered(views) as images:
                body(run, images)
        except (OSError, Stopped) as error:
            raised[index] = error
        run.agree()  # as before the next step

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_views_come_in_order():
    found = [[], []]
    rendered_by_two_threads(lambda run, images: found[run.workers.index].extend(im.rgb[0, 0, 0] for im in images))
    assert found == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("written", [None, 0, 1, 2, 5])
def test_a_chief_that_cannot_write_ends_everybodys_rendering(written: int | None):
    def write(run: TrainingRun, images: Iterator[Image]) -> None:
        if run.workers.is_chief and written is not None:
            list(itertools.islice(images, written))
            raise OSError("disk full")
        list(images)

    mine, its = rendered_by_two_threads(write)
    if written is None:
        assert (mine, its) == (None, None)
    else:
        assert str(mine) == "disk full"
        assert isinstance(its, NotWritten)


def test_a_request_to_stop_ends_everybodys_rendering():
    def be_stopped(run: TrainingRun, images: Iterator[Image]) -> None:
        next(images)
        if not run.workers.is_chief:
            run.stop.number = int(signal.SIGTERM)
        try:
            list(images)
        finally:
            run.stop.number = 0

    mine, its = rendered_by_two_threads(be_stopped)
    assert isinstance(mine, Stopped)
    assert isinstance(its, Stopped)


def test_a_state_is_copied_and_shared():
    one, newcomer = make_trainer(), make_trainer(seed=7)
    other = ReplicaTrainer(tf.distribute.MirroredStrategy(["CPU:0"]), make_trainer)
    one.copy_state_from(newcomer, restarts=1)
    other.copy_state_from(newcomer, restarts=1)
    other.share_state()
    assert_equal_states(state_of(one), state_of(other))
    assert list(other.counts.numpy()) == list(one.counts.numpy())


def test_the_differences_between_workers_are_named():
    chief = {"nerf_tf": "0.3.0", "--lrate": "1", worker_checks.SEED: 1}
    assert worker_checks.differences([chief, chief | {worker_checks.SEED: 2}]) == ""
    found = worker_checks.differences([chief, chief, {"nerf_tf": "0.2.0", "--lrate": "1", "--new": "x"}])
    assert found == "worker 2 has --new x, worker 0 has none; worker 2 has nerf_tf 0.2.0, worker 0 has 0.3.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "TF_CONFIG: not of the form"),
        ("[]", "TF_CONFIG: not of the form"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "TF_CONFIG: not of the form"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "TF_CONFIG: not of the form"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}', "has ps, worker"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "have one address"),
    ],
)
def test_a_wrong_tf_config_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        workers.find_cluster({"TF_CONFIG": text})


def test_several_workers_have_to_be_named():
    with pytest.raises(ValueError, match=r"TF_CONFIG is not set; .*launch_workers\.py"):
        workers.find_cluster({})


def test_the_chief_comes_first(monkeypatch: pytest.MonkeyPatch):
    config = {"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert workers.place_in(workers.find_cluster({"TF_CONFIG": json.dumps(config)})) == (2, 3)


def test_slurm_names_the_workers(monkeypatch: pytest.MonkeyPatch):
    variables = {
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    resolver = workers.find_cluster(variables)
    assert workers.place_in(resolver) == (2, 4)
    assert resolver.cluster_spec().as_dict() == {"worker": ["n1:8888", "n1:8889", "n2:8888", "n2:8889"]}


@pytest.mark.parametrize(
    ("gpus", "flags", "split"),
    [(2, [], True), (1, [], False), (2, ["--render_only"], True), (2, ["--eval_only", "--eval_folder=x"], False)],
)
def test_auto_takes_several_gpus(gpus: int, flags: list[str], split: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "set_up_tensorflow", lambda: None)
    monkeypatch.setattr(build, "mirrored", lambda: workers.Workers(strategy="all"))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU"] * gpus)
    settings = parsing.parse_settings(["--expname=x", "--distribute=auto", *flags])
    assert (build.find_workers(settings).strategy == "all") == split


def test_one_of_several_workers_ends_late_and_one_alone_at_once(monkeypatch: pytest.MonkeyPatch):
    waits = []
    monkeypatch.setattr(workers.time, "sleep", waits.append)
    with workers.Workers().lingering():
        pass
    with workers.Workers(count=2).lingering():
        assert not waits
    with pytest.raises(Stopped), workers.Workers(count=2).lingering():
        raise Stopped(signal.SIGINT)
    assert waits == [workers.LINGER_SECONDS] * 2
