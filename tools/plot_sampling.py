"""Draws how inverse transform sampling places the fine samples of one ray (paper, section 5.2).

    python tools/plot_sampling.py
    python tools/plot_sampling.py --config configs/lego.txt --datadir data/nerf_synthetic/lego \\
        --weights model_200000.npy --view 0 --pixel 200 240 --out ray.png

Without --config the ray crosses a thin leaf and a wall, whose density is a formula. With --config it is a ray of a test
view through the networks of --weights, or the newest of the config's run. Prints the picture's path.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from support import commandline, run_loading

from nerf_tf import build
from nerf_tf.geometry.rays import Rays, image_rays
from nerf_tf.output import figures
from nerf_tf.render.passes import FieldFunction, RenderSettings
from nerf_tf.render.sampling import MIN_WEIGHT, add_fine_samples, midpoints, stratified_t_vals
from nerf_tf.render.volume import volume_render
from nerf_tf.settings import parsing

# More arrows than this are hard to tell apart.
MAX_ARROWS = 24
CURVE_SAMPLES = 800
LEAF, WALL = 3.0, 4.55  # depths on the built-in ray


@dataclasses.dataclass(frozen=True, eq=False)
class RayTrace:
    """All intermediate values of one ray, in numpy.

    Attributes:
        curve_t, curve: [C] the coarse network's density, finely sampled.
        coarse_t, weights: [S] the coarse samples and their weights.
        edges: [S-1] midpoints between coarse samples, which bound the bins.
        pdf: [S-2] probability of each bin.
        cdf: [S-1] probability of lying before each edge.
        u, fine_t: [N] quantiles and the samples that they become.
        merged_t, merged_weights: [S+N] all samples in order, and the final pass's weights.
    """

    curve_t: np.ndarray
    curve: np.ndarray
    coarse_t: np.ndarray
    weights: np.ndarray
    edges: np.ndarray
    pdf: np.ndarray
    cdf: np.ndarray
    u: np.ndarray
    fine_t: np.ndarray
    merged_t: np.ndarray
    merged_weights: np.ndarray


def trace_ray(coarse: FieldFunction, fine: FieldFunction, rays: Rays, settings: RenderSettings) -> RayTrace:
    """Renders one ray [1, ...] as `render_rays` does without randomness, and keeps intermediate values."""

    def ask(field: FieldFunction, t_vals: tf.Tensor) -> tf.Tensor:
        return field(rays.origins[:, None] + rays.directions[:, None] * t_vals[..., None], rays.viewdirs)

    coarse_t = stratified_t_vals(rays.near, rays.far, settings.N_samples, settings.lindisp)
    weights = volume_render(ask(coarse, coarse_t), coarse_t, rays.directions).weights
    u = tf.linspace(0.0, 1.0, settings.N_importance)[None]
    merged_t, fine_t = add_fine_samples(coarse_t, weights, u)
    merged_weights = volume_render(ask(fine, merged_t), merged_t, rays.directions).weights
    curve_t = stratified_t_vals(rays.near, rays.far, CURVE_SAMPLES, settings.lindisp)
    curve = tf.nn.relu(ask(coarse, curve_t)[..., 3])
    # `sample_pdf` does not return these; the tests compare them with its samples.
    pdf = weights[0, 1:-1].numpy() + MIN_WEIGHT
    pdf = pdf / pdf.sum()
    cdf = np.concatenate([[0.0], np.cumsum(pdf)])
    return RayTrace(
        curve_t=curve_t[0].numpy(),
        curve=curve[0].numpy(),
        coarse_t=coarse_t[0].numpy(),
        weights=weights[0].numpy(),
        edges=midpoints(coarse_t)[0].numpy(),
        pdf=pdf,
        cdf=cdf,
        u=u[0].numpy(),
        fine_t=fine_t[0].numpy(),
        merged_t=merged_t[0].numpy(),
        merged_weights=merged_weights[0].numpy(),
    )


def leaf_and_wall(points: tf.Tensor, viewdirs: tf.Tensor, *_) -> tf.Tensor:
    """The built-in field: raw [R, S, 4], with density a function of depth z only."""
    del viewdirs
    z = points[..., 2]
    sigma = 1.7 * tf.exp(-0.5 * tf.square((z - LEAF) / 0.16)) + 7.0 * tf.sigmoid((z - WALL) / 0.05)
    return tf.concat([tf.zeros_like(points), sigma[..., None]], axis=-1)


def built_in_trace() -> RayTrace:
    """A ray through the built-in field, with so few samples that each is visible."""
    z = tf.constant([[0.0, 0.0, 1.0]])
    rays = Rays(tf.zeros([1, 3]), z, z, tf.constant([[2.0]]), tf.constant([[6.0]]))
    settings = RenderSettings(N_samples=20, N_importance=20).deterministic()
    return trace_ray(leaf_and_wall, leaf_and_wall, rays, settings)


def trained_trace(args: argparse.Namespace) -> RayTrace:
    """A ray of a test view through the networks that the arguments name.

    Raises:
        ValueError: the config has no fine pass, there is no such view or pixel, or a file is malformed.
        FileNotFoundError: data or weights are missing.
    """
    words = [f"--config={args.config}", "--render_only"]
    words += [] if args.datadir is None else [f"--datadir={args.datadir}"]
    words += [] if args.weights is None else [f"--ft_path={args.weights}"]
    settings = parsing.parse_settings(words)
    if settings.field != "mlp":
        raise ValueError(f"{args.config}: --field={settings.field} has no coarse and fine pass to draw")
    if settings.N_importance == 0:
        raise ValueError(f"{args.config}: N_importance is 0, so there is no fine pass to draw")
    scene, trainer = run_loading.load_scene_and_trainer(settings)
    if not 0 <= args.view < len(scene.i_test):
        raise ValueError(f"--view {args.view}: there are test views 0 to {len(scene.i_test) - 1}")
    view = scene.i_test[args.view]
    camera = scene.cameras[view]
    row, col = args.pixel or (camera.height // 2, camera.width // 2)
    if not (0 <= row < camera.height and 0 <= col < camera.width):
        raise ValueError(f"--pixel {row} {col}: images have {camera.height} rows and {camera.width} columns")
    pixel = tf.constant([row * camera.width + col])
    rays = image_rays(camera, scene.poses[view], scene.near, scene.far, scene.ndc, pixel)
    rendering = build.render_settings(settings, scene.ndc).deterministic()
    return trace_ray(trainer.coarse, trainer.fine, rays, rendering)


def _shown(count: int) -> np.ndarray:
    """Indices of the samples that get an arrow: all, or evenly chosen ones."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_ARROWS)).round().astype(int))


