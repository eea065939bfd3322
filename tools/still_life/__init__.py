"""The built-in scene: toys on a wooden disc, rendered by a small ray tracer; it needs no download."""

from still_life.folders import write_blender, write_deepvoxels, write_llff
from still_life.tracing import depth, render

__all__ = ["depth", "render", "write_blender", "write_deepvoxels", "write_llff"]
