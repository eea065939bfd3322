"""Measures how much memory training steps and rendered chunks take, for all combinations of settings that you list.

    python tools/profile_memory.py --config configs/paper/llff.txt --chunks 1024,32768 --netchunks 4096,16384
    python tools/profile_memory.py --use_viewdirs --modes train --rays 1024,4096 --samples 64+128 --netwidths 256,128
    python tools/profile_memory.py --config configs/paper/llff.txt --stages --chunks 4096 --netchunks 65536

Every flag of the program may be given and means what it means there. No scene is needed: rays are made up. Without a
list, --chunk, --netchunk, --N_samples and --N_importance, or --mixed_precision counts where the command line or the
--config file sets it.

Each combination is measured in a process of its own, on the first GPU or, without one, the CPU: the allocator's peak in
MB (10^6 bytes) during the second step or chunk, over what was there before: weights, moments, batch. Beside it stands
what the program's planner predicts, and the prediction over the measurement. --stages accounts for one chunk instead,
stage by stage, in the order of the original code and in this program's. Prints a table, and writes profile.csv and the
heatmap profile.png, or stages.csv. The exit code is 1 if anything could not be measured.

What TensorFlow counts is what its allocator hands out: up to twice what was asked for, as it does not cut up pieces for
a little; and on a CPU nothing below 256 KiB.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gc
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import commandline
import drawing
import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tqdm import tqdm

import nerf_tf
from nerf_tf import build, config
from nerf_tf.data.pipeline import RayBatch
from nerf_tf.field.encoding import positional_encoding
from nerf_tf.field.mlp import FieldSettings
from nerf_tf.field.query import Field
from nerf_tf.geometry.rays import Rays
from nerf_tf.render import memory, outputs
from nerf_tf.render.renderer import RenderSettings, render_rays
from nerf_tf.render.sampling import sample_pdf, stratified_t_vals
from nerf_tf.render.volume import volume_render
from nerf_tf.train import tf1_weights
from nerf_tf.train.trainer import Trainer

PROGRAM = Path(__file__).resolve()
MODES, WEIGHTS, WAYS = ("train", "render"), ("typical", "worst"), ("original", "engine")
PRECISIONS = config.OPTIONS["mixed_precision"].choices
COLUMNS = (
    "mode", "rays", "chunk", "netchunk", "N_samples", "N_importance", "retraw", "precision", "netwidth", "netdepth",
    "measured_mb", "predicted_mb", "ratio", "seconds", "failure",
)  # fmt: skip
STAGE_COLUMNS = (
    "way", "stage", "chunk", "netchunk", "N_samples", "N_importance", "retraw", "precision", "outputs_mb", "peak_mb",
)  # fmt: skip
# Columns of the printed table, and their widths.
TABLE = {
    "mode": 6, "rays": 6, "chunk": 6, "netchunk": 8, "samples": 8, "retraw": 6, "precision": 9, "netwidth": 8,
    "measured_mb": 10, "predicted_mb": 10, "ratio": 6, "seconds": 8,
}  # fmt: skip
PICTURE_WIDTH = 16.0  # inches that panels may take side by side


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of settings to measure.

    Attributes:
        mode: train or render.
        rays: those of a step; when rendering, those of the chunk.
        chunk, netchunk, N_samples, N_importance, precision, netwidth, netwidth_fine: as the program's flags.
        retraw: whether raw leaves the rendered chunk.
    """

    mode: str
    rays: int
    chunk: int
    netchunk: int
    N_samples: int
    N_importance: int
    retraw: bool
    precision: str
    netwidth: int
    netwidth_fine: int

    def set_flags(self, values: flags.FlagValues) -> None:
        """Gives the program's flags the cell's values."""
        for name in ("chunk", "netchunk", "N_samples", "N_importance", "netwidth", "netwidth_fine"):
            values[name].value = getattr(self, name)
        values["N_rand"].value = self.rays
        values["mixed_precision"].value = self.precision

    @property
    def samples(self) -> str:
        """As in --samples."""
        return f"{self.N_samples}+{self.N_importance}"


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


