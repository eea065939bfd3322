"""Draws one PNG that shows how well a run does: photograph, render and disparity of a few test views, with PSNR.

    python tools/contact_sheet.py --run logs/demo --out logs/demo/contact_sheet.png

Reads the newest renderonly_test_* (or testset_*) folder of the run, rendered with --save_arrays, and the photographs
that the run's args.txt names. PSNR is that of the saved 8-bit PNGs. Prints the sheet's path last.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image, ImageDraw, ImageFont

from nerf_tf import build, config, evaluation
from nerf_tf.render import outputs
from nerf_tf.train import metrics

COLUMNS = ("photograph", "render", "disparity")
TILE_HEIGHT = 260  # pixels; smaller views are enlarged to it
GAP = 14
INK, PALE = (34, 40, 49), (120, 128, 138)

# From far to near: one hue after another, each lighter than the one before, so that grey prints keep the order.
RAMP = np.array([[24, 18, 66], [84, 36, 126], [160, 48, 124], [222, 84, 84], [246, 150, 66], [252, 226, 140]])


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A test view: 8-bit photograph and render [H, W, 3], disparity and acc [H, W], PSNR in dB."""

    photo: np.ndarray
    render: np.ndarray
    disp: np.ndarray
    acc: np.ndarray
    psnr: float


def load_photos(args_file: Path) -> np.ndarray:
    """The test photographs [N, H, W, 3] of the run that wrote `args_file`, composited as the run saw them."""
    values = flags.FlagValues()
    config.define_flags(values)
    config.parse_flags(["contact_sheet", "--config", str(args_file)], values)
    scene = build.load_scene(values)
    return scene.images[scene.i_test]


def newest_renders(run: Path) -> Path:
    """The folder of test views with the highest step; of two at one step, the one rendered on purpose."""
    folders = [*run.glob("testset_*"), *run.glob("renderonly_test_*")]
    if not folders:
        raise FileNotFoundError(f"{run}: no renderonly_test_* or testset_*; run it with --render_only --render_test")
    return max(folders, key=lambda folder: (int(folder.name.rsplit("_", 1)[1]), folder.name.startswith("renderonly")))


def read_views(folder: Path, photos: np.ndarray) -> list[View]:
    """Pairs NNN.png and NNN.npz of `folder` with photographs [N, H, W, 3].

    Raises:
        FileNotFoundError: a view, or its arrays, are missing.
        ValueError: there are more views than photographs, one cannot be read, or they differ in size.
    """
    views = []
    for i, (render, photo) in enumerate(zip(evaluation.read_views(folder, photos), photos, strict=True)):
        npz = folder / f"{i:03d}.npz"
        if not npz.is_file():
            raise FileNotFoundError(f"{npz}: is missing; render again with --save_arrays")
        with np.load(npz) as arrays:
            disp, acc = arrays["disp"], arrays["acc"]
        shown = metrics.photo_8bit(photo)
        views.append(View(shown, render, disp, acc, metrics.psnr(render, shown)))
    return views


def disparity_range(views: Sequence[View]) -> tuple[float, float]:
    """The range of disparity that the colours cover: all but the outermost hundredths of what is not empty."""
    solid = np.concatenate([view.disp[(view.acc > 0.5) & np.isfinite(view.disp)] for view in views])
    low, high = np.percentile(solid, [1.0, 99.0]) if solid.size else (0.0, 0.0)
    return float(low), float(max(high, low + 1e-6))


def colour_disparity(disp: np.ndarray, acc: np.ndarray, low: float, high: float) -> np.ndarray:
    """8-bit [H, W, 3]: dark is far, light is near; fades to white where the view is empty (acc 0)."""
    level = np.clip((np.nan_to_num(disp) - low) / (high - low), 0.0, 1.0) * (len(RAMP) - 1)
    colour = np.stack([np.interp(level, np.arange(len(RAMP)), RAMP[:, c]) for c in range(3)], axis=-1)
    cover = np.clip(np.nan_to_num(acc), 0.0, 1.0)[..., None]
    return np.uint8(np.rint(colour * cover + 255.0 * (1.0 - cover)))


def draw_sheet(title: str, views: Sequence[View], shown: Sequence[int]) -> Image.Image:
    """One row for each view whose number is in `shown`; the mean in the heading is that of all `views`."""
    height, width = views[0].photo.shape[:2]
    scale = max(1.0, TILE_HEIGHT / height)
    tile = round(width * scale), round(height * scale)
    large, small = (ImageFont.load_default(size) for size in (22, 15))
    head, caption = 96, 28
    size = (GAP + 3 * (tile[0] + GAP), head + len(shown) * (tile[1] + caption) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    mean = float(np.mean([view.psnr for view in views]))
    draw.text((GAP, GAP), title, INK, large)
    draw.text((GAP, GAP + 30), f"mean PSNR {mean:.2f} dB over {len(views)} test views", PALE, small)
    low, high = disparity_range(views)
    for row, number in enumerate(shown):
        view, top = views[number], head + row * (tile[1] + caption)
        columns = (view.photo, view.render, colour_disparity(view.disp, view.acc, low, high))
        captions = (f"view {number}", f"{view.psnr:.2f} dB", "")
        for column, (pixels, text) in enumerate(zip(columns, captions, strict=True)):
            left = GAP + column * (tile[0] + GAP)
            sheet.paste(Image.fromarray(pixels).resize(tile, Image.Resampling.BICUBIC), (left, top))
            draw.rectangle((left - 1, top - 1, left + tile[0], top + tile[1]), outline=(226, 229, 233))
            draw.text((left, top + tile[1] + 4), text, PALE, small)
            if row == 0:
                draw.text((left, head - 22), COLUMNS[column], INK, small)
    return sheet


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run's folder, {basedir}/{expname}")
    parser.add_argument(
        "--renders", type=Path, help="folder of rendered test views; the newest of the run if not given"
    )
    parser.add_argument("--views", type=int, default=4, help="rows")
    parser.add_argument("--out", type=Path, help="the PNG; contact_sheet.png in the run's folder if not given")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    out = args.out or args.run / "contact_sheet.png"
    try:
        if args.views < 1:
            raise ValueError(f"--views {args.views}: give a positive number")
        renders = args.renders or newest_renders(args.run)
        views = read_views(renders, load_photos(args.run / "args.txt"))
        shown = np.unique(np.linspace(0, len(views) - 1, args.views).round().astype(int))
        sheet = draw_sheet(args.run.resolve().name, views, shown)
        with outputs.complete_file(out) as temporary:
            sheet.save(temporary)
    except (ValueError, OSError) as error:
        print(f"contact_sheet: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
