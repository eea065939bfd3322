"""Predicts how much memory rendering and training take, and chooses chunk and netchunk for a budget.

The prediction adds up, from their shapes, the tensors that are alive at the worst moment. It is the most that any
weights take: every sample has density, so every sample has a colour and a gradient. Trained networks take less.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import subprocess
from pathlib import Path

import tensorflow as tf

from nerf_tf.field.query import rays_at_once

FLOAT = 4  # bytes
MEGABYTE = 1e6

# Values per sample that are alive together outside of the networks: positions, raw, intervals, opacities, weights,
# coloured contributions, and in training the gradients of all these. Counted with TensorFlow's allocator, over many
# settings, as are the next three.
RENDERED_SAMPLE, TRAINED_SAMPLE = 10.9, 45.0
# What the view branch takes, for what it holds: the allocator does not cut up pieces that are a little too large.
BRANCH_ROOM = 1.19
# Layers' outputs in the backward pass besides those kept, by bytes of a value: gathered rows, and the gradients on
# either side of a layer.
BACKWARD_LAYERS = {4: 5.5, 2: 4.0}
# What a layer of 16 bits adds up in, values of 4 bytes for each unit: oneDNN takes room for the sums of a whole tile,
# and the allocator rounds that up. On a GPU products are added up in registers; there the prediction is that much too
# careful. In training it is part of what `BACKWARD_LAYERS` counts.
SUMS_OF_PRODUCTS = 1.5
# Copies of all weights in training: the sums of their gradients, and what is added to them.
GRADIENT_COPIES = 2.0
# What is measured is at most so much more than predicted; a plan has to fit all the same.
MARGIN = 1.3
# What `plan` chooses from. On a CPU a tile of this many points stays in its caches; a GPU wants larger ones.
LARGEST_CHUNK, SMALLEST_CHUNK = 32768, 64
LARGEST_TILE, LARGEST_GPU_TILE, SMALLEST_TILE = 16384, 262144, 256

# Where Linux says how much memory is free, and how much of it a container may have and has.
MEMINFO, CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class NetworkShape:
    """What of a network decides its memory.

    Attributes:
        depth, width: layers of the trunk and units in each.
        points, viewdirs: width of the encodings; `viewdirs` is 0 for a network without view directions.
        bottleneck: units of the layer that the view directions join.
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
    """What there is to do.

    Attributes:
        training: steps of training, rather than rendering.
        rays: those of a step, or of a view.
        N_samples, N_importance: samples of the coarse pass, and further ones of the fine pass.
        coarse, fine: the networks; `fine` is None when there is no fine pass.
        value_bytes: size of what networks compute in: 4, or 2 for bfloat16 and float16.
        compiled: whether XLA compiles the tiles, which then have a fixed size and are evaluated again for gradients.
    """

    training: bool
    rays: int
    N_samples: int
    N_importance: int
    coarse: NetworkShape
    fine: NetworkShape | None
    value_bytes: int = FLOAT
    compiled: bool = False

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"training on {self.rays} rays a step" if self.training else "rendering"

    @property
    def samples(self) -> int:
        """Samples of a ray that the last network sees."""
        return self.N_samples + self.N_importance

    @property
    def resident(self) -> int:
        """Bytes that are there all the time: the weights, and in training Adam's moments."""
        weights = self.coarse.weights + (self.fine.weights if self.fine else 0)
        return weights * FLOAT * (3 if self.training else 1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A choice of chunk and netchunk.

    Attributes:
        chunk: largest number of rays to process at once.
        netchunk: largest number of points to send through a network at once.
        predicted: bytes at the worst moment, resident ones left out.
    """

    chunk: int
    netchunk: int
    predicted: int


def predict(work: Workload, chunk: int, netchunk: int) -> int:
    """Bytes at the worst moment of a step or of rendering a chunk, resident ones left out."""
    rays = rays_at_once(work.rays, work.samples, chunk, netchunk, work.training, work.compiled)
    passes = [(work.coarse, work.N_samples)]
    if work.N_importance > 0:
        passes.append((work.fine or work.coarse, work.samples))
    peak = max(_pass_bytes(work, network, rays * samples, netchunk) for network, samples in passes)
    weights = work.coarse.weights + (work.fine.weights if work.fine else 0)
    if work.value_bytes != FLOAT:
        peak += weights * work.value_bytes
    if work.training:
        peak += weights * FLOAT * GRADIENT_COPIES
    return int(peak)


def _pass_bytes(work: Workload, network: NetworkShape, points: int, netchunk: int) -> float:
    size, width = work.value_bytes, network.width
    encoded = network.points * (FLOAT if size == FLOAT else FLOAT + size)
    if work.training:
        branch = network.viewdirs + width // 2 if network.viewdirs else 0
        tile = encoded + (width * (network.depth + BACKWARD_LAYERS[size]) + branch) * size
        each = TRAINED_SAMPLE
    else:
        trunk = (2 * width + network.points) * size  # around the skip
        trunk += encoded if size == FLOAT else SUMS_OF_PRODUCTS * width * FLOAT
        # The bottleneck's outputs, alone and joined with the view directions; in 16 bits there is no bottleneck.
        seen = network.viewdirs and size == FLOAT
        branch = BRANCH_ROOM * 2 * (network.bottleneck + network.viewdirs) * FLOAT if seen else 0
        tile = max(trunk, branch)
        each = RENDERED_SAMPLE
    return min(points, netchunk) * tile + points * each * FLOAT


def plan(
    work: Workload, budget: float, chunk: int | None, netchunk: int | None, largest_tile: int = LARGEST_TILE
) -> Plan:
    """Chooses what is not given as large as the budget allows: netchunk first, as it decides the speed.

    Args:
        work: what there is to do.
        budget: bytes for everything, resident ones included.
        chunk, netchunk: as given; None to choose.
        largest_tile: netchunk above which nothing gets faster.

    Raises:
        ValueError: nothing that is left to choose fits.
    """
    chunks = [chunk] if chunk else _halvings(min(LARGEST_CHUNK, work.rays), SMALLEST_CHUNK)
    netchunks = [netchunk] if netchunk else _halvings(largest_tile, SMALLEST_TILE)
    for tile in netchunks:
        for rays in chunks:
            predicted = predict(work, rays, tile)
            if MARGIN * predicted + work.resident <= budget:
                return Plan(rays, tile, predicted)
            if rays * work.samples <= tile and tile != netchunks[-1]:
                break  # fewer rays would leave the tile half empty; a smaller tile serves them better
    least = MARGIN * predict(work, chunks[-1], netchunks[-1]) + work.resident
    raise ValueError(
        f"memory_budget_mb {budget / MEGABYTE:.0f} is too little: {work.name} takes {math.ceil(least / MEGABYTE)} MB "
        f"at chunk {chunks[-1]} and netchunk {netchunks[-1]}; raise it"
        + (", or set both to auto" if chunk or netchunk else ", or take fewer samples")
    )


def smaller(work: Workload, current: Plan, halve_chunk: bool, halve_netchunk: bool) -> Plan | None:
    """The plan to try when memory ran out under the current one: what may change is halved until it takes less.

    One halving need not be enough: half of a chunk that the rays do not fill is no less, and tiles that no longer hold
    a ray with all its samples take more, as training then works on a whole chunk. None when nothing takes less.
    """
    chunk, netchunk = min(current.chunk, work.rays), current.netchunk
    before = predict(work, chunk, netchunk)
    while (halve_chunk and chunk > 1) or (halve_netchunk and netchunk > 1):
        chunk = max(1, chunk // 2) if halve_chunk else chunk
        netchunk = max(1, netchunk // 2) if halve_netchunk else netchunk
        predicted = predict(work, chunk, netchunk)
        if predicted < before:
            return Plan(chunk, netchunk, predicted)
    return None


def in_words(work: Workload, plan: Plan) -> str:
    """One line: the plan, and what it is predicted to take."""
    peak, resident = plan.predicted / MEGABYTE, work.resident / MEGABYTE
    settings = f"{work.name}: chunk {plan.chunk}, netchunk {plan.netchunk}"
    return f"{settings}, predicted peak {peak:,.0f} MB on top of {resident:,.0f} MB for weights"


def free_memory() -> float:
    """Bytes that are free: of the first GPU that may be used if there is one, else of the machine or container.

    Raises:
        ValueError: nobody says how much that is.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        command += [f"--id={visible}"] if visible else []  # number or UUID; it would tell of all the machine's
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        if answer and answer[0].isdigit():
            return float(answer[0]) * 2**20
    elif not gpus and MEMINFO.exists():
        free = next(int(line.split()[1]) for line in MEMINFO.read_text().splitlines() if "MemAvailable" in line)
        return min(free * 1024.0, _free_in_container())
    raise ValueError("cannot tell how much memory is free: give --memory_budget_mb")


def _free_in_container() -> float:
    """Bytes that the container's limit leaves; infinite where there is none."""

    def told(name: str) -> str:
        path = CONTAINER / name
        return path.read_text().strip() if path.exists() else ""

    limit, used = told("memory.max"), told("memory.current")
    if not (limit.isdigit() and used.isdigit()):
        return math.inf
    statistics = dict(line.split(maxsplit=1) for line in told("memory.stat").splitlines())
    given_up = int(statistics.get("inactive_file", 0))  # copies of files that the kernel drops before it refuses
    return max(0.0, float(limit) - int(used) + given_up)


def _halvings(largest: int, smallest: int) -> list[int]:
    """`largest` and its halves, down to `smallest` or what comes next."""
    values = [largest]
    while values[-1] > smallest:
        values.append(-(-values[-1] // 2))
    return values
