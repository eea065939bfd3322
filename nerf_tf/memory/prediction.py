"""Predicts the memory of rendering and training, and chooses chunk and netchunk for a budget.

The prediction adds up the sizes of the tensors that are alive at the peak. It is an upper bound over all weights, as
it assumes that every sample has density, and so a colour and a gradient. Trained networks need less.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import subprocess
from pathlib import Path

import tensorflow as tf

from nerf_tf.field.query import COMPILED_BACKWARD_TILES, rays_at_once

FLOAT = 4  # bytes
MEGABYTE = 1e6

# The constants down to ACCUMULATORS are fitted to measurements with TensorFlow's allocator counters at many settings.
# Float32 values per sample alive at once outside the networks: positions, raw, intervals, opacities, weights, weighted
# colours, and in training the gradients of all these.
RENDERED_SAMPLE, TRAINED_SAMPLE = 10.9, 45.0
# Allocated over used bytes of the view branch: the allocator does not split blocks that are slightly too large.
BRANCH_OVERHEAD = 1.19
# Layer outputs alive in the backward pass besides the stored ones, by bytes per value: gathered rows, and the gradients
# on both sides of a layer.
BACKWARD_LAYERS = {4: 5.5, 2: 4.0}
# Float32 accumulators per unit of a 16-bit layer: oneDNN allocates them for a whole tile, and the allocator rounds up.
# A GPU accumulates in registers, so there the prediction is too high by these. In training `BACKWARD_LAYERS` has them.
ACCUMULATORS = 1.5
# Copies of all weights in training: the accumulated gradients, and the gradients being added. Where a batch's parts are
# added up, there is one more.
GRADIENT_COPIES = 2.0
# The same for a compiled program, which XLA gives one block of memory for all its intermediate results; fitted to what
# it takes on a CPU. Values per sample outside the networks, copies of each trunk layer's output and of the bottleneck's
# in a tile with gradients, copies of all weights. 16 bits become 32 in a CPU's products, so values take more bytes.
COMPILED_RENDERED_SAMPLE, COMPILED_TRAINED_SAMPLE = 8.7, 22.0
COMPILED_LAYERS, COMPILED_BOTTLENECKS = 2.07, 2.34
COMPILED_GRADIENT_COPIES = 1.4
COMPILED_VALUE_BYTES = {4: 4.0, 2: 3.45}
# A measured peak is at most this many times the prediction; a plan must fit even then.
MARGIN = 1.3
# What `choose_plan` chooses from. On a CPU a tile of LARGEST_TILE points stays in the caches; a GPU needs larger tiles.
LARGEST_CHUNK, SMALLEST_CHUNK = 32768, 64
LARGEST_TILE, LARGEST_GPU_TILE, SMALLEST_TILE = 16384, 262144, 256

# Where Linux reports the free memory, and the memory limit and use of a container.
MEMINFO, CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class NetworkShape:
    """The sizes of a network that determine its memory.

    Attributes:
        depth, width: layers of the trunk, and units in each.
        points, viewdirs: widths of the encodings; `viewdirs` is 0 for a network without view directions.
        bottleneck: units of the layer whose output is concatenated with the view directions.
        weights: number of weights.
    """

    depth: int
    width: int
    points: int
    viewdirs: int
    bottleneck: int
    weights: int


@dataclasses.dataclass(frozen=True)
class Workload:
    """Training or rendering with given networks and sample counts.

    Attributes:
        training: True for training steps, False for rendering.
        rays: rays of a step or of a view.
        N_samples, N_importance: samples of the coarse pass, and additional ones of the fine pass.
        coarse, fine: the networks; `fine` is None when there is no fine pass.
        value_bytes: bytes of a value in the networks: 4, or 2 for bfloat16 and float16.
        compiled: whether XLA compiles a step, or the rendering of a chunk, into one program.
        parts: how many parts of a step's rays are computed one after the other.
    """

    training: bool
    rays: int
    N_samples: int
    N_importance: int
    coarse: NetworkShape
    fine: NetworkShape | None
    value_bytes: int = FLOAT
    compiled: bool = False
    parts: int = 1

    @property
    def name(self) -> str:
        """What messages call the workload."""
        return f"training on {self.rays} rays a step" if self.training else "rendering"

    @property
    def samples(self) -> int:
        """Samples per ray in the last pass."""
        return self.N_samples + self.N_importance

    @property
    def resident(self) -> int:
        """Bytes in use all the time: the weights, and in training Adam's moments."""
        weights = self.coarse.weights + (self.fine.weights if self.fine else 0)
        return weights * FLOAT * (3 if self.training else 1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A choice of chunk and netchunk.

    Attributes:
        chunk: most rays at once.
        netchunk: most points that go through a network at once.
        predicted: peak in bytes, not counting `Workload.resident`.
    """

    chunk: int
    netchunk: int
    predicted: int


def predict_memory(work: Workload, chunk: int, netchunk: int) -> int:
    """Predicts the peak in bytes of a training step or a rendered chunk, not counting `work.resident`."""
    part = -(-work.rays // work.parts)
    rays = rays_at_once(part, work.samples, chunk, netchunk, work.training, work.compiled)
    passes = [(work.coarse, work.N_samples)]
    if work.N_importance > 0:
        passes.append((work.fine or work.coarse, work.samples))
    peak = max(_pass_bytes(work, network, rays * samples, netchunk) for network, samples in passes)
    if work.compiled and work.N_importance > 0:
        # XLA finds a fine sample's bin by comparing the sample with all bins, and on a CPU it keeps all comparisons.
        search = work.N_importance * (work.N_samples - 1)
        outside = COMPILED_TRAINED_SAMPLE if work.training else COMPILED_RENDERED_SAMPLE
        peak = max(peak, rays * (search + work.samples * outside) * FLOAT)
    weights = work.coarse.weights + (work.fine.weights if work.fine else 0)
    if work.value_bytes != FLOAT:
        peak += weights * work.value_bytes
    if work.training:
        peak += weights * FLOAT * (COMPILED_GRADIENT_COPIES if work.compiled else GRADIENT_COPIES + (work.parts > 1))
    return int(peak)


def _pass_bytes(work: Workload, network: NetworkShape, points: int, netchunk: int) -> float:
    if work.compiled:
        return _compiled_pass_bytes(work, network, points, netchunk)
    size, width = work.value_bytes, network.width
    encoded = network.points * (FLOAT if size == FLOAT else FLOAT + size)
    if work.training:
        branch = network.viewdirs + width // 2 if network.viewdirs else 0
        tile = encoded + (width * (network.depth + BACKWARD_LAYERS[size]) + branch) * size
        per_sample = TRAINED_SAMPLE
    else:
        trunk = (2 * width + network.points) * size  # around the skip
        trunk += encoded if size == FLOAT else ACCUMULATORS * width * FLOAT
        # The bottleneck's outputs, alone and concatenated; in 16 bits it is merged with the next layer.
        has_branch = network.viewdirs and size == FLOAT
        branch = BRANCH_OVERHEAD * 2 * (network.bottleneck + network.viewdirs) * FLOAT if has_branch else 0
        tile = max(trunk, branch)
        per_sample = RENDERED_SAMPLE
    return min(points, netchunk) * tile + points * per_sample * FLOAT


def _compiled_pass_bytes(work: Workload, network: NetworkShape, points: int, netchunk: int) -> float:
    has_branch, encoded = network.viewdirs > 0, network.points + network.viewdirs
    forward = (encoded + 2 * network.width + has_branch * network.bottleneck) * FLOAT
    if not work.training:
        return min(points, netchunk) * forward + points * COMPILED_RENDERED_SAMPLE * FLOAT
    kept = encoded + COMPILED_LAYERS * network.depth * network.width
    kept += has_branch * (network.width / 2 + COMPILED_BOTTLENECKS * network.bottleneck)
    backward = kept * COMPILED_VALUE_BYTES[work.value_bytes]
    if points <= netchunk:
        tile = points * backward
    else:
        tile = max(netchunk * forward, netchunk / COMPILED_BACKWARD_TILES * backward)
    return tile + points * COMPILED_TRAINED_SAMPLE * FLOAT


def choose_plan(
    work: Workload, budget: float, chunk: int | None, netchunk: int | None, largest_tile: int = LARGEST_TILE
) -> Plan:
    """Chooses the largest netchunk that fits a budget, then the largest chunk: netchunk decides the speed.

    Args:
        budget: bytes for everything, `work.resident` included.
        chunk, netchunk: fixed values; None to choose, netchunk up to `largest_tile`.

    Raises:
        ValueError: nothing fits.
    """
    chunks = [chunk] if chunk else _halvings(min(LARGEST_CHUNK, work.rays), SMALLEST_CHUNK)
    netchunks = [netchunk] if netchunk else _halvings(largest_tile, SMALLEST_TILE)
    for tile in netchunks:
        for rays in chunks:
            predicted = predict_memory(work, rays, tile)
            if MARGIN * predicted + work.resident <= budget:
                return Plan(rays, tile, predicted)
            if rays * work.samples <= tile and tile != netchunks[-1]:
                break  # fewer rays would not fill the tile; a smaller tile is better
    least = MARGIN * predict_memory(work, chunks[-1], netchunks[-1]) + work.resident
    raise ValueError(
        f"memory_budget_mb {budget / MEGABYTE:.0f} is too little: {work.name} takes {math.ceil(least / MEGABYTE)} MB "
        f"at chunk {chunks[-1]} and netchunk {netchunks[-1]}; raise it"
        + (", or set both to auto" if chunk or netchunk else ", or take fewer samples")
    )


def reduce_plan(work: Workload, current: Plan, halve_chunk: bool, halve_netchunk: bool) -> Plan | None:
    """Halves chunk, netchunk or both until the predicted peak falls; returns None if it cannot fall.

    One halving may not be enough. Half of a chunk larger than the rays changes nothing. Tiles too small for all
    samples of a ray need more memory, as training then works on a whole chunk.
    """
    chunk, netchunk = min(current.chunk, work.rays), current.netchunk
    before = predict_memory(work, chunk, netchunk)
    while (halve_chunk and chunk > 1) or (halve_netchunk and netchunk > 1):
        chunk = max(1, chunk // 2) if halve_chunk else chunk
        netchunk = max(1, netchunk // 2) if halve_netchunk else netchunk
        predicted = predict_memory(work, chunk, netchunk)
        if predicted < before:
            return Plan(chunk, netchunk, predicted)
    return None


def describe_plan(work: Workload, plan: Plan) -> str:
    """Describes a plan and its predicted memory in one line."""
    peak, resident = plan.predicted / MEGABYTE, work.resident / MEGABYTE
    settings = f"{work.name}: chunk {plan.chunk}, netchunk {plan.netchunk}"
    return f"{settings}, predicted peak {peak:,.0f} MB on top of {resident:,.0f} MB for weights"


def free_memory() -> float:
    """Returns the free bytes of the first visible GPU, or without a GPU those of the machine or container.

    Raises:
        ValueError: they are unknown.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        command += [f"--id={visible}"] if visible else []  # number or UUID; otherwise it reports all GPUs
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        if answer and answer[0].isdigit():
            return float(answer[0]) * 2**20
    elif not gpus and MEMINFO.exists():
        free = next(int(line.split()[1]) for line in MEMINFO.read_text().splitlines() if "MemAvailable" in line)
        return min(free * 1024.0, _free_in_container())
    raise ValueError("cannot tell how much memory is free: give --memory_budget_mb")


def _free_in_container() -> float:
    """Bytes left under the container's memory limit; infinite without a limit."""

    def read_text(name: str) -> str:
        path = CONTAINER / name
        return path.read_text().strip() if path.exists() else ""

    limit, used = read_text("memory.max"), read_text("memory.current")
    if not (limit.isdigit() and used.isdigit()):
        return math.inf
    statistics = dict(line.split(maxsplit=1) for line in read_text("memory.stat").splitlines())
    reclaimable = int(statistics.get("inactive_file", 0))  # cached files, which the kernel drops when memory is short
    return max(0.0, float(limit) - int(used) + reclaimable)


def _halvings(largest: int, smallest: int) -> list[int]:
    """`largest`, its half and so on, down to the first value not above `smallest`."""
    values = [largest]
    while values[-1] > smallest:
        values.append(-(-values[-1] // 2))
    return values
