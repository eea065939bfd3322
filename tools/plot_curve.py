"""Draws loss and PSNR of one or several runs over their steps, from what they wrote for TensorBoard.

    python tools/plot_curve.py logs/demo
    python tools/plot_curve.py logs/lego_test logs/fern_test --out curves.png

A run is its folder {basedir}/{expname}; its summaries lie in {basedir}/summaries/{expname}. The pale lines are what was
logged, the strong ones a moving average. Prints the picture's path.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import drawing
import numpy as np

TAGS = ("loss", "psnr", "psnr_holdout")
COLOURS = (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.RED)
SMOOTHED_PART = 0.1  # of a curve's points: the span of the moving average

# Steps and values, both [N].
Curve = tuple[np.ndarray, np.ndarray]


def summaries_folder(run: Path) -> Path:
    """Where the run in {basedir}/{expname} writes for TensorBoard."""
    run = run.resolve()
    return run.parent / "summaries" / run.name


def read_curves(folder: Path) -> dict[str, Curve]:
    """Reads the scalars of `TAGS` from event files; those that were never written are left out.

    Where a run was resumed from an earlier step, what was written last for a step counts.

    Raises:
        FileNotFoundError: the folder holds no event files.
        ValueError: it holds none of the scalars.
    """
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    if not any(folder.glob("*tfevents*")):
        raise FileNotFoundError(f"{folder}: no TensorBoard event files; give a run's folder, {{basedir}}/{{expname}}")
    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0}).Reload()
    curves = {}
    for tag in TAGS:
        if tag in events.Tags()["tensors"]:
            written = sorted(events.Tensors(tag), key=lambda event: event.wall_time)
            last = {event.step: float(make_ndarray(event.tensor_proto)) for event in written}
            steps = np.array(sorted(last))
            curves[tag] = steps, np.array([last[step] for step in steps])
    if not curves:
        raise ValueError(f"{folder}: holds none of {', '.join(TAGS)}; was the run's --i_print 0?")
    return curves


def smooth(values: np.ndarray) -> np.ndarray:
    """Moving average [N] over as many neighbours on either side; at the ends over fewer, so that it does not lag."""
    half = int(SMOOTHED_PART * len(values) / 2 + 0.5)
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    i = np.arange(len(values))
    reach = np.minimum(half, np.minimum(i, i[::-1]))
    first, last = i - reach, i + reach + 1
    with np.errstate(invalid="ignore"):
        return (total[last] - total[first]) / (count[last] - count[first])


def draw(runs: dict[str, dict[str, Curve]]):
    """The figure, for curves by run and tag: loss on a logarithmic axis, PSNR of batches and of held-out views."""
    figure = drawing.new_figure(11.0, 4.2)
    loss, psnr = figure.subplots(1, 2)
    drawing.tidy(loss, "Loss: mean squared error, coarse + fine")
    drawing.tidy(psnr, "PSNR in dB: lines are training batches, dots held-out views")
    loss.set_yscale("log")
    for i, (name, curves) in enumerate(runs.items()):
        colour = COLOURS[i % len(COLOURS)]
        for axes, tag in ((loss, "loss"), (psnr, "psnr")):
            if tag in curves:
                steps, values = curves[tag]
                axes.plot(steps, values, color=colour, lw=0.8, alpha=0.3)
                axes.plot(steps, smooth(values), color=colour, lw=1.8, label=name)
        if "psnr_holdout" in curves:
            psnr.plot(*curves["psnr_holdout"], "o", color=colour, ms=5, mec="white", mew=0.8)
    for axes in (loss, psnr):
        axes.grid(lw=0.6)
        axes.set_xlabel("step")
    psnr.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    return figure


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, {basedir}/{expname}")
    parser.add_argument("--out", type=Path, help="the picture; curve.png in the first run's folder if not given")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    out = args.out or args.runs[0] / "curve.png"
    try:
        names = [run.resolve().name for run in args.runs]
        if len(set(names)) < len(names):  # runs of one name in several basedirs
            names = [str(run) for run in args.runs]
        curves = {name: read_curves(summaries_folder(run)) for name, run in zip(names, args.runs, strict=True)}
        drawing.save(draw(curves), out)
    except (ValueError, OSError) as error:
        print(f"plot_curve: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
