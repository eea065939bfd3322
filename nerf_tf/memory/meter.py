"""Measures peak memory with TensorFlow's allocator counters, in total or stage by stage."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from nerf_tf.memory.prediction import MEGABYTE


class Stage(NamedTuple):
    """The memory of one stage of rendering a chunk, in megabytes (10^6 bytes).

    Attributes:
        name: the stage.
        outputs_mb: size of its outputs.
        peak_mb: peak while it ran, above the memory in use before the chunk; None if it does not run by itself.
    """

    name: str
    outputs_mb: float
    peak_mb: float | None


def device() -> str:
    """The device that is measured: the first GPU, or else the CPU."""
    return "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Runs `work` twice; returns the second run's peak in MB above the memory in use, and its seconds.

    Raises:
        ValueError: TensorFlow keeps no memory statistics of the device.
    """
    work()  # traces graphs and creates variables
    gc.collect()
    before = _reset_peak()
    start = time.perf_counter()
    result = work()
    tf.test.experimental.sync_devices()
    seconds = time.perf_counter() - start
    del result
    return (_peak() - before) / MEGABYTE, seconds


def make_room(size: float) -> None:
    """Makes TensorFlow's allocator keep a free block of `size` bytes.

    From a large block the allocator cuts exactly what is asked for. A small one it may hand out whole, up to twice what
    is asked for, which counts where XLA asks for all of a program's memory at once.
    """
    tf.raw_ops.Empty(shape=[int(size)], dtype=tf.uint8)


def _reset_peak() -> int:
    """Restarts the peak from the bytes in use, and returns these."""
    try:
        tf.config.experimental.reset_memory_stats(device())
    except ValueError as error:
        raise ValueError(f"{device()}: TensorFlow keeps no memory statistics; set TF_ENABLE_ONEDNN_OPTS=1") from error
    return tf.config.experimental.get_memory_info(device())["current"]


def _peak() -> int:
    return tf.config.experimental.get_memory_info(device())["peak"]


class Meter:
    """Runs stages and records their memory, above what was in use at first; errors as `measure`."""

    def __init__(self) -> None:
        gc.collect()
        self.stages: list[Stage] = []
        self._before = _reset_peak()

    def __call__(self, name: str, run: Callable[..., object], *inputs: object) -> object:
        """Runs a stage, records its memory under `name`, and returns its outputs."""
        _reset_peak()
        result = run(*inputs)
        tf.test.experimental.sync_devices()
        outputs = sum(x.shape.num_elements() * x.dtype.size for x in tf.nest.flatten(result) if x is not None)
        self.stages.append(Stage(name, outputs / MEGABYTE, (_peak() - self._before) / MEGABYTE))
        return result

    def add_nested_stage(self, name: str) -> None:
        """Records a stage that runs within the next one and has no outputs of its own."""
        self.stages.append(Stage(name, 0.0, None))
