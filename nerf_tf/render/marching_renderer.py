"""Renders whole views by marching through an occupancy grid."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.render.marching import GridFunction, March, Packed, Samples, render_packed, render_rays
from nerf_tf.render.renderer import Renderer

# Rays that the compiled program takes. Fewer are padded, so that images of all sizes, as in a viewer, share it.
RAYS = 2**13
# As many where each ray has the samples that it is given: their features are to stay in the cache.
RAYS_OF_GIVEN_SAMPLES = 2**9


@dataclasses.dataclass(eq=False)
class MarchingRenderer(Renderer):
    """A `Renderer` that evaluates its field in occupied cells only.

    Attributes:
        grid: density and colour of points in the grid; `coarse` is the same field as a function of points in the world.
        occupied: computes which cells are occupied, [cells ** 3] bool, from the current weights.
        march: how rays march.
        draw: gives rays their samples, as training does; None: rays march.
    """

    grid: GridFunction = dataclasses.field(kw_only=True)
    occupied: Callable[[], tf.Tensor] = dataclasses.field(kw_only=True)
    march: March = dataclasses.field(kw_only=True)
    draw: Callable[[Rays], tuple[Packed, Samples]] | None = dataclasses.field(kw_only=True, default=None)

    @functools.cached_property
    def _render_chunk(self) -> Callable[[Rays], list[tf.Tensor]]:
        size = RAYS if self.draw is None else RAYS_OF_GIVEN_SAMPLES

        @tf.function(jit_compile=True, autograph=False)
        def render(rays: Rays, end: tf.Tensor) -> list[tf.Tensor]:
            """Returns rgb, disp, acc and depth of `size` rays, of which the first `end` matter."""
            if self.draw is not None:
                return [*render_packed(self.march, self.grid, rays, *self.draw(rays), self.settings.white_bkgd)]
            return [*render_rays(self.march, self.grid, self.occupied(), rays, self.settings.white_bkgd, end)]

        def render_chunk(rays: Rays) -> list[tf.Tensor]:
            """Returns rgb, disp, acc and depth of any number of rays."""
            count = rays.origins.shape[0]
            parts = []
            for first in range(0, count, size):
                rows = tf.minimum(tf.range(first, first + size), count - 1)
                part = tf.nest.map_structure(lambda x, rows=rows: tf.gather(x, rows), rays)
                end = min(size, count - first)
                parts.append([values[:end] for values in render(part, tf.constant(end))])
            return [tf.concat(values, axis=0) for values in zip(*parts, strict=True)]

        return render_chunk
