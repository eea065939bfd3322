"""A full disk: a message, and earlier files unchanged."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import imageio.v2 as imageio
import numpy as np
import pytest
import tensorflow as tf
from app_test import BLENDER, assert_one_line, run
from checkpoint_test import make_trainer, state_of
from summaries_test import read_summaries, scalars
from view_files_test import make_image

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.evaluation import report
from nerf_tf.evaluation.report import Evaluation
from nerf_tf.geometry.rays import Rays
from nerf_tf.marching.occupancy import Occupancy
from nerf_tf.marching.visible_space import Box
from nerf_tf.output import view_files
from nerf_tf.output.curve import CurveFile
from nerf_tf.output.summaries import Summaries
from nerf_tf.safety import diagnosis, guards
from nerf_tf.storage import atomic, llff_files, lock, tf1_weights
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.training import TrainingRun

PAGE = 4096
NOISE = np.random.default_rng(0).integers(0, 256, [64, 64, 3]).astype(np.uint8)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 2 MB."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], check=False)
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@contextlib.contextmanager
def only(pages: int, disk: Path) -> Iterator[None]:
    """Leaves so much room on a disk while a block runs."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    filler.write_bytes(bytes(max(free.f_bavail * free.f_bsize - pages * PAGE, 0)))
    try:
        yield
    finally:
        filler.unlink()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "filler"}


def write_grids(path: Path) -> None:
    grids = np.random.default_rng(0).integers(0, 2, [2, 64, 64, 64]).astype(bool)
    Occupancy(Box(np.zeros(3), np.ones(3)), path, 2)._save("key", grids)


def make_batch() -> RayBatch:
    rows = np.random.default_rng(0).normal(size=[32, 3]).astype(np.float32)
    return tf.nest.map_structure(tf.constant, RayBatch(Rays(rows, rows, rows, rows[:, :1], rows[:, :1] + 1), rows))


def write_bad_step(path: Path) -> None:
    diagnosis.save_step(path, make_trainer(seed=2), make_batch(), 1, ndc=False)


def write_metrics(path: Path) -> None:
    about = {"scene": "lego", "step": 1, "white_bkgd": True}
    report.write_report(path, about, Evaluation(path.parent, 8, 8, {"psnr_8bit": [30.0 + i / 7 for i in range(500)]}))


def write_curve(path: Path) -> None:
    file = CurveFile(path, path.parent / "summaries", start=0)
    file.add(0, loss=0.5)
    file.write()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", lambda path: view_files.write_png(path, NOISE)),
        ("args.txt", lambda path: atomic.write_text(path, "x" * 3 * PAGE)),
        ("occupancy.npz", write_grids),
        ("bad_step_000001.npz", write_bad_step),
        ("metrics.json", write_metrics),
        ("curve.png", write_curve),
        ("a.npz", lambda path: view_files.write_arrays(path, make_image(0, 64, 64))),
        ("model_000001.npy", lambda path: tf1_weights.save(path, [np.ones([60, 60], np.float32)])),
    ],
)
def test_a_file_is_whole_or_the_old_one(small_disk, name, write: Callable[[Path], None]):
    path = small_disk / name
    path.write_bytes(b"old")
    for pages in range(3):
        before = contents(small_disk)
        with only(pages, small_disk), pytest.raises(OSError, match=rf"{name}: cannot be written \(No space left"):
            write(path)
        assert contents(small_disk) == before
    write(path)
    assert path.stat().st_size > 3


