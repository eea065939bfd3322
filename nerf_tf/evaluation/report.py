"""The evaluation of test views against their photos, as a table in the log and as `metrics.json`."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from nerf_tf.evaluation import lpips, metrics
from nerf_tf.output import view_files
from nerf_tf.render.renderer import Image
from nerf_tf.storage import atomic
from nerf_tf.storage.image_reader import read_images

logger = logging.getLogger(__name__)

# Headings and formats of the table's columns.
COLUMNS = {"psnr_8bit": "PSNR", "psnr_float": "float PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
_FORMATS = {"psnr_8bit": "{:.3f}", "psnr_float": "{:.3f}", "ssim": "{:.4f}", "lpips": "{:.4f}"}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of test views against their photos.

    Attributes:
        folder: the folder of the views `NNN.png`.
        height, width: of every view.
        scores: name of the metric -> its value for each view. `psnr_8bit`, `ssim` and `lpips` compare the saved 8-bit
            images, `psnr_float` the images before rounding. Metrics that cannot be computed are absent.
        seconds_per_view: time to render and write a view; for views rendered at once, their time divided by their
            number. The median, as the first view also traces graphs. None if views were not rendered.
    """

    folder: Path
    height: int
    width: int
    scores: dict[str, list[float]]
    seconds_per_view: float | None = None

    def summary(self) -> dict[str, object]:
        """The entries of metrics.json: number and size of views, and for each metric its mean and values."""
        summary: dict[str, object] = {"folder": str(self.folder), "views": len(self.scores["psnr_8bit"])}
        summary |= {"height": self.height, "width": self.width, "seconds_per_view": self.seconds_per_view}
        for name, values in self.scores.items():
            summary[name] = {"mean": _json_number(np.mean(values)), "views": [_json_number(value) for value in values]}
        return summary

    def table(self) -> str:
        """The table: a line for each view and one for the mean."""
        names = [name for name in COLUMNS if name in self.scores]
        views = np.transpose([self.scores[name] for name in names])  # [N, metrics]
        lines = [["view", *(COLUMNS[name] for name in names)]]
        for title, row in [*((f"{i:03d}", row) for i, row in enumerate(views)), ("mean", views.mean(axis=0))]:
            lines.append([title, *(_FORMATS[name].format(x) for name, x in zip(names, row, strict=True))])
        return "\n".join(f"{title:4}" + "".join(f"{cell:>12}" for cell in cells) for title, *cells in lines)


def _json_number(value: float) -> float | None:
    """Replaces infinity (the PSNR of equal images) and NaN by None, as JSON has neither."""
    return float(value) if np.isfinite(value) else None


def write_and_score_views(
    folder: Path, images: Iterable[Image], photos: Sequence[np.ndarray], save_arrays: bool, at_once: int = 1
) -> tuple[view_files.VideoBuffer, Evaluation]:
    """Writes test views as `view_files.write_views` does, and scores them with photos [H, W, 3].

    `at_once` is how many views are rendered at a time.
    """
    float_psnrs: list[float] = []
    times = [time.perf_counter()]

    def add_float_psnrs() -> Iterator[Image]:
        for image, photo in zip(images, photos, strict=True):
            float_psnrs.append(metrics.psnr(image.rgb, photo))
            yield image
            times.append(time.perf_counter())

    frames = view_files.write_views(folder, add_float_psnrs(), save_arrays)
    scores = {"psnr_float": float_psnrs} | score_views(frames.rgb, photos)
    ends = np.append(np.arange(0, len(photos), at_once), len(photos))
    seconds = np.median(np.diff(np.array(times)[ends]) / np.diff(ends))
    return frames, Evaluation(folder, *photos[0].shape[:2], scores, float(seconds))


def score_folder(folder: Path, photos: Sequence[np.ndarray]) -> Evaluation:
    """Scores the views `NNN.png` of a folder with photos [H, W, 3].

    Raises:
        FileNotFoundError: a view is missing.
        ValueError: there are more views than photos, a view cannot be read, or sizes differ.
    """
    return Evaluation(folder, *photos[0].shape[:2], score_views(read_views(folder, photos), photos))


def read_views(folder: Path, photos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Reads the 8-bit views `NNN.png` of a folder, one for each photo [H, W, 3]; errors as `score_folder`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of rendered views")
    count = len(list(folder.glob("[0-9]*.png")))
    if count > len(photos):
        raise ValueError(f"{folder}: {count} views for {len(photos)} test photos; was datadir or testskip changed?")
    views = read_images([folder / f"{i:03d}.png" for i in range(len(photos))])
    if views.shape[1:] != photos[0].shape:
        (height, width, channels), expected = views.shape[1:], photos[0].shape
        raise ValueError(
            f"{folder}: views of {width}x{height} with {channels} channels for photos of {expected[1]}x{expected[0]} "
            "with 3; render again with --render_factor 0 and without --render_width, or check --half_res and --factor"
        )
    return [metrics.round_to_8bit(view) for view in views]


def score_views(views: Sequence[np.ndarray], photos: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Computes all metrics of each 8-bit view [H, W, 3] with its photo, rounded to 8 bits."""
    functions = choose_metrics(*photos[0].shape[:2])
    scores: dict[str, list[float]] = {name: [] for name in functions}
    pairs = zip(views, photos, strict=True)
    for view, photo in tqdm(pairs, desc="comparing", total=len(photos), unit="view", delay=0.5):
        reference = metrics.round_to_8bit(photo)
        for name in list(scores):
            try:
                scores[name].append(functions[name](view, reference))
            except tf.errors.ResourceExhaustedError:  # must not end a run that took days
                logger.warning("no %s: not enough memory for images of that size", COLUMNS[name])
                del scores[name]
    return scores


def choose_metrics(height: int, width: int) -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    """The metrics that can be computed for images of this size; the log says which are left out, and why."""
    functions: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"psnr_8bit": metrics.psnr}
    side = min(height, width)
    if side >= metrics.SSIM_WINDOW:
        functions["ssim"] = metrics.ssim
    else:
        logger.info("no SSIM: it needs %d pixels a side", metrics.SSIM_WINDOW)
    try:
        if side < lpips.SMALLEST_SIDE:
            raise ValueError(f"it needs {lpips.SMALLEST_SIDE} pixels a side")
        functions["lpips"] = lpips.load()
    except (ValueError, OSError) as error:
        logger.info("no LPIPS: %s", error)
    return functions


def weights_step(folder: Path) -> int | None:
    """Reads the step of the weights from the name of a folder of test views; None for other names.

    A run names the folder `testset_{step}` after the weights, but `renderonly_test_{step}` after the next step.
    """
    match = re.fullmatch(r"(testset|renderonly_test)_(\d+)", folder.resolve().name)
    return match and int(match[2]) - (match[1] == "renderonly_test")


def write_report(path: Path, run_info: Mapping[str, object], evaluation: Evaluation) -> None:
    """Logs the table and writes metrics.json; `run_info` has at least scene, step and white_bkgd."""
    step = "unknown" if run_info["step"] is None else run_info["step"]
    seconds = evaluation.seconds_per_view
    logger.info(
        "test views of %s, %d of %dx%d%s, weights of step %s%s\n%s",
        run_info["scene"], len(evaluation.scores["psnr_8bit"]), evaluation.width, evaluation.height,
        ", on white" if run_info["white_bkgd"] else "", step, "" if seconds is None else f", {seconds:.2f} s per view",
        evaluation.table(),
    )  # fmt: skip
    atomic.write_text(path, json.dumps(dict(run_info) | evaluation.summary(), indent=2, allow_nan=False) + "\n")
    logger.info("%s", path)
