"""Renders rays: the coarse pass, the fine pass, and their random draws. Shapes: R rays of S samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.render.sampling import add_fine_samples, stratified_t_vals
from nerf_tf.render.volume import Rendering, volume_render

# (points [R, S, 3], unit view directions [R, 3], visible_above) -> raw [R, S, 4]. The colour of a sample whose density
# is not above `visible_above`, a scalar or [R, S], may be anything; None: all colours matter.
FieldFunction = Callable[[tf.Tensor, tf.Tensor, tf.Tensor | None], tf.Tensor]

# Purposes of random draws. Each has its own stream, so no draw depends on which others are made.
JITTER, COARSE_NOISE, IMPORTANCE, FINE_NOISE = range(4)
UNIFORM, NORMAL = tf.raw_ops.StatelessRandomUniformV2, tf.raw_ops.StatelessRandomNormalV2
PHILOX = 1  # TensorFlow's id of this generator, which draws the same numbers on every device


@dataclasses.dataclass(frozen=True)
class RenderSettings:
    """How rays become colours.

    Attributes:
        N_samples: samples of the coarse pass.
        N_importance: additional samples of the fine pass; 0: no fine pass.
        perturb: above 0, samples are jittered within their strata.
        raw_noise_std: standard deviation of the noise added to density before the ReLU.
        white_bkgd: white instead of black background.
        lindisp: sample evenly in disparity instead of depth.
        chunk: largest number of rays to render at once.

    Raises:
        ValueError: too few samples; a fine pass needs 3.
    """

    N_samples: int = 64
    N_importance: int = 0
    perturb: float = 1.0
    raw_noise_std: float = 0.0
    white_bkgd: bool = False
    lindisp: bool = False
    chunk: int = 1024 * 32

    def __post_init__(self) -> None:
        # Fine samples are drawn by the weights of coarse samples with two neighbours.
        least = 3 if self.N_importance > 0 else 1
        if self.N_samples < least:
            raise ValueError(f"N_samples {self.N_samples}, N_importance {self.N_importance}: expected {least} or more")

    def deterministic(self) -> RenderSettings:
        """Returns these settings without randomness, as for test views."""
        return dataclasses.replace(self, perturb=0.0, raw_noise_std=0.0)


class PassDraws(NamedTuple):
    """What is random in one pass over R rays.

    Attributes:
        u: [R, N] in [0, 1), positions within the strata of the coarse pass, or quantiles of the fine one; None: evenly
            spaced.
        noise: [R, S] standard normal, for the noise added to density before the ReLU; None: no noise.
    """

    u: tf.Tensor | None = None
    noise: tf.Tensor | None = None


class Draws(NamedTuple):
    """What is random in both passes."""

    coarse: PassDraws
    fine: PassDraws


class Pass(NamedTuple):
    """The result of one pass over R rays.

    Attributes:
        rendering: the pixels.
        t_vals: [R, S] ray parameters of the samples.
        raw: [R, S, 4] the network's output.
    """

    rendering: Rendering
    t_vals: tf.Tensor
    raw: tf.Tensor


class RayRenderings(NamedTuple):
    """The result of `render_rays` for R rays.

    Attributes:
        fine: the final rendering, that of the fine pass if there is one.
        coarse: the coarse pass's rendering; None without a fine pass.
        z_std: [R] standard deviation of the t of the fine pass's additional samples; None without a fine pass.
        raw: [R, S, 4] the last network's output; None unless kept.
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
        coarse: network of the coarse pass.
        fine: network of the fine pass; None: `coarse`.
        rays: R rays, [R, ...].
        settings: how to render.
        seed: [2] int32, determines all random draws; may be None if the settings are deterministic.
        keep_raw: whether to return the last network's output, including colours that cannot be seen.

    Raises:
        ValueError: the settings ask for randomness and there is no seed.
    """
    draws = make_draws(settings, seed, _number_of(rays))
    first = coarse_pass(coarse, rays, settings, draws.coarse, all_colours=keep_raw and settings.N_importance == 0)
    if settings.N_importance == 0:
        return RayRenderings(first.rendering, None, None, first.raw if keep_raw else None)
    final, z_std = fine_pass(fine or coarse, rays, first, settings, draws.fine, all_colours=keep_raw)
    return RayRenderings(final.rendering, first.rendering, z_std, final.raw if keep_raw else None)


def make_draws(
    settings: RenderSettings, seed: tf.Tensor | None, rays: tf.Tensor | int, first_ray: tf.Tensor | int = 0
) -> Draws:
    """Makes the random draws of both passes.

    Not for code that XLA compiles, where the same operations draw other numbers.

    Args:
        settings: what is random.
        seed: [2] int32, determines the draws; may be None if the settings are deterministic.
        rays: number R of rays.
        first_ray: number of the first of these rays in its batch: a ray's draws do not depend on how the batch is split
            into chunks.

    Raises:
        ValueError: the settings ask for randomness and there is no seed.
    """
    if seed is None and (settings.perturb > 0 or settings.raw_noise_std > 0):
        raise ValueError("perturb or raw_noise_std without a seed: give a seed, or use settings.deterministic()")

    def draw_pass(purpose: int, numbers: int, noise_purpose: int, samples: int) -> PassDraws:
        """Draws `numbers` positions or quantiles for each ray of a pass, and noise for its `samples` samples."""
        u = noise = None
        if settings.perturb > 0:
            u = _draw_random(UNIFORM, seed, purpose, first_ray, rays, numbers)
        if settings.raw_noise_std > 0:
            noise = _draw_random(NORMAL, seed, noise_purpose, first_ray, rays, samples)
        return PassDraws(u, noise)

    coarse = draw_pass(JITTER, settings.N_samples, COARSE_NOISE, settings.N_samples)
    if settings.N_importance == 0:
        return Draws(coarse, PassDraws())
    samples = settings.N_samples + settings.N_importance
    return Draws(coarse, draw_pass(IMPORTANCE, settings.N_importance, FINE_NOISE, samples))


def coarse_pass(
    field: FieldFunction,
    rays: Rays,
    settings: RenderSettings,
    draws: PassDraws,
    all_colours: bool = False,
) -> Pass:
    """Renders rays from stratified samples.

    Args:
        rays, settings: as in `render_rays`.
        all_colours: whether `raw` must have the colours that cannot be seen.
    """
    t_vals = stratified_t_vals(rays.near, rays.far, settings.N_samples, settings.lindisp, draws.u)
    return _render_pass(field, rays, t_vals, settings, draws.noise, all_colours)


def fine_pass(
    field: FieldFunction,
    rays: Rays,
    first: Pass,
    settings: RenderSettings,
    draws: PassDraws,
    all_colours: bool = False,
) -> tuple[Pass, tf.Tensor]:
    """Renders rays from the coarse pass's samples and additional ones where its weights are.

    Args:
        rays, settings, all_colours: as in `coarse_pass`.
        first: the result of the coarse pass. No gradient flows back to it.

    Returns:
        The result, and the standard deviation [R] of the t of the additional samples.
    """
    u = draws.u
    if u is None:
        u = tf.broadcast_to(tf.linspace(0.0, 1.0, settings.N_importance), [_number_of(rays), settings.N_importance])
    t_vals, new_t_vals = add_fine_samples(first.t_vals, first.rendering.weights, u)
    final = _render_pass(field, rays, t_vals, settings, draws.noise, all_colours)
    return final, tf.math.reduce_std(new_t_vals, axis=-1)


def _render_pass(
    field: FieldFunction,
    rays: Rays,
    t_vals: tf.Tensor,
    settings: RenderSettings,
    noise: tf.Tensor | None,
    all_colours: bool,
) -> Pass:
    """Evaluates the network at samples `t_vals` [R, S] and composites them."""
    noise = None if noise is None else settings.raw_noise_std * noise
    offsets = rays.directions[:, None, :] * t_vals[..., None]
    # The limit, which no offset reaches, keeps XLA from fusing product and sum. Fused they are rounded once instead of
    # twice, a difference that the highest frequency of the positional encoding makes 500 times larger.
    points = rays.origins[:, None, :] + tf.minimum(offsets, tf.float32.max)  # [R, S, 3]
    visible_above = tf.constant(0.0) if noise is None else -noise
    raw = field(points, rays.viewdirs, None if all_colours else visible_above)
    return Pass(volume_render(raw, t_vals, rays.directions, noise, settings.white_bkgd), t_vals, raw)


def _number_of(rays: Rays) -> tf.Tensor | int:
    return rays.origins.shape[0] or tf.shape(rays.origins)[0]


def _draw_random(op: Callable[..., tf.Tensor], seed, purpose: int, first_ray, rays, samples: int) -> tf.Tensor:
    """Draws random numbers [rays, samples] for the rays first_ray, first_ray + 1, ... of a batch."""
    # Philox makes four numbers for each value of its counter. Each ray gets whole blocks of four, so that drawing can
    # start at any ray.
    blocks = -(-samples // 4)
    with tf.device("CPU:0"):  # a few numbers, which the draw takes from the host on any device
        key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=tf.random.fold_in(seed, purpose))
        counter += tf.cast(tf.stack([first_ray * blocks, 0]), tf.uint64)
    numbers = op(shape=[rays, 4 * blocks], key=key, counter=counter, alg=PHILOX)
    return numbers if samples == 4 * blocks else numbers[:, :samples]
