"""Scene: photos with known cameras, as every loader returns them."""

from __future__ import annotations

import dataclasses

import numpy as np

from nerf_tf.geometry.camera import Camera


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """Photos with known cameras. Arrays are float32 unless said.

    Attributes:
        images: [N, H, W, 3] in [0, 1], already composited on the background.
        poses: [N, 3, 4] camera-to-world, OpenGL axes (x right, y up, z back).
        cameras: N cameras, all of the images' height and width.
        near, far: range of the ray parameter t; under NDC 0 (the near plane) and 1 (infinity).
        ndc: whether rays move to normalised device coordinates before sampling.
        i_train, i_val, i_test: int64 indices into images.
        render_poses: [M, 3, 4] the camera path for videos.
        to_dataset: [4, 4] float64, the similarity that takes points of this world, that of the networks, to the data
            set's own coordinates.
        names: N paths of the photos, relative to the data set's folder; for messages.
        bounds: [N, 2] least and greatest depth of what each view shows, in this world's units; None: unknown.
        alphas: [N, H, W] in [0, 1], opacity of each pixel before it was composited on white; None: unknown or not asked
            for.
        masks: [N, H, W] bool, which pixels to train on; None: all.
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
    to_dataset: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(4))
    names: tuple[str, ...] = ()
    bounds: np.ndarray | None = None
    alphas: np.ndarray | None = None
    masks: np.ndarray | None = None

    def photo(self, view: int) -> np.ndarray:
        """Returns the part [h, w, 3] of an image that its mask reaches, if there is any.

        Images of photos of other proportions than most have black beside it.
        """
        if self.masks is None or not self.masks[view].any():
            return self.images[view]
        rows, cols = (np.flatnonzero(self.masks[view].any(axis=axis)) for axis in (1, 0))
        return self.images[view, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]

    @property
    def unit(self) -> float:
        """Length of this world's unit, in units of the data set."""
        return float(np.cbrt(np.linalg.det(self.to_dataset[:3, :3])))
