"""Rays to pixels: coarse pass, fine pass, whole images, camera paths."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import Rays, image_rays
from nerf_tf.render.sampling import sample_pdf, stratified_t_vals
from nerf_tf.render.volume import Rendering, volume_render

# Points [R, S, 3] and unit view directions [R, 3] -> raw [R, S, 4].
FieldFunction = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# What a random draw is for; each has its own stream, so that none depends on which others are made.
JITTER, COARSE_NOISE, IMPORTANCE, FINE_NOISE = range(4)


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
    """

    N_samples: int = 64
    N_importance: int = 0
    perturb: float = 1.0
    raw_noise_std: float = 0.0
    white_bkgd: bool = False
    lindisp: bool = False
    chunk: int = 1024 * 32

    def deterministic(self) -> RenderSettings:
        """The same without any randomness: what test views are rendered with."""
        return dataclasses.replace(self, perturb=0.0, raw_noise_std=0.0)


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
        keep_raw: whether to return the last network's raw output.

    Raises:
        ValueError: the settings ask for randomness and there is no seed.
    """
    if seed is None and (settings.perturb > 0 or settings.raw_noise_std > 0):
        raise ValueError("perturb or raw_noise_std without a seed: give a seed, or use settings.deterministic()")
    count = tf.shape(rays.origins)[0]

    def uniform(purpose: int, samples: int) -> tf.Tensor:
        return tf.random.stateless_uniform([count, samples], tf.random.fold_in(seed, purpose))

    u = uniform(JITTER, settings.N_samples) if settings.perturb > 0 else None
    t_vals = stratified_t_vals(rays.near, rays.far, settings.N_samples, settings.lindisp, u)
    first, raw = _render_pass(coarse, rays, t_vals, settings, seed, COARSE_NOISE)
    if settings.N_importance == 0:
        return RayRenderings(first, None, None, raw if keep_raw else None)

    if settings.perturb > 0:
        u = uniform(IMPORTANCE, settings.N_importance)
    else:
        u = tf.broadcast_to(tf.linspace(0.0, 1.0, settings.N_importance), [count, settings.N_importance])
    midpoints = 0.5 * (t_vals[..., 1:] + t_vals[..., :-1])
    new_t_vals = tf.stop_gradient(sample_pdf(midpoints, first.weights[..., 1:-1], u))
    t_vals = tf.sort(tf.concat([t_vals, new_t_vals], axis=-1), axis=-1)
    final, raw = _render_pass(fine or coarse, rays, t_vals, settings, seed, FINE_NOISE)
    return RayRenderings(final, first, tf.math.reduce_std(new_t_vals, axis=-1), raw if keep_raw else None)


def _render_pass(
    field: FieldFunction,
    rays: Rays,
    t_vals: tf.Tensor,
    settings: RenderSettings,
    seed: tf.Tensor | None,
    noise_purpose: int,
) -> tuple[Rendering, tf.Tensor]:
    points = rays.origins[:, None, :] + rays.directions[:, None, :] * t_vals[..., None]  # [R, S, 3]
    raw = field(points, rays.viewdirs)
    noise = None
    if settings.raw_noise_std > 0:
        noise_seed = tf.random.fold_in(seed, noise_purpose)
        noise = settings.raw_noise_std * tf.random.stateless_normal(tf.shape(t_vals), noise_seed)
    return volume_render(raw, t_vals, rays.directions, noise, settings.white_bkgd), raw


class Image(NamedTuple):
    """A rendered view, on the host: numpy float32.

    Attributes:
        rgb: [H, W, 3].
        disp, acc, depth: [H, W], as in `Rendering`.
        rgb0, disp0, acc0: the same of the coarse pass; None when there is no fine pass.
        z_std: [H, W]; None when there is no fine pass.
    """

    rgb: np.ndarray
    disp: np.ndarray
    acc: np.ndarray
    depth: np.ndarray
    rgb0: np.ndarray | None = None
    disp0: np.ndarray | None = None
    acc0: np.ndarray | None = None
    z_std: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Renderer:
    """Renders whole views of one scene, without randomness, `chunk` rays at a time.

    Attributes:
        coarse, fine: the networks; `fine` is None when there is no fine pass.
        settings: how; its randomness is ignored.
        near, far, ndc: the scene's, see `Scene`.
    """

    coarse: FieldFunction
    fine: FieldFunction | None
    settings: RenderSettings
    near: float
    far: float
    ndc: bool

    @functools.cached_property
    def _render_chunk(self) -> Callable[[Rays], list[tf.Tensor]]:
        settings = self.settings.deterministic()

        @tf.function
        def render_chunk(rays: Rays) -> list[tf.Tensor]:
            fine, coarse, z_std, _ = render_rays(self.coarse, self.fine, rays, settings)
            kept = [fine.rgb, fine.disp, fine.acc, fine.depth]
            return kept if coarse is None else [*kept, coarse.rgb, coarse.disp, coarse.acc, z_std]

        return render_chunk

    def image(
        self,
        camera: Camera,
        c2w: np.ndarray,
        c2w_viewdirs: np.ndarray | None = None,
        progress: Callable[[int], object] = lambda rays: None,
    ) -> Image:
        """Renders one view.

        Args:
            camera: the camera.
            c2w: [3, 4] its pose.
            c2w_viewdirs: [3, 4] another pose to take view directions from.
            progress: told the number of rays after each chunk.
        """
        count = camera.height * camera.width
        chunks = -(-count // self.settings.chunk)
        # Chunks of one size, so that there is one trace, and as even as can be, so that the last is no sliver.
        size = -(-count // chunks)
        buffers = None
        for first in range(0, count, size):
            # The last chunk repeats the last pixel where it runs over the end.
            pixels = tf.minimum(tf.range(first, first + size), count - 1)
            rays = image_rays(camera, c2w, self.near, self.far, self.ndc, pixels, c2w_viewdirs)
            results = self._render_chunk(rays)
            if buffers is None:
                buffers = [np.empty([count, *result.shape[1:]], np.float32) for result in results]
            kept = min(size, count - first)
            for buffer, result in zip(buffers, results, strict=True):
                buffer[first : first + kept] = result[:kept]
            progress(kept)
        return Image(*(buffer.reshape(camera.height, camera.width, *buffer.shape[1:]) for buffer in buffers))

    def path(
        self,
        cameras: Sequence[Camera],
        poses: np.ndarray,
        poses_viewdirs: np.ndarray | None = None,
        description: str = "path",
    ) -> Iterator[Image]:
        """Renders views one after the other, with a progress bar in rays.

        Args:
            cameras: M cameras.
            poses: [M, 3, 4] their poses.
            poses_viewdirs: [M, 3, 4] poses to take view directions from, if not `poses`.
            description: what the progress bar calls it.
        """
        total = sum(camera.height * camera.width for camera in cameras)
        with tqdm(total=total, desc=description, unit="ray", unit_scale=True, dynamic_ncols=True) as bar:
            for i, (camera, c2w) in enumerate(zip(cameras, poses, strict=True)):
                bar.set_postfix_str(f"view {i + 1}/{len(cameras)}", refresh=False)
                yield self.image(camera, c2w, None if poses_viewdirs is None else poses_viewdirs[i], bar.update)
