"""The training curve: loss and PSNR by step, read from TensorBoard's files and drawn as `curve.png`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from nerf_tf.output import figures

logger = logging.getLogger(__name__)

TAGS = ("loss", "psnr", "psnr_holdout")
COLOURS = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.RED)
SMOOTHED_SHARE = 0.1  # span of the moving average, as a share of the curve's points
# Most points of a line, about one a pixel; drawing all points of a long run would take a second.
MAX_POINTS = 2000

# Steps and values, both [N].
Curve = tuple[np.ndarray, np.ndarray]


class History:
    """The values of each of `TAGS` by step; a later value for the same step replaces the earlier one."""

    def __init__(self, folder: Path, before: int | None = None):
        """Reads the event files of a folder; with `before`, only steps below it.

        Events are read one by one, so that images in the files need no memory. A truncated file, as a killed run
        leaves it, is read up to its end.
        """
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        written = []
        for path in filter(Path.is_file, folder.glob("*tfevents*")):
            try:
                for event in EventFileLoader(str(path)).Load():
                    if before is None or event.step < before:
                        written += [(event.wall_time, event.step, *scalar) for scalar in _scalars(event)]
            except (tf.errors.OpError, DecodeError, ValueError) as error:
                logger.warning("%s: the rest is left out (%s)", path, str(error).partition("\n")[0][:160])
        self._values: dict[str, dict[int, float]] = {tag: {} for tag in TAGS}
        for _, step, tag, value in sorted(written):
            self.add(step, **{tag: value})

    def add(self, step: int, **values: float) -> None:
        """Adds the values whose names are in `TAGS`."""
        for tag in TAGS:
            if tag in values:
                self._values[tag][step] = float(values[tag])

    def curves(self) -> dict[str, Curve]:
        """Curves by tag; tags without a value are absent."""
        return {
            tag: (np.array(sorted(values)), np.array([values[step] for step in sorted(values)]))
            for tag, values in self._values.items()
            if values
        }


def _scalars(event) -> Iterator[tuple[str, float]]:
    """Yields the event's tags in `TAGS` and their numbers; skips values that are no numbers."""
    from tensorboard.util.tensor_util import make_ndarray

    for value in event.summary.value:
        if value.tag in TAGS and all(axis.size == 1 for axis in value.tensor.tensor_shape.dim):
            with contextlib.suppress(TypeError, ValueError):
                yield value.tag, float(np.squeeze(make_ndarray(value.tensor)))


def smooth(values: np.ndarray) -> np.ndarray:
    """Moving average [N], centred at each point; towards the ends its span shrinks."""
    half = int(SMOOTHED_SHARE * len(values) / 2 + 0.5)
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    i = np.arange(len(values))
    reach = np.minimum(half, np.minimum(i, i[::-1]))
    first, last = i - reach, i + reach + 1
    with np.errstate(invalid="ignore"):
        return (total[last] - total[first]) / (count[last] - count[first])


def draw_curves(runs: dict[str, dict[str, Curve]]):
    """Draws curves by run and tag: loss on a logarithmic axis, PSNR of batches and of held-out views.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure = figures.new_figure(11.0, 4.2)
    loss, psnr = figure.subplots(1, 2)
    figures.style_axes(loss, "Loss: mean squared error, coarse + fine")
    figures.style_axes(psnr, "PSNR in dB: lines are training batches, dots held-out views")
    loss.set_yscale("log")
    for i, (name, curves) in enumerate(runs.items()):
        colour = COLOURS[i % len(COLOURS)]
        for axes, tag in ((loss, "loss"), (psnr, "psnr")):
            if tag in curves:
                steps, values = curves[tag]
                shown = slice(None, None, -(-len(steps) // MAX_POINTS))
                axes.plot(steps[shown], values[shown], color=colour, lw=0.8, alpha=0.3)
                axes.plot(steps[shown], smooth(values)[shown], color=colour, lw=1.8, label=name)
        if "psnr_holdout" in curves:
            psnr.plot(*curves["psnr_holdout"], "o", color=colour, ms=5, mec="white", mew=0.8)
    for axes in (loss, psnr):
        axes.grid(lw=0.6)
        axes.set_xlabel("step")
        axes.locator_params(axis="x", nbins=6)  # step numbers are wide
    if psnr.get_legend_handles_labels()[0]:
        psnr.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    return figure


class CurveFile(History):
    """`curve.png` of a training run; it is not drawn where matplotlib is not installed."""

    def __init__(self, path: Path, summaries: Path, start: int):
        """Reads what the run wrote to the TensorBoard folder `summaries` before step `start`."""
        super().__init__(summaries, before=start)
        self._path, self._name = path, summaries.name
        try:
            figures.new_figure(1, 1)
            self._drawable = True
        except ValueError as error:
            self._drawable = False
            logger.info("no %s while training: %s", path.name, error)

    def write(self) -> None:
        """Draws all values so far, if there are any.

        Raises:
            OSError: it cannot be drawn or written.
        """
        curves = self.curves()
        if self._drawable and curves:
            try:
                figures.save(draw_curves({self._name: curves}), self._path)
            except OSError:
                raise
            except Exception as error:  # anything that matplotlib raises
                raise OSError(f"{self._path}: cannot be drawn ({error or type(error).__name__})") from error
