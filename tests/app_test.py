"""The program as its users run it: commands in, exit codes, lines and files out."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import imageio.v2 as imageio
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from nerf_tf import app, build
from nerf_tf.camera_paths import scene_paths
from nerf_tf.camera_paths.keyframes import Keyframes, keyframes_json, load_keyframes
from nerf_tf.data import blender
from nerf_tf.data.scene import Scene
from nerf_tf.evaluation.metrics import psnr, ssim
from nerf_tf.geometry import paths
from nerf_tf.marching import occupancy
from nerf_tf.output import curve, figures, pictures, view_files
from nerf_tf.settings import parsing
from nerf_tf.settings.options import OPTIONS
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import tf1_weights
from nerf_tf.training import TrainingRun

ROOT = Path(__file__).parent.parent
SCENES = ROOT / "tests" / "data" / "portable" / "scenes"
# Everything about a network and a step that costs time, made small.
TINY = "--netdepth=2 --netdepth_fine=2 --netwidth=16 --netwidth_fine=16 --N_samples=8 --N_importance=8 --N_rand=32"
CONFIGS = ROOT / "configs"
BLENDER = [f"--config={CONFIGS / 'lego.txt'}", f"--datadir={SCENES / 'blender'}", *TINY.split()]
LLFF = [f"--config={CONFIGS / 'fern.txt'}", f"--datadir={SCENES / 'llff'}", "--factor=2", *TINY.split()]
VIDEOS = {"video.mp4", "video_disp.mp4", "video_depth.mp4", "video_acc.mp4"}
DEEPVOXELS = [f"--config={CONFIGS / 'deepvoxels_greek.txt'}", f"--datadir={SCENES / 'deepvoxels'}", *TINY.split()]
OCCUPANCY_RUNS = [("fast", ["--occupancy"]), ("fast", ["--occupancy"]), ("exact", [])]


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run of the program ended, and what it said."""

    code: int
    stderr: str

    def steps(self, expname: str) -> list[int]:
        """The steps whose lines were printed."""
        line = rf"{expname} step (\d+) psnr -?\d+\.\d{{3}} loss \d+\.\d{{6}} \d+\.\d{{3}} s/step"
        return [int(step) for step in re.findall(line, self.stderr)]


def command(*arguments: object) -> Result:
    """Runs `python -m nerf_tf` as a process of its own, in every respect as users do."""
    words = [sys.executable, "-m", "nerf_tf", *map(str, arguments)]
    # What other projects of the user may have set must not matter.
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    environment.pop("XLA_FLAGS", None)  # from conftest.py
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == ""
    return Result(done.returncode, done.stderr)


def run(*arguments: object, verbosity: int | None = None, curves: bool = False) -> Result:
    """Runs the program inside this process, which spares the seconds that TensorFlow takes to load.

    Without `curves`, `curve.png` is an empty picture: to draw one takes a quarter of a second.
    """
    root, text = logging.getLogger(), io.StringIO()
    draw_curves = curve.draw_curves if curves else lambda runs: figures.new_figure(0.1, 0.1)
    with (
        mock.patch.object(curve, "draw_curves", draw_curves),
        mock.patch.object(root, "handlers", []),  # the program installs its own
        mock.patch.object(root, "level", root.level),
        contextlib.redirect_stderr(text),
    ):
        try:
            code = app.main(parsing.parse_settings(list(map(str, arguments))), verbosity)
        except SystemExit as stop:
            code = stop.code
    return Result(code, text.getvalue())