def _draw_weights(axes, trace: RayTrace) -> None:
    figures.style_axes(axes, "1   The coarse pass weighs its samples: weight = alpha × transmittance")
    _draw_stems(axes, trace.coarse_t, trace.weights, figures.BLUE)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("weight", color=figures.BLUE)
    density = axes.twinx()
    density.fill_between(trace.curve_t, trace.curve, color=figures.PALE, alpha=0.18, lw=0)
    density.set_ylabel("density σ (grey)")
    density.set_ylim(bottom=0)
    density.spines["top"].set_visible(False)


def _draw_stems(axes, t_vals: np.ndarray, weights: np.ndarray, colour: str) -> None:
    axes.vlines(t_vals, 0, weights, color=colour, lw=1.6)
    axes.plot(t_vals, weights, "o", color=colour, ms=4)


def _draw_pdf(axes, trace: RayTrace) -> None:
    figures.style_axes(
        axes, "2   Divided by their sum, they are the probability of the bins between the midpoints (pdf)"
    )
    axes.bar(trace.edges[:-1], trace.pdf, np.diff(trace.edges), align="edge", color=figures.BLUE, alpha=0.35)
    axes.stairs(trace.pdf, trace.edges, color=figures.BLUE, lw=1)
    axes.set_ylabel("probability", color=figures.BLUE)
    axes.set_ylim(bottom=0)


