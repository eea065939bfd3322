"""Measures speed and memory of training and rendering, beside plain TensorFlow.

    python tools/benchmark.py --config configs/lego.txt --datadir data/nerf_synthetic/lego --ft_path model_200000.npy

Every flag of the program may be given and means what it means there. The engines are
  dense         plain TensorFlow: all points at once under one gradient tape, in one graph
  dense_xla     the same, compiled by XLA
  float32       the program's own with --jit_compile false
  xla           the program's own with --jit_compile true
and those with bfloat16: dense_xla_bfloat16, bfloat16, xla_bfloat16, and with TensorFloat-32, which recent GPUs have:
dense_xla_tf32, xla_tf32. On a CPU those of XLA must be asked for.
Steps are measured at random weights, and at those of --ft_path if it is given; the weights do not change. The engines
take turns, so that a slow phase of the machine slows all of them. On a GPU the profiler also tells how many kernels
each starts, and what share of the time the GPU is busy. Writes a JSON file and a picture, and prints their paths.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from support import commandline, kernel_trace

from nerf_tf import build, tensor_float
from nerf_tf.data.pipeline import RayBatch, ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.field.encoding import positional_encoding
from nerf_tf.field.mlp import precision
from nerf_tf.field.query import Field
from nerf_tf.memory import meter, planning
from nerf_tf.output import figures
from nerf_tf.render.passes import Draws, Pass, coarse_pass, fine_pass, make_draws, render_rays
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import atomic, tf1_weights
from nerf_tf.train.counts import opacities
from nerf_tf.train.gradients import StepGradients
from nerf_tf.train.step import Trainer, falling_rate


class Engine(NamedTuple):
    """A way to compute.

    Attributes:
        precision: what networks compute in, as --mixed_precision has it.
        dense: plain TensorFlow instead of the program's own.
        compiled: whether XLA compiles all of it.
        colour: in pictures.
    """

    precision: str
    dense: bool
    compiled: bool
    colour: str


ENGINES = {
    "dense": Engine("float32", dense=True, compiled=False, colour=figures.PALE),
    "float32": Engine("float32", dense=False, compiled=False, colour=figures.BLUE),
    "bfloat16": Engine("bfloat16", dense=False, compiled=False, colour=figures.ORANGE),
    "dense_xla": Engine("float32", dense=True, compiled=True, colour="#8a8a8a"),
    "dense_xla_bfloat16": Engine("bfloat16", dense=True, compiled=True, colour="#555555"),
    "xla": Engine("float32", dense=False, compiled=True, colour="#4aa3a2"),
    "xla_bfloat16": Engine("bfloat16", dense=False, compiled=True, colour="#8f5aa8"),
    "dense_xla_tf32": Engine("tf32", dense=True, compiled=True, colour="#b0a060"),
    "xla_tf32": Engine("tf32", dense=False, compiled=True, colour="#6a8f3c"),
}
EVALUATED_AT_ONCE = 512  # rays
BATCHES = 100  # made in a row to time one


class DenseField(Field):
    """A network applied to all points at once and differentiated by the tape, as any Keras model."""

    def __call__(self, points: tf.Tensor, viewdirs: tf.Tensor, visible_above: object = None) -> tf.Tensor:
        inputs = [positional_encoding(tf.reshape(points, [-1, 3]), self.settings.multires)]
        if self.settings.use_viewdirs:
            each = tf.repeat(viewdirs, points.shape[1], axis=0)
            inputs.append(positional_encoding(each, self.settings.multires_views))
        return tf.reshape(tf.cast(self.mlp(inputs), tf.float32), [*points.shape[:2], 4])


class DenseTrainer(Trainer):
    """Takes a step on all rays, with both passes under one tape."""

    parts = 1

    def gradients(self, batch: RayBatch, draws: Draws | None = None, *_: object) -> StepGradients:
        count = batch.rgb.shape[0]
        draws = draws or self.draw(count)
        with tf.GradientTape() as tape:
            passes = [coarse_pass(self.coarse, batch.rays, self.rendering, draws.coarse)]
            if self.fine is not None:
                passes.append(fine_pass(self.fine, batch.rays, passes[0], self.rendering, draws.fine)[0])
            losses = [tf.reduce_mean(tf.square(result.rendering.rgb - batch.rgb)) for result in passes]
            loss = tf.add_n(losses)
        gradients = tape.gradient(loss, [variable.value for variable in self._variables])
        opacity = opacities(passes[-1].rendering.acc, tf.fill([count], 1.0 / count))
        return StepGradients(losses, gradients, opacity, passes[-1].raw[..., 3])


def make_trainer(engine: str, settings: Settings, ndc: bool) -> Trainer:
    """The program's trainer with the given engine."""
    kind = ENGINES[engine]
    settings = settings.replace(mixed_precision=kind.precision, jit_compile="true" if kind.compiled else "false")
    trainer = build.make_trainer(settings, ndc)
    if not kind.dense:
        build.plan_training(settings, trainer)
        return trainer
    networks = (trainer.coarse, trainer.fine)
    fields = [f and DenseField(f.mlp, f.settings, f.netchunk, compiled=kind.compiled) for f in networks]
    rate = falling_rate(settings.lrate, settings.lrate_decay)
    return DenseTrainer(*fields, build.render_settings(settings, ndc), rate, settings.random_seed)


