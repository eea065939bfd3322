"""Renders whole views and camera paths, chunk by chunk."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.depth import find_surface
from nerf_tf.geometry.rays import Rays, image_rays
from nerf_tf.render.passes import FieldFunction, RenderSettings, render_rays


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
GiveWay = Callable[[tf.errors.ResourceExhaustedError], tuple[FieldFunction, FieldFunction | None, RenderSettings]]


@dataclasses.dataclass(eq=False)
class Renderer:
    """Renders whole views of one scene, without randomness, `chunk` rays at a time.

    Attributes:
        coarse, fine: the networks; `fine` is None when there is no fine pass.
        settings: how; its randomness is ignored.
        near, far, ndc: the scene's, see `Scene`.
        give_way: called when memory runs out, for networks and settings that take less of it; it may raise instead.
        prepare: called before each view, to bring up to date what the networks depend on besides their weights.
        unit: length of the world's unit in the data set's, see `Scene`.
    """

    coarse: FieldFunction
    fine: FieldFunction | None
    settings: RenderSettings
    near: float
    far: float
    ndc: bool
    give_way: GiveWay | None = None
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
                if self.give_way is None:
                    raise
                self.coarse, self.fine, self.settings = self.give_way(error)
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
        seen = find_surface(camera, c2w, image.depth, image.acc, self.ndc)
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
