"""Draws photo, render and disparity of some test views of a run, with PSNR, as one PNG.

    python tools/contact_sheet.py --run logs/demo --out logs/demo/contact_sheet.png
    python tools/contact_sheet.py --run logs/demo --path --out logs/demo/path.png

Reads the newest renderonly_test_* (or testset_*) folder of the run, rendered with --save_arrays, and the photos
that the run's args.txt names. PSNR is that of the saved 8-bit PNGs. --path draws colour, disparity, depth and opacity
of frames of the newest renderonly_path_* instead, also rendered with --save_arrays. Prints the picture's path last.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from support import commandline

from nerf_tf import build
from nerf_tf.evaluation import metrics, report
from nerf_tf.output import pictures
from nerf_tf.settings import parsing
from nerf_tf.storage import atomic, image_reader, readers

COLUMNS = ("photo", "render", "disparity")
TILE_HEIGHT = 260  # pixels; smaller views are enlarged to it
PATH_TILE_HEIGHT = 100  # pixels, likewise, of frames of a path
GAP = 14  # pixels
PALE = (120, 128, 138)


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A test view: 8-bit photo and render [H, W, 3], disparity and acc [H, W], PSNR in dB."""

    photo: np.ndarray
    render: np.ndarray
    disp: np.ndarray
    acc: np.ndarray
    psnr: float


def load_photos(args_file: Path) -> np.ndarray:
    """Loads the test photos [N, H, W, 3] of the run that wrote `args_file`, composited as there."""
    scene = build.load_scene(parsing.parse_settings(["--config", str(args_file)]))
    return scene.images[scene.i_test]


def newest_renders(run: Path) -> Path:
    """The folder of test views with the highest step; of two with the same step, renderonly_test_*."""
    return _newest(run, ("testset_*", "renderonly_test_*"), "--render_only --render_test")


def newest_path(run: Path) -> Path:
    """The folder of path frames with the highest step."""
    return _newest(run, ("renderonly_path_*",), "--render_only")


def _newest(run: Path, patterns: Sequence[str], remedy: str) -> Path:
    found = (folder for pattern in patterns for folder in run.glob(pattern))
    folders = [folder for folder in found if folder.name.rsplit("_", 1)[1].isdecimal()]  # others are a user's copies
    if not folders:
        raise FileNotFoundError(f"{run}: no {' or '.join(patterns)}; run it with {remedy} --save_arrays")
    return max(folders, key=lambda folder: (int(folder.name.rsplit("_", 1)[1]), folder.name.startswith("renderonly")))