def _split(batch: RayBatch, size: int) -> list[RayBatch]:
    return [tf.nest.map_structure(lambda x, i=i: x[i : i + size], batch) for i in range(0, batch.rgb.shape[0], size)]


class Products(NamedTuple):
    """Numbers of multiplications for one point.

    Attributes:
        forward: of layer inputs by kernels; kernel gradients take as many.
        inputs: for the gradients of layer inputs, encodings left out.
    """

    forward: int
    inputs: int


def products(trainer: Trainer, pass_: int, dense: bool) -> tuple[Products, Products, Products]:
    """Counts a point's products in a network: trunk, view branch forward, view branch backward.

    The tape computes gradients of all inputs of a layer, unless they are encodings only. The engine leaves out
    encodings, and joins the bottleneck with the next layer: always backward, in 16 bits forward too.
    """
    mlp = (trainer.coarse, trainer.fine)[pass_].mlp
    shapes = {layer.name: layer.kernel.shape for layer in mlp.layers if layer.weights}
    width = shapes["trunk_0"][1]
    branch = [shapes.pop(name) for name in ("bottleneck", "views", "rgb") if name in shapes]
    joined = branch
    if branch:
        (inputs, through), (views, outputs), rgb = branch
        joined = [(inputs + views - through, outputs), rgb]  # the bottleneck has no activation: it is one matrix

    def counted(layers: Sequence[tuple[int, int]], first: int = 0) -> Products:
        inputs = sum((i if dense else min(i, width)) * o for i, o in layers[first:])
        return Products(sum(i * o for i, o in layers), inputs)

    trunk = counted(list(shapes.values()), first=1)  # the first sees encodings only
    backward = branch if dense else joined
    forward = backward if precision(mlp) != "float32" else branch
    return trunk, counted(forward), counted(backward)


def count_work(trainer: Trainer, batch: RayBatch) -> list[dict[str, float]]:
    """For each pass: the points of a step, the share of them with a colour, and the share with a gradient."""
    seed, counts = tf.constant([0, 0]), []
    for first in range(0, batch.rgb.shape[0], EVALUATED_AT_ONCE):
        part = tf.nest.map_structure(lambda x, first=first: x[first : first + EVALUATED_AT_ONCE], batch)
        draws = make_draws(trainer.rendering, seed, part.rgb.shape[0], first)
        with tf.GradientTape() as tape:
            passes = [coarse_pass(trainer.coarse, part.rays, trainer.rendering, draws.coarse)]
            if trainer.fine is not None:
                passes.append(fine_pass(trainer.fine, part.rays, passes[0], trainer.rendering, draws.fine)[0])
            loss = tf.add_n([tf.reduce_mean(tf.square(result.rendering.rgb - part.rgb)) for result in passes])
        sizes = [np.abs(gradient).max(-1) for gradient in tape.gradient(loss, [result.raw for result in passes])]
        # Points without a colour have zeros.
        coloured = [np.any(result.raw[..., :3] != 0.0, axis=-1).mean() for result in passes]
        active = [
            np.mean(s > f.tolerance * s.max()) for s, f in zip(sizes, (trainer.coarse, trainer.fine), strict=False)
        ]
        counts.append([(size.size, *parts) for size, *parts in zip(sizes, coloured, active, strict=True)])
    return [
        {"points": int(points.sum()), "coloured": float(coloured.mean()), "active": float(active.mean())}
        for points, coloured, active in (np.transpose(one) for one in zip(*counts, strict=True))
    ]


