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
    """A rendered view, NumPy float32.

    Attributes:
        rgb: [H, W, 3].
        disp, acc, depth: [H, W], as in `Rendering`.
        rgb0, disp0, acc0: those of the coarse pass; None without a fine pass.
        z_std: [H, W], as in `RayRenderings`; None without a fine pass.
        depth_ray, depth_z: [H, W] distance along the ray and along the optical axis, in the data set's units; NaN where
            `acc` is below `geometry.depth.MIN_ACC`.
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


# Returns networks and settings that need less memory.
OnOutOfMemory = Callable[[tf.errors.ResourceExhaustedError], tuple[FieldFunction, FieldFunction | None, RenderSettings]]


@dataclasses.dataclass(eq=False)
class Renderer:
    """Renders views of one scene without randomness, at most `chunk` rays at a time.

    Attributes:
        coarse, fine: the networks, as in `render_rays`.
        settings: how to render; its randomness is ignored.
        near, far, ndc: as in `Scene`.
        on_out_of_memory: returns networks and settings that need less memory; it may raise instead.
        prepare: called before each view; updates what the networks depend on besides their weights.
        unit: length of the world's unit in the data set's units, as in `Scene`.
        compiled: whether XLA compiles what is done with a chunk into one program.
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
    compiled: bool = False

    @functools.cached_property
    def _render_chunk(self) -> Callable[[Rays], list[tf.Tensor]]:
        settings = self.settings.deterministic()

        @tf.function(autograph=False, jit_compile=self.compiled)
        def render_chunk(rays: Rays) -> list[tf.Tensor]:
            fine, coarse, z_std, _ = render_rays(self.coarse, self.fine, rays, settings)
            kept = [fine.rgb, fine.disp, fine.acc, fine.depth]
            return kept if coarse is None else [*kept, coarse.rgb, coarse.disp, coarse.acc, z_std]

        return render_chunk

    def rays(self, rays: Rays) -> Image:
        """Renders R rays at once; the result's fields are [R, ...]. TensorFlow traces a graph for each R."""
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
            c2w: [3, 4] its pose.
            c2w_viewdirs: [3, 4] another pose for the view directions.
            progress: called with the number of rays after each chunk.

        Raises:
            tf.errors.ResourceExhaustedError: memory runs out, and `on_out_of_memory` is None.
        """
        count = camera.height * camera.width
        buffers, first, waiting = [], 0, None

        def store(first: int, kept: int, results: list[tf.Tensor]) -> None:
            """Waits for a chunk's results and copies them to their places."""
            if not buffers:
                buffers.extend(np.empty([count, *result.shape[1:]], np.float32) for result in results)
            for buffer, result in zip(buffers, results, strict=True):
                buffer[first : first + kept] = result[:kept]
            progress(kept)

        while first < count:
            chunks = -(-count // self.settings.chunk)
            # All chunks have one size, so that there is one trace; the last one is filled up with the last pixel.
            size = -(-count // chunks)
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
                self.__dict__.pop("_render_chunk", None)  # its trace holds the former networks
                continue
            if waiting is not None:
                store(*waiting)  # while a GPU works on the next
            kept = min(size, count - first)
            waiting = first, kept, results
            first += kept
        store(*waiting)
        image = Image(*(buffer.reshape(camera.height, camera.width, *buffer.shape[1:]) for buffer in buffers))
        surface = find_surface(camera, c2w, image.depth, image.acc, self.ndc)
        along_ray, along_z = (np.float32(self.unit * distance) for distance in (surface.along_ray, surface.along_z))
        return image._replace(depth_ray=along_ray, depth_z=along_z)

    def path(
        self,
        cameras: Sequence[Camera],
        poses: np.ndarray,
        poses_viewdirs: np.ndarray | None = None,
        description: str = "path",
    ) -> Iterator[Image]:
        """Renders M views one after the other, each when it is asked for, with a progress bar.

        Args:
            cameras: M cameras.
            poses: [M, 3, 4] their poses.
            poses_viewdirs: [M, 3, 4] poses for the view directions, if not `poses`.
        """
        total = sum(camera.height * camera.width for camera in cameras)
        with tqdm(total=total, desc=description, unit="ray", unit_scale=True, dynamic_ncols=True) as bar:
            for i, (camera, c2w) in enumerate(zip(cameras, poses, strict=True)):
                bar.set_postfix_str(f"view {i + 1}/{len(cameras)}", refresh=False)
                yield self.image(camera, c2w, None if poses_viewdirs is None else poses_viewdirs[i], bar.update)