def test_a_video_gives_way_to_its_frames_or_to_nothing(small_disk, caplog):
    path = small_disk / "video.mp4"
    frames = [np.roll(NOISE, i, axis=0) for i in range(8)]
    view_files.write_video(path, frames, fps=30)
    assert caplog.records == []
    whole, size = path.read_bytes(), -(-path.stat().st_size // PAGE)
    for pages in (0, size // 2, size - 1):
        caplog.clear()
        with caplog.at_level(logging.WARNING), only(pages, small_disk):
            view_files.write_video(path, frames, fps=30)
        assert re.search(r"video.mp4: no video \(ffmpeg wrote \d of 8 frames", caplog.text)
        assert len(caplog.records) == 1
        assert path.read_bytes() == whole
        assert not list(small_disk.rglob(".*"))


def write_views(folder: Path) -> None:
    view_files.write_views(folder, [make_image(i, 64, 64) for i in range(3)], save_arrays=True)


@pytest.mark.filterwarnings("error")  # pytest warns of an error that nobody can catch
def test_views_up_to_a_full_disk_are_whole(small_disk):
    folder = small_disk / "views"
    write_views(folder)
    whole = contents(folder)
    for pages in (0, 11, 12, 20):  # the pixels of a view that wait for a video take 12
        shutil.rmtree(folder)
        with only(pages, small_disk):
            with pytest.raises(OSError, match=r"views.*: cannot be written \(No space left"):
                write_views(folder)
            gc.collect()
        assert contents(folder).items() <= whole.items()
    write_views(folder)
    assert contents(folder) == whole


def test_smaller_photos_are_all_there_or_none(small_disk):
    (small_disk / "images").mkdir()
    for i in range(4):
        imageio.imwrite(small_disk / "images" / f"{i}.png", NOISE)
    before = contents(small_disk)
    for pages in range(4):
        with only(pages, small_disk), pytest.raises(OSError, match=r"images_2: cannot be written \(No space left"):
            llff_files.minify(small_disk, 2)
        assert contents(small_disk) == before
    assert len(list(llff_files.minify(small_disk, 2).iterdir())) == 4


def test_a_checkpoint_is_whole_or_absent(small_disk):
    trainer = make_trainer(seed=2)
    folder = small_disk / "checkpoints"
    store = CheckpointStore(trainer.state, folder)
    for step in (1, 2):
        trainer.step.assign(step)
        store.save()
    trainer.step.assign(3)
    before, size = contents(small_disk), sum(-(-file.stat().st_size // PAGE) for file in (folder / "ckpt-2").iterdir())
    for pages in (*range(4), size // 2, size - 2, size - 1):
        message = r"^.*ckpt-3: cannot be written \(No space left on device\); earlier checkpoints are unchanged$"
        with only(pages, small_disk), pytest.raises(OSError, match=message):
            store.save()
        assert contents(small_disk) == before
    store.save()
    again = make_trainer(seed=9)
    assert CheckpointStore(again.state, folder).restore().name == "ckpt-3"
    assert all(np.array_equal(a, b) for a, b in zip(state_of(again), state_of(trainer), strict=True))


def test_tensorboard_goes_on_when_there_is_room_again(small_disk):
    summaries = Summaries(small_disk / "summaries")
    summaries.write_scalars(0, loss=0.5)

    def write_much() -> None:
        for step in range(1, 200):
            summaries.write_histogram(step, "tran", tf.random.stateless_uniform([500], [0, step]))

    found = len(list((small_disk / "summaries").iterdir()))
    with only(0, small_disk):
        for _ in range(5):
            with pytest.raises(OSError, match=r"summaries: TensorBoard's file cannot be written \(/.*No space left"):
                write_much()
    assert len(list((small_disk / "summaries").iterdir())) == found
    summaries.write_scalars(200, loss=0.25)
    # Files of one second are read in the order of TensorFlow's own counter as text: 100 comes before 99.
    assert sorted(scalars(read_summaries(small_disk / "summaries"), "loss")) == [(0, 0.5), (200, 0.25)]


def test_no_lock_without_room(small_disk):
    with only(0, small_disk), pytest.raises(OSError, match=r"run.lock: cannot be written \(No space left"):
        lock.lock_run(small_disk / "run").__enter__()
    assert contents(small_disk) == {}


def test_a_run_that_gives_up_says_why_even_if_it_cannot_save_the_step(small_disk):
    settings, scene = SimpleNamespace(field="mlp"), SimpleNamespace(ndc=False)
    run_of = SimpleNamespace(folder=small_disk, trainer=make_trainer(seed=2), scene=scene, settings=settings)
    message = r"^step 7: bad; .*bad_step_000007.npz: cannot be written \(No space left on device\); a lower --lrate may"
    with only(0, small_disk), pytest.raises(guards.BadSteps, match=message):
        TrainingRun.end_on_bad_steps(run_of, guards.BadSteps("step 7: bad", 7, make_batch()))
    assert contents(small_disk) == {}


def test_a_run_whose_disk_fills_up_ends_with_one_line_at_the_next_checkpoint(small_disk, monkeypatch):
    commit, before = CheckpointStore.commit, {}
    quiet = ["--N_importance=0", "--i_weights=8", "--i_img=0", "--i_testset=0", "--i_video=0", "--i_print=1"]

    def commit_and_fill(store: CheckpointStore) -> None:
        commit(store)
        before.update(contents(small_disk / "t"))
        filled.enter_context(only(0, small_disk))

    monkeypatch.setattr(CheckpointStore, "commit", commit_and_fill)
    with contextlib.ExitStack() as filled:
        result = run(*BLENDER, *quiet, f"--basedir={small_disk}", "--expname=t", "--N_iters=20")
    assert_one_line(
        result, 1, r"ckpt-2: cannot be written \(No space left on device\); earlier checkpoints are unchanged$"
    )
    assert result.stderr.count("TensorBoard's file cannot be written") == 1
    assert result.steps("t") == list(range(9))
    assert before.pop(str(small_disk / "t" / "run.lock"))
    assert contents(small_disk / "t") == before