def gigaflops(trainer: Trainer, work: list[dict[str, float]], dense: bool, training: bool) -> float:
    """10^9 additions and multiplications in the matrix products of a step, or of rendering its rays."""
    total = 0.0
    for i, counted in enumerate(work):
        trunk, branch, backward = products(trainer, i, dense)
        coloured, active = (1.0, 1.0) if dense else (counted["coloured"], counted["active"])
        each = trunk.forward + coloured * branch.forward
        each += active * (sum(trunk) + sum(backward)) if training else 0.0
        total += 2e-9 * counted["points"] * each
    return total


def matmul_limit(precision: str, repeats: int) -> float:
    """GFLOP/s of matrix products with kernels of 256 by 256: the machine's limit.

    On a CPU: eight layers with bias and ReLU on 16384 points, which stay in its caches. On a GPU: products alone, on
    so many points that each keeps it busy, and so many of them that the wait for the last one does not count.
    """
    dtype = "float32" if precision == "tf32" else precision
    on_gpu = meter.device() != "CPU:0"
    points, count = (2**18, 500) if on_gpu else (2**14, 8)
    x = tf.cast(tf.random.stateless_normal([points, 256], [0, 0]), dtype)
    kernel = tf.cast(tf.random.stateless_normal([256, 256], [0, 1]) / 16.0, dtype)
    bias = tf.zeros([256], dtype)

    @tf.function
    def layers(h: tf.Tensor) -> tf.Tensor:
        for _ in range(count):
            h = tf.nn.relu(tf.nn.bias_add(tf.matmul(h, kernel), bias))
        return h

    def time_products() -> float:
        tf.test.experimental.sync_devices()
        start = time.perf_counter()
        for _ in range(count):
            tf.matmul(x, kernel)
        tf.test.experimental.sync_devices()
        return time.perf_counter() - start

    tensor_float.use(precision == "tf32")
    times = [time_products() if on_gpu else time_run(lambda: layers(x)) for _ in range(repeats + 1)][1:]
    return count * 2e-9 * points * 256 * 256 / statistics.median(times)


def in_precision(engine: str, run: Callable[[], object]) -> Callable[[], object]:
    """Returns `run` with TensorFloat-32 as the engine has it: the process has one switch for all engines."""

    def switched() -> object:
        tensor_float.use(ENGINES[engine].precision == "tf32")
        return run()

    return switched


def time_run(run: Callable[[], object]) -> float:
    """Seconds until the result is computed."""
    start = time.perf_counter()
    tf.nest.map_structure(lambda x: x.numpy(), run())
    return time.perf_counter() - start


def gradient_errors(trainers: dict[str, Trainer], batch: RayBatch) -> dict[str, float]:
    """Compares engines' gradients with dense's: largest |difference| / |dense| of all weight tensors.

    All engines evaluate the same points, so that rounding of coarse weights does not move fine samples.
    """
    sums = dict.fromkeys(trainers, 0.0)
    for i, part in enumerate(_split(batch, EVALUATED_AT_ONCE)):
        dense = trainers["dense"]
        draws = make_draws(dense.rendering, tf.constant([0, i]), part.rgb.shape[0])
        first = coarse_pass(dense.coarse, part.rays, dense.rendering, draws.coarse)
        for engine, trainer in trainers.items():
            found = in_precision(engine, functools.partial(_pass_gradients, trainer, part, first, draws))()
            sums[engine] = sums[engine] + np.array(found, object)

    def error(gradients: np.ndarray) -> float:
        pairs = zip(gradients, sums["dense"], strict=True)
        return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)

    return {engine: error(gradients) for engine, gradients in sums.items() if engine != "dense"}


def _pass_gradients(trainer: Trainer, batch: RayBatch, first: Pass, draws: Draws) -> list[np.ndarray]:
    """Gradients of the coarse pass's error, and of the fine pass's with the samples that `first` gives."""
    gradients = []
    for field in filter(None, (trainer.coarse, trainer.fine)):
        with tf.GradientTape() as tape:
            if field is trainer.coarse:
                result = coarse_pass(field, batch.rays, trainer.rendering, draws.coarse)
            else:
                result, _ = fine_pass(field, batch.rays, first, trainer.rendering, draws.fine)
            loss = tf.reduce_sum(tf.square(result.rendering.rgb - batch.rgb))
        gradients += tape.gradient(loss, [variable.value for variable in field.mlp.trainable_variables])
    return [gradient.numpy() for gradient in gradients]


