"""A long run holds as much at its end as at its start. Takes minutes: `-m long -s`."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from app_test import BLENDER, run

from nerf_tf.geometry import paths
from nerf_tf.memory import meter
from nerf_tf.render.renderer import Renderer

STEPS, FRAMES = 3000, 300
WARM_UP_STEPS, WARM_UP_FRAMES = 1500, 300  # frames: the path once, then the same again
ALLOWED = 1.02


class Held(NamedTuple):
    """What the process holds: MB in TensorFlow's allocator (now, and most so far) and in all, and open files."""

    allocator_mb: float
    peak_mb: float
    rss_mb: float
    files: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        try:
            info = tf.config.experimental.get_memory_info(meter.device())
        except ValueError as error:
            pytest.skip(f"TensorFlow counts memory on a GPU, and on a CPU while oneDNN is on: {error}")
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        rss = pages * os.sysconf("SC_PAGE_SIZE")
        return cls(info["current"] / 1e6, info["peak"] / 1e6, rss / 1e6, len(list(Path("/proc/self/fd").iterdir())))


class Sampler(logging.Handler):
    """Looks at what the process holds whenever the run prints a step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Held] = {}

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage().split()
        if words[1:2] == ["step"] and words[3:4] == ["psnr"]:
            self.seen[int(words[2])] = Held.now()


def assert_level(seen: dict[int, Held], warm: int, what: str) -> None:
    """From `warm` on nothing has grown by more than is allowed."""
    for at in sorted(seen):
        if at == warm or at % (max(seen) // 6 or 1) == 0 or at == max(seen):
            print(f"{what} {at:5d}: " + ", ".join(f"{k} {v:.3f}" for k, v in seen[at]._asdict().items()))
    # Of a few neighbours: what one moment holds depends on where prefetching is.
    first = np.median([held for at, held in seen.items() if warm <= at <= warm + max(seen) // 10], axis=0)
    last = np.median([held for at, held in seen.items() if at >= max(seen) - max(seen) // 10], axis=0)
    growth = dict(zip(Held._fields, last / np.maximum(first, 1e-9), strict=True))
    print(what, "growth:", ", ".join(f"{name} {100 * (ratio - 1):+.2f} %" for name, ratio in growth.items()))
    assert first[Held._fields.index("allocator_mb")] > 1, "too little for TensorFlow to count"
    assert max(growth.values()) <= ALLOWED, growth


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc"),
]
# oneDNN keeps a program for each shape that it has met, up to a thousand or so in each thread, and a step's count of
# rows with a gradient may be new. Few rays see to it that all of them, up to 128 and up to 256, come while warming up.
# Wide networks make up for it: TensorFlow does not count pieces of less than 256 KiB on a CPU.
SHAPES = ["--N_rand=16", "--N_samples=8", "--N_importance=8", "--netwidth=256", "--netwidth_fine=256"]


def test_training_does_not_grow(tmp_path):
    sampler = Sampler()
    logger = logging.getLogger("nerf_tf.train.loop")
    logger.addHandler(sampler)
    often = ["--i_print=50", "--i_img=250", "--i_weights=250", "--i_testset=500", "--i_video=1000"]
    arguments = [*BLENDER, *SHAPES, f"--basedir={tmp_path}", "--expname=t", "--random_seed=1", *often]
    try:
        assert run(*arguments, f"--N_iters={WARM_UP_STEPS + STEPS + 1}").code == 0
    finally:
        logger.removeHandler(sampler)
    assert_level({at: held for at, held in sampler.seen.items() if at % 50 == 0}, WARM_UP_STEPS, "step")


def test_rendering_does_not_grow(tmp_path, monkeypatch):
    seen: dict[int, Held] = {}
    image = Renderer.image

    def sampled(self, *args, **kwargs):
        seen[len(seen)] = Held.now()
        return image(self, *args, **kwargs)

    arguments = [*BLENDER, *SHAPES, f"--basedir={tmp_path}", "--expname=t", "--random_seed=1", "--i_img=0"]
    assert run(*arguments, "--N_iters=1").code == 0
    monkeypatch.setattr(Renderer, "image", sampled)
    path = paths.orbit_path(FRAMES).astype(np.float32)
    np.save(tmp_path / "path.npy", np.concatenate([path, path]))
    rendered = run(*arguments, "--render_only", f"--render_path_file={tmp_path / 'path.npy'}", "--save_arrays")
    assert rendered.code == 0, rendered.stderr
    assert len(seen) == WARM_UP_FRAMES + FRAMES
    assert_level(seen, WARM_UP_FRAMES, "frame")
