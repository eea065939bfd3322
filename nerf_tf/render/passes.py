"""Rays to pixels: the coarse and the fine pass, and the random draws of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.render.sampling import add_fine_samples, stratified_t_vals
from nerf_tf.render.volume import Rendering, volume_render

# Points [R, S, 3], unit view directions [R, 3] and the density, scalar or [R, S], above which a sample is seen (None
# when all colours matter) -> raw [R, S, 4]. The colour of what is not seen may be anything.
FieldFunction = Callable[[tf.Tensor, tf.Tensor, tf.Tensor | None], tf.Tensor]

# What a random draw is for; each has its own stream, so that none depends on which others are made.
JITTER, COARSE_NOISE, IMPORTANCE, FINE_NOISE = range(4)
UNIFORM, NORMAL = tf.raw_ops.StatelessRandomUniformV2, tf.raw_ops.StatelessRandomNormalV2
PHILOX = 1  # TensorFlow's number for this generator, whose numbers are the same on every device


@dataclasses.dataclass(frozen=True)
class RenderSettings:
    """How rays become colours.

    Attributes:
        N_samples: samples of the coarse pass.
        N_importance: further samples of the fine pass; 0 for no fine pass.
        perturb: above 0, samples are jittered within their strata.
        raw_noise_std: standard deviation of noise added to the density before the ReLU.
        white_bkgd: rays that meet nothing are white rather than black.
        lindisp: sample evenly in disparity rather than in depth.
        chunk: largest number of rays to render at once.

    Raises:
        ValueError: there are too few samples, of which a fine pass needs 3.
    """

    N_samples: int = 64
    N_importance: int = 0
    perturb: float = 1.0
    raw_noise_std: float = 0.0
    white_bkgd: bool = False
    lindisp: bool = False
    chunk: int = 1024 * 32

    def __post_init__(self) -> None:
        # Fine samples are drawn by the weights of those that have a neighbour on either side.
        least = 3 if self.N_importance > 0 else 1
        if self.N_samples < least:
            raise ValueError(f"N_samples {self.N_samples}, N_importance {self.N_importance}: expected {least} or more")

    def deterministic(self) -> RenderSettings:
        """The same without any randomness: what test views are rendered with."""
        return dataclasses.replace(self, perturb=0.0, raw_noise_std=0.0)


class Pass(NamedTuple):
    """What one network says of R rays.

    Attributes:
        rendering: what the rays see.
        t_vals: [R, S] where the samples are.
        raw: [R, S, 4] what the network returned.
    """

    rendering: Rendering
    t_vals: tf.Tensor
    raw: tf.Tensor


class RayRenderings(NamedTuple):
    """What `render_rays` returns for R rays.

    Attributes:
        fine: the final result, of the fine pass if there is one.
        coarse: the coarse pass's; None when there is no fine pass.
        z_std: [R] standard deviation of the fine pass's own samples of t; None when there is no fine pass.
        raw: [R, S, 4] what the last network said; None unless asked for.
    """

    fine: Rendering
    coarse: Rendering | None
    z_std: tf.Tensor | None
    raw: tf.Tensor | None


def render_rays(
    coarse: FieldFunction,
    fine: FieldFunction | None,
    rays: Rays,
    settings: RenderSettings,
    seed: tf.Tensor | None = None,
    keep_raw: bool = False,
) -> RayRenderings:
    """Renders rays with hierarchical sampling (paper, section 5.2).

    Args:
        coarse: the network that the coarse pass asks.
        fine: the network that the fine pass asks; None: `coarse` again.
        rays: R rays, [R, ...].
        settings: how.
        seed: [2] int32, decides all randomness; needed unless the settings are deterministic.
        keep_raw: whether to return the last network's raw output, with the colour of what cannot be seen.

    Raises:
        ValueError: the settings ask for randomness and there is no seed.
    """
    first = coarse_pass(coarse, rays, settings, seed, all_colours=keep_raw and settings.N_importance == 0)
    if settings.N_importance == 0:
        return RayRenderings(first.rendering, None, None, first.raw if keep_raw else None)
    final, z_std = fine_pass(fine or coarse, rays, first, settings, seed, all_colours=keep_raw)
    return RayRenderings(final.rendering, first.rendering, z_std, final.raw if keep_raw else None)


def coarse_pass(
    field: FieldFunction,
    rays: Rays,
    settings: RenderSettings,
    seed: tf.Tensor | None = None,
    first_ray: tf.Tensor | int = 0,
    all_colours: bool = False,
) -> Pass:
    """Renders rays with evenly spread samples, jittered if `settings.perturb` says so.

    Args:
        field: the network to ask.
        rays: R rays, [R, ...].
        settings: how.
        seed: [2] int32, decides all randomness; needed unless the settings are deterministic.
        first_ray: number of the first of these rays in the batch that they belong to: each ray of a batch has its own
            random draws, whatever chunks the batch is cut into.
        all_colours: whether the colours in `raw` matter that cannot be seen.

    Raises:
        ValueError: the settings ask for randomness and there is no seed.
    """
    if seed is None and (settings.perturb > 0 or settings.raw_noise_std > 0):
        raise ValueError("perturb or raw_noise_std without a seed: give a seed, or use settings.deterministic()")
    u = None
    if settings.perturb > 0:
        u = _draw(UNIFORM, seed, JITTER, first_ray, _count(rays), settings.N_samples)
    t_vals = stratified_t_vals(rays.near, rays.far, settings.N_samples, settings.lindisp, u)
    return _render_pass(field, rays, t_vals, settings, seed, COARSE_NOISE, first_ray, all_colours)


def fine_pass(
    field: FieldFunction,
    rays: Rays,
    first: Pass,
    settings: RenderSettings,
    seed: tf.Tensor | None = None,
    first_ray: tf.Tensor | int = 0,
    all_colours: bool = False,
) -> tuple[Pass, tf.Tensor]:
    """Renders rays with the coarse pass's samples, and more of them where it found something.

    Args:
        field: the network to ask.
        first: what the coarse pass found. No gradient flows back to it.
        rays, settings, seed, first_ray, all_colours: as for the coarse pass.

    Returns:
        The pass, and [R] the standard deviation of the samples of t that it added.
    """
    if settings.perturb > 0:
        u = _draw(UNIFORM, seed, IMPORTANCE, first_ray, _count(rays), settings.N_importance)
    else:
        u = tf.broadcast_to(tf.linspace(0.0, 1.0, settings.N_importance), [_count(rays), settings.N_importance])
    t_vals, new_t_vals = add_fine_samples(first.t_vals, first.rendering.weights, u)
    final = _render_pass(field, rays, t_vals, settings, seed, FINE_NOISE, first_ray, all_colours)
    return final, tf.math.reduce_std(new_t_vals, axis=-1)


def _render_pass(
    field: FieldFunction,
    rays: Rays,
    t_vals: tf.Tensor,
    settings: RenderSettings,
    seed: tf.Tensor | None,
    noise_purpose: int,
    first_ray: tf.Tensor | int,
    all_colours: bool,
) -> Pass:
    points = rays.origins[:, None, :] + rays.directions[:, None, :] * t_vals[..., None]  # [R, S, 3]
    noise, visible_above = None, tf.constant(0.0)
    if settings.raw_noise_std > 0:
        noise = settings.raw_noise_std * _draw(NORMAL, seed, noise_purpose, first_ray, _count(rays), t_vals.shape[-1])
        visible_above = -noise
    raw = field(points, rays.viewdirs, None if all_colours else visible_above)
    return Pass(volume_render(raw, t_vals, rays.directions, noise, settings.white_bkgd), t_vals, raw)


def _count(rays: Rays) -> tf.Tensor | int:
    return rays.origins.shape[0] or tf.shape(rays.origins)[0]


def _draw(op: Callable[..., tf.Tensor], seed: tf.Tensor, purpose: int, first_ray, rays, samples: int) -> tf.Tensor:
    """Random numbers [rays, samples] for rays first_ray, first_ray + 1, ... of a batch."""
    # Philox makes four numbers for each value of its counter, so rays that begin at a multiple of four can be entered
    # anywhere.
    blocks = -(-samples // 4)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=tf.random.fold_in(seed, purpose))
    counter += tf.cast(tf.stack([first_ray * blocks, 0]), tf.uint64)
    return op(shape=[rays, 4 * blocks], key=key, counter=counter, alg=PHILOX)[:, :samples]
