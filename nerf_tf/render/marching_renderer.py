"""Renders whole views by marching through an occupancy grid."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.render.marching import GridFunction, March, render_rays
from nerf_tf.render.renderer import Renderer

# Rays of the compiled program. Fewer are padded, so that small pictures, as a viewer wants them, need no other program.
RAYS = 2**13


@dataclasses.dataclass(eq=False)
class MarchingRenderer(Renderer):
    """A `Renderer` that asks only where the occupancy grid says that something may be.

    Attributes:
        grid: what to ask for density and colour; `coarse` is the same as a function of points in the world.
        occupied: which cells are occupied, [cells ** 3] bool.
        march: how rays march.
    """

    grid: GridFunction = dataclasses.field(kw_only=True)
    occupied: Callable[[], tf.Tensor] = dataclasses.field(kw_only=True)
    march: March = dataclasses.field(kw_only=True)

    @functools.cached_property
    def _render_chunk(self) -> Callable[[Rays], list[tf.Tensor]]:
        @tf.function(jit_compile=True, autograph=False)
        def render(rays: Rays, end: tf.Tensor) -> list[tf.Tensor]:
            return [*render_rays(self.march, self.grid, self.occupied(), rays, self.settings.white_bkgd, end)]

        def render_chunk(rays: Rays) -> list[tf.Tensor]:
            count = rays.origins.shape[0]
            parts = []
            for first in range(0, count, RAYS):
                rows = tf.minimum(tf.range(first, first + RAYS), count - 1)
                part = tf.nest.map_structure(lambda x, rows=rows: tf.gather(x, rows), rays)
                end = min(RAYS, count - first)
                parts.append([values[:end] for values in render(part, tf.constant(end))])
            return [tf.concat(values, axis=0) for values in zip(*parts, strict=True)]

        return render_chunk
