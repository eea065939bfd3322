"""Rays through pixels, in the world and in normalised device coordinates (NDC).

Axes are OpenGL's: in a camera's frame x points right, y up and z back, so the ray through the image centre has
direction (0, 0, -1).
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from nerf_tf.geometry.camera import Camera

# The LLFF loader scales forward-facing scenes so that everything lies beyond z = -1.
NDC_NEAR = 1.0


class Rays(NamedTuple):
    """A batch of rays; the points of a ray are `origins + t * directions` for t in [near, far].

    Attributes:
        origins: [..., 3].
        directions: [..., 3], NOT unit length: in metric scenes z is -1 in the camera's frame, so t is depth along the
            optical axis.
        viewdirs: [..., 3] view directions that colour depends on: unit length, in the world even under NDC.
        near, far: [..., 1] range of t.
    """

    origins: tf.Tensor
    directions: tf.Tensor
    viewdirs: tf.Tensor
    near: tf.Tensor
    far: tf.Tensor


def pixel_rays(camera: Camera, c2w: tf.Tensor, rows: tf.Tensor, cols: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes rays through the top left corners of pixels, as the original: not through their centres.

    Args:
        camera: the camera; fx, fy, cx, cy may be tensors [...] with one value per ray.
        c2w: [..., 3, 4] or [..., 4, 4] camera-to-world matrices, one for all rays or one per ray.
        rows, cols: [...] pixel coordinates, of any numeric type.

    Returns:
        origins [..., 3] and directions [..., 3] in the world; directions have z = -1 in the camera's frame.
    """
    rows, cols = tf.cast(rows, tf.float32), tf.cast(cols, tf.float32)
    c2w = tf.cast(c2w, tf.float32)
    in_camera = tf.stack(
        [(cols - camera.cx) / camera.fx, -(rows - camera.cy) / camera.fy, -tf.ones_like(cols)], axis=-1
    )
    # A sum of products, not a matmul: the original's rounding, and never TF32 on a GPU.
    directions = tf.reduce_sum(in_camera[..., None, :] * c2w[..., :3, :3], axis=-1)
    origins = tf.broadcast_to(c2w[..., :3, 3], tf.shape(directions))
    return origins, tf.ensure_shape(directions, origins.shape)


def ndc_rays(camera: Camera, near: float, origins: tf.Tensor, directions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Converts rays to normalised device coordinates (paper, appendix C).

    Origins first move along their rays to the plane z = -near. In NDC t = 0 is this plane, t = 1 infinity, and t is
    linear in inverse depth. Only rays with direction z < 0 can be converted.

    Args:
        camera: fx, fy, height and width define the frustum.
        near: distance of the near plane, > 0.
        origins, directions: [..., 3] in the world.

    Returns:
        origins [..., 3] and directions [..., 3] in NDC.
    """
    t = -(near + origins[..., 2]) / directions[..., 2]
    origins = origins + t[..., None] * directions
    o_x, o_y, o_z = tf.unstack(origins, axis=-1)
    d_x, d_y, d_z = tf.unstack(directions, axis=-1)
    scale_x = -1.0 / (camera.width / (2.0 * camera.fx))
    scale_y = -1.0 / (camera.height / (2.0 * camera.fy))
    ndc_origins = tf.stack([scale_x * o_x / o_z, scale_y * o_y / o_z, 1.0 + 2.0 * near / o_z], axis=-1)
    ndc_directions = tf.stack(
        [scale_x * (d_x / d_z - o_x / o_z), scale_y * (d_y / d_z - o_y / o_z), -2.0 * near / o_z], axis=-1
    )
    return ndc_origins, ndc_directions


def finish_rays(
    camera: Camera,
    origins: tf.Tensor,
    directions: tf.Tensor,
    near: float,
    far: float,
    ndc: bool,
    viewdirs: tf.Tensor | None = None,
) -> Rays:
    """Completes rays: unit viewdirs, NDC where wanted, range of t.

    Args:
        camera: the camera of the rays; used under NDC only.
        origins, directions: [..., 3] in the world.
        near, far: range of t; (0, 1) under NDC.
        viewdirs: [..., 3] view directions of any length, if not `directions`.
    """
    viewdirs = directions if viewdirs is None else viewdirs
    viewdirs = viewdirs / tf.linalg.norm(viewdirs, axis=-1, keepdims=True)
    if ndc:
        origins, directions = ndc_rays(camera, NDC_NEAR, origins, directions)
    ones = tf.ones_like(directions[..., :1])
    return Rays(origins, directions, viewdirs, near * ones, far * ones)


def image_rays(
    camera: Camera,
    c2w: tf.Tensor,
    near: float,
    far: float,
    ndc: bool,
    pixels: tf.Tensor | None = None,
    c2w_viewdirs: tf.Tensor | None = None,
) -> Rays:
    """Computes the rays [R, ...] of an image's pixels.

    Args:
        camera: the camera.
        c2w: [3, 4] its pose.
        near, far, ndc: as in `finish_rays`.
        pixels: [R] numbers of pixels, row by row from the top left; all H*W by default.
        c2w_viewdirs: [3, 4] another pose for the view directions: highlights move while the camera stands still.
    """
    if pixels is None:
        pixels = tf.range(camera.height * camera.width)
    rows, cols = pixels // camera.width, pixels % camera.width
    viewdirs = None if c2w_viewdirs is None else pixel_rays(camera, c2w_viewdirs, rows, cols)[1]
    return finish_rays(camera, *pixel_rays(camera, c2w, rows, cols), near, far, ndc, viewdirs)