def files_in(folder: Path) -> set[str]:
    """Paths of all files below a folder, hidden ones too, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def pair(step: int) -> set[str]:
    return {f"model_{step:06d}.npy", f"model_fine_{step:06d}.npy"}


def weights_in(folder: Path, step: int) -> list[np.ndarray]:
    return [array for name in sorted(pair(step)) for array in tf1_weights.load(folder / name)]


def png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def saved_psnr(image: np.ndarray, photo: np.ndarray) -> float:
    """PSNR of two 8-bit images."""
    return -10 * np.log10(np.mean(((image.astype(float) - photo.astype(float)) / 255) ** 2))


def assert_one_line(result: Result, code: int, message: str) -> None:
    """The program must end with one line that says what is wrong, and nothing more."""
    assert result.code == code
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("nerf_tf: ")] == lines[-1:], result.stderr
    assert re.search(message, lines[-1]), lines[-1]


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """A run that stopped after 6 steps and was taken up again by its own args.txt."""

    basedir: Path
    first: Result
    first_config: str
    second: Result
    files: set[str]
    metrics: dict

    @property
    def folder(self) -> Path:
        return self.basedir / "t"

    @property
    def again(self) -> list[str]:
        """Arguments that give the run its own flags back."""
        return [f"--config={self.folder / 'args.txt'}"]

    def copy(self, name: str, *patterns: str) -> Path:
        """Another run's folder, with those of this run's files that match."""
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                target = self.basedir / name / path.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if path.is_dir() else shutil.copy)(path, target)
        return self.basedir / name


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Interrupted:
    basedir = tmp_path_factory.mktemp("logs")
    intervals = ["--i_weights=5", "--i_img=10", "--i_testset=10", "--i_video=11", "--i_print=5"]
    flags_of_run = [f"--basedir={basedir}", "--expname=t", "--random_seed=3", "--raw_noise_std=1", *intervals]
    first = command(*BLENDER, *flags_of_run, "--N_iters=6")
    first_config = (basedir / "t" / "config.txt").read_text()
    # As the first, which conftest.py does not reach: otherwise sums round otherwise on some processors.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    second = run(f"--config={basedir / 't' / 'args.txt'}", "--N_iters=12")
    metrics = json.loads((basedir / "t" / "metrics.json").read_text())
    return Interrupted(basedir, first, first_config, second, files_in(basedir / "t"), metrics)


# A run, and the same run taken up again


@pytest.mark.usefixtures("short_of_memory")  # which takes long: it is started here
def test_a_run_prints_its_steps(interrupted):
    assert interrupted.first.code == 0
    assert interrupted.first.steps("t") == list(range(6))
    assert "5 images of 10x10 (3 train, 1 val, 1 test), near 2, far 6" in interrupted.first.stderr
    assert "random_seed 3" in interrupted.first.stderr
    assert "t: trained to step 5" in interrupted.first.stderr
    assert "Traceback" not in interrupted.first.stderr


def test_args_txt_takes_a_run_up_again(interrupted):
    assert interrupted.second.code == 0
    assert re.search(r"ckpt-\d+: continues at step 6\nrandom_seed 3\n", interrupted.second.stderr)
    assert interrupted.second.steps("t") == [6, 7, 8, 9, 10]
    assert "t: trained to step 11" in interrupted.second.stderr


def test_a_run_leaves_its_files(interrupted):
    checkpoints = {name for name in interrupted.files if name.startswith("checkpoints/")}
    pieces = {"state.index", "state.data-00000-of-00001", "sha256.txt", "settled"}
    assert checkpoints == {f"checkpoints/ckpt-{number}/{piece}" for number in (3, 4) for piece in pieces}
    assert interrupted.files - checkpoints == {
        "args.txt",
        "config.txt",
        "metrics.json",
        *pair(0),
        *pair(5),
        *pair(10),
        *pair(11),
        "curve.png",
        "latest.png",
        "tboard_val_imgs/000000.png",
        "tboard_val_imgs/000010.png",
        "testset_000010/000.png",
        "t_spiral_000011_rgb.mp4",
        "t_spiral_000011_disp.mp4",
        "t_spiral_000011_rgb_still.mp4",
    }
    assert interrupted.first_config == (CONFIGS / "lego.txt").read_text()
    assert list((interrupted.basedir / "summaries" / "t").glob("events.out.tfevents.*"))
    assert files_in(interrupted.basedir) >= {f"t/{name}" for name in interrupted.files}
    assert png(interrupted.folder / "testset_000010" / "000.png").shape == (10, 10, 3)
    still = imageio.mimread(interrupted.folder / "t_spiral_000011_rgb_still.mp4")
    assert len(still) == 40
    assert still[0].shape == (10, 10, 3)


def test_args_txt_tells_the_flags_of_the_run(interrupted):
    lines = (interrupted.folder / "args.txt").read_text().splitlines()
    assert lines == sorted(lines)
    args = dict(line.split(" = ") for line in lines)
    assert args["netwidth"] == "16"
    assert args["N_iters"] == "12"
    assert args["white_bkgd"] == "True"
    assert args["ft_path"] == "None"
    assert set(args) == set(OPTIONS)


def test_metrics_are_those_of_the_saved_images(interrupted):
    metrics = interrupted.metrics
    assert (metrics["step"], metrics["views"], metrics["white_bkgd"]) == (10, 1, True)
    assert (metrics["height"], metrics["width"]) == (10, 10)
    scene = blender.load(SCENES / "blender", half_res=True, testskip=8, white_bkgd=True)
    photo = np.rint(255 * scene.images[scene.i_test[0]])
    expected = saved_psnr(png(interrupted.folder / "testset_000010" / "000.png"), photo)
    assert metrics["psnr_8bit"] == {"mean": pytest.approx(expected), "views": [pytest.approx(expected)]}
    assert metrics["psnr_float"]["mean"] == pytest.approx(expected, abs=0.1)
    assert (metrics["scene"], metrics["dataset_type"], metrics["expname"]) == ("blender", "blender", "t")
    assert "test views of blender, 1 of 10x10, on white, weights of step 10, " in interrupted.second.stderr
    assert f"mean{expected:12.3f}{metrics['psnr_float']['mean']:12.3f}\n" in interrupted.second.stderr
    assert "no SSIM: it needs 11 pixels a side" in interrupted.second.stderr
    assert "no LPIPS: it needs 16 pixels a side" in interrupted.second.stderr
    assert not {"ssim", "lpips"} & set(metrics)


@pytest.mark.optimised_graphs
def test_an_interrupted_run_ends_like_an_uninterrupted_one(interrupted):
    straight = run(
        *interrupted.again, "--expname=straight", "--i_weights=0", "--i_img=0", "--i_testset=0", "--i_video=0"
    )
    assert straight.code == 0
    assert straight.steps("straight") == list(range(11))
    ours, theirs = weights_in(interrupted.basedir / "straight", 11), weights_in(interrupted.folder, 11)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(ours, weights_in(interrupted.folder, 5), strict=True))


def test_a_finished_run_does_nothing(interrupted):
    before = {name: (interrupted.folder / name).stat().st_mtime_ns for name in interrupted.files}
    result = run(*interrupted.again)
    assert result.code == 0
    assert "t is at step 12 already; raise --N_iters to continue" in result.stderr
    assert {name: (interrupted.folder / name).stat().st_mtime_ns for name in interrupted.files} == before


# Where weights come from


def test_the_newest_weights_are_found_without_a_checkpoint(interrupted):
    interrupted.copy("npy_only", "model_*.npy")
    result = run(*interrupted.again, "--expname=npy_only")
    assert "model_000011.npy: weights; continues at step 12" in result.stderr
    assert "npy_only is at step 12 already" in result.stderr


def test_a_checkpoint_goes_before_weight_files(interrupted):
    """Those of an earlier run in the same folder, say, that had come further before it was started over."""
    folder = interrupted.copy("older", "checkpoints/*", "model_*000011.npy")
    (folder / "model_000011.npy").rename(folder / "model_000020.npy")
    assert "older is at step 12 already" in run(*interrupted.again, "--expname=older").stderr


def test_a_death_between_two_files_of_a_save_loses_nothing(interrupted, monkeypatch):
    def die(path, weights):
        raise SystemExit

    quiet = ["--i_weights=3", "--i_img=0", "--i_testset=0", "--i_video=0"]
    with monkeypatch.context() as patch:
        patch.setattr(tf1_weights, "save", die)
        run(*interrupted.again, "--expname=dead", "--no_reload", *quiet)
    assert "continues at step 1\n" in run(*interrupted.again, "--expname=dead", "--N_iters=1").stderr


def test_a_checkpoint_alone_is_enough(interrupted):
    interrupted.copy("checkpoint_only", "checkpoints/*")
    assert "continues at step 12\nrandom_seed 3" in run(*interrupted.again, "--expname=checkpoint_only").stderr


def test_a_new_seed_replaces_the_old_one(interrupted):
    assert "continues at step 12\nrandom_seed 8" in run(*interrupted.again, "--random_seed=8").stderr


@pytest.mark.optimised_graphs
def test_no_reload_starts_afresh(interrupted):
    folder = interrupted.copy("afresh", "checkpoints/*", "model_*.npy")
    quiet = ["--i_weights=0", "--i_img=0", "--i_testset=0", "--i_video=0"]
    result = run(*interrupted.again, "--expname=afresh", "--no_reload", "--N_iters=1", *quiet)
    assert result.code == 0
    assert result.steps("afresh") == [0]
    assert "continues" not in result.stderr
    for a, b in zip(weights_in(folder, 0), weights_in(interrupted.folder, 0), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "afresh holds an earlier run, up to model_000011.npy" in result.stderr
    assert "continues at step 1\n" in run(*interrupted.again, "--expname=afresh", "--N_iters=1").stderr


def test_verbosity(interrupted):
    assert "random_seed" not in run(*interrupted.again, verbosity=-1).stderr
    assert "random_seed" in run(*interrupted.again, verbosity=0).stderr


# Rendering


def test_render_test(interrupted):
    result = run(
        *interrupted.again, "--render_only", "--render_test", "--save_arrays", "--testskip=2", "--half_res=False"
    )
    assert result.code == 0
    folder = interrupted.folder / "renderonly_test_000012"
    arrays, images = {f"{i:03d}.npz" for i in range(3)}, {f"{i:03d}.png" for i in range(3)}
    assert files_in(folder) == {*arrays, *images, *VIDEOS}
    assert result.stderr.splitlines()[-1] == str(folder)
    psnrs = []
    for i in range(3):
        with np.load(folder / f"{i:03d}.npz", allow_pickle=False) as npz:
            assert {name: npz[name].shape for name in npz.files} == {
                "rgb": (20, 20, 3),
                **dict.fromkeys(("disp", "acc", "depth", "depth_ray", "depth_z"), (20, 20)),
            }
            np.testing.assert_array_equal(png(folder / f"{i:03d}.png"), np.floor(255 * npz["rgb"].clip(0, 1)))
        rgba = png(SCENES / "blender" / "test" / f"r_{2 * i}.png") / np.float32(255)
        photo = np.rint(255 * (rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])))
        psnrs.append(saved_psnr(png(folder / f"{i:03d}.png"), photo))
    metrics = json.loads((interrupted.folder / "metrics.json").read_text())
    assert (metrics["step"], metrics["views"]) == (11, 3)  # the weights' step
    assert metrics["psnr_8bit"]["views"] == pytest.approx(psnrs)
    assert metrics["psnr_8bit"]["mean"] == pytest.approx(np.mean(psnrs))


def test_the_guides_python_runs(interrupted, tmp_path, monkeypatch):
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("guide.md", "own_data.md"))
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    shutil.copy(interrupted.folder / "model_000011.npy", "model_200000.npy")
    for block in blocks:
        exec(block.replace("logs/demo", str(interrupted.folder)), {})
    assert np.load("poses_bounds.npy").shape == (5, 17)
    assert np.load("path.npy").shape == (90, 3, 4)
    assert load_keyframes(Path("keyframes.json")).times.tolist() == [0.0, 2.0, 3.0]


def test_the_line_about_a_full_disk_stands_by_itself(interrupted, monkeypatch):
    written, write_png = [], view_files.write_png

    def fill(path, image):
        written.append(path)
        if len(written) > 1:
            raise OSError(f"{path}: cannot be written (No space left on device)")
        write_png(path, image)

    monkeypatch.setattr(view_files, "write_png", fill)
    result = run(
        *interrupted.again, "--expname=full", f"--ft_path={interrupted.folder / 'model_000011.npy'}", "--render_only"
    )
    assert result.code == 1
    assert re.search(r"\nnerf_tf: .*001\.png: cannot be written \(No space left on device\)\n$", result.stderr)


def test_a_runs_own_args_go_on_from_its_checkpoint(tmp_path, monkeypatch):
    arguments = [*BLENDER, f"--basedir={tmp_path}", "--N_importance=0", "--i_testset=0", "--i_video=0", "--i_img=0"]
    looks, write_latest = [], TrainingRun.write_latest
    monkeypatch.setattr(
        TrainingRun, "write_latest", lambda this, step, *view: looks.append(step) or write_latest(this, step, *view)
    )
    first = run(*arguments, "--expname=a", "--N_iters=2", "--i_img=3")
    assert first.steps("a") == [0, 1]
    assert looks == [0, 1]  # the last step's view too, though it is not its turn
    assert files_in(tmp_path / "a" / "tboard_val_imgs") == {"000000.png"}
    weights = f"--ft_path={tmp_path / 'a' / 'model_000001.npy'}"
    assert run(*arguments, "--expname=b", weights, "--N_iters=4").steps("b") == [2, 3]
    again = run(f"--config={tmp_path / 'b' / 'args.txt'}", "--N_iters=6")
    assert again.steps("b") == [4, 5]
    assert "continues with" not in again.stderr
    # Said by whoever gives the command, it counts.
    assert run(f"--config={tmp_path / 'b' / 'args.txt'}", "--N_iters=3", weights).steps("b") == [2]
    over = run(*arguments, "--expname=b", "--no_reload", "--N_iters=1")
    assert over.steps("b") == [0]
    assert "holds an earlier run, up to model_000005.npy" in over.stderr
    assert re.search(r"holds an earlier run, up to ckpt-\d", over.stderr)
    # Another background makes another scene of it.
    changed = run(*arguments, "--expname=a", "--white_bkgd=False", "--N_iters=3", "--i_print=1")
    assert changed.steps("a") == [2]
    assert "continues with white_bkgd = False, which was True" in changed.stderr
    assert "i_print" not in changed.stderr


def test_eval_only(interrupted):
    again = [*interrupted.again, "--testskip=2", "--half_res=False"]
    folder = interrupted.copy("evaluated", "model_*000011.npy")
    result = run(*again, "--expname=evaluated", "--eval_only", "--render_factor=4")
    assert result.code == 0, result.stderr
    images = {f"testset_000011/{i:03d}.png" for i in range(3)}
    assert files_in(folder) == {*pair(11), *images, "args.txt", "config.txt", "metrics.json"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["step"], metrics["views"], metrics["width"]) == (11, 3, 20)
    assert metrics["seconds_per_view"] > 0
    how = metrics["rendered_with"]
    assert (how["N_samples"], how["mixed_precision"], how["occupancy"]) == (8, "float32", False)
    rows = re.findall(r"^(\d{3}|mean)((?: +-?\d+\.\d+)+)$", result.stderr, re.MULTILINE)
    assert [title for title, _ in rows] == ["000", "001", "002", "mean"]
    # Recomputed from the files.
    scene = blender.load(SCENES / "blender", half_res=False, testskip=2, white_bkgd=True)
    for i, photo in enumerate(np.uint8(np.rint(255 * scene.images[scene.i_test]))):
        image = png(folder / "testset_000011" / f"{i:03d}.png")
        assert metrics["psnr_8bit"]["views"][i] == pytest.approx(saved_psnr(image, photo))
        assert metrics["psnr_float"]["views"][i] == pytest.approx(saved_psnr(image, photo), abs=0.1)
        assert metrics["ssim"]["views"][i] == pytest.approx(ssim(image, photo), abs=1e-6)
        assert float(rows[i][1].split()[0]) == pytest.approx(saved_psnr(image, photo), abs=5e-4)
    assert metrics["ssim"]["mean"] == pytest.approx(np.mean(metrics["ssim"]["views"]))

    # The same files, compared without a network.
    views = folder / "testset_000011"
    result = run(*again, "--expname=compared", "--eval_only", f"--eval_folder={views}")
    assert result.code == 0, result.stderr
    assert files_in(interrupted.basedir / "compared") == {"metrics.json"}
    compared = json.loads((interrupted.basedir / "compared" / "metrics.json").read_text())
    assert (compared["step"], compared["folder"], compared["seconds_per_view"]) == (11, str(views), None)
    measures = {"psnr_8bit", "ssim", "lpips"} & set(metrics)
    assert {name: compared[name] for name in measures} == {name: metrics[name] for name in measures}
    assert not {"psnr_float", "rendered_with"} & set(compared)


def test_render_a_path_of_ones_own_from_weight_files_alone(interrupted, tmp_path):
    matrices = np.tile(np.eye(4), [3, 1, 1])
    matrices[:, 2, 3] = [3.5, 4.0, 4.5]
    np.save(tmp_path / "poses.npy", matrices)
    path = ["--render_only", f"--render_path_file={tmp_path / 'poses.npy'}", "--render_factor=2"]
    own = run(*interrupted.again, *path)
    weights = f"--ft_path={interrupted.folder / 'model_000011.npy'}"
    other = run(*interrupted.again, *path, "--expname=other", weights)
    assert (own.code, other.code) == (0, 0)
    assert "model_000011.npy: weights; continues at step 12" in other.stderr
    folders = [interrupted.basedir / name / "renderonly_path_000012" for name in ("t", "other")]
    expected = {"000.png", "001.png", "002.png", *VIDEOS}
    assert [files_in(folder) for folder in folders] == [expected, expected]
    images = [[png(folder / f"{i:03d}.png") for i in range(3)] for folder in folders]
    np.testing.assert_array_equal(images[0], images[1])
    assert images[0][0].shape == (5, 5, 3)
    assert (images[0][0] != images[0][2]).any()
    assert [frame.shape for frame in imageio.mimread(folders[0] / "video.mp4")] == [(6, 6, 3)] * 3
    written = {f"renderonly_path_000012/{name}" for name in expected}
    assert files_in(interrupted.basedir / "other") == written | {"args.txt", "config.txt"}
    assert "render_only = False" in (interrupted.folder / "args.txt").read_text()  # training's own, left alone


def test_render_width_shows_the_same_in_more_pixels(tmp_path):
    """Rays go through pixels' corners, so every second pixel of a view of twice the width is one of the photo's."""
    base = [*LLFF, f"--basedir={tmp_path}", "--expname=t", "--N_iters=3", "--i_img=0", "--i_testset=2"]
    base += ["--N_importance=0"]
    trained = run(*base, "--i_video=2", "--render_width=32", "--render_frames=2")
    assert trained.code == 0, trained.stderr
    folder, not_scored = tmp_path / "t", "no PSNR: views of 32x24 are not compared with photos of 16x12"
    assert imageio.mimread(folder / "t_spiral_000002_rgb.mp4")[0].shape == (24, 32, 3)
    assert png(folder / "testset_000002" / "000.png").shape == (24, 32, 3)
    assert not_scored in trained.stderr
    assert not (folder / "metrics.json").exists()
    assert run(*base, "--render_only", "--render_width=32", "--render_frames=2").code == 0
    assert png(folder / "renderonly_path_000003" / "000.png").shape == (24, 32, 3)
    images = []
    for flags in ([], ["--render_width=32"]):
        result = run(*base, "--render_only", "--render_test", *flags)
        assert (not_scored in result.stderr) == bool(flags)
        images.append(png(folder / "renderonly_test_000003" / "001.png").astype(int))
    assert np.ptp(images[0]) > 5
    assert np.abs(images[1][::2, ::2] - images[0]).max() <= 1
    assert json.loads((folder / "metrics.json").read_text())["width"] == 16


def keyframes_file(path: Path) -> Path:
    keys = Keyframes(np.array([0.0, 0.5, 2.0]), paths.orbit_path(3))
    path.write_text(keyframes_json(keys))
    return path


def frames_and_fps(path: Path) -> tuple[int, float]:
    with imageio.get_reader(path) as reader:
        return sum(1 for _ in reader), reader.get_meta_data()["fps"]


def test_render_keyframes_at_any_rate(interrupted, tmp_path):
    keys = keyframes_file(tmp_path / "keys.json")
    again = [*interrupted.again, f"--ft_path={interrupted.folder / 'model_000011.npy'}", "--render_only"]
    for fps, count in ((2, 5), (12, 25)):
        name = f"fps{fps}"
        path = [f"--expname={name}", f"--render_path_file={keys}", f"--fps={fps}", "--render_factor=5"]
        assert run(*again, *path).code == 0
        folder = interrupted.basedir / name / "renderonly_path_000012"
        assert files_in(folder) == {*(f"{i:03d}.png" for i in range(count)), *VIDEOS}
        assert {frames_and_fps(folder / video) for video in VIDEOS} == {(count, fps)}
    key = [
        [interrupted.basedir / f"fps{fps}" / "renderonly_path_000012" / name for name in names]
        for fps, names in ((2, ("000.png", "004.png")), (12, ("000.png", "024.png")))
    ]
    for a, b in zip(*key, strict=True):
        np.testing.assert_array_equal(png(a), png(b))  # first and last keyframe, whatever lies between


def test_videos_of_disparity_depth_and_opacity(interrupted, tmp_path):
    np.save(tmp_path / "poses.npy", paths.orbit_path(2))
    path = ["--render_only", f"--render_path_file={tmp_path / 'poses.npy'}", "--expname=colour"]
    assert (
        run(*interrupted.again, f"--ft_path={interrupted.folder / 'model_000011.npy'}", *path, "--save_arrays").code
        == 0
    )
    folder = interrupted.basedir / "colour" / "renderonly_path_000012"
    arrays = [dict(np.load(folder / f"{i:03d}.npz")) for i in range(2)]
    accs = [view["acc"] for view in arrays]
    away, close = pictures.display_range(map(pictures.opaque_values, [view["disp"] for view in arrays], accs))
    depths = [pictures.expected_depth(view["depth"], view["acc"]) for view in arrays]
    near, far = pictures.display_range(map(pictures.opaque_values, depths, accs))
    for i, acc in enumerate(accs):
        expected = {
            "video_disp.mp4": pictures.false_colours(arrays[i]["disp"], acc, dark=away, light=close),
            "video_depth.mp4": pictures.false_colours(depths[i], acc, dark=far, light=near),
            "video_acc.mp4": pictures.apply_colour_map(acc),
        }
        for name, frame in expected.items():
            shown = np.asarray(imageio.mimread(folder / name)[i], float)
            assert np.abs(shown - frame).mean() < 20, name  # a codec blurs colours of pictures this small


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 40),
        (["--render_frames=7"], 7),
        (["--render_path=orbit"], scene_paths.PATH_FRAMES),
        (["--render_path=orbit", "--render_frames=9"], 9),
        (["--render_path=test", "--render_frames=5", "--testskip=1"], 5),
        (["--render_path=test", "--testskip=1"], 5),
        (["--render_path=orbit", "--render_test"], 1),
    ],
)
def test_paths_of_a_scene(tmp_path, arguments, count):
    values, scene = with_scene(*BLENDER, "--expname=x", *arguments)
    path = build.load_render_poses(values, scene)
    assert path.shape == (count, 3, 4)
    assert path.dtype == np.float32
    if "--render_test" in arguments or "--render_path=test" in arguments:
        np.testing.assert_allclose(path[[0, -1]], scene.poses[scene.i_test[[0, -1]]], atol=1e-6)
    else:
        np.testing.assert_allclose(np.linalg.norm(path[:, :, 3], axis=-1), 4.0, rtol=0.01)
        steps = np.linalg.norm(path[:, :, 3] - np.roll(path[:, :, 3], 1, axis=0), axis=-1)
        np.testing.assert_allclose(steps, steps.mean(), rtol=0.02)  # round and round without a seam


def test_a_spiral_of_forward_facing_cameras():
    _, scene = with_scene(*LLFF, "--expname=x")
    same, resampled, bent = (
        build.load_render_poses(*with_scene(*LLFF, "--expname=x", "--render_path=spiral", *more))
        for more in ([], ["--render_frames=60"], ["--no_ndc", "--render_frames=60"])
    )
    np.testing.assert_array_equal(same, scene.render_poses)
    assert resampled.shape == bent.shape == (60, 3, 4)
    np.testing.assert_allclose(resampled, same[::2], atol=1e-5)
    np.testing.assert_allclose(bent[:, :, 3], same[::2, :, 3], atol=1e-5)


def with_scene(*arguments: object) -> tuple[Settings, Scene]:
    """Settings, and the scene that they name."""
    settings = parsing.parse_settings(list(map(str, arguments)))
    return settings, build.load_scene(settings)


# The other kinds of scene


@pytest.fixture(scope="module")
def forward_facing(tmp_path_factory) -> tuple[Path, Result]:
    """A finished run on photos, and what it said."""
    basedir = tmp_path_factory.mktemp("llff")
    intervals = ["--i_weights=2", "--i_img=2", "--i_testset=2", "--i_video=2", "--i_print=2"]
    flags_of_run = [f"--basedir={basedir}", "--expname=f", "--N_iters=3", "--render_frames=12", *intervals]
    return basedir, run(*LLFF, *flags_of_run, curves=True)


def test_llff(forward_facing):
    basedir, result = forward_facing
    assert result.code == 0
    assert "9 images of 16x12 (7 train, 2 val, 2 test), near 0, far 1, NDC" in result.stderr
    assert result.steps("f") == [0, 1, 2]
    videos = {f"f_spiral_000002_{kind}.mp4" for kind in ("rgb", "disp", "rgb_still")}
    images = {"testset_000002/000.png", "testset_000002/001.png"}
    holdout = {"tboard_val_imgs/000000.png", "tboard_val_imgs/000002.png"}
    files = {name for name in files_in(basedir / "f") if not name.startswith("checkpoints/")}
    shown = {"curve.png", "latest.png"}
    assert files == {"args.txt", "config.txt", "metrics.json", *shown, *pair(0), *pair(2), *videos, *images, *holdout}
    assert len(imageio.mimread(basedir / "f" / "f_spiral_000002_rgb.mp4")) == 12


def test_llff_metrics(forward_facing):
    folder = forward_facing[0] / "f"
    photos = [png(SCENES / "llff" / "images_2" / name)[..., :3] for name in ("im00.png", "im08.png")]
    psnrs = [saved_psnr(png(folder / "testset_000002" / f"{i:03d}.png"), photos[i]) for i in range(2)]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["psnr_8bit"]["views"] == pytest.approx(psnrs)


def test_progress_without_a_server(forward_facing):
    """The curve, and the newest validation view beside its photo, as in TensorBoard."""
    folder = forward_facing[0] / "f"
    assert png(folder / "curve.png").shape == (504, 1320, 4)
    latest = png(folder / "latest.png")
    tiles = [latest[pictures.CAPTION : -pictures.CAPTION, i * (16 + pictures.GAP) :][:, :16] for i in range(4)]
    assert [tile.shape for tile in tiles] == [(12, 16, 3)] * 4
    np.testing.assert_array_equal(tiles[1], png(folder / "tboard_val_imgs" / "000002.png"))
    photos = [png(SCENES / "llff" / "images_2" / name)[..., :3] for name in ("im00.png", "im08.png")]
    assert any(np.array_equal(tiles[0], photo) for photo in photos)
    assert saved_psnr(tiles[0], tiles[1]) == pytest.approx(holdout_psnr(forward_facing[0]), abs=0.1)


def holdout_psnr(basedir: Path) -> float:
    """The newest in TensorBoard's file."""
    events = EventAccumulator(str(basedir / "summaries" / "f"), size_guidance={"tensors": 0}).Reload()
    return float(make_ndarray(events.Tensors("psnr_holdout")[-1].tensor_proto))