def measure(args: argparse.Namespace, settings: Settings, scene: Scene, weights: str | None) -> dict:
    """Measures times and memory of every engine at random weights or at those of a file."""
    settings = settings.replace(lrate=1e-12)  # so that all steps have the same weights
    # Trained weights get rays of their own step, which is past the centre crop of the first ones.
    start = 0 if weights is None else tf1_weights.step_of(Path(weights)) + 1
    stream = iter(ray_batches(scene, build.batch_settings(settings), settings.random_seed, start))
    batch, trainers, runs = next(stream), {}, {}
    for engine in args.engines:
        trainer = trainers[engine] = make_trainer(engine, settings, scene.ndc)
        if weights is not None:
            build.load_weights(trainer, Path(weights))
        still = trainer.rendering.deterministic()
        render = tf.function(
            lambda rays, t=trainer, s=still: render_rays(t.coarse, t.fine, rays, s).fine.rgb,
            jit_compile=ENGINES[engine].compiled,
        )
        runs[engine, "train"] = in_precision(engine, lambda t=trainer: t.train_step(batch).loss)
        runs[engine, "render"] = in_precision(engine, lambda render=render: render(batch.rays))
    errors = gradient_errors(trainers, batch) if "dense" in trainers else None
    peaks = {key: meter.measure(run)[0] for key, run in runs.items()}
    traces = {key: kernel_trace.trace_kernels(run) for key, run in runs.items()}
    times = {key: [] for key in runs}
    same, fresh = [], []  # pairs of steps: with the same batch, and with the pipeline's next one
    for _ in range(args.repeats):
        for key, run in runs.items():
            times[key].append(time_run(run))
        if "float32" in trainers:
            same.append(time_run(runs["float32", "train"]))
            fresh.append(time_run(lambda: trainers["float32"].train_step(next(stream)).loss))
    works = {engine: count_work(trainer, batch) for engine, trainer in trainers.items()}
    sparse = [engine for engine in args.engines if not (ENGINES[engine].dense or ENGINES[engine].compiled)]
    result = {"work": works[(sparse or args.engines)[-1]], "engines": {}}  # dense and compiled engines leave out less
    if errors is not None:
        result["gradient_error"] = errors
    for (engine, kind), seconds in times.items():
        median = statistics.median(seconds)
        flops = gigaflops(trainers[engine], works[engine], ENGINES[engine].dense, kind == "train")
        result["engines"].setdefault(engine, {})[kind] = {
            "seconds": seconds,
            "median_seconds": median,
            "rays_per_second": settings.N_rand / median,
            "gflops_per_second": flops / median,
            "peak_mb": peaks[engine, kind],
            **(trace._asdict() if (trace := traces[engine, kind]) else {}),
        }
    if fresh:
        result["pipeline_overhead"] = statistics.median(fresh) / statistics.median(same) - 1.0
        start = time.perf_counter()
        for _ in range(BATCHES):
            next(stream)
        result["seconds_per_batch"] = (time.perf_counter() - start) / BATCHES
    return result


def measure_all(args: argparse.Namespace, settings: Settings, scene: Scene) -> dict:
    """Measures everything that the JSON file holds."""
    precisions = sorted({ENGINES[engine].precision for engine in args.engines})
    limits = {name: matmul_limit(name, args.repeats) for name in precisions}
    cases = {"random weights": None}
    if settings.ft_path is not None:
        cases["trained weights"] = settings.ft_path
    report = {
        "machine": {"cpu": platform.processor() or platform.machine(), "tensorflow": tf.__version__},
        "settings": {
            name: getattr(settings, name)
            for name in ("N_rand", "N_samples", "N_importance", "chunk", "netchunk", "netwidth")
        },
        "matmul_gflops_per_second": limits,
        "cases": {case: measure(args, settings, scene, weights) for case, weights in cases.items()},
    }
    report["machine"]["gpus"] = [gpu.name for gpu in tf.config.list_physical_devices("GPU")]
    for case in report["cases"].values():
        for engine, kinds in case["engines"].items():
            for kind, record in kinds.items():
                record["share_of_matmul_limit"] = record["gflops_per_second"] / limits[ENGINES[engine].precision]
                if "dense" in case["engines"]:
                    dense = case["engines"]["dense"][kind]["median_seconds"]
                    record["times_faster_than_dense"] = dense / record["median_seconds"]
    return report


