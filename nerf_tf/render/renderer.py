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
from nerf_tf.geometry.depth import surface
from nerf_tf.geometry.rays import Rays, image_rays
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


class Image(NamedTuple):
    """A rendered view, on the host: numpy float32.

    Attributes:
        rgb: [H, W, 3].
        disp, acc, depth: [H, W], as in `Rendering`.
        rgb0, disp0, acc0: the same of the coarse pass; None when there is no fine pass.
        z_std: [H, W]; None when there is no fine pass.
        depth_ray, depth_z: [H, W] along the ray and along the optical axis, in the data set's units; NaN where a ray
            meets nothing, that is where `acc` is below `geometry.depth.MIN_ACC`.
    """

    rgb: np.ndarray
    disp: np.ndarray
    acc: np.ndarray
    depth: np.ndarray
    rgb0: np.ndarray | None = None
    disp0: np.ndarray | None = None
    acc0: np.ndarray | None = None
    z_std: np.ndarray | None = None
    depth_ray: np.ndarray | None = None
    depth_z: np.ndarray | None = None


# What to render with after memory ran out: networks and settings that take less of it.
OnOutOfMemory = Callable[[tf.errors.ResourceExhaustedError], tuple[FieldFunction, FieldFunction | None, RenderSettings]]


@dataclasses.dataclass(eq=False)
class Renderer:
    """Renders whole views of one scene, without randomness, `chunk` rays at a time.

    Attributes:
        coarse, fine: the networks; `fine` is None when there is no fine pass.
        settings: how; its randomness is ignored.
        near, far, ndc: the scene's, see `Scene`.
        on_out_of_memory: returns networks and settings that need less memory; it may raise instead.
        prepare: called before each view, to bring up to date what the networks depend on besides their weights.
        unit: length of the world's unit in the data set's, see `Scene`.
    """

    coarse: FieldFunction
    fine: FieldFunction | None
    settings: RenderSettings
    near: float
    far: float
    ndc: bool
    on_out_of_memory: OnOutOfMemory | None = None
    prepare: Callable[[], None] | None = None
    unit: float = 1.0

    @functools.cached_property
    def _render_chunk(self) -> Callable[[Rays], list[tf.Tensor]]:
        settings = self.settings.deterministic()

        @tf.function(autograph=False)
        def render_chunk(rays: Rays) -> list[tf.Tensor]:
            fine, coarse, z_std, _ = render_rays(self.coarse, self.fine, rays, settings)
            kept = [fine.rgb, fine.disp, fine.acc, fine.depth]
            return kept if coarse is None else [*kept, coarse.rgb, coarse.disp, coarse.acc, z_std]

        return render_chunk

    def rays(self, rays: Rays) -> Image:
        """Renders R rays at once; the fields of the result are [R, ...]. Each R has a graph of its own."""
        return Image(*(result.numpy() for result in self._render_chunk(rays)))

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
        buffers, first = None, 0
        while first < count:
            chunks = -(-count // self.settings.chunk)
            # Chunks of one size, so that there is one trace, and as even as can be, so that the last is no sliver.
            size = -(-count // chunks)
            # The last chunk repeats the last pixel where it runs over the end.
            pixels = tf.minimum(tf.range(first, first + size), count - 1)
            rays = image_rays(camera, c2w, self.near, self.far, self.ndc, pixels, c2w_viewdirs)
            try:
                if self.prepare is not None and first == 0:
                    self.prepare()
                results = self._render_chunk(rays)
            except tf.errors.ResourceExhaustedError as error:
                if self.on_out_of_memory is None:
                    raise
                self.coarse, self.fine, self.settings = self.on_out_of_memory(error)
                self.__dict__.pop("_render_chunk", None)  # where it was made, it holds what was given up
                continue
            if buffers is None:
                buffers = [np.empty([count, *result.shape[1:]], np.float32) for result in results]
            kept = min(size, count - first)
            for buffer, result in zip(buffers, results, strict=True):
                buffer[first : first + kept] = result[:kept]
            progress(kept)
            first += kept
        image = Image(*(buffer.reshape(camera.height, camera.width, *buffer.shape[1:]) for buffer in buffers))
        seen = surface(camera, c2w, image.depth, image.acc, self.ndc)
        along_ray, along_z = (np.float32(self.unit * distance) for distance in (seen.along_ray, seen.along_z))
        return image._replace(depth_ray=along_ray, depth_z=along_z)

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