def _draw_cdf(axes, trace: RayTrace) -> None:
    figures.style_axes(axes, "3   Even steps of u, sent through the inverse of the cdf, crowd where the cdf is steep")
    for i in _shown(len(trace.u)):
        t, u = trace.fine_t[i], trace.u[i]
        axes.plot([trace.coarse_t[0], t], [u, u], color=figures.ORANGE, lw=0.7, alpha=0.55)
        arrow = {"arrowstyle": "-|>", "color": figures.ORANGE, "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (t, -0.07), (t, max(u, 1e-3)), arrowprops=arrow, annotation_clip=False)
    axes.plot(trace.edges, trace.cdf, color=figures.BLUE, lw=2, marker=".", ms=5)
    axes.plot(np.full(len(trace.u), trace.coarse_t[0]), trace.u, "_", color=figures.ORANGE, ms=9, clip_on=False)
    axes.set_ylabel("cdf, u")
    axes.set_ylim(-0.07, 1.04)


def _draw_samples(axes, trace: RayTrace) -> None:
    figures.style_axes(axes, "4   Both sets together, in order, are the samples of the fine pass")
    for level, t_vals, colour in ((2, trace.coarse_t, figures.BLUE), (1, trace.fine_t, figures.ORANGE)):
        for height in (level, 0):
            axes.plot(t_vals, np.full(len(t_vals), height), "|", color=colour, ms=12, mew=1.4)
    axes.set_yticks([2, 1, 0], ["coarse", "fine", "both"])
    axes.tick_params(axis="y", length=0, labelcolor=figures.INK)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-0.6, 2.6)


def _draw_result(axes, trace: RayTrace) -> None:
    figures.style_axes(axes, "5   Their weights make the pixel: most samples lie where there is something to see")
    is_fine = np.isin(trace.merged_t, trace.fine_t)
    for chosen, colour in ((~is_fine, figures.BLUE), (is_fine, figures.ORANGE)):
        _draw_stems(axes, trace.merged_t[chosen], trace.merged_weights[chosen], colour)
    axes.set_ylabel("weight")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("t along the ray")


def draw(trace: RayTrace):
    """Draws five panels over t: weights, pdf, cdf with arrows from u, all samples, their weights."""
    figure = figures.new_figure(9.0, 11.5)
    panels = figure.subplots(5, 1, sharex=True, gridspec_kw={"height_ratios": [1.6, 1.6, 3.4, 1.1, 1.4]})
    steps = (_draw_weights, _draw_pdf, _draw_cdf, _draw_samples, _draw_result)
    for axes, step in zip(panels, steps, strict=True):
        step(axes, trace)
        axes.set_xlim(trace.coarse_t[0], trace.coarse_t[-1])
    figure.tight_layout(h_pad=1.0)
    return figure


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("plot_sampling", __doc__)
    parser.add_argument("--config", type=Path, help="config file of a trained network, or its run's args.txt")
    parser.add_argument("--datadir", type=Path, help="folder of the scene, if not the config's")
    parser.add_argument("--weights", type=Path, help="coarse weights (.npy), if not the newest of the config's run")
    parser.add_argument("--view", type=int, default=0, help="which test view")
    parser.add_argument(
        "--pixel", type=int, nargs=2, metavar=("ROW", "COL"), help="which pixel of it; the middle if not given"
    )
    parser.add_argument("--out", type=Path, default=Path("sampling.png"), help="the picture")
    args = parser.parse_args(argv)
    if args.config is None and (args.weights or args.datadir):
        parser.error("--weights and --datadir need --config: it says what network and scene they belong to")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    try:
        figures.save(draw(built_in_trace() if args.config is None else trained_trace(args)), args.out)
    except (ValueError, OSError) as error:
        return commandline.fail("plot_sampling", error)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
