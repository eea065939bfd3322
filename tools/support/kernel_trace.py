"""Kernels of a GPU: how many a computation starts, and what share of the time they run. By TensorFlow's profiler."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from nerf_tf.memory import meter

if TYPE_CHECKING:
    from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

# What copies and fills memory keeps a GPU busy, but is no kernel.
NO_KERNELS = ("memcpy", "memset")


class KernelTrace(NamedTuple):
    """What a GPU did in one run of a computation.

    Attributes:
        kernels: how many it ran.
        busy: share of the time, from the first kernel's start to the last one's end, in which it ran any or copied.
    """

    kernels: float
    busy: float


def trace_kernels(run: Callable[[], object], runs: int = 5) -> KernelTrace | None:
    """Runs a computation so many times under the profiler; None where there is no GPU, or the profiler sees none.

    It must have run before, so that nothing is compiled meanwhile.
    """
    if meter.device() == "CPU:0":
        return None
    with tempfile.TemporaryDirectory() as folder:
        tf.test.experimental.sync_devices()
        tf.profiler.experimental.start(folder)
        try:
            for _ in range(runs):
                run()
            tf.test.experimental.sync_devices()
        finally:
            tf.profiler.experimental.stop()
        spaces = [read_space(path) for path in Path(folder).rglob("*.xplane.pb")]
    traces = [trace for space in spaces if (trace := summarize(space, runs))]
    return traces[0] if traces else None


def read_space(path: Path) -> XSpace:
    """Reads what the profiler has written."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    return xplane_pb2.XSpace.FromString(path.read_bytes())


def summarize(space: XSpace, runs: int) -> KernelTrace | None:
    """Counts the kernels of the first GPU in `runs` runs; None if it ran none.

    A GPU's streams run side by side. What the profiler derives from them, such as the operations that kernels belong
    to, is in lines of other names.
    """
    plane = next((plane for plane in space.planes if plane.name.startswith("/device:GPU:")), None)
    if plane is None:
        return None
    kernels, spans = 0, []
    for line in plane.lines:
        if not line.name.startswith("Stream"):
            continue
        for event in line.events:
            name = plane.event_metadata[event.metadata_id].name.lower()
            kernels += not name.startswith(NO_KERNELS)
            start = 1000 * line.timestamp_ns + event.offset_ps
            spans.append((start, start + event.duration_ps))
    if not kernels:
        return None
    spans.sort()
    busy, end = 0, spans[0][0]
    for start, stop in spans:
        busy += max(0, stop - max(start, end))
        end = max(end, stop)
    return KernelTrace(kernels / runs, busy / (end - spans[0][0]))
