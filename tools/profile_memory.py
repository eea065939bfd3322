"""Measures the memory of training steps and rendered chunks, for all combinations of the listed settings.

    python tools/profile_memory.py --config configs/paper/llff.txt --chunks 1024,32768 --netchunks 4096,16384
    python tools/profile_memory.py --use_viewdirs --modes train --rays 1024,4096 --samples 64+128 --netwidths 256,128
    python tools/profile_memory.py --config configs/paper/llff.txt --stages --chunks 4096 --netchunks 65536

Every flag of the program may be given and means what it means there. No scene is needed: rays are random. Without a
list, the values of --chunk, --netchunk, --N_samples and --N_importance, and --mixed_precision are used if the command
line or the --config file sets them.

Each combination is measured in its own process, on the first GPU or, without one, the CPU: the allocator's peak in MB
(10^6 bytes) during the second step or chunk, above what weights, moments and batch take. The table gives the planner's
prediction beside it, and their ratio. --stages measures the stages of one chunk instead, in the order of the original
code and of this program. Prints a table, and writes profile.csv and the heatmap profile.png, or stages.csv. The exit
code is 1 if anything could not be measured.

TensorFlow counts what its allocator hands out. That is up to twice what was requested, because it does not split pieces
for a small remainder; on a CPU it does not count tensors below 256 KiB.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from support import commandline
from support.memory_measurement import WAYS, Cell, run_cell
from tqdm import tqdm

import nerf_tf
from nerf_tf.memory.meter import Stage
from nerf_tf.output import figures
from nerf_tf.settings import parsing
from nerf_tf.settings.options import OPTIONS
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import atomic, tf1_weights

PROGRAM = Path(__file__).resolve()
MODES, WEIGHTS = ("train", "render"), ("typical", "worst")
PRECISIONS = OPTIONS["mixed_precision"].choices
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


def run_process(arguments: Sequence[str]) -> tuple[list[dict], str | None]:
    """Runs this program in a new process; returns the JSON it printed, and the reason if it failed."""
    path = os.pathsep.join(filter(None, [str(Path(nerf_tf.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "PYTHONPATH": path, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    command = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return records, describe_failure(done.returncode, done.stderr)


def describe_failure(code: int, stderr: str) -> str | None:
    """The reason for a process's exit code (negative: a signal) in one line; None for 0."""
    if code == 0:
        return None
    if code == -signal.SIGKILL:
        return "killed by the system, most likely out of memory"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    reason = (errors or lines or ["no message"])[-1]
    return f"ended by signal {-code} ({signal.strsignal(-code)}): {reason}" if code < 0 else reason


def sweep(cells: Sequence[Cell], netdepth: int, arguments: Sequence[str], out: Path) -> list[dict]:
    """Measures the cells; writes the CSV file after each.

    Args:
        cells: what to measure.
        netdepth: layers of the networks, for the file.
        arguments: further arguments of the processes.
        out: the CSV file.

    Returns:
        Rows of `COLUMNS`; unknown values are None.
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
    return "-" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(_switch_as_number(value))


def _switch_as_number(value: object) -> object:
    """A switch as 0 or 1, as on the command line."""
    return int(value) if isinstance(value, bool) else value


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    """Writes these columns of rows; None is empty, switches are 0 or 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_switch_as_number(row[column]) for column in columns] for row in rows)
    atomic.write_text(path, text.getvalue())


def draw(rows: Sequence[dict]):
    """Draws MB over chunk and netchunk, a panel for each combination of the other settings."""
    from matplotlib.colors import LogNorm

    panels: dict[str, list[dict]] = {}
    for row in rows:
        panels.setdefault(_panel_title(row), []).append(row)
    chunks, netchunks = (list(dict.fromkeys(row[name] for row in rows)) for name in ("chunk", "netchunk"))
    width, height = max(3.9, 1.2 + 0.9 * len(netchunks)), 1.2 + 0.55 * len(chunks)
    across = max(1, min(len(panels), int(PICTURE_WIDTH / width)))
    down = -(-len(panels) // across)
    figure = figures.new_figure(across * width, down * height)
    grid = figure.subplots(down, across, squeeze=False)
    measured = [row["measured_mb"] for row in rows if row["measured_mb"] is not None] or [1.0]
    norm = LogNorm(0.9 * max(min(measured), 1e-3), 1.1 * max(*measured, 1e-3))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, cells) in zip(grid.flat, panels.items(), strict=False):
        figures.style_axes(axes, title)
        axes.title.set_fontsize(9)
        values = np.full([len(chunks), len(netchunks)], np.nan)
        for row in cells:
            i, j = chunks.index(row["chunk"]), netchunks.index(row["netchunk"])
            if row["measured_mb"] is None:
                axes.text(j, i, "failed", ha="center", va="center", fontsize=9, color=figures.RED)
                continue
            values[i, j] = row["measured_mb"]
            ink = "white" if norm(values[i, j]) > 0.6 else figures.INK
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
    """Measures a cell's stages in both ways, prints and writes the table; returns whether all went well."""
    rows, failures, table = [], [], {}
    for i, way in enumerate(tqdm(WAYS, unit="way", dynamic_ncols=True)):
        # The original computes in float32 only.
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
    """This tool's own arguments, and the flags of the program."""
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


def list_cells(args: argparse.Namespace, settings: Settings) -> list[Cell]:
    """All combinations of the lists; without a list the flag's value, if it is set."""

    def of_flag(name: str, default: list) -> list:
        value = getattr(settings, name)
        return [value] if name in settings.from_command_line | settings.from_file and value != "auto" else default

    chunks = args.chunks or of_flag("chunk", [1024, 32768])
    netchunks = args.netchunks or of_flag("netchunk", [4096, 16384, 65536])
    precisions = args.precisions or of_flag("mixed_precision", ["float32", "bfloat16"])
    widths = [(w, w) for w in args.netwidths or ()] or [(settings.netwidth, settings.netwidth_fine)]
    samples = args.samples
    if samples is None:
        given = of_flag("N_samples", []) or of_flag("N_importance", [])
        samples = [(settings.N_samples, settings.N_importance)] if given else [(64, 64), (64, 128)]
    cells = []
    for mode in args.modes:
        training = mode == "train"
        raws, rays = ["0"] if training else args.retraw, (args.rays or [settings.N_rand]) if training else [None]
        for retraw, pair, precision, width, count, chunk, netchunk in itertools.product(
            raws, samples, precisions, widths, rays, chunks, netchunks
        ):
            count = count or chunk
            cells.append(Cell(mode, count, chunk, netchunk, *pair, retraw == "1", precision, *width))
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args, program_flags = _arguments(sys.argv[1:] if argv is None else argv)
    settings = parsing.parse_settings(["--expname=profile", *program_flags])
    weights = args.weights or ("typical" if settings.ft_path is not None else "worst")
    if args.cell is not None:
        return run_cell(Cell(**json.loads(args.cell)), args.way, settings, weights)
    arguments = ["--weights", weights, *program_flags]
    try:
        if weights == "typical" and settings.ft_path is not None:
            tf1_weights.load(settings.ft_path)  # fails once here rather than for every cell
        if args.stages:
            args.modes = ["render"]
            well, written = (
                compare_ways(list_cells(args, settings)[0], arguments, args.out / "stages.csv"),
                ["stages.csv"],
            )
        else:
            figures.new_figure(1, 1)  # fails now, not after an hour, if matplotlib is missing
            rows = sweep(list_cells(args, settings), settings.netdepth, arguments, args.out / "profile.csv")
            figures.save(draw(rows), args.out / "profile.png")
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
