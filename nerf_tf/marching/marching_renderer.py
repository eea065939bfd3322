"""Renders whole views by marching through an occupancy grid."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from nerf_tf.geometry.rays import Rays
from nerf_tf.marching.compositing import PackedRendering
from nerf_tf.render.renderer import Renderer


@dataclasses.dataclass(eq=False)
class MarchingRenderer(Renderer):
    """A `Renderer` that evaluates its field in occupied cells only.

    Attributes:
        at_once: number of rays that the compiled program takes. Fewer are padded, so that images of all sizes, as in a
            viewer, share it.
        render: renders `at_once` rays; its second argument, a scalar, is how many of them matter: the first ones.
    """

    at_once: int = dataclasses.field(kw_only=True)
    render: Callable[[Rays, tf.Tensor], PackedRendering] = dataclasses.field(kw_only=True)

    @functools.cached_property
    def _render_chunk(self) -> Callable[[Rays], list[tf.Tensor]]:
        size, render = self.at_once, tf.function(self.render, jit_compile=True, autograph=False)

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