# In the process of a cell


def device() -> str:
    """The one whose memory counts."""
    return "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"


def made_up_rays(values: flags.FlagValues, ndc: bool, count: int) -> Rays:
    """Rays such as a scene of this kind has: from around it to its middle, or under NDC straight through the cube."""
    rng = np.random.default_rng(0)
    if ndc:
        origins = np.stack([*rng.uniform(-1, 1, [2, count]), -np.ones(count)], axis=-1)
        directions = np.stack([*rng.uniform(-0.2, 0.2, [2, count]), np.full(count, 2.0)], axis=-1)
        default_near, default_far = 0.0, 1.0
    else:
        directions = rng.normal(size=[count, 3])
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        origins = rng.uniform(-0.5, 0.5, [count, 3]) - 4.0 * directions
        default_near, default_far = 2.0, 6.0
    viewdirs = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    near = np.full([count, 1], default_near if values.near is None else values.near)
    far = np.full([count, 1], default_far if values.far is None else values.far)
    return Rays(*(tf.constant(x, tf.float32) for x in (origins, directions, viewdirs, near, far)))


def built_trainer(cell: Cell, values: flags.FlagValues, weights: str, ndc: bool) -> Trainer:
    """The program's networks and optimizer for a cell, with typical weights or the worst."""
    cell.set_flags(values)
    trainer = build.make_trainer(values, ndc)
    if weights == "worst":
        density = 1.0 + 4.0 * values.raw_noise_std  # noise takes it below zero once in 30,000 samples
        for field in filter(None, (trainer.coarse, trainer.fine)):
            set_density(field, density)
        # Nor is the gradient of any sample too small to count.
        trainer.coarse = dataclasses.replace(trainer.coarse, row_tolerance=0.0)
        trainer.fine = trainer.fine and dataclasses.replace(trainer.fine, row_tolerance=0.0)
    elif values.ft_path is not None:
        build.load_weights(trainer, Path(values.ft_path))
    trainer.resize(cell.chunk, cell.netchunk)
    return trainer


def set_density(field: Field, density: float) -> None:
    """Gives every sample that raw density, whatever the other weights."""
    layer, column = ("alpha", 0) if field.settings.use_viewdirs else ("raw", 3)
    kernel, bias = field.mlp.get_layer(layer).get_weights()
    kernel[:, column], bias[column] = 0.0, density
    field.mlp.get_layer(layer).set_weights([kernel, bias])


def predicted_mb(cell: Cell, trainer: Trainer) -> float:
    """What the planner says that a cell takes."""
    work = build.workload(trainer, cell.mode == "train", cell.rays)
    return memory.predict(work, cell.chunk, cell.netchunk) / memory.MEGABYTE


def work_of(cell: Cell, trainer: Trainer, rays: Rays) -> Callable[[], object]:
    """One step of training, or the rendering of one chunk."""
    if cell.mode == "train":
        batch = RayBatch(rays, tf.random.stateless_uniform([cell.rays, 3], [0, 0]))
        return lambda: trainer.train_step(batch)
    settings = trainer.rendering.deterministic()

    @tf.function
    def render_chunk(rays: Rays) -> list[tf.Tensor]:
        fine, coarse, z_std, raw = render_rays(trainer.coarse, trainer.fine, rays, settings, keep_raw=cell.retraw)
        kept = [fine.rgb, fine.disp, fine.acc, fine.depth]
        kept += [] if coarse is None else [coarse.rgb, coarse.disp, coarse.acc, z_std]
        return [*kept, raw] if cell.retraw else kept

    return lambda: render_chunk(rays)


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
    return (_peak() - before) / memory.MEGABYTE, seconds


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
        self.stages.append(Stage(name, made / memory.MEGABYTE, (_peak() - self._before) / memory.MEGABYTE))
        return result

    def inside_the_next(self, name: str) -> None:
        """Writes down a stage that happens within another, and hands nothing on."""
        self.stages.append(Stage(name, 0.0, None))