def test_a_run_without_matplotlib_goes_on(tmp_path, monkeypatch):
    quick = ["--N_iters=1", "--i_img=1", "--i_weights=0", "--N_importance=0"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(*BLENDER, f"--basedir={tmp_path}", "--expname=x", *quick)
    assert result.code == 0
    assert result.stderr.count("no curve.png while training: drawing needs matplotlib: pip install") == 1
    assert {"latest.png", "model_000000.npy"} < files_in(tmp_path / "x")
    assert not (tmp_path / "x" / "curve.png").exists()


def test_summaries_have_the_originals_tags(forward_facing):
    events = EventAccumulator(str(forward_facing[0] / "summaries" / "f"), size_guidance={"tensors": 0})
    events.Reload()
    steps = {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    scalars = ["loss", "psnr", "psnr0", "psnr_holdout", "learning_rate", "rays_per_second", "skipped_steps"]
    images = ["rgb", "disp", "acc", "rgb_holdout", "rgb0", "disp0", "z_std"]
    assert steps == {tag: [0, 2] for tag in [*scalars, "tran", *images]}


def test_deepvoxels(tmp_path):
    flags_of_run = [*DEEPVOXELS, f"--basedir={tmp_path}", "--expname=d", "--N_iters=2", "--i_img=0"]
    trained = run(*flags_of_run)
    assert trained.code == 0
    assert "5 images of 512x512 (3 train, 1 val, 1 test), near 2, far 4" in trained.stderr
    assert trained.steps("d") == [0, 1]
    rendered = run(*flags_of_run, "--render_only", "--render_test", "--render_factor=64", "--testskip=2")
    assert rendered.code == 0
    folder = tmp_path / "d" / "renderonly_test_000002"
    assert files_in(folder) == {"000.png", "001.png", "002.png", *VIDEOS}
    assert png(folder / "000.png").shape == (8, 8, 3)
    assert not (tmp_path / "d" / "metrics.json").exists()  # there are no photos of that size to compare with


# Memory


# Runs the program with only so much memory left, until that has run out once: what comes after is on a larger machine,
# as the allocator gives nothing back to this one.
SHORT_OF_MEMORY = """
import gc, resource, sys
gc.disable()
import tensorflow as tf
from nerf_tf import app
from nerf_tf.memory import planning
from nerf_tf.settings import parsing
gc.enable()
left, *arguments = sys.argv[1:]
settings = parsing.parse_settings(arguments)
tf.linalg.matmul(tf.ones([512, 512]), tf.ones([512, 512]))  # threads and their stacks are there from now on
pages = int(open("/proc/self/statm").read().split()[0])
limit, before = pages * resource.getpagesize() + int(left) * 2**20, resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
on_out_of_memory = planning.MemoryPlanner.on_out_of_memory

def retry_on_a_larger_machine(self, error):
    resource.setrlimit(resource.RLIMIT_AS, before)
    return on_out_of_memory(self, error)

planning.MemoryPlanner.on_out_of_memory = retry_on_a_larger_machine
sys.exit(app.main(settings))
"""
# 2.4 million points a step: the half of them that is computed at once needs about 3 GB. Of less the tensors would be so
# small that something other than a tensor can be the first to find no memory, and there is no message then.
MANY = [
    *("--no_batching=False", "--N_rand=300", "--N_samples=4096", "--N_importance=4096", "--netchunk=2000000"),
    *("--N_iters=1", "--i_img=0", "--i_testset=0", "--i_video=0", "--i_weights=0"),
]


def run_short_of_memory(megabytes: int, *arguments: object) -> Result:
    words = [sys.executable, "-c", SHORT_OF_MEMORY, str(megabytes), *map(str, arguments)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return Result(done.returncode, done.stderr)


@pytest.fixture(scope="module")
def short_of_memory(tmp_path_factory) -> Iterator[Callable[[str], tuple[Path, Result]]]:
    """Runs that run out of memory, with these sizes and with automatic ones: where each is, and what it said.

    TensorFlow waits for ten seconds before it gives up: meanwhile other tests run.
    """
    folder = tmp_path_factory.mktemp("short_of_memory")
    with ThreadPoolExecutor() as pool:
        runs = {
            name: pool.submit(
                run_short_of_memory, 950, *BLENDER, *MANY, *more, f"--basedir={folder}", f"--expname={name}"
            )
            for name, more in (("given", []), ("auto", ["--chunk=auto", "--memory_budget_mb=100000"]))
        }
        yield lambda name: (folder / name, runs[name].result())


@pytest.mark.on_cpu
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to take memory away")
def test_running_out_of_memory_says_what_would_fit(short_of_memory):
    _, result = short_of_memory("given")
    in_force = r"out of memory \(OOM when allocating tensor.*chunk 32768, netchunk 2000000, predicted peak"
    proposal = r".*What may fit: .*chunk 300, netchunk 16384, predicted peak.*--chunk auto --netchunk auto"
    assert_one_line(result, 1, in_force + proposal)


@pytest.mark.on_cpu
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to take memory away")
def test_auto_takes_half_when_memory_runs_out_and_goes_on(short_of_memory):
    folder, result = short_of_memory("auto")
    assert result.code == 0, result.stderr
    halved = re.findall(r"out of memory .* continuing with .* chunk (\d+), netchunk (\d+)", result.stderr)
    assert halved == [("75", "2000000")]
    assert result.steps("auto") == [0]
    assert pair(0) <= files_in(folder)
    checkpoint = tf.train.load_checkpoint(str(folder / "checkpoints" / "ckpt-1" / "state"))
    assert checkpoint.get_tensor("step/.ATTRIBUTES/VARIABLE_VALUE") == 1  # what was tried twice counts once


def test_a_plan_is_made_and_told(tmp_path):
    arguments = ["--chunk=auto", "--netchunk=auto", "--memory_budget_mb=20", "--N_iters=1", "--i_weights=0"]
    result = run(*BLENDER, *arguments, f"--basedir={tmp_path}", "--expname=x")
    assert result.code == 0, result.stderr
    plans = re.findall(r"^(.*): chunk (\d+), netchunk (\d+), predicted peak (\d+) MB", result.stderr, re.MULTILINE)
    assert [plan[0] for plan in plans] == ["rendering", "training on 32 rays a step"]
    assert all(int(peak) <= 20 for *_, peak in plans)


# Without a fine network, half to compile; with one, golden_test.py and step_test.py compare them.
PRECISE = [*BLENDER, "--N_importance=0", "--N_iters=3", "--i_img=0", "--random_seed=1"]


@pytest.fixture(scope="module")
def float32_losses(tmp_path_factory) -> list[float]:
    """Of the steps of a run as usual."""
    return losses_of(run(*PRECISE, f"--basedir={tmp_path_factory.mktemp('float32')}", "--expname=a"))


def losses_of(result: Result) -> list[float]:
    assert result.code == 0, result.stderr
    return [float(x) for x in re.findall(r"loss (\d+\.\d{6})", result.stderr)]


@pytest.mark.parametrize("flag", [f"--mixed_precision={name}" for name in ("tf32", "bfloat16", "float16")])
def test_precision(float32_losses, tmp_path, flag):
    arguments = [*PRECISE, f"--basedir={tmp_path}"]
    losses = losses_of(run(*arguments, flag, "--expname=b"))
    assert len(losses) == 3
    np.testing.assert_allclose(losses, float32_losses, rtol=1e-2)
    # Whatever it computes in, a run resumes, and its weights are everybody's; to a checkpoint tf32 is float32.
    if flag != "--mixed_precision=tf32":
        assert run(*arguments, flag, "--expname=b", "--N_iters=4").steps("b") == [3]
    weights = tf1_weights.load(tmp_path / "b" / "model_000002.npy")
    assert {array.dtype for array in weights} == {np.dtype(np.float32)}


def test_compilation(float32_losses, tmp_path):
    compiled = [*PRECISE, f"--basedir={tmp_path}", "--jit_compile=true", "--expname=b"]
    losses = losses_of(run(*compiled))
    assert len(losses) == 3
    np.testing.assert_allclose(losses, float32_losses, rtol=1e-5)
    views = []  # that a compiled run resumes is resume_test.py's
    for flag in ("--jit_compile=true", "--jit_compile=false"):
        assert run(*compiled, flag, "--render_only", "--render_test").code == 0
        views.append(png(tmp_path / "b" / "renderonly_test_000003" / "000.png"))
    # Now and then rounding decides which bin of the coarse pass a fine sample falls into.
    assert np.mean(np.abs(views[0].astype(int) - views[1]) <= 1) > 0.97


def test_occupancy_keeps_its_grids_and_leaves_exact_renders_alone(interrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(occupancy, "COARSE_CELLS", 16)
    monkeypatch.setattr(occupancy, "FINE_CELLS", 32)
    monkeypatch.setattr(occupancy, "BUILD_POINTS", 2**12)
    weights = interrupted.folder / "model_000010.npy"
    arguments = [*BLENDER, f"--basedir={tmp_path}", f"--ft_path={weights}", "--render_only", "--render_test"]
    results = [run(*arguments, f"--expname={name}", *more) for name, more in OCCUPANCY_RUNS]
    assert [result.code for result in results] == [0, 0, 0], results
    folders = [tmp_path / name for name, _ in OCCUPANCY_RUNS]
    assert ["occupancy.npz" in files_in(folder) for folder in folders] == [True, True, False]
    assert "occupancy, coarse" in results[0].stderr
    assert "occupancy, coarse" not in results[1].stderr  # the file serves again
    views = [png(folder / "renderonly_test_000011" / "000.png") for folder in folders]
    np.testing.assert_array_equal(views[0], views[1])
    assert saved_psnr(views[0], views[2]) > 25


# Users' mistakes: errors_test.py has them all; here the program is a process of its own


def test_a_mistake_in_a_flag_is_one_line():
    result = command("--expname=x", "--dataset_type=lego")
    assert_one_line(result, 2, "dataset_type")
    assert len(result.stderr.splitlines()) == 1


def test_a_mistake_in_the_data_is_one_line(tmp_path):
    result = command(*BLENDER, f"--basedir={tmp_path}", "--expname=x", f"--datadir={tmp_path / 'nowhere'}")
    assert_one_line(result, 1, "nowhere")
    assert files_in(tmp_path) == set()


# The authors' own data, with the original's config files


def test_the_authors_data(real_data, lego_views, tmp_path):
    quick = [f"--basedir={tmp_path}", "--N_iters=2", "--N_rand=16", "--i_img=0"]
    # golden_test.py trains the networks of the paper.
    small = ["--netdepth=2", "--netdepth_fine=2", "--netwidth=32", "--netwidth_fine=32"]
    fern_data = real_data / "data" / "nerf_llff_data" / "fern"
    fern = run(f"--config={CONFIGS / 'fern.txt'}", f"--datadir={fern_data}", *quick, *small)
    assert fern.code == 0
    assert fern.steps("fern_test") == [0, 1]
    lego = [f"--config={CONFIGS / 'lego.txt'}", f"--datadir={lego_views}"]
    result = run(*lego, *quick, *small, "--expname=trained")
    assert result.code == 0
    assert result.steps("trained") == [0, 1]
    assert pair(1) <= files_in(tmp_path / "trained")

    weights = f"--ft_path={real_data / 'weights/lego_example/model_200000.npy'}"
    result = run(*lego, *quick, weights, "--render_only", "--render_test", "--render_factor=20")
    assert result.code == 0
    image = png(tmp_path / "lego_test" / "renderonly_test_200001" / "000.png")
    # A ray at a 20th of the size goes through the corner that every 20th pixel's ray goes through.
    scene = blender.load(lego_views, half_res=True, testskip=1, white_bkgd=True)
    photo = np.rint(255 * scene.images[scene.i_test[0], ::20, ::20])
    assert image.shape == photo.shape == (20, 20, 3)
    assert saved_psnr(image, photo) > 25


@pytest.mark.long
@pytest.mark.parametrize("name", ["lego", "fern"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_occupancy_costs_no_quality(real_data, tmp_path, name, precision):
    kind = {"lego": "nerf_synthetic", "fern": "nerf_llff_data"}[name]
    config_file = {"lego": CONFIGS / "lego.txt", "fern": real_data / "weights/fern_example/config.txt"}[name]
    arguments = [f"--config={config_file}", f"--datadir={real_data / 'data' / kind / name}", f"--basedir={tmp_path}"]
    arguments += [f"--ft_path={real_data / 'weights' / f'{name}_example' / 'model_200000.npy'}", "--testskip=200"]
    arguments += ["--factor=8", "--render_only", "--render_test", "--render_factor=4", "--save_arrays"]
    views = {}
    for expname, more in [("exact", []), ("fast", ["--occupancy", f"--mixed_precision={precision}"])]:
        result = run(*arguments, *more, f"--expname={expname}")
        assert result.code == 0, result.stderr
        folder = tmp_path / expname / "renderonly_test_200001"
        views[expname] = [np.load(path)["rgb"] for path in sorted(folder.glob("*.npz"))]
    # A ray at a quarter of the size goes through the corner that every fourth pixel's ray goes through.
    scene = build.load_scene(with_scene(*arguments, "--expname=x")[0])
    height, width = views["exact"][0].shape[:2]
    photos = [scene.images[i, ::4, ::4][:height, :width] for i in scene.i_test]
    scores = {
        expname: np.mean([psnr(*pair) for pair in zip(found, photos, strict=True)]) for expname, found in views.items()
    }
    assert scores["exact"] > {"lego": 30, "fern": 20}[name]
    assert abs(scores["fast"] - scores["exact"]) < 0.02
    assert min(psnr(*pair) for pair in zip(*views.values(), strict=True)) > 45
    empty = [float(part) for part in re.search(r"empty, by network: ([\d.]+) %, ([\d.]+) %", result.stderr).groups()]
    assert min(empty) > {"lego": 60, "fern": 30}[name]
