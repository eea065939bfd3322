"""Kernels of a GPU, from what TensorFlow's profiler has written."""

from __future__ import annotations

import pytest
import tensorflow as tf
from support import kernel_trace
from tensorflow.tsl.profiler.protobuf import xplane_pb2


def make_space(streams: dict[str, list[tuple[str, float, float]]], plane: str = "/device:GPU:0") -> xplane_pb2.XSpace:
    """What the profiler writes: for each line the name, the start and the length of its events, in microseconds."""
    space = xplane_pb2.XSpace()
    space.planes.add(name="/host:CPU")
    gpu = space.planes.add(name=plane)
    for i, (line, events) in enumerate(streams.items()):
        row = gpu.lines.add(name=line, timestamp_ns=1000 * i)  # each line has its own beginning
        for name, start, length in events:
            key = len(gpu.event_metadata)
            gpu.event_metadata[key].name = name
            row.events.add(metadata_id=key, offset_ps=round(1e6 * (start - i)), duration_ps=round(1e6 * length))
    return space


def test_kernels_are_counted_and_streams_overlap():
    space = make_space(
        {
            "Stream #13(Compute)": [("fusion_7", 10.0, 10.0), ("gemm_f32", 30.0, 20.0), ("loop_fusion", 90.0, 10.0)],
            "Stream #14(MemcpyD2H)": [("MemcpyD2H", 40.0, 20.0), ("Memset", 45.0, 1.0)],
            "XLA Ops": [("fusion_7", 10.0, 90.0)],
        }
    )
    trace = kernel_trace.summarize(space, runs=2)
    assert trace.kernels == 1.5
    assert trace.busy == pytest.approx((10 + 30 + 10) / 90)  # 10 to 20, 30 to 60, 90 to 100


@pytest.mark.parametrize(
    "space",
    [
        xplane_pb2.XSpace(),
        make_space({"Stream #1": [("fusion", 0.0, 1.0)]}, plane="/host:metadata"),
        make_space({"Stream #1": [("MemcpyH2D", 0.0, 1.0)]}),
        make_space({"XLA Modules": [("jit", 0.0, 1.0)]}),
    ],
    ids=["nothing", "no GPU", "only copies", "no streams"],
)
def test_there_may_be_no_kernels(space):
    assert kernel_trace.summarize(space, runs=1) is None


@pytest.mark.on_cpu
def test_a_cpu_has_none():
    assert kernel_trace.trace_kernels(lambda: tf.ones([2, 2])) is None


def test_the_profiler_is_asked_on_a_gpu_and_its_file_is_read(monkeypatch):
    """A CPU's profile, which has no plane of a GPU."""
    monkeypatch.setattr(kernel_trace.meter, "device", lambda: "GPU:0")
    read, seen = kernel_trace.read_space, []
    monkeypatch.setattr(kernel_trace, "read_space", lambda path: seen.append(read(path)) or seen[-1])
    assert kernel_trace.trace_kernels(lambda: tf.linalg.matmul(tf.ones([8, 8]), tf.ones([8, 8]))) is None
    assert any(plane.name == "/host:CPU" for plane in seen[0].planes)
