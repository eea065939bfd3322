"""Times the rendering of one test view, exactly and with --occupancy.

    python tools/benchmark_view.py --config configs/lego.txt --ft_path model_200000.npy

Every flag of the program may be given and means what it means there. The view is rendered exactly in float32, then with
--occupancy in float32 and in bfloat16. Grids are made before; the table gives their time separately. Writes a JSON file
and a picture of the renders and of the difference between the first and the last, and prints their paths.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from support import commandline

from nerf_tf import build
from nerf_tf.data.scene import Scene
from nerf_tf.evaluation.metrics import psnr
from nerf_tf.geometry.camera import Camera
from nerf_tf.output import pictures, view_files
from nerf_tf.render.renderer import Image, Renderer
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import atomic

# Precision and --occupancy of the renders that are compared, the exact one first.
ENGINES = (("float32", False), ("float32", True), ("bfloat16", True))
# The factor by which the difference is enlarged.
MAGNIFIED = 20


class _WarmedUp(Exception):
    """Ends a render after its first chunk, when the graph is traced."""


def render(renderer: Renderer, camera: Camera, c2w: np.ndarray) -> tuple[Image, float, float]:
    """Renders a view; returns it, its seconds, and the seconds of the preparation before."""

    def stop(rays: int) -> None:
        raise _WarmedUp

    start = time.perf_counter()
    if renderer.prepare is not None:
        renderer.prepare()
    prepared = time.perf_counter() - start
    with contextlib.suppress(_WarmedUp):
        renderer.image(camera, c2w, progress=stop)
    start = time.perf_counter()
    image = renderer.image(camera, c2w)
    return image, time.perf_counter() - start, prepared


def measure(settings: Settings, scene: Scene, view: int) -> tuple[list[dict[str, object]], list[np.ndarray]]:
    """Renders the view with every engine and prints a line for each.

    Returns:
        A record of each engine, and the renders [H, W, 3].
    """
    camera, c2w = build.view_camera(settings, scene.cameras[view]), scene.poses[view]
    records, renders = [], []
    for precision, occupancy in ENGINES:
        settings = settings.replace(mixed_precision=precision, occupancy=occupancy)
        trainer = build.trainer_for(settings, scene)
        build.load_weights(trainer, Path(settings.ft_path))
        image, seconds, prepared = render(build.make_renderer(settings, scene, trainer), camera, c2w)
        renders.append(image.rgb)
        record = {
            "precision": precision,
            "occupancy": occupancy,
            "seconds": seconds,
            "seconds_for_grids": prepared if occupancy else 0.0,
            "rays_per_second": image.acc.size / seconds,
            "times_faster": records[0]["seconds"] / seconds if records else 1.0,
            "psnr_to_exact": float(psnr(image.rgb, renders[0])) if records else None,
        }
        if image.rgb.shape == scene.images[view].shape:
            record["psnr"] = float(psnr(image.rgb, scene.images[view]))
        records.append(record)
        print(line(record), flush=True)
    return records, renders


def picture(records: list[dict[str, object]], renders: list[np.ndarray]) -> np.ndarray:
    """Draws the renders [H, W, 3] side by side, and the difference between the first and the last."""
    row = {}
    for record, rgb in zip(records, renders, strict=True):
        name = f"{record['precision']}{', --occupancy' if record['occupancy'] else ''}: {record['seconds']:.1f} s"
        row[name] = view_files.to_8bit(rgb)
    difference = MAGNIFIED * np.abs(renders[-1] - renders[0]).max(axis=-1)
    row[f"difference, {MAGNIFIED} times"] = pictures.apply_colour_map(difference)
    return pictures.side_by_side(row)


def line(record: dict[str, object]) -> str:
    """One row of the table."""
    name = f"{record['precision']}{' with occupancy' if record['occupancy'] else ', exact'}"
    text = (
        f"{name:26}{record['seconds']:8.1f} s {record['rays_per_second']:8,.0f} rays/s {record['times_faster']:6.2f}x"
    )
    if "psnr" in record:
        text += f"   {record['psnr']:.3f} dB to the photo"
    if record["psnr_to_exact"] is not None:
        text += f"   {record['psnr_to_exact']:.1f} dB to exact"
    return text + (f"   grids in {record['seconds_for_grids']:.0f} s" if record["occupancy"] else "")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = commandline.Parser("benchmark_view", __doc__, "%(prog)s [options] [flags of the program]")
    parser.add_argument("--view", type=int, default=0, help="which of the test views (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder to write to (default: benchmark)")
    args, rest = parser.parse_known_args(argv)
    settings = parsing.parse_settings([*rest, "--expname=benchmark_view"])
    if settings.ft_path is None:
        parser.error("--ft_path is missing: the weights to render")
    try:
        scene = build.load_scene(settings)
        if not 0 <= args.view < len(scene.i_test):
            raise ValueError(f"--view {args.view}: there are {len(scene.i_test)} test views, counted from 0")
        view = scene.i_test[args.view]
        with tempfile.TemporaryDirectory() as folder:  # for grids, which are not kept
            records, renders = measure(settings.replace(basedir=folder, render_only=True), scene, view)
        path = args.out / "view.json"
        report = {"datadir": settings.datadir, "view": args.view, "pixels": int(np.prod(scene.images.shape[1:3]))}
        atomic.write_text(path, json.dumps({**report, "engines": records}, indent=1) + "\n")
        view_files.write_png(path.with_suffix(".png"), picture(records, renders))
    except (ValueError, OSError) as error:
        return commandline.fail("benchmark_view", error)
    print(path, path.with_suffix(".png"), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
