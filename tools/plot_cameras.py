"""Draws a scene's cameras in 3-D and, for LLFF scenes, their rays in space and in NDC.

    python tools/plot_cameras.py --dataset_type llff --datadir data/room
    python tools/plot_cameras.py --dataset_type blender --datadir data/nerf_synthetic/lego --out cameras.png
    python tools/plot_cameras.py --axes

An LLFF scene is drawn before and after it is recentred (or, with --spherify, moved onto the unit sphere); other kinds
as they are loaded, and with the path for videos. --axes draws the axis conventions instead of a scene. Prints the
picture's path.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from support import commandline
from support.camera_drawing import add_space, draw_cameras, draw_frusta

from nerf_tf.captures import transforms
from nerf_tf.data import blender, deepvoxels, llff
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.depth import ndc_to_metric_t
from nerf_tf.geometry.rays import NDC_NEAR, ndc_rays, pixel_rays
from nerf_tf.output import figures
from nerf_tf.settings.options import OPTIONS
from nerf_tf.storage import llff_files

NDC_STEPS = np.linspace(0.0, 1.0, 9)  # t of the samples drawn
# Other levels are too close together in space for labels.
_LEVEL_NOTES = {
    0.0: "t = 0, near plane",
    0.5: "t = 0.5",
    0.75: "t = 0.75",
    0.875: "t = 0.875",
    1.0: "t = 1, infinity",
}
RAY_COLOURS = (figures.BLUE, figures.GREEN, figures.ORANGE)

# A camera's own axes, the columns of its rotation, as in the guide's table.
CONVENTIONS = {
    "OpenCV, COLMAP": (("right", "down", "forward"), pose_maths.opengl_to_opencv),
    "LLFF (poses_bounds.npy)": (("down", "right", "back"), pose_maths.opengl_to_llff),
    "OpenGL, Blender, nerf_tf": (("right", "up", "back"), lambda poses: poses),
}


def metric_samples(camera: Camera, c2w: np.ndarray, cols: np.ndarray, t_vals: np.ndarray) -> np.ndarray:
    """Places in space [R, S, 3] of samples at NDC's `t_vals` [S] below 1, on rays of the middle row.

    Equal steps in t are equal steps in 1 / depth; t = 1 is infinitely far.
    """
    origins, directions = (x[:, None] for x in _middle_row(camera, c2w, cols))
    return origins + ndc_to_metric_t(origins, directions, t_vals)[..., None] * directions


def ndc_samples(camera: Camera, c2w: np.ndarray, cols: np.ndarray, t_vals: np.ndarray) -> np.ndarray:
    """The same samples in NDC [R, S, 3], as the program makes them; an image's lie in [-1, 1]^3."""
    origins, directions = ndc_rays(camera, NDC_NEAR, *(tf.constant(x) for x in _middle_row(camera, c2w, cols)))
    return (origins[:, None] + directions[:, None] * tf.constant(t_vals, tf.float32)[:, None]).numpy()


