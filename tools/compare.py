"""Compares the test views' scores of several runs, and the paper's, in one table.

    python tools/compare.py logs/lego_test logs/fern_test
    python tools/compare.py logs/lego_test --out comparison.md

Reads metrics.json in each run's folder, which the program writes when it renders the test views at full size;
`--eval_only` does only that. Scores are means over the test views, of the saved 8-bit images. A run belongs to a scene
of the paper if dataset_type and the last part of datadir are that scene's. Prints the table; --out also writes it.
"""

from __future__ import annotations

import argparse
import json
import reprlib
import sys
from collections.abc import Sequence
from pathlib import Path

from support import commandline

from nerf_tf.settings import parsing
from nerf_tf.storage import atomic, readers

# Dataset type and scene: mean PSNR and SSIM of the paper's full model, from the tables in its appendix.
PAPER = {
    ("blender", "chair"): (33.00, 0.967),
    ("blender", "drums"): (25.01, 0.925),
    ("blender", "ficus"): (30.13, 0.964),
    ("blender", "hotdog"): (36.18, 0.974),
    ("blender", "lego"): (32.54, 0.961),
    ("blender", "materials"): (29.62, 0.949),
    ("blender", "mic"): (32.91, 0.980),
    ("blender", "ship"): (28.65, 0.856),
    ("llff", "room"): (32.70, 0.948),
    ("llff", "fern"): (25.17, 0.792),
    ("llff", "leaves"): (20.92, 0.690),
    ("llff", "fortress"): (31.16, 0.881),
    ("llff", "orchids"): (20.36, 0.641),
    ("llff", "flower"): (27.40, 0.827),
    ("llff", "trex"): (26.80, 0.880),
    ("llff", "horns"): (27.45, 0.828),
}
PAPER_SIZE = {"blender": (800, 800), "llff": (756, 1008)}  # height, width
PAPER_VIEWS = {"blender": 200}

# A row of the table: the value under each heading, or None if it is unknown.
Row = dict[str, str | int | float | None]
MEASURES = {"PSNR": "psnr_8bit", "float PSNR": "psnr_float", "SSIM": "ssim", "LPIPS": "lpips"}
# Characters in a metrics.json: room for some 50,000 views.
LARGEST_TEXT = 2**22
FORMATS = {"PSNR": ".2f", "float PSNR": ".2f", "SSIM": ".3f", "LPIPS": ".3f", "s/view": ".2f"}


def read_metrics(run: Path) -> dict:
    """Reads a run's metrics.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it was not written by the program.
    """
    path = run / "metrics.json"
    metrics = readers.read_json(path, LARGEST_TEXT, "; the run with --eval_only writes it")
    if not isinstance(metrics, dict) or _mean(metrics, "psnr_8bit") is None:
        raise ValueError(f"{path}: holds no PSNR of test views (psnr_8bit); run --eval_only again")
    for name in ("scene", "dataset_type", "step", "views", "height", "width"):
        if not isinstance(metrics.get(name), str | int | float | None):
            raise ValueError(f"{path}: its {name} is {reprlib.repr(metrics[name])}; run --eval_only again")
    numbers = {name: _mean(metrics, name) for name in MEASURES.values()}
    for name, value in (numbers | {"seconds_per_view": metrics.get("seconds_per_view")}).items():
        if value is not None:
            readers.parse_number(value, f"{path}: its {name}")
    return metrics


def _mean(metrics: dict, name: str) -> float | None:
    measure = metrics.get(name)
    mean = measure.get("mean") if isinstance(measure, dict) else None
    return mean if isinstance(mean, int | float) else None


def run_row(name: str, metrics: dict) -> Row:
    """A run's row of the table."""
    height, width = metrics.get("height"), metrics.get("width")
    how = metrics.get("rendered_with")
    if isinstance(how, dict):  # unusual settings are added to the run's name
        marks = [
            str(how[name]) for name in ("field", "mixed_precision") if how.get(name) not in (None, "mlp", "float32")
        ]
        marks += ["occupancy"] if how.get("occupancy") else []
        name += f" ({', '.join(marks)})" if marks else ""
    row: Row = {"run": name, "scene": metrics.get("scene"), "step": metrics.get("step"), "views": metrics.get("views")}
    row["size"] = None if None in (height, width) else f"{width}x{height}"
    row |= {heading: _mean(metrics, measure) for heading, measure in MEASURES.items()}
    return row | {"s/view": metrics.get("seconds_per_view")}


def paper_row(kind: str, scene: str) -> Row:
    """The paper's row for a scene."""
    psnr, ssim = PAPER[kind, scene]
    height, width = PAPER_SIZE[kind]
    row: Row = {
        "run": "paper",
        "scene": scene,
        "step": None,
        "views": PAPER_VIEWS.get(kind),
        "size": f"{width}x{height}",
    }
    return row | {"PSNR": psnr, "float PSNR": None, "SSIM": ssim, "LPIPS": None, "s/view": None}


def rows(runs: dict[str, dict]) -> list[Row]:
    """All rows, ordered by scene; the paper's row comes last of each of its scenes."""
    scenes: dict[tuple, list[Row]] = {}
    for name, metrics in runs.items():
        key = metrics.get("dataset_type"), metrics.get("scene")
        scenes.setdefault(key, []).append(run_row(name, metrics))
    table = []
    for key, found in scenes.items():
        table += found + ([paper_row(*key)] if key in PAPER else [])
    return table


def cells(table: Sequence[Row]) -> list[list[str]]:
    """The cells of the table as text, headings first."""
    lines = [list(table[0])]
    for row in table:
        texts = ("" if x is None else format(x, FORMATS.get(heading, "")) for heading, x in row.items())
        lines.append([parsing.one_line(text) for text in texts])
    return lines


def terminal_text(table: Sequence[Row]) -> str:
    """The table in aligned columns."""
    lines = cells(table)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded) + "\n"


def markdown_text(table: Sequence[Row]) -> str:
    """The table in Markdown."""
    headings, *lines = cells(table)
    rule = ["---", "---"] + ["---:"] * (len(headings) - 2)
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, rule, *lines))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("compare", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, {basedir}/{expname}")
    parser.add_argument("--out", type=Path, help="also write the table: a file ending in .md or .json")
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix not in (".md", ".json"):
        parser.error(f"--out {args.out}: its name must end in .md or .json")
    return args


def write(path: Path, table: Sequence[Row]) -> None:
    """Writes the table as Markdown or JSON, as the file's ending says."""
    text = markdown_text(table) if path.suffix == ".md" else json.dumps(table, indent=2) + "\n"
    atomic.write_text(path, text)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    try:
        names = [run.resolve().name for run in args.runs]
        if len(set(names)) < len(names):  # runs of one name in several basedirs
            names = [str(run) for run in args.runs]
        table = rows({name: read_metrics(run) for name, run in zip(names, args.runs, strict=True)})
        print(terminal_text(table), end="")
        if args.out is not None:
            write(args.out, table)
    except (ValueError, OSError) as error:
        return commandline.fail("compare", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
