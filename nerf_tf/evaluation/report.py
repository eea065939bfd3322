"""Test views beside their photos: PSNR, SSIM and LPIPS, as a table on the log and in metrics.json."""

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

from nerf_tf.data.images import read_images
from nerf_tf.evaluation import lpips, metrics
from nerf_tf.output import view_files
from nerf_tf.render.renderer import Image
from nerf_tf.storage import atomic

logger = logging.getLogger(__name__)

# How columns of the table are headed, and written: dB to a thousandth, and more digits than repeat for the others.
COLUMNS = {"psnr_8bit": "PSNR", "psnr_float": "float PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
_FORMATS = {"psnr_8bit": "{:.3f}", "psnr_float": "{:.3f}", "ssim": "{:.4f}", "lpips": "{:.4f}"}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """How close test views came to their photos.

    Attributes:
        folder: where the views are, as `NNN.png`.
        height, width: of all of them.
        scores: name of the measure -> its value for each view. `psnr_8bit`, `ssim` and `lpips` are those of the saved
            8-bit images, `psnr_float` of the images before rounding. What cannot be computed is absent.
        seconds_per_view: median time to render one and to write it; None where nothing was rendered. The first one's
            is longer: graphs are traced, and grids of occupancy made.
    """

    folder: Path
    height: int
    width: int
    scores: dict[str, list[float]]
    seconds_per_view: float | None = None

    def summary(self) -> dict[str, object]:
        """What metrics.json says: counts and sizes, and of every measure the mean and the views' values."""
        summary: dict[str, object] = {"folder": str(self.folder), "views": len(self.scores["psnr_8bit"])}
        summary |= {"height": self.height, "width": self.width, "seconds_per_view": self.seconds_per_view}
        for name, values in self.scores.items():
            summary[name] = {"mean": _in_json(np.mean(values)), "views": [_in_json(value) for value in values]}
        return summary

    def table(self) -> str:
        """A line for each view and one for their mean."""
        names = [name for name in COLUMNS if name in self.scores]
        views = np.transpose([self.scores[name] for name in names])  # [N, measures]
        lines = [["view", *(COLUMNS[name] for name in names)]]
        for title, row in [*((f"{i:03d}", row) for i, row in enumerate(views)), ("mean", views.mean(axis=0))]:
            lines.append([title, *(_FORMATS[name].format(x) for name, x in zip(names, row, strict=True))])
        return "\n".join(f"{title:4}" + "".join(f"{cell:>12}" for cell in cells) for title, *cells in lines)


def _in_json(value: float) -> float | None:
    """What JSON knows: neither the infinite PSNR of equal images, nor NaN."""
    return float(value) if np.isfinite(value) else None


def render(
    folder: Path, images: Iterable[Image], photos: Sequence[np.ndarray], save_arrays: bool
) -> tuple[view_files.Film, Evaluation]:
    """Writes test views as they are rendered (see `outputs.write_views`), and compares them with photos [H, W, 3]."""
    float_psnrs: list[float] = []
    ends = [time.perf_counter()]

    def compared() -> Iterator[Image]:
        for image, photo in zip(images, photos, strict=True):
            float_psnrs.append(metrics.psnr(image.rgb, photo))
            yield image
            ends.append(time.perf_counter())

    frames = view_files.write_views(folder, compared(), save_arrays)
    scores = {"psnr_float": float_psnrs} | score(frames.rgb, photos)
    return frames, Evaluation(folder, *photos[0].shape[:2], scores, float(np.median(np.diff(ends))))


def read(folder: Path, photos: Sequence[np.ndarray]) -> Evaluation:
    """Compares views that were rendered before, `NNN.png` in `folder`, with photos [H, W, 3].

    Raises:
        FileNotFoundError: a view is missing.
        ValueError: there are more views than photos, one cannot be read, or they differ in size.
    """
    return Evaluation(folder, *photos[0].shape[:2], score(read_views(folder, photos), photos))


def read_views(folder: Path, photos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The 8-bit views `NNN.png` of `folder`, one for each photo [H, W, 3]; errors are those of `read`."""
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
            "with 3; render again with --render_factor 0, or check --half_res and --factor"
        )
    return [metrics.photo_8bit(view) for view in views]


def score(views: Sequence[np.ndarray], photos: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Of every measure its value for each 8-bit view [H, W, 3], against photos rounded to 8 bits as files would be."""
    chosen = measures(*photos[0].shape[:2])
    scores: dict[str, list[float]] = {name: [] for name in chosen}
    pairs = zip(views, photos, strict=True)
    for view, photo in tqdm(pairs, desc="comparing", total=len(photos), unit="view", delay=0.5):
        reference = metrics.photo_8bit(photo)
        for name in list(scores):
            try:
                scores[name].append(chosen[name](view, reference))
            except tf.errors.ResourceExhaustedError:  # A measure is not worth a run that took days.
                logger.warning("no %s: not enough memory for images of that size", COLUMNS[name])
                del scores[name]
    return scores


def measures(height: int, width: int) -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    """The measures that images of that size can have here; the log says what is left out, and why."""
    chosen: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"psnr_8bit": metrics.psnr}
    side = min(height, width)
    if side >= metrics.SSIM_WINDOW:
        chosen["ssim"] = metrics.ssim
    else:
        logger.info("no SSIM: it needs %d pixels a side", metrics.SSIM_WINDOW)
    try:
        if side < lpips.SMALLEST_SIDE:
            raise ValueError(f"it needs {lpips.SMALLEST_SIDE} pixels a side")
        chosen["lpips"] = lpips.load()
    except (ValueError, OSError) as error:
        logger.info("no LPIPS: %s", error)
    return chosen


def weights_step(folder: Path) -> int | None:
    """The step of the weights that test views were rendered from, where their folder has a name that runs give.

    A folder `testset_{step}` is named after the weights, `renderonly_test_{step}` after the step that comes next.
    """
    match = re.fullmatch(r"(testset|renderonly_test)_(\d+)", folder.resolve().name)
    return match and int(match[2]) - (match[1] == "renderonly_test")


def report(path: Path, about: Mapping[str, object], evaluation: Evaluation) -> None:
    """Logs the table and writes it to metrics.json, with what is said `about` the run: scene, step, white_bkgd, ..."""
    step = "unknown" if about["step"] is None else about["step"]
    seconds = evaluation.seconds_per_view
    logger.info(
        "test views of %s, %d of %dx%d%s, weights of step %s%s\n%s",
        about["scene"], len(evaluation.scores["psnr_8bit"]), evaluation.width, evaluation.height,
        ", on white" if about["white_bkgd"] else "", step, "" if seconds is None else f", {seconds:.2f} s per view",
        evaluation.table(),
    )  # fmt: skip
    atomic.write_text(path, json.dumps(dict(about) | evaluation.summary(), indent=2, allow_nan=False) + "\n")
    logger.info("%s", path)