def _middle_row(camera: Camera, c2w: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = tf.fill([len(cols)], camera.height / 2)
    origins, directions = pixel_rays(camera, tf.constant(c2w, tf.float32), rows, tf.constant(cols, tf.float32))
    return origins.numpy(), directions.numpy()


def _draw_level(axes, height: float, note: str) -> None:
    axes.axhline(height, color=figures.GRID, lw=1, zorder=0)
    axes.text(1.01, height, note, transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def _draw_metric_rays(axes, camera: Camera, poses: np.ndarray, cols: np.ndarray) -> None:
    figures.style_axes(axes, "Rays in space, seen from above: even steps of t are even steps of 1/depth")
    finite = NDC_STEPS[:-1]
    deepest = NDC_NEAR / (1.0 - finite[-1])
    half = camera.width / (2.0 * camera.fx)
    edge = np.array([0.0, deepest * 1.1])
    axes.fill_betweenx(edge, -half * edge, half * edge, color=figures.PALE, alpha=0.12, lw=0)
    for t in finite:
        _draw_level(axes, NDC_NEAR / (1.0 - t), _LEVEL_NOTES.get(t, ""))
    for c2w, colour in zip(poses, RAY_COLOURS, strict=False):
        samples = metric_samples(camera, c2w, cols, finite)
        for ray in samples:
            axes.plot([c2w[0, 3], ray[-1, 0]], [-c2w[2, 3], -ray[-1, 2]], color=colour, lw=0.8, alpha=0.7)
            axes.plot(ray[:, 0], -ray[:, 2], "o", color=colour, ms=4)
        axes.plot(c2w[0, 3], -c2w[2, 3], "^", color=figures.INK, ms=7)
    axes.set(
        xlabel="x", ylabel="depth, -z", ylim=(-0.6, deepest * 1.1), xlim=(-1.2 * half * deepest, 1.2 * half * deepest)
    )


def _draw_ndc_rays(axes, camera: Camera, poses: np.ndarray, cols: np.ndarray) -> None:
    figures.style_axes(axes, "The same rays in NDC: the near plane is t = 0, infinity is t = 1")
    axes.fill_between([-1, 1], -1, 1, color=figures.PALE, alpha=0.12, lw=0)
    for t in NDC_STEPS:
        _draw_level(axes, 2.0 * t - 1.0, _LEVEL_NOTES.get(t, f"t = {t:g}"))
    for c2w, colour in zip(poses, RAY_COLOURS, strict=False):
        for ray in ndc_samples(camera, c2w, cols, NDC_STEPS):
            axes.plot(ray[:, 0], ray[:, 2], "-o", color=colour, lw=0.8, ms=4)
    axes.set(xlabel="x in NDC", ylabel="z in NDC")


def draw_llff(datadir: Path, spherify: bool):
    """Draws cameras of an LLFF scene as in its file and as loaded, and rays in NDC unless `spherify`."""
    poses, hwf, bounds = llff_files.read_poses_bounds(datadir / "poses_bounds.npy")
    height, width, focal = hwf[0]
    camera = Camera.centred(round(height), round(width), focal)
    before, _, _ = llff.rescale(poses, bounds, llff.BD_FACTOR)
    after, _, path, _ = llff.arrange(poses, bounds, spherify)
    title = "Recentred: the average camera is the origin, and looks along -z"
    if spherify:
        title = "On the unit sphere: its centre is what the cameras look at"
    figure = figures.new_figure(12.0, 6.0 if spherify else 11.0)
    grid = figure.add_gridspec(1 if spherify else 2, 2, wspace=0.38, hspace=0.2)
    cameras = [camera] * len(poses)
    draw_cameras(figure, grid[0, 0], "As in the file, but for axes and scale", {"cameras": (cameras, before)})
    draw_cameras(figure, grid[0, 1], title, {"cameras": (cameras, after)}, path)
    if not spherify:
        outermost = after[[np.argmin(after[:, 0, 3]), np.argmax(after[:, 0, 3])]]
        cols = np.linspace(0.0, width, 4)
        _draw_metric_rays(figure.add_subplot(grid[1, 0]), camera, outermost, cols)
        _draw_ndc_rays(figure.add_subplot(grid[1, 1]), camera, outermost, cols)
    figure.subplots_adjust(left=0.06, right=0.9, bottom=0.06, top=0.95)
    return figure


def draw_scene(scene: Scene):
    """Draws cameras of a scene, coloured by split, and its path for videos."""
    figure = figures.new_figure(12.0, 6.0)
    splits = {"train": scene.i_train, "validation": scene.i_val, "test": scene.i_test}
    groups = {
        f"{name}, {len(chosen)}": ([scene.cameras[i] for i in chosen], scene.poses[chosen])
        for name, chosen in splits.items()
    }
    places = figure.add_gridspec(1, 2)
    draw_cameras(figure, places[0], "Cameras", groups)
    path = scene.render_poses
    groups = {f"path, {len(path)}": ([scene.cameras[0]] * len(path), path)}
    draw_cameras(figure, places[1], "Path for videos", groups)
    figure.subplots_adjust(left=0.03, right=0.95, bottom=0.05, top=0.92, wspace=0.1)
    return figure


def draw_axes():
    """Draws one camera with the names of its axes in each convention."""
    figure = figures.new_figure(12.0, 4.2)
    camera, pose = Camera.centred(30, 40, 32.0), np.eye(4)[:3]
    for place, (name, (words, convert)) in zip(figure.add_gridspec(1, 3), CONVENTIONS.items(), strict=True):
        shown = 0.95 * np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
        axes = add_space(figure, place, name, pose[None], shown)
        axes.set_axis_off()
        draw_frusta(axes, [camera], pose[None], 0.5, figures.PALE)
        columns = convert(pose)[:, :3].T
        for i, (column, word) in enumerate(zip(columns, words, strict=True)):
            colour = (figures.RED, figures.GREEN, figures.BLUE)[i]
            axes.quiver(0, 0, 0, *column, color=colour, lw=2.2, arrow_length_ratio=0.15)
            axes.text(*(1.28 * column), f"{i}: {word}", color=colour, ha="center", va="center", fontsize=11)
    figure.text(0.5, 0.03, "python tools/convert_poses.py converts between them", ha="center", family="monospace")
    figure.subplots_adjust(left=0.02, right=0.97, bottom=0.02, top=0.9, wspace=0.0)
    return figure


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("plot_cameras", __doc__)
    parser.add_argument("--dataset_type", choices=OPTIONS["dataset_type"].choices, default="llff")
    parser.add_argument("--datadir", type=Path, help="folder of the scene")
    parser.add_argument("--spherify", action="store_true", help="llff: cameras around an object")
    parser.add_argument("--shape", default="greek", help="deepvoxels: the object")
    parser.add_argument("--testskip", type=int, default=8, help="blender, deepvoxels: keep every n-th test view")
    parser.add_argument("--axes", action="store_true", help="draw the axis conventions instead")
    parser.add_argument("--out", type=Path, help="the picture; cameras.png or axes.png if not given")
    args = parser.parse_args(argv)
    if not args.axes and args.datadir is None:
        parser.error("give --datadir, or --axes")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    out = args.out or Path("axes.png" if args.axes else "cameras.png")
    try:
        if args.axes:
            figure = draw_axes()
        elif args.dataset_type == "llff":
            figure = draw_llff(args.datadir, args.spherify)
        elif args.dataset_type == "blender":
            figure = draw_scene(blender.load(args.datadir, half_res=True, testskip=args.testskip))
        elif args.dataset_type == "transforms":
            figure = draw_scene(transforms.load(args.datadir))
        else:
            figure = draw_scene(deepvoxels.load(args.datadir, args.shape, args.testskip))
        figures.save(figure, out)
    except (ValueError, OSError) as error:
        return commandline.fail("plot_cameras", error)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