def table(report: dict) -> str:
    """The report as a table."""
    limits = ", ".join(f"{name} {rate:.0f}" for name, rate in report["matmul_gflops_per_second"].items())
    lines = [f"matrix products on this machine, GFLOP/s: {limits}"]
    for name, case in report["cases"].items():
        parts = (f"{100 * c['coloured']:.0f} % / {100 * c['active']:.0f} %" for c in case["work"])
        lines.append(f"\n{name}; samples with a colour / with a gradient, by pass: {', '.join(parts)}")
        if "pipeline_overhead" in case:
            lines.append(
                f"a step with a new batch against one with the same again: {case['pipeline_overhead']:+.1%}; "
                f"to make a batch, and nothing else, takes {1e3 * case['seconds_per_batch']:.1f} ms"
            )
        for engine, error in case.get("gradient_error", {}).items():
            lines.append(f"gradients of {engine} against dense, worst tensor: {error:.1e} of its norm")
        traced = any("kernels" in record for kinds in case["engines"].values() for record in kinds.values())
        lines.append(
            f"{'':26}{'s':>8}{'rays/s':>10}{'GFLOP/s':>9}{'of limit':>9}{'peak MB':>9}{'vs dense':>9}"
            + (f"{'kernels':>9}{'busy':>6}" if traced else "")
        )
        for engine, kinds in case["engines"].items():
            for kind, r in kinds.items():
                faster = f"{r['times_faster_than_dense']:.2f}x" if "times_faster_than_dense" in r else ""
                kernels = f"{r['kernels']:9,.0f}{r['busy']:6.0%}" if "kernels" in r else ""
                lines.append(
                    f"{engine:19}{kind:7}{r['median_seconds']:8.3f}{r['rays_per_second']:10,.0f}"
                    f"{r['gflops_per_second']:9.0f}{r['share_of_matmul_limit']:9.0%}{r['peak_mb']:9.0f}{faster:>9}{kernels}"
                )
    return "\n".join(lines)


def draw(report: dict):
    """Draws rays per second of every engine, training and rendering, for each set of weights."""
    figure = figures.new_figure(9.6, 3.8)
    cases = report["cases"]
    for axes, kind in zip(figure.subplots(1, 2), ("train", "render"), strict=True):
        figures.style_axes(axes, f"{'Training' if kind == 'train' else 'Rendering'}: rays per second")
        for i, case in enumerate(cases.values()):
            engines = case["engines"]
            for j, (engine, kinds) in enumerate(engines.items()):
                rate, x = kinds[kind]["rays_per_second"], i + ((j + 0.5) / len(engines) - 0.5) * 0.8
                axes.bar(x, rate, 0.75 / len(engines), color=ENGINES[engine].colour, label=None if i else engine)
                text = f"{rate:,.0f}\n{kinds[kind]['peak_mb']:,.0f} MB"
                axes.annotate(text, (x, rate), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xticks(range(len(cases)), list(cases))
        axes.margins(y=0.2)
    axes.legend(loc="upper left", frameon=False)
    figure.tight_layout()
    return figure


def _arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = commandline.Parser("benchmark", __doc__, "%(prog)s [options] [flags of the program]")
    parser.add_argument(
        "--engines",
        default=",".join(name for name, engine in ENGINES.items() if planning.has_gpu() or not engine.compiled),
        help="which, separated by commas (default: all; without a GPU those that XLA does not compile)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="times that each is measured (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder to write to (default: benchmark)")
    args, rest = parser.parse_known_args(argv)
    args.engines = args.engines.split(",")
    unknown = set(args.engines) - set(ENGINES)
    if unknown:
        parser.error(f"--engines: unknown {', '.join(sorted(unknown))}; known are {', '.join(ENGINES)}")
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: at least 1")
    return args, rest


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args, rest = _arguments(argv)
    settings = parsing.parse_settings([*rest, "--expname=benchmark"])
    settings = settings.replace(random_seed=settings.random_seed or 0)
    try:
        if settings.ft_path is not None:
            tf1_weights.load(settings.ft_path)  # fails now rather than after minutes
        scene = build.load_scene(settings)
        report = measure_all(args, settings, scene)
        print(table(report))
        atomic.write_text(args.out / "benchmark.json", json.dumps(report, indent=1) + "\n")
        figures.save(draw(report), args.out / "benchmark.png")
    except (ValueError, OSError) as error:
        return commandline.fail("benchmark", error)
    print(args.out / "benchmark.json", args.out / "benchmark.png", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
