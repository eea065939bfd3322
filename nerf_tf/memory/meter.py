"""How much memory something takes, by TensorFlow's own count: the whole of it, or stage by stage."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from nerf_tf.memory.prediction import MEGABYTE


class Stage(NamedTuple):
    """What one stage of rendering a chunk costs.

    Attributes:
        name: which.
        outputs_mb: what it hands on.
        peak_mb: the allocator's peak while it ran, over what there was before the chunk; None if it does not run alone.
    """

    name: str
    outputs_mb: float
    peak_mb: float | None


def device() -> str:
    """The one whose memory counts."""
    return "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Runs `work` twice; returns the second run's peak in MB, over what was there before it, and its seconds."""
    work()  # traces, and makes what is made only once
    gc.collect()
    before = _reset()
    start = time.perf_counter()
    result = work()
    tf.test.experimental.sync_devices()
    seconds = time.perf_counter() - start
    del result
    return (_peak() - before) / MEGABYTE, seconds


def _reset() -> int:
    """Starts a new peak; returns the bytes there are."""
    tf.config.experimental.reset_memory_stats(device())
    return tf.config.experimental.get_memory_info(device())["current"]


def _peak() -> int:
    return tf.config.experimental.get_memory_info(device())["peak"]


class Meter:
    """Runs stages and writes down what they cost, over what there was when the meter was made."""

    def __init__(self) -> None:
        gc.collect()
        self.stages: list[Stage] = []
        self._before = _reset()

    def __call__(self, name: str, run: Callable[..., object], *inputs: object) -> object:
        """Returns what `run` makes of the inputs."""
        _reset()
        result = run(*inputs)
        tf.test.experimental.sync_devices()
        made = sum(x.shape.num_elements() * x.dtype.size for x in tf.nest.flatten(result) if x is not None)
        self.stages.append(Stage(name, made / MEGABYTE, (_peak() - self._before) / MEGABYTE))
        return result

    def inside_the_next(self, name: str) -> None:
        """Writes down a stage that happens within another, and hands nothing on."""
        self.stages.append(Stage(name, 0.0, None))
