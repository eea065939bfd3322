"""tools/benchmark.py: dense and the engine agree, and reports hold what was measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf import build
from nerf_tf.data.pipeline import ray_batches
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings

pytest.importorskip("matplotlib", reason="the benchmark draws with matplotlib: pip install -e '.[plots]'")

SCENE = Path(__file__).parent / "data" / "portable" / "scenes" / "blender"
FLAGS = [
    *("--dataset_type=blender", f"--datadir={SCENE}", "--testskip=1", "--use_viewdirs", "--white_bkgd", "--N_rand=48"),
    *("--netdepth=2", "--netdepth_fine=3", "--netwidth=16", "--netwidth_fine=24", "--N_samples=9", "--N_importance=7"),
]


@pytest.fixture
def benchmark(monkeypatch):
    """The program, imported as Python finds it when it is run."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "tools")
    return importlib.import_module("benchmark")


@pytest.fixture
def values() -> Settings:
    return parsing.parse_settings([*FLAGS, "--expname=x", "--random_seed=3", "--raw_noise_std=1"])


def test_all_engines_take_the_same_steps(benchmark, values):
    scene = build.load_scene(values)
    batches = list(ray_batches(scene, build.batch_settings(values), 3).take(3))
    losses = {}
    for engine in ("dense", "float32", "bfloat16", "dense_xla"):
        trainer = benchmark.make_trainer(engine, values, scene.ndc)
        losses[engine] = [float(trainer.train_step(batch).loss) for batch in batches]
    for engine in ("float32", "dense_xla"):
        np.testing.assert_allclose(losses[engine], losses["dense"], rtol=1e-5)
    np.testing.assert_allclose(losses["bfloat16"], losses["dense"], rtol=2e-2)
    assert losses["bfloat16"] != losses["float32"]
    # That this one takes the same steps is told by step_test.py.
    xla = benchmark.make_trainer("xla", values, scene.ndc)
    assert type(xla) is type(benchmark.make_trainer("float32", values, scene.ndc))
    assert (xla.coarse.compiled, xla.fine.compiled) == (True, True)


def test_work_is_counted(benchmark, values):
    values = values.replace(raw_noise_std=0.0)
    scene = build.load_scene(values)
    trainer = benchmark.make_trainer("float32", values, scene.ndc)
    batch = next(iter(ray_batches(scene, build.batch_settings(values), 3)))
    # Density of one network everywhere, of the other nowhere.
    for field, bias in ((trainer.coarse, 100.0), (trainer.fine, -100.0)):
        kernel, bias_variable = field.mlp.get_layer("alpha").trainable_variables
        kernel.assign(tf.zeros_like(kernel.value))
        bias_variable.assign([bias])
    coarse, fine = benchmark.count_work(trainer, batch)
    assert (coarse["points"], fine["points"]) == (48 * 9, 48 * 16)
    # Opaque at once: light reaches little but the first sample, yet all have a density, and so a colour.
    assert coarse["coloured"] == 1.0
    assert 1 / 9 <= coarse["active"] < 0.5
    assert (fine["coloured"], fine["active"]) == (0.0, 0.0)
    # By hand: 63 and 16 wide layers, bottleneck 256, views 8, rgb 3, density 1.
    trunk, branch = 63 * 16 + 16 * 16 + 16, 16 * 256 + (256 + 27) * 8 + 8 * 3
    joined, joined_inputs = (16 + 27) * 8 + 8 * 3, 16 * 8 + 8 * 3
    trunk_inputs = 16 * 16 + 16
    assert benchmark.products(trainer, 0, dense=True) == ((trunk, trunk_inputs), (branch, branch), (branch, branch))
    assert benchmark.products(trainer, 0, dense=False)[::2] == ((trunk, trunk_inputs), (joined, joined_inputs))
    work = [{"points": 10, "coloured": 0.5, "active": 0.2}]
    assert benchmark.gigaflops(trainer, work, dense=True, training=False) == pytest.approx(2e-8 * (trunk + branch))
    dense = 2e-8 * (2 * trunk + trunk_inputs + 3 * branch)
    assert benchmark.gigaflops(trainer, work, dense=True, training=True) == pytest.approx(dense)
    backward = trunk + trunk_inputs + joined + joined_inputs
    expected = 2e-8 * (trunk + 0.5 * branch + 0.2 * backward)
    assert benchmark.gigaflops(trainer, work, dense=False, training=True) == pytest.approx(expected)


def test_a_gpus_limit_is_that_of_large_products_waited_for_once(benchmark, monkeypatch):
    seconds, shapes = iter(range(100)), []
    monkeypatch.setattr(benchmark.meter, "device", lambda: "GPU:0")
    monkeypatch.setattr(tf.random, "stateless_normal", lambda shape, seed: shapes.append(shape) or tf.ones([1, 1]))
    matmul, products = tf.matmul, []
    monkeypatch.setattr(tf, "matmul", lambda *args: products.append(args) or matmul(*args))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(seconds))
    found = benchmark.matmul_limit("bfloat16", 2)
    assert shapes == [[262144, 256], [256, 256]]
    assert {tensor.dtype for pair in products for tensor in pair} == {tf.bfloat16}
    assert len(products) % 3 == 0  # once to warm up
    assert next(seconds) == 6  # two looks at the clock each time
    assert found == pytest.approx(len(products) / 3 * 2e-9 * 262144 * 256 * 256)


def test_the_report(benchmark, tmp_path, capsys, monkeypatch):
    trace = benchmark.kernel_trace.KernelTrace(4071.0, 0.4)  # as of a GPU
    monkeypatch.setattr(benchmark.kernel_trace, "trace_kernels", lambda run: trace)
    assert benchmark.main([*FLAGS, "--repeats=2", f"--out={tmp_path}"]) == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())
    case = report["cases"]["random weights"]
    engines = case["engines"]
    assert case["gradient_error"]["float32"] <= 1e-5 < case["gradient_error"]["bfloat16"] < 0.5
    assert np.isfinite(case["pipeline_overhead"])
    assert 0 < case["seconds_per_batch"] < engines["dense"]["train"]["median_seconds"]
    assert set(engines) == {"dense", "float32", "bfloat16"}
    for kinds in engines.values():
        for record in kinds.values():
            assert len(record["seconds"]) == 2
            assert record["rays_per_second"] == pytest.approx(48 / record["median_seconds"])
            assert record["share_of_matmul_limit"] > 0
            assert (record["kernels"], record["busy"]) == (4071.0, 0.4)
    assert engines["dense"]["train"]["times_faster_than_dense"] == 1.0
    # So small that most of its tensors are below what TensorFlow counts.
    assert engines["dense"]["train"]["peak_mb"] > engines["float32"]["train"]["peak_mb"] >= 0
    printed = capsys.readouterr().out
    assert printed.count("  4,071   40%\n") == 6
    assert printed.endswith(f"{tmp_path / 'benchmark.json'}\n{tmp_path / 'benchmark.png'}\n")
    assert (tmp_path / "benchmark.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--engines=fast"], 2, "unknown fast; known are dense, float32, bfloat16"),
        (["--repeats=0"], 2, "--repeats 0"),
        (["--datadir=nowhere"], 1, "benchmark: nowhere"),
        (["--ft_path=nowhere.npy"], 1, "benchmark: nowhere.npy"),
    ],
)
def test_mistakes(benchmark, tmp_path, capsys, arguments, code, message):
    try:
        result = benchmark.main([*FLAGS, f"--out={tmp_path}", *arguments])
    except SystemExit as stop:
        result = stop.code
    assert result == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