# Takes points [R, S, 3] and view directions [R, 3] to raw [R, S, 4].
Network = Callable[[Meter, tf.Tensor, tf.Tensor], tf.Tensor]


def encode_all(points: tf.Tensor, viewdirs: tf.Tensor, settings: FieldSettings) -> tf.Tensor:
    """Encodings of all points of a chunk, side by side with those of a view direction for each point."""
    parts = [positional_encoding(tf.reshape(points, [-1, 3]), settings.multires)]
    if settings.use_viewdirs:
        each = tf.reshape(tf.broadcast_to(viewdirs[:, None], points.shape), [-1, 3])
        parts.append(positional_encoding(each, settings.multires_views))
    return tf.concat(parts, axis=-1)


def in_pieces(mlp: keras.Model, encoded: tf.Tensor, netchunk: int) -> tf.Tensor:
    """Raw of encodings, netchunk of them at a time."""
    widths = [x.shape[-1] for x in mlp.inputs]
    pieces = (encoded[i : i + netchunk] for i in range(0, encoded.shape[0], netchunk))
    return tf.concat([mlp(tf.split(piece, widths, axis=-1)) for piece in pieces], axis=0)


def original_network(name: str, field: Field) -> Network:
    """The original's way: encode all points of the chunk, then cut the encodings into pieces."""

    def raw(meter: Meter, points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
        encoded = meter(f"{name} encoding", encode_all, points, viewdirs, field.settings)
        flat = meter(f"{name} MLP", in_pieces, field.mlp, encoded, field.netchunk)
        return tf.reshape(flat, [*points.shape[:2], 4])

    return raw


def engine_network(name: str, field: Field, retraw: bool) -> Network:
    """The program's way: points are encoded inside a tile."""
    query = tf.function(lambda points, viewdirs: field(points, viewdirs, None if retraw else 0.0))

    def raw(meter: Meter, points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
        meter.inside_the_next(f"{name} encoding")
        return meter(f"{name} MLP", query, points, viewdirs)

    return raw


def staged(way: str, trainer: Trainer, retraw: bool) -> Callable[[Meter, Rays], list[tf.Tensor]]:
    """Rendering of a chunk with a meter at every stage: eager as the original, or of compiled graphs as the program.

    Returns:
        A function that gives what leaves the chunk.
    """
    settings, original = trainer.rendering.deterministic(), way == "original"
    stage = (lambda function: function) if original else tf.function
    fields = {"coarse": trainer.coarse, "fine": trainer.fine}
    coarse, fine = (
        field and (original_network(name, field) if original else engine_network(name, field, retraw))
        for name, field in fields.items()
    )
    coarse_samples = stage(lambda rays: _coarse_samples(rays, settings))
    fine_samples = stage(lambda rays, t_vals, weights: _fine_samples(rays, t_vals, weights, settings))
    composite = stage(lambda raw, t_vals, rays: volume_render(raw, t_vals, rays.directions, None, settings.white_bkgd))

    def render(meter: Meter, rays: Rays) -> list[tf.Tensor]:
        t_vals, points = meter("coarse samples", coarse_samples, rays)
        raw = coarse(meter, points, rays.viewdirs)
        points = points if original else None  # a graph lets go of what nobody reads any more; Python does not
        final = meter("coarse compositing", composite, raw, t_vals, rays)
        further = []
        if fine is not None:
            first, raw = final, raw if original else None
            t_vals, points, z_std = meter("fine samples", fine_samples, rays, t_vals, first.weights)
            raw = fine(meter, points, rays.viewdirs)
            points = points if original else None
            final = meter("fine compositing", composite, raw, t_vals, rays)
            further = [first.rgb, first.disp, first.acc, z_std]
        kept = [final.rgb, final.disp, final.acc, *([] if original else [final.depth]), *further]
        return [*kept, raw] if retraw else kept

    return render


def _points(rays: Rays, t_vals: tf.Tensor) -> tf.Tensor:
    return rays.origins[:, None, :] + rays.directions[:, None, :] * t_vals[..., None]


def _coarse_samples(rays: Rays, settings: RenderSettings) -> tuple[tf.Tensor, tf.Tensor]:
    t_vals = stratified_t_vals(rays.near, rays.far, settings.N_samples, settings.lindisp)
    return t_vals, _points(rays, t_vals)


def _fine_samples(rays: Rays, t_vals: tf.Tensor, weights: tf.Tensor, settings: RenderSettings):
    u = tf.broadcast_to(tf.linspace(0.0, 1.0, settings.N_importance), [t_vals.shape[0], settings.N_importance])
    new_t_vals = sample_pdf(0.5 * (t_vals[..., 1:] + t_vals[..., :-1]), weights[..., 1:-1], u)
    t_vals = tf.sort(tf.concat([t_vals, new_t_vals], axis=-1), axis=-1)
    return t_vals, _points(rays, t_vals), tf.math.reduce_std(new_t_vals, axis=-1)


def account(way: str, trainer: Trainer, rays: Rays, retraw: bool) -> list[Stage]:
    """What each stage of rendering these rays costs, in their order."""
    render = staged(way, trainer, retraw)
    render(Meter(), rays)  # traces, and makes what is made only once
    meter = Meter()
    kept = render(meter, rays)
    meter("returned tensors", lambda: kept)
    return meter.stages


def run_cell(cell: Cell, way: str | None, values: flags.FlagValues, weights: str) -> int:
    """Measures a cell, or accounts for it the given way, and prints lines of JSON; returns the exit code."""
    tf.config.experimental.enable_tensor_float_32_execution(False)  # as the program does
    if values.random_seed is None:
        values["random_seed"].value = 0
    ndc = values.dataset_type == "llff" and not values.no_ndc
    try:
        trainer = built_trainer(cell, values, weights, ndc)
        rays = made_up_rays(values, ndc, cell.rays)
        if way is not None:
            for stage in account(way, trainer, rays, cell.retraw):
                print(json.dumps(stage._asdict()))
            return 0
        print(json.dumps({"predicted_mb": predicted_mb(cell, trainer)}), flush=True)  # it may be all there will be
        measured_mb, seconds = measure(work_of(cell, trainer, rays))
        print(json.dumps({"measured_mb": measured_mb, "seconds": seconds}))
    except tf.errors.ResourceExhaustedError as error:
        print("out of memory:", build.failed_allocation(error), file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(config.one_line(str(error)), file=sys.stderr)
        return 1
    return 0


# In the process that the user started


def run_process(arguments: Sequence[str]) -> tuple[list[dict], str | None]:
    """Runs this program with arguments in a fresh process; returns what it printed, and why it failed if it did."""
    path = os.pathsep.join(filter(None, [str(Path(nerf_tf.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "PYTHONPATH": path, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    command = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return records, failure_of(done.returncode, done.stderr)


def failure_of(code: int, stderr: str) -> str | None:
    """Why a process ended with this exit code (negative: by this signal), in one line; None if it ended well."""
    if code == 0:
        return None
    if code == -signal.SIGKILL:
        return "killed by the system, most likely out of memory"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    reason = (errors or lines or ["it said nothing"])[-1]
    return f"ended by signal {-code} ({signal.strsignal(-code)}): {reason}" if code < 0 else reason


def sweep(cells: Sequence[Cell], netdepth: int, arguments: Sequence[str], out: Path) -> list[dict]:
    """Measures the cells, and keeps the CSV file up to date with it.

    Args:
        cells: what to measure.
        netdepth: layers of the networks, for the file.
        arguments: what else the processes are told.
        out: the CSV file.

    Returns:
        Rows of `COLUMNS`; what is not known is None.
    """
    rows = []
    print(_table_line(name.removesuffix("_mb") for name in TABLE))
    with tqdm(cells, unit="cell", dynamic_ncols=True) as bar:
        for cell in bar:
            records, failure = run_process(["--cell", json.dumps(dataclasses.asdict(cell)), *arguments])
            row = dict.fromkeys(COLUMNS) | dataclasses.asdict(cell) | {"netdepth": netdepth, "failure": failure}
            for record in records:
                row |= record
            if row["measured_mb"] is not None:
                row["ratio"] = row["predicted_mb"] / max(row["measured_mb"], 1e-6)
            rows.append(row)
            line = _table_line(_text((row | {"samples": cell.samples})[name]) for name in TABLE)
            bar.write(line if failure is None else f"{line}  {failure}")
            write_csv(out, COLUMNS, rows)
    return rows


def _table_line(texts: Iterable[str]) -> str:
    return " ".join(f"{text:>{width}}" for text, width in zip(texts, TABLE.values(), strict=True))


def _text(value: object) -> str:
    return "-" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(_spelt(value))


def _spelt(value: object) -> object:
    """A switch as 0 or 1, like on the command line."""
    return int(value) if isinstance(value, bool) else value


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    """Writes these columns of rows; what is None stays empty, switches are 0 or 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_spelt(row[column]) for column in columns] for row in rows)
    outputs.write_text(path, text.getvalue())


def draw(rows: Sequence[dict]):
    """The figure: chunk against netchunk, MB in each cell, a panel for each combination of the rest."""
    from matplotlib.colors import LogNorm

    panels: dict[str, list[dict]] = {}
    for row in rows:
        panels.setdefault(_panel_title(row), []).append(row)
    chunks, netchunks = (list(dict.fromkeys(row[name] for row in rows)) for name in ("chunk", "netchunk"))
    width, height = max(3.9, 1.2 + 0.9 * len(netchunks)), 1.2 + 0.55 * len(chunks)
    across = max(1, min(len(panels), int(PICTURE_WIDTH / width)))
    down = -(-len(panels) // across)
    figure = drawing.new_figure(across * width, down * height)
    grid = figure.subplots(down, across, squeeze=False)
    measured = [row["measured_mb"] for row in rows if row["measured_mb"] is not None] or [1.0]
    norm = LogNorm(0.9 * max(min(measured), 1e-3), 1.1 * max(*measured, 1e-3))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, cells) in zip(grid.flat, panels.items(), strict=False):
        drawing.tidy(axes, title)
        axes.title.set_fontsize(9)
        values = np.full([len(chunks), len(netchunks)], np.nan)
        for row in cells:
            i, j = chunks.index(row["chunk"]), netchunks.index(row["netchunk"])
            if row["measured_mb"] is None:
                axes.text(j, i, "failed", ha="center", va="center", fontsize=9, color=drawing.RED)
                continue
            values[i, j] = row["measured_mb"]
            ink = "white" if norm(values[i, j]) > 0.6 else drawing.INK
            axes.text(j, i, _short(row["measured_mb"]), ha="center", va="bottom", fontsize=9, color=ink)
            axes.text(j, i + 0.06, _short(row["predicted_mb"]), ha="center", va="top", fontsize=6.5, color=ink)
        axes.imshow(values, cmap="Blues", norm=norm, aspect="auto")
        axes.set_xticks(range(len(netchunks)), netchunks)
        axes.set_yticks(range(len(chunks)), chunks)
        axes.set_xlabel("netchunk", fontsize=8)
        axes.set_ylabel("chunk", fontsize=8)
        axes.tick_params(labelsize=8, length=0)
    figure.suptitle("Peak MB on top of weights and batch; small: predicted", x=0.01, ha="left", fontsize=9)
    figure.tight_layout()
    return figure


def _short(megabytes: float) -> str:
    return f"{megabytes:,.0f}" if megabytes >= 100 else f"{megabytes:.3g}"


def _panel_title(row: dict) -> str:
    first = f"train, {row['rays']} rays" if row["mode"] == "train" else "render" + ", retraw" * row["retraw"]
    samples = f"{row['N_samples']}+{row['N_importance']} samples"
    return f"{first}, {samples}\n{row['precision']}, width {row['netwidth']}"


def compare_ways(cell: Cell, arguments: Sequence[str], out: Path) -> bool:
    """Accounts for a cell in both ways, prints the table and writes the CSV file; returns whether all went well."""
    rows, failures, table = [], [], {}
    for i, way in enumerate(tqdm(WAYS, unit="way", dynamic_ncols=True)):
        # The original knows float32 only.
        this = dataclasses.replace(cell, precision="float32") if way == "original" else cell
        told = ["--cell", json.dumps(dataclasses.asdict(this)), "--way", way, *arguments]
        records, failure = run_process(told)
        failures += [] if failure is None else [f"{way}: {failure}"]
        for stage in (Stage(**{"name": record.pop("name"), **record}) for record in records):
            rows.append(dataclasses.asdict(this) | stage._asdict() | {"way": way, "stage": stage.name})
            table.setdefault(stage.name, [None, None])[i] = stage
    print(
        f"\none chunk of {cell.rays} rays, {cell.samples} samples, netchunk {cell.netchunk}, raw "
        f"{'' if cell.retraw else 'not '}returned; MB\n"
        f"{'':20}{'original, float32':>24}{'this program, ' + cell.precision:>28}\n"
        f"{'stage':20}" + 2 * f"{'outputs':>12}{'peak':>12}{'':4}"
    )
    for name, stages in table.items():
        print(f"{name:20}" + "".join(_stage_text(stage) for stage in stages))
    largest = [max((row["peak_mb"] or 0.0 for row in rows if row["way"] == way), default=0.0) for way in WAYS]
    print(f"{'the whole':20}" + "".join(f"{'':12}{peak:12,.1f}{'':4}" for peak in largest))
    for failure in failures:
        print(failure)
    write_csv(out, STAGE_COLUMNS, rows)
    return not failures


def _stage_text(stage: Stage | None) -> str:
    if stage is None:
        return f"{'-':>12}{'-':>12}{'':4}"
    peak = "in a tile" if stage.peak_mb is None else f"{stage.peak_mb:,.1f}"
    return f"{stage.outputs_mb:12,.1f}{peak:>12}{'':4}"


# The command line


def numbers(low: int) -> Callable[[str], list[int]]:
    """Parses lists of whole numbers >= low."""

    def parse(text: str) -> list[int]:
        words = text.split(",")
        if not all(re.fullmatch(r"\d+", word) and int(word) >= low for word in words):
            raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers >= {low}, separated by commas")
        return list(dict.fromkeys(map(int, words)))

    return parse


def words(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Parses lists of some of the choices."""

    def parse(text: str) -> list[str]:
        found = text.split(",")
        if not set(found) <= set(choices):
            raise argparse.ArgumentTypeError(f"{text!r}: expected some of {', '.join(choices)}, separated by commas")
        return list(dict.fromkeys(found))

    return parse


def sample_pairs(text: str) -> list[tuple[int, int]]:
    """Parses lists of N_samples+N_importance."""
    pairs = [tuple(map(int, word.split("+"))) for word in text.split(",") if re.fullmatch(r"\d+\+\d+", word)]
    # The program's own bounds: a fine pass draws from what lies between the first and the last coarse sample.
    if len(pairs) != text.count(",") + 1 or any(coarse < (3 if fine else 2) for coarse, fine in pairs):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected N_samples+N_importance such as 64+128,64+0, separated by commas, N_samples at least 3"
        )
    return list(dict.fromkeys(pairs))


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The tool's own arguments, and those that are the program's."""
    usage = "%(prog)s [options] [flags of the program]"
    parser = commandline.Parser("profile_memory", __doc__, usage)
    switches = words(("0", "1"))
    add = parser.add_argument
    add("--modes", type=words(MODES), default=list(MODES), metavar="LIST", help="train,render (default: both)")
    add("--chunks", type=numbers(1), metavar="LIST", help="rays at once (default: 1024,32768)")
    add("--netchunks", type=numbers(1), metavar="LIST", help="points at once (default: 4096,16384,65536)")
    add("--rays", type=numbers(1), metavar="LIST", help="rays of a training step (default: N_rand)")
    add("--retraw", type=switches, default=["0", "1"], metavar="LIST", help="whether rendering returns raw: 0,1")
    add("--samples", type=sample_pairs, metavar="LIST", help="N_samples+N_importance (default: 64+64,64+128)")
    add("--precisions", type=words(PRECISIONS), metavar="LIST", help="(default: float32,bfloat16)")
    add("--netwidths", type=numbers(2), metavar="LIST", help="units in a layer of both networks (default: netwidth)")
    add(
        "--weights",
        choices=WEIGHTS,
        help="worst: every sample has density, which the planner reckons with; typical: those of --ft_path, or random "
        "ones (default: worst, but typical with --ft_path)",
    )
    add("--stages", action="store_true", help="account for one rendered chunk, by the first values of the lists")
    add("--out", type=Path, default=Path("memory_profile"), help="folder to write to (default: %(default)s)")
    add("--cell", help=argparse.SUPPRESS)
    add("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_known_args(argv)


def cells_of(args: argparse.Namespace, values: flags.FlagValues) -> list[Cell]:
    """All combinations of the lists; where there is no list, of the flag if that is set."""

    def of_flag(name: str, default: list) -> list:
        flag = values[name]
        return default if flag.using_default_value or flag.value == "auto" else [flag.value]

    chunks = args.chunks or of_flag("chunk", [1024, 32768])
    netchunks = args.netchunks or of_flag("netchunk", [4096, 16384, 65536])
    precisions = args.precisions or of_flag("mixed_precision", ["float32", "bfloat16"])
    widths = [(w, w) for w in args.netwidths or ()] or [(values.netwidth, values.netwidth_fine)]
    samples = args.samples
    if samples is None:
        given = of_flag("N_samples", []) or of_flag("N_importance", [])
        samples = [(values.N_samples, values.N_importance)] if given else [(64, 64), (64, 128)]
    cells = []
    for mode in args.modes:
        training = mode == "train"
        raws, rays = ["0"] if training else args.retraw, (args.rays or [values.N_rand]) if training else [None]
        for retraw, pair, precision, width, count, chunk, netchunk in itertools.product(
            raws, samples, precisions, widths, rays, chunks, netchunks
        ):
            count = count or chunk
            cells.append(Cell(mode, count, chunk, netchunk, *pair, retraw == "1", precision, *width))
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args, program_flags = _arguments(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    config.parse_flags(["profile_memory", "--expname=profile", *program_flags], values)
    weights = args.weights or ("typical" if values.ft_path is not None else "worst")
    if args.cell is not None:
        return run_cell(Cell(**json.loads(args.cell)), args.way, values, weights)
    arguments = ["--weights", weights, *program_flags]
    try:
        if weights == "typical" and values.ft_path is not None:
            tf1_weights.load(values.ft_path)  # says what is wrong with it once, not for every cell
        if args.stages:
            args.modes = ["render"]
            well, written = compare_ways(cells_of(args, values)[0], arguments, args.out / "stages.csv"), ["stages.csv"]
        else:
            drawing.new_figure(1, 1)  # an hour later would be late to say that matplotlib is missing
            rows = sweep(cells_of(args, values), values.netdepth, arguments, args.out / "profile.csv")
            drawing.save(draw(rows), args.out / "profile.png")
            well, written = all(row["failure"] is None for row in rows), ["profile.csv", "profile.png"]
    except (ValueError, OSError) as error:
        return commandline.fail("profile_memory", error)
    except KeyboardInterrupt:
        return commandline.fail("profile_memory", f"stopped; {args.out} holds what was measured", 130)
    for name in written:
        print(args.out / name)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
