"""Draws loss and PSNR of one or several runs over their steps, from their TensorBoard summaries.

    python tools/plot_curve.py logs/demo
    python tools/plot_curve.py logs/lego_test logs/fern_test --out curves.png

A run is its folder {basedir}/{expname}; its summaries are in {basedir}/summaries/{expname}. Pale lines are logged
values, strong lines a moving average. Prints the picture's path. A training run updates such a picture itself:
{basedir}/{expname}/curve.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from support import commandline

from nerf_tf.output import curve, figures
from nerf_tf.storage.run_folder import summaries_folder


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("plot_curve", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, {basedir}/{expname}")
    parser.add_argument("--out", type=Path, help="the picture; curve.png in the first run's folder if not given")
    return parser.parse_args(argv)


def _read_curves(run: Path) -> dict[str, curve.Curve]:
    """Reads a run's curves; raises FileNotFoundError or ValueError if it has none."""
    folder = summaries_folder(run)
    if not any(folder.glob("*tfevents*")):
        raise FileNotFoundError(f"{folder}: no TensorBoard event files; give a run's folder, {{basedir}}/{{expname}}")
    curves = curve.History(folder).curves()
    if not curves:
        raise ValueError(f"{folder}: holds none of {', '.join(curve.TAGS)}; was the run's --i_print 0?")
    return curves


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    out = args.out or args.runs[0] / "curve.png"
    try:
        runs = [run.resolve() for run in args.runs]
        names = [run.name for run in runs]
        if len(set(names)) < len(names):  # runs of one name in several basedirs
            names = [str(run) for run in args.runs]
        curves = {n: _read_curves(run) for n, run in zip(names, runs, strict=True)}
        figures.save(curve.draw_curves(curves), out)
    except (ValueError, OSError) as error:
        return commandline.fail("plot_curve", error)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