def read_views(folder: Path, photos: np.ndarray) -> list[View]:
    """Reads NNN.png and NNN.npz of `folder` with their photos [N, H, W, 3].

    Raises:
        FileNotFoundError: a view, or its arrays, are missing.
        ValueError: there are more views than photos, one cannot be read, or they differ in size.
    """
    views = []
    for i, (render, photo) in enumerate(zip(report.read_views(folder, photos), photos, strict=True)):
        disp, acc = _maps(folder / f"{i:03d}.npz", ("disp", "acc"), render)
        shown = metrics.round_to_8bit(photo)
        views.append(View(shown, render, disp, acc, metrics.psnr(render, shown)))
    return views


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a path: 8-bit render [H, W, 3]; disparity, expected depth and acc [H, W]."""

    render: np.ndarray
    disp: np.ndarray
    depth: np.ndarray
    acc: np.ndarray


def read_path(folder: Path, count: int) -> list[Frame]:
    """Reads `count` frames of a rendered path, evenly spaced as on a closed path.

    Raises:
        FileNotFoundError: frames or their arrays are missing.
        ValueError: one cannot be read, or they differ in size.
    """
    names = sorted(folder.glob("[0-9]*.npz"))
    if not names:
        raise FileNotFoundError(f"{folder}: no frames with arrays; render again with --render_only --save_arrays")
    frames = []
    for i in np.unique(np.arange(count) * len(names) // count):
        render = metrics.round_to_8bit(image_reader.read_image(names[i].with_suffix(".png"))[..., :3])
        disp, depth, acc = _maps(names[i], ("disp", "depth", "acc"), render)
        frames.append(Frame(render, disp, pictures.expected_depth(depth, acc), acc))
    return frames


def _maps(path: Path, names: Sequence[str], render: np.ndarray) -> list[np.ndarray]:
    """Reads maps [H, W] of a view by name; they must have the size of its 8-bit `render` [H, W, 3]."""
    arrays = readers.read_npz(path, names, hint="; render again with --save_arrays")
    for name in names:
        if arrays[name].dtype != np.float32 or arrays[name].shape != render.shape[:2]:
            found = f"{arrays[name].dtype} of shape {list(arrays[name].shape)}"
            raise ValueError(f"{path}: its {name} is {found} beside a PNG of {list(render.shape[:2])}; render again")
    return [arrays[name] for name in names]


def draw_path(frames: Sequence[Frame]) -> Image.Image:
    """Draws a column for each frame: colour, disparity, depth and opacity, with one range for all."""
    away, close = pictures.display_range(pictures.opaque_values(frame.disp, frame.acc) for frame in frames)
    near, far = pictures.display_range(pictures.opaque_values(frame.depth, frame.acc) for frame in frames)
    rows = {
        "rgb": [frame.render for frame in frames],
        "disparity": [pictures.false_colours(frame.disp, frame.acc, dark=away, light=close) for frame in frames],
        "depth": [pictures.false_colours(frame.depth, frame.acc, dark=far, light=near) for frame in frames],
        "opacity": [pictures.apply_colour_map(frame.acc) for frame in frames],
    }
    scale = max(1.0, PATH_TILE_HEIGHT / frames[0].acc.shape[0])
    height, width = (round(side * scale) for side in frames[0].acc.shape)
    left, font = 86, ImageFont.load_default(15)
    sheet = Image.new("RGB", (left + len(frames) * (width + 4), 4 + len(rows) * (height + 4)), "white")
    for row, (name, tiles) in enumerate(rows.items()):
        top = 4 + row * (height + 4)
        ImageDraw.Draw(sheet).text((8, top + height // 2), name, pictures.INK, font, anchor="lm")
        for column, tile in enumerate(tiles):
            enlarged = Image.fromarray(tile).resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (left + column * (width + 4), top))
    return sheet


def draw_sheet(title: str, views: Sequence[View], shown: Sequence[int]) -> Image.Image:
    """Draws a row for each view whose number is in `shown`, and above them the mean PSNR of all `views`."""
    height, width = views[0].photo.shape[:2]
    scale = max(1.0, TILE_HEIGHT / height)
    tile = round(width * scale), round(height * scale)
    large, small = (ImageFont.load_default(size) for size in (22, 15))
    head, caption = 96, 28
    size = (GAP + 3 * (tile[0] + GAP), head + len(shown) * (tile[1] + caption) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    mean = float(np.mean([view.psnr for view in views]))
    draw.text((GAP, GAP), title, pictures.INK, large)
    draw.text((GAP, GAP + 30), f"mean PSNR {mean:.2f} dB over {len(views)} test views", PALE, small)
    low, high = pictures.display_range(pictures.opaque_values(view.disp, view.acc) for view in views)
    for row, number in enumerate(shown):
        view, top = views[number], head + row * (tile[1] + caption)
        disparity = pictures.false_colours(view.disp, view.acc, dark=low, light=high, background=255)
        columns = (view.photo, view.render, disparity)
        captions = (f"view {number}", f"{view.psnr:.2f} dB", "")
        for column, (pixels, text) in enumerate(zip(columns, captions, strict=True)):
            left = GAP + column * (tile[0] + GAP)
            sheet.paste(Image.fromarray(pixels).resize(tile, Image.Resampling.BICUBIC), (left, top))
            draw.rectangle((left - 1, top - 1, left + tile[0], top + tile[1]), outline=(226, 229, 233))
            draw.text((left, top + tile[1] + 4), text, PALE, small)
            if row == 0:
                draw.text((left, head - 22), COLUMNS[column], pictures.INK, small)
    return sheet


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("contact_sheet", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run's folder, {basedir}/{expname}")
    parser.add_argument("--renders", type=Path, help="folder of rendered views; the newest of the run if not given")
    parser.add_argument("--path", action="store_true", help="frames of the path instead of test views")
    parser.add_argument("--views", type=int, default=4, help="how many views, or frames of the path")
    parser.add_argument(
        "--out", type=Path, help="the PNG; contact_sheet.png or path_sheet.png in the run's folder if not given"
    )
    args = parser.parse_args(argv)
    if args.views < 1:
        parser.error(f"--views {args.views}: give a positive number")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    out = args.out or args.run / ("path_sheet.png" if args.path else "contact_sheet.png")
    try:
        if args.path:
            sheet = draw_path(read_path(args.renders or newest_path(args.run), args.views))
        else:
            views = read_views(args.renders or newest_renders(args.run), load_photos(args.run / "args.txt"))
            shown = np.unique(np.linspace(0, len(views) - 1, args.views).round().astype(int))
            sheet = draw_sheet(args.run.resolve().name, views, shown)
        with atomic.complete_file(out) as temporary:
            sheet.save(temporary)
    except (ValueError, OSError) as error:
        return commandline.fail("contact_sheet", error)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
