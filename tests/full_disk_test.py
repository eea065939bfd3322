"""A disk that is full: a line that says so, and everything that was there before."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from checkpoint_test import make_trainer, state_of
from outputs_test import make_image, read_summaries, scalars

from nerf_tf.render import outputs
from nerf_tf.train import lock, tf1_weights
from nerf_tf.train.checkpoint import CheckpointStore

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


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", lambda path: outputs.write_png(path, NOISE)),
        ("args.txt", lambda path: outputs.write_text(path, "x" * 3 * PAGE)),
        ("a.npz", lambda path: outputs.write_arrays(path, make_image(0, 64, 64))),
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
    outputs.write_video(path, frames, fps=30)
    assert caplog.records == []
    whole, size = path.read_bytes(), -(-path.stat().st_size // PAGE)
    for pages in (0, size // 2, size - 1):
        caplog.clear()
        with caplog.at_level(logging.WARNING), only(pages, small_disk):
            outputs.write_video(path, frames, fps=30)
        assert re.search(r"video.mp4: no video \(ffmpeg wrote \d of 8 frames", caplog.text)
        assert len(caplog.records) == 1
        assert path.read_bytes() == whole
        assert not list(small_disk.rglob(".*"))


def test_a_checkpoint_is_whole_or_absent(small_disk):
    trainer = make_trainer(seed=2)
    folder = small_disk / "checkpoints"
    store = CheckpointStore(trainer, folder)
    for step in (1, 2):
        trainer.step.assign(step)
        store.save()
    trainer.step.assign(3)
    before, size = contents(small_disk), sum(-(-file.stat().st_size // PAGE) for file in (folder / "ckpt-2").iterdir())
    for pages in (*range(4), size // 2, size - 2, size - 1):
        message = r"^.*ckpt-3: no checkpoint \(.*\); those before it are as they were$"
        with only(pages, small_disk), pytest.raises(OSError, match=message):
            store.save()
        assert contents(small_disk) == before
    store.save()
    again = make_trainer(seed=9)
    assert CheckpointStore(again, folder).restore().name == "ckpt-3"
    assert all(np.array_equal(a, b) for a, b in zip(state_of(again), state_of(trainer), strict=True))


def test_tensorboard_goes_on_when_there_is_room_again(small_disk):
    summaries = outputs.Summaries(small_disk / "summaries")
    summaries.scalars(0, loss=0.5)

    def write_much() -> None:
        for step in range(1, 200):
            summaries.histogram(step, "tran", tf.random.stateless_uniform([500], [0, step]))

    with only(0, small_disk), pytest.raises(OSError, match="summaries: TensorBoard's file cannot be written"):
        write_much()
    summaries.scalars(200, loss=0.25)
    assert scalars(read_summaries(small_disk / "summaries"), "loss") == [(0, 0.5), (200, 0.25)]


def test_no_lock_without_room(small_disk):
    with only(0, small_disk), pytest.raises(OSError, match=r"run.lock: cannot be written \(No space left"):
        lock.held(small_disk / "run").__enter__()
    assert contents(small_disk) == {}
