"""The one thing that every loader returns."""

from __future__ import annotations

import dataclasses

import numpy as np

from nerf_tf.geometry.camera import Camera


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """Photos with known cameras. Arrays are float32 unless said.

    Attributes:
        images: [N, H, W, 3] in [0, 1], composited on the background already.
        poses: [N, 3, 4] camera-to-world, OpenGL axes (x right, y up, z back).
        cameras: N cameras, all of the images' height and width.
        near, far: range of the ray parameter t. Under NDC 0 and 1: planes, not distances.
        ndc: whether rays move to normalised device coordinates before sampling.
        i_train, i_val, i_test: int64 indices into images.
        render_poses: [M, 3, 4] the camera path for videos.
    """

    images: np.ndarray
    poses: np.ndarray
    cameras: tuple[Camera, ...]
    near: float
    far: float
    ndc: bool
    i_train: np.ndarray
    i_val: np.ndarray
    i_test: np.ndarray
    render_poses: np.ndarray
