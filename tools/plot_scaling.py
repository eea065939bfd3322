"""Draws how well training steps scale over GPUs, by a model: a step's time, and that of adding up its gradients.

    python tools/plot_scaling.py --step_ms 5.05 --fixed_ms 1.3 --megabytes 4.77 --out scaling.png

A step on one GPU takes `fixed + rays * slope`. A ring of N GPUs adds up B bytes in 2 (N - 1) / N * B / bandwidth +
2 (N - 1) * latency, after the gradients and before the weights move, so that nothing overlaps. Efficiency is rays per
second and GPU, as a part of those of one GPU. Left: each GPU takes as many rays as one GPU did; right: all of them
together do, as --distribute splits N_rand. This is a model; nothing of it was measured on several GPUs. Prints a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from support import commandline

from nerf_tf.output import figures

GPUS = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects GPUs: gigabytes per second in one direction, and microseconds for a hop (assumed)."""

    name: str
    bandwidth: float
    latency: float


# Rates as their makers state them, in one direction.
LINKS = (
    Link("NVLink, 450 GB/s", 450.0, 5.0),
    Link("PCIe 4.0, 32 GB/s", 32.0, 10.0),
    Link("100 Gbit/s network", 12.5, 20.0),
    Link("10 Gbit/s network", 1.25, 50.0),
)


@dataclasses.dataclass(frozen=True)
class Step:
    """A step on one GPU: its milliseconds, those of them that rays do not change, and its gradients' MB."""

    milliseconds: float
    fixed: float
    megabytes: float


def all_reduce_ms(megabytes: float, gpus: int, link: Link) -> float:
    """Milliseconds in which a ring of GPUs adds up so many megabytes (10^6 bytes)."""
    return 2 * (gpus - 1) / gpus * megabytes / link.bandwidth + 2 * (gpus - 1) * link.latency / 1000


def efficiency(step: Step, gpus: int, link: Link, together: bool) -> float:
    """Rays per second and GPU, as a part of those of one GPU.

    Args:
        step: the step on one GPU.
        gpus: their number.
        link: what connects them.
        together: whether all of them take the rays of that step, rather than each.
    """
    own = step.fixed + (step.milliseconds - step.fixed) / (gpus if together else 1)
    taken = own + all_reduce_ms(step.megabytes, gpus, link)
    return step.milliseconds / (taken * (gpus if together else 1))


def draw(step: Step):
    """Draws efficiency over the number of GPUs for each link; returns the figure."""
    figure = figures.new_figure(9, 3.6)
    colours = (figures.BLUE, figures.GREEN, figures.ORANGE, figures.RED)
    for i, (title, together) in enumerate((("as many rays on each GPU", False), ("as many rays in all", True))):
        axes = figure.add_subplot(1, 2, i + 1)
        for link, colour in zip(LINKS, colours, strict=True):
            values = [100 * efficiency(step, gpus, link, together) for gpus in GPUS]
            axes.plot(GPUS, values, "o-", color=colour, markersize=3, label=link.name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
        axes.set_ylim(0, 105)
        axes.set_xlabel("GPUs")
        axes.set_ylabel("efficiency, % (model)")
        axes.grid(visible=True)
        figures.style_axes(axes, title)
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def table(step: Step) -> str:
    """The same numbers in per cent, as a table of Markdown."""
    lines = ["| link, rays | " + " | ".join(map(str, GPUS)) + " |", "| --- |" + " --- |" * len(GPUS)]
    for together in (False, True):
        for link in LINKS:
            values = [f"{100 * efficiency(step, gpus, link, together):.0f}" for gpus in GPUS]
            lines.append(f"| {link.name}, {'in all' if together else 'on each'} | {' | '.join(values)} |")
    return "\n".join(lines)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("plot_scaling", __doc__)
    parser.add_argument("--step_ms", type=float, required=True, help="milliseconds of a step on one GPU")
    parser.add_argument("--fixed_ms", type=float, default=0.0, help="of them, those that take no part in the splitting")
    parser.add_argument("--megabytes", type=float, required=True, help="of gradients, 10^6 bytes")
    parser.add_argument("--out", type=Path, default=Path("scaling.png"), help="the picture")
    args = parser.parse_args(argv)
    if not 0 <= args.fixed_ms < args.step_ms or args.megabytes <= 0:
        parser.error("expected --step_ms > --fixed_ms >= 0 and --megabytes > 0")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    step = Step(args.step_ms, args.fixed_ms, args.megabytes)
    try:
        figures.save(draw(step), args.out)
    except (ValueError, OSError) as error:
        return commandline.fail("plot_scaling", error)
    print(table(step))
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
