"""Makes a coloured point cloud of a trained scene, from rendered training views.

    python tools/export_points.py logs/lego_test --views 12 --render_factor 4 --out points3d.ply

RUN is a run's folder, for its args.txt and newest weights, or a file of coarse weights. Every flag of the program may
be given and means what it means there; --render_factor 4 takes every fourth pixel along either side, --render_width
sets their number. A point lies on a pixel's ray at the expected depth and has the pixel's rendered colour. Rays that
meet nothing give no point, nor do pixels on an edge, whose mean depth lies in mid-air. Points are in the data set's own
coordinates: those of transforms_*.json, of the pose files, or of poses_bounds.npy; what the loader did to them is
undone.

The file is a binary PLY with the columns x y z nx ny nz red green blue, as programs expect that start from a
points3d.ply; the normals are zero. Prints the file's path.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from support import commandline, run_loading

from nerf_tf import build
from nerf_tf.captures.worlds import transform_points
from nerf_tf.data.scene import Scene
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.depth import find_surface
from nerf_tf.memory import planning
from nerf_tf.output import view_files
from nerf_tf.render.renderer import Renderer
from nerf_tf.storage import atomic

COLUMNS = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")] + [
    (name, "u1") for name in ("red", "green", "blue")
]


def collect_points(
    renderer: Renderer, scene: Scene, cameras: Sequence[Camera], views: int, min_acc: float, max_jump: float
) -> tuple[np.ndarray, np.ndarray]:
    """Renders evenly chosen training views, and finds the surface points of their pixels.

    Args:
        renderer, scene: a trained scene.
        cameras: those of all photos, at the size to render.
        views: how many, at most.
        min_acc: the least opacity of a ray that meets something.
        max_jump: see `in_mid_air`.

    Returns:
        Points [P, 3] in the data set's own coordinates and colours [P, 3], 8-bit.

    Raises:
        ValueError: no ray meets anything.
    """
    chosen = scene.i_train[np.unique(np.linspace(0, len(scene.i_train) - 1, views).round().astype(int))]
    cameras = [cameras[view] for view in chosen]
    points, colours = [], []
    for view, camera, image in zip(
        chosen, cameras, renderer.path(cameras, scene.poses[chosen], description="views"), strict=True
    ):
        found = find_surface(camera, scene.poses[view], image.depth, image.acc, scene.ndc, min_acc)
        kept = np.isfinite(found.along_z) & ~in_mid_air(found.along_z, max_jump)
        points.append(transform_points(scene.to_dataset, found.points[kept]))
        colours.append(view_files.to_8bit(image.rgb[kept]))
    if not sum(map(len, points)):
        raise ValueError(f"no ray of {len(chosen)} views meets anything at --min_acc {min_acc:g}: lower it")
    return np.concatenate(points), np.concatenate(colours)


def in_mid_air(depth: np.ndarray, max_jump: float) -> np.ndarray:
    """Finds pixels on an edge, which see a thing and what is behind it: their mean depth is neither's.

    Args:
        depth: [H, W]; NaN where a ray meets nothing.
        max_jump: an edge pixel's depth is between those of its neighbours in a row or column, and differs from both by
            more than this fraction.

    Returns:
        [H, W] bool.
    """
    mask = np.zeros(depth.shape, bool)
    for z, found in ((depth, mask), (depth.T, mask.T)):
        steps = np.diff(z, axis=0)
        before, after = steps[:-1], steps[1:]
        found[1:-1] |= (before * after > 0) & (np.minimum(abs(before), abs(after)) > max_jump * z[1:-1])
    return mask


def write_points(path: Path, points: np.ndarray, colours: np.ndarray) -> None:
    """Writes points [P, 3] and 8-bit colours [P, 3] as a binary PLY."""
    records = np.zeros(len(points), COLUMNS)
    for i, (position, colour) in enumerate((("x", "red"), ("y", "green"), ("z", "blue"))):
        records[position], records[colour] = points[:, i], colours[:, i]
    kinds = {"<f4": "float", "u1": "uchar"}
    properties = "".join(f"property {kinds[kind]} {name}\n" for name, kind in COLUMNS)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    with atomic.complete_file(path) as temporary:
        temporary.write_bytes(header.encode() + records.tobytes())


def _arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = commandline.Parser("export_points", __doc__, "%(prog)s [RUN] [options] [flags of the program]")
    add = parser.add_argument
    add("--views", type=int, default=12, help="training views to render, evenly chosen (default: 12)")
    add("--min_acc", type=float, default=0.9, help="opacity below which a ray meets nothing (default: 0.9)")
    add(
        "--max_jump",
        type=float,
        default=0.03,
        help="drop pixels whose depth is farther than this part of it from both neighbours', and between them: they "
        "show an edge (default: 0.03)",
    )
    add("--out", type=Path, default=Path("points3d.ply"), help="the file (default: points3d.ply)")
    args, rest = parser.parse_known_args(argv)
    if args.out.suffix != ".ply":
        parser.error(f"--out {args.out}: the file is a PLY; let its name end in .ply")
    if args.views < 1:
        parser.error(f"--views {args.views}: at least 1")
    if not 0 < args.min_acc <= 1:
        parser.error(f"--min_acc {args.min_acc:g}: above 0, at most 1")
    return args, rest


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args, program_flags = _arguments(argv)
    try:
        settings, scene, renderer = run_loading.load_run(program_flags)
        cameras = [build.view_camera(settings, camera) for camera in scene.cameras]
        points, colours = collect_points(renderer, scene, cameras, args.views, args.min_acc, args.max_jump)
        write_points(args.out, points, colours)
    except (ValueError, OSError, planning.OutOfMemory) as error:
        return commandline.fail("export_points", error)
    except tf.errors.ResourceExhaustedError as error:
        reason = f"out of memory ({planning.failed_allocation(error)}): lower --chunk"
        return commandline.fail("export_points", reason)
    low, high = (" ".join(f"{x:.3g}" for x in corner(axis=0)) for corner in (points.min, points.max))
    print(f"{len(points)} points, from {low} to {high}", file=sys.stderr)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
