"""Memory prediction: what it grows with, and the plans chosen by it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from types import SimpleNamespace

import pytest

from nerf_tf.field.query import rays_at_once
from nerf_tf.memory import prediction
from nerf_tf.memory.prediction import (
    LARGEST_GPU_TILE,
    NetworkShape,
    Plan,
    Workload,
    choose_plan,
    predict_memory,
    reduce_plan,
)

PAPER = NetworkShape(depth=8, width=256, points=63, viewdirs=27, bottleneck=256, weights=595_844)
SMALL = NetworkShape(depth=4, width=64, points=39, viewdirs=0, bottleneck=256, weights=20_000)
# The paper's fern setting.
TRAINING = Workload(training=True, rays=4096, N_samples=64, N_importance=128, coarse=PAPER, fine=PAPER)
RENDERING = dataclasses.replace(TRAINING, training=False, rays=378 * 504)


def variants() -> list[Workload]:
    """Training and rendering in all ways, with one pass or two, of one network or two."""
    networks = itertools.cycle(
        ({}, {"coarse": SMALL}, {"fine": None}, {"N_importance": 0, "fine": None}, {"fine": SMALL})
    )
    ways = itertools.product((TRAINING, RENDERING), (4, 2), (False, True))
    return [
        dataclasses.replace(work, value_bytes=size, compiled=compiled, **next(networks))
        for work, size, compiled in [*ways, (TRAINING, 4, False), (RENDERING, 4, False)]
    ]


def name_of(work: Workload) -> str:
    words = ["train" if work.training else "render", f"{work.value_bytes} bytes", f"{work.samples} samples"]
    return ", ".join([*words, *["compiled"] * work.compiled, *["one network"] * (work.fine is None)])


every_kind = pytest.mark.parametrize("work", variants(), ids=name_of)
# But not what XLA compiles, where the largest of several parts counts: the search of bins, tiles, or a step at once.
every_uniform_kind = pytest.mark.parametrize("work", [work for work in variants() if not work.compiled], ids=name_of)


def assert_never_less(values: list[int]) -> None:
    """Ascending, and not all the same."""
    assert values == sorted(values)
    assert values[-1] > values[0]


# How many rays at once


@pytest.mark.parametrize("samples", [64, 192, 300])
@pytest.mark.parametrize(("training", "compiled"), [(False, False), (False, True), (True, True)])
def test_chunk_alone_limits_rays_that_need_no_kept_activations(training, compiled, samples):
    for rays, chunk, expected in ((4096, 32768, 4096), (4096, 100, 100), (50, 100, 50), (1, 1, 1)):
        for netchunk in (1, 1000, 10**9):
            assert rays_at_once(rays, samples, chunk, netchunk, training, compiled) == expected


@pytest.mark.parametrize(
    ("rays", "samples", "chunk", "netchunk", "expected"),
    [
        (4096, 192, 32768, 16384, 85),  # a tile of them, with all their samples
        (4096, 64, 32768, 16384, 256),
        (4096, 64, 100, 16384, 100),
        (50, 64, 32768, 16384, 50),
        (4096, 192, 32768, 10**9, 4096),
        (4096, 192, 32768, 383, 1),
        (4096, 192, 32768, 192, 1),
        (4096, 192, 32768, 191, 4096),  # no tile holds a ray, so each is evaluated again
        (4096, 192, 500, 191, 500),
    ],
)
def test_a_training_step_takes_as_many_rays_as_fit_a_tile(rays, samples, chunk, netchunk, expected):
    assert rays_at_once(rays, samples, chunk, netchunk, training=True, compiled=False) == expected


# Predictions


@every_uniform_kind
def test_more_never_takes_less(work):
    def replaced(**kwargs) -> Workload:
        return dataclasses.replace(work, **kwargs)

    netchunks = [work.samples * 2**n for n in range(9)]
    assert_never_less([predict_memory(replaced(rays=rays), 1000, 16384) for rays in (1, 3, 20, 85, 999, 10**6)])
    assert_never_less([predict_memory(work, chunk, 65536) for chunk in (1, 3, 20, 85, 999, 4096, 32768)])
    assert_never_less([predict_memory(work, 2000, netchunk) for netchunk in netchunks])
    # A number of rays that is no whole one is rounded down, so that samples count in full only where it is whole.
    samples = [(n, n if work.N_importance else 0) for n in (16, 32, 64, 128, 256)]
    by_samples = [predict_memory(replaced(N_samples=n, N_importance=m), 4, 16384) for n, m in samples]
    assert_never_less(by_samples)
    assert predict_memory(replaced(N_importance=64), 4, 16384) >= predict_memory(replaced(N_importance=0), 4, 16384)
    for name in ("width", "depth", "points", "weights"):
        shapes = [dataclasses.replace(PAPER, **{name: factor * getattr(PAPER, name)}) for factor in (1, 2, 3)]
        sizes = [predict_memory(replaced(coarse=shape, fine=work.fine and shape), 1000, 16384) for shape in shapes]
        assert sizes == sorted(sizes), name


@every_kind
def test_the_larger_of_two_networks_counts(work):
    wide = dataclasses.replace(PAPER, width=512)
    if work.fine is not None:
        for chunk, netchunk in ((1000, 16384), (4, 65536)):
            reference = predict_memory(dataclasses.replace(work, coarse=PAPER, fine=PAPER), chunk, netchunk)
            assert predict_memory(dataclasses.replace(work, coarse=wide, fine=PAPER), chunk, netchunk) >= reference
            assert predict_memory(dataclasses.replace(work, coarse=PAPER, fine=wide), chunk, netchunk) > reference


@every_uniform_kind
def test_it_is_flat_in_rays_beyond_what_is_processed_at_once(work):
    for chunk, netchunk in ((1000, 16384), (32768, 16384), (64, 65536), (30, 1000)):
        largest = rays_at_once(10**9, work.samples, chunk, netchunk, work.training, work.compiled)
        sizes = {predict_memory(dataclasses.replace(work, rays=n * largest), chunk, netchunk) for n in (1, 2, 37)}
        assert len(sizes) == 1
        assert predict_memory(dataclasses.replace(work, rays=max(1, largest // 3)), chunk, netchunk) < sizes.pop()


def test_a_compiled_step_takes_less_in_tiles_and_a_plan_takes_what_fits():
    work = dataclasses.replace(TRAINING, rays=1024, compiled=True)
    points = work.rays * work.samples
    at_once, in_tiles = (predict_memory(work, 4096, netchunk) for netchunk in (points, points // 2))
    assert in_tiles < at_once / 2  # the coarse pass still fits into one tile
    assert_never_less([predict_memory(work, 4096, netchunk) for netchunk in (256, 1024, 4096, 16384)])
    assert_never_less([predict_memory(dataclasses.replace(work, rays=n), 4096, 4096) for n in (100, 1000, 4000)])
    halved = reduce_plan(work, Plan(1024, points, at_once), halve_chunk=False, halve_netchunk=True)
    assert halved.netchunk == points // 2
    in_search = dataclasses.replace(RENDERING, compiled=True)
    whole = predict_memory(in_search, 32768, 4096)
    assert whole > 4 * 32768 * in_search.N_importance * (in_search.N_samples - 1)
    assert reduce_plan(in_search, Plan(32768, 4096, whole), halve_chunk=True, halve_netchunk=True).chunk == 16384
    for budget, netchunk in ((1.5 * at_once, LARGEST_GPU_TILE), (at_once, LARGEST_GPU_TILE // 2)):
        assert choose_plan(work, budget + work.resident, None, None, LARGEST_GPU_TILE).netchunk == netchunk


@every_uniform_kind
def test_it_is_linear_in_netchunk(work):
    work = dataclasses.replace(work, rays=10**6)
    # More points than fit a tile, whose number of rays is a whole one.
    sizes = [predict_memory(work, 32768, n * 64 * work.samples) for n in (1, 2, 3, 4)]
    steps = [b - a for a, b in itertools.pairwise(sizes)]
    assert min(steps) > 0
    assert max(steps) - min(steps) <= 2  # bytes, from rounding


@every_kind
def test_netchunk_does_not_matter_beyond_the_points_there_are(work):
    points = 100 * work.samples
    sizes = {
        predict_memory(dataclasses.replace(work, rays=100), 1000, netchunk) for netchunk in (points, 2 * points, 10**9)
    }
    assert len(sizes) == 1


@every_uniform_kind
def test_values_of_half_the_size_take_less_in_training_and_no_more_in_rendering(work):
    full, half = (dataclasses.replace(work, value_bytes=size) for size in (4, 2))
    weights = work.coarse.weights + (work.fine.weights if work.fine else 0)
    for chunk, netchunk in ((32768, 16384), (1000, 65536), (1000, 4096)):
        more = predict_memory(half, chunk, netchunk) - predict_memory(full, chunk, netchunk)
        assert more < 0 if work.training else more <= 2 * weights  # the copies to compute with


@every_kind
def test_training_takes_more_than_rendering(work):
    rendering, training = (dataclasses.replace(work, training=flag, rays=85) for flag in (False, True))
    assert predict_memory(training, 85, 16384) > predict_memory(rendering, 85, 16384)


def test_weights_stay_and_in_training_so_do_two_moments_of_each():
    both = PAPER.weights + SMALL.weights
    assert dataclasses.replace(RENDERING, fine=SMALL).resident == 4 * both
    assert dataclasses.replace(TRAINING, fine=SMALL).resident == 12 * both
    assert dataclasses.replace(TRAINING, fine=None).resident == 12 * PAPER.weights
    assert dataclasses.replace(TRAINING, value_bytes=2).resident == TRAINING.resident


# Plans


def budgets(work: Workload) -> list[float]:
    """From next to nothing that works to more than enough."""
    return [work.resident + 40e6 * 3**n for n in range(8)]


@every_kind
def test_a_plan_stays_within_its_budget(work):
    for budget in budgets(work):
        chosen = choose_plan(work, budget, None, None)
        assert chosen.predicted == predict_memory(work, chosen.chunk, chosen.netchunk)
        assert prediction.MARGIN * chosen.predicted + work.resident <= budget
        assert 1 <= chosen.netchunk <= prediction.LARGEST_TILE
        assert 1 <= chosen.chunk <= prediction.LARGEST_CHUNK


@every_kind
def test_a_plan_prefers_a_large_netchunk_and_then_a_large_chunk(work):
    work = dataclasses.replace(work, rays=2**17)
    plans = [choose_plan(work, budget, None, None) for budget in budgets(work)]
    assert [chosen.netchunk for chosen in plans] == sorted(chosen.netchunk for chosen in plans)
    assert plans[-1].netchunk == prediction.LARGEST_TILE
    assert choose_plan(work, math.inf, None, None).chunk == prediction.LARGEST_CHUNK
    for budget, chosen in zip(budgets(work), plans, strict=True):
        if chosen.netchunk < prediction.LARGEST_TILE:
            filled = predict_memory(work, -(-2 * chosen.netchunk // work.samples), 2 * chosen.netchunk)
            assert prediction.MARGIN * filled + work.resident > budget
        if chosen.chunk < prediction.LARGEST_CHUNK:
            assert prediction.MARGIN * predict_memory(work, 2 * chosen.chunk, chosen.netchunk) + work.resident > budget
    # Both kinds of give and take occurred.
    assert len({chosen.netchunk for chosen in plans}) > 1 or len({chosen.chunk for chosen in plans}) > 1


@every_kind
def test_a_chunk_fills_its_tile(work):
    for budget in budgets(work):
        chosen = choose_plan(work, budget, None, None, largest_tile=2**18)
        # Half as many rays, and a tile that they fill, would do as well.
        assert 2 * chosen.chunk * work.samples > chosen.netchunk or chosen.netchunk <= prediction.SMALLEST_TILE


def test_a_gpu_gets_larger_tiles():
    assert choose_plan(TRAINING, math.inf, None, None, largest_tile=10**5).netchunk == 10**5


def test_a_chunk_is_no_larger_than_the_batch():
    assert choose_plan(dataclasses.replace(TRAINING, rays=100), math.inf, None, None).chunk == 100


@every_kind
def test_what_is_given_stays(work):
    for chunk, netchunk, budget in ((500, None, 1e9), (None, 3000, 1e9), (500, 3000, 1e9), (10**6, 10**6, math.inf)):
        chosen = choose_plan(work, budget, chunk, netchunk)
        assert chunk in (None, chosen.chunk)
        assert netchunk in (None, chosen.netchunk)
        assert prediction.MARGIN * chosen.predicted + work.resident <= budget
    least = prediction.MARGIN * predict_memory(work, 500, 3000) + work.resident
    choose_plan(work, least, 500, 3000)
    with pytest.raises(ValueError, match="too little"):
        choose_plan(work, least - 1, 500, 3000)


@every_kind
def test_the_error_is_one_line_that_says_what_would_fit(work):
    for chunk, netchunk in ((None, None), (20000, None), (None, 9000), (20000, 50000)):
        with pytest.raises(ValueError, match="memory_budget_mb 1 is too little") as caught:
            choose_plan(work, 1e6, chunk, netchunk)
        message = str(caught.value)
        assert "\n" not in message
        ((megabytes, named_chunk, named_netchunk),) = [
            map(int, found) for found in re.findall(r"takes (\d+) MB at chunk (\d+) and netchunk (\d+)", message)
        ]
        assert chunk in (None, named_chunk)
        assert netchunk in (None, named_netchunk)
        assert ("auto" in message) == (chunk is not None or netchunk is not None)
        # With that it works, and it is no more than that takes.
        choose_plan(work, megabytes * 1e6, chunk, netchunk)
        predicted = choose_plan(work, megabytes * 1e6, named_chunk, named_netchunk).predicted
        needed = prediction.MARGIN * predicted + work.resident
        assert (megabytes - 1) * 1e6 < needed <= megabytes * 1e6


# Out of memory


@every_uniform_kind
def test_giving_way_halves_what_it_may_until_it_takes_less(work):
    start = choose_plan(work, math.inf, None, None)
    for halve_chunk, halve_netchunk in ((True, False), (False, True), (True, True)):
        current, steps = start, 0
        while following := reduce_plan(work, current, halve_chunk, halve_netchunk):
            assert following.predicted == predict_memory(work, following.chunk, following.netchunk) < current.predicted
            for before, after, halved in zip(
                dataclasses.astuple(current),
                dataclasses.astuple(following),
                (halve_chunk, halve_netchunk),
                strict=False,
            ):
                halvings = {max(1, before // 2**i) for i in range(1, 20)}
                assert after in halvings if halved else after == before
            current, steps = following, steps + 1
        assert steps > 3
        assert reduce_plan(work, current, halve_chunk, halve_netchunk) is None


def test_nothing_gives_way_where_nothing_may_or_is_left():
    current = Plan(500, 4096, predict_memory(TRAINING, 500, 4096))
    assert reduce_plan(TRAINING, current, halve_chunk=False, halve_netchunk=False) is None
    assert reduce_plan(TRAINING, Plan(1, 1, 0), halve_chunk=True, halve_netchunk=True) is None
    assert reduce_plan(TRAINING, Plan(1, 4096, 0), halve_chunk=True, halve_netchunk=False) is None


def test_what_makes_no_difference_is_halved_on():
    # A tile of 4096 points takes 21 rays of 192 samples, whatever the chunk.
    assert reduce_plan(TRAINING, Plan(10**6, 4096, 0), halve_chunk=True, halve_netchunk=False).chunk == 16
    # Tiles without room for a ray's samples would have all 4096 rays worked on at once.
    assert predict_memory(TRAINING, 4096, 128) > 10 * predict_memory(TRAINING, 4096, 256)
    assert reduce_plan(TRAINING, Plan(4096, 256, 0), halve_chunk=False, halve_netchunk=True) is None
    both = reduce_plan(TRAINING, Plan(4096, 256, 0), halve_chunk=True, halve_netchunk=True)
    assert both.predicted < predict_memory(TRAINING, 4096, 256)


@every_kind
def test_a_plan_in_words_is_one_line(work):
    words = prediction.describe_plan(work, Plan(500, 4096, 123_400_000))
    assert "\n" not in words
    for part in ("chunk 500", "netchunk 4096", "123 MB", f"{work.resident / 1e6:.0f} MB"):
        assert part in words


MEMINFO = "MemTotal: 16000000 kB\nMemFree: 1000000 kB\nMemAvailable:    8000000 kB\nBuffers: 5 kB\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without a GPU; a function sets how much memory is free, and what its container is told."""
    monkeypatch.setattr(prediction, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(prediction, "CONTAINER", tmp_path)
    monkeypatch.setattr(
        prediction, "tf", SimpleNamespace(config=SimpleNamespace(list_physical_devices=lambda kind: []))
    )

    def write(meminfo: str, **container: str) -> None:
        (tmp_path / "meminfo").write_text(meminfo)
        for name, text in container.items():
            (tmp_path / f"memory.{name}").write_text(text)

    return write


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({}, 8e6 * 1024),
        ({"max": "max\n", "current": "900\n"}, 8e6 * 1024),
        ({"max": "4000000000\n", "current": "3000000000\n"}, 1e9),
        ({"max": "4000000000\n", "current": "3000000000\n", "stat": "file 9\ninactive_file 500000000\n"}, 1.5e9),
        ({"max": "4000000000\n", "current": "4000000001\n", "stat": "anon 7\n"}, 0.0),
        ({"max": f"{10**15}", "current": "0"}, 8e6 * 1024),
    ],
)
def test_free_memory_is_the_machines_or_what_is_left_of_the_containers(machine, container, expected):
    machine(MEMINFO, **container)
    assert prediction.free_memory() == expected


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, 11), ("", 11), ("1", 22), ("1,0", 22), ("GPU-b, GPU-a", 22), ("7", None)]
)
def test_free_memory_of_a_gpu_is_that_of_the_first_one_to_be_used(monkeypatch, visible, expected):
    free = {"0": "11\n", "1": "22\n", "GPU-a": "11\n", "GPU-b": "22\n"}  # in MiB, by number and UUID

    def nvidia_smi(command, **_):
        asked = [word.removeprefix("--id=") for word in command if word.startswith("--id=")]
        return SimpleNamespace(stdout=free.get(asked[0], "No devices were found\n") if asked else "11\n22\n")

    monkeypatch.setattr(
        prediction, "tf", SimpleNamespace(config=SimpleNamespace(list_physical_devices=lambda kind: ["x"]))
    )
    monkeypatch.setattr(prediction.shutil, "which", lambda name: name)
    monkeypatch.setattr(prediction.subprocess, "run", nvidia_smi)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if expected is None:
        with pytest.raises(ValueError, match="--memory_budget_mb"):
            prediction.free_memory()
    else:
        assert prediction.free_memory() == expected * 2**20


def test_where_nobody_knows_what_is_free_the_flag_is_asked_for(machine):
    with pytest.raises(ValueError, match="--memory_budget_mb"):
        prediction.free_memory()
