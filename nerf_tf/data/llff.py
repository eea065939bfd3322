"""Loads scenes in LLFF format: photos, and the poses_bounds.npy that LLFF made of them with COLMAP."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from nerf_tf.data import view_splits
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.paths import circle_path, spiral_path
from nerf_tf.storage import image_reader, llff_files, readers

logger = logging.getLogger(__name__)

BD_FACTOR = 0.75  # the original's; see `load`
# A mean viewing direction shorter than this may be nothing but rounding, which is 6e-8 in float32.
NO_DIRECTION = 1e-6


def load(
    datadir: str | os.PathLike[str],
    factor: int | None = 8,
    spherify: bool = False,
    llffhold: int = 8,
    no_ndc: bool = False,
    bd_factor: float | None = BD_FACTOR,
) -> Scene:
    """Loads a scene in LLFF format.

    Poses are turned to OpenGL axes, scaled so that the nearest bound is 1 / bd_factor, and recentred. A forward-facing
    scene then lies beyond z = -1, as NDC needs.

    Args:
        datadir: folder of poses_bounds.npy and images/ or images_{factor}/.
        factor: divides the photos' sides; images_{factor}/ is made if it is missing. 0, 1 or None: images/ itself.
        spherify: for cameras around an object: moves them to the unit sphere, see `poses.spherify`; the render path is
            then a circle.
        llffhold: every llffhold-th view is for test and validation; 0: the one nearest the cameras' mean centre.
        no_ndc: keep metric space, with near at 0.9 times the least bound and far at the greatest; otherwise NDC with
            near, far = 0, 1.
        bd_factor: see above; None keeps the file's scale.

    Raises:
        FileNotFoundError: poses_bounds.npy or the images are missing.
        ValueError: poses_bounds.npy is malformed, its cameras have no common direction, its length differs from the
            number of images, an image cannot be used, or factor or bd_factor is not positive.
    """
    datadir = Path(datadir)
    bounds_file = datadir / "poses_bounds.npy"
    poses, hwf, bounds = llff_files.read_poses_bounds(bounds_file)
    factor = factor or 1
    if factor < 0 or (bd_factor is not None and bd_factor <= 0):
        raise ValueError(f"factor {factor} and bd_factor {bd_factor} must be positive")
    with readers.path_in_errors(bounds_file):
        poses, bounds, render_poses, to_dataset = arrange(poses, bounds, spherify, bd_factor)
    paths = llff_files.find_photos(datadir, factor, len(poses))
    images = image_reader.read_images(paths, channels=3)
    with readers.path_in_errors(bounds_file):
        camera = Camera.centred(*images.shape[1:3], _common_focal(hwf[:, 2], bounds_file) / factor)
    _warn_of_other_size(hwf / factor, *images.shape[1:3], bounds_file)
    i_train, i_test = view_splits.hold_out(poses, llffhold)
    return Scene(
        images=images,
        poses=poses.astype(np.float32),
        cameras=(camera,) * len(poses),
        near=0.9 * float(bounds.min()) if no_ndc else 0.0,
        far=float(bounds.max()) if no_ndc else 1.0,
        ndc=not no_ndc,
        i_train=i_train,
        i_val=i_test,
        i_test=i_test,
        render_poses=render_poses.astype(np.float32),
        to_dataset=to_dataset,
        names=tuple(os.path.relpath(path, datadir) for path in paths),
        bounds=bounds,
    )


def _warn_of_other_size(hwf: np.ndarray, height: int, width: int, bounds_file: Path) -> None:
    """Warns if the images' size is not that of poses_bounds.npy.

    `hwf` [N, 3] is the file's heights, widths and focal lengths, already divided by factor.
    """
    expected_height, expected_width = np.median(hwf[:, 0]), np.median(hwf[:, 1])
    if abs(expected_height - height) > 1 + 0.02 * height or abs(expected_width - width) > 1 + 0.02 * width:
        logger.warning(
            "%s is about photos that would be %gx%g here, and these are %dx%d: its focal length will be wrong; make it "
            "anew from these photos, or check --factor",
            bounds_file, expected_width, expected_height, width, height,
        )  # fmt: skip


def rescale(poses: np.ndarray, bounds: np.ndarray, bd_factor: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Converts the file's poses to OpenGL axes, and scales the scene.

    Args:
        poses: [N, 3, 4] in LLFF axes.
        bounds: [N, 2] near and far.
        bd_factor: the nearest bound becomes 1 / bd_factor; None keeps the scale.

    Returns:
        Poses [N, 3, 4] and bounds [N, 2] in float32, and the scale that centres and bounds were multiplied by.
    """
    poses, bounds = pose_maths.llff_to_opengl(poses).astype(np.float32), bounds.astype(np.float32)
    scale = 1.0 if bd_factor is None else 1.0 / (bounds.min() * np.float32(bd_factor))
    poses[:, :, 3] *= scale
    return poses, bounds * scale, float(scale)


def arrange(
    poses: np.ndarray, bounds: np.ndarray, spherify: bool, bd_factor: float | None = BD_FACTOR
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Converts the file's poses to the scene's in the original's order: axes, scale, recentring, sphere.

    Up to recentring in float32, as there, so that renders from the original's weights agree to rounding (see
    `poses.recenter`).

    Args:
        poses, bounds, bd_factor: as in `rescale`.
        spherify: as in `load`.

    Returns:
        Poses [N, 3, 4], bounds [N, 2], render poses [M, 3, 4], and in float64 the similarity [4, 4] that takes points
        back to the file's world.

    Raises:
        ValueError: the cameras have no average pose, or with `spherify` no common point that they look at.
    """
    poses, bounds, scale = rescale(poses, bounds, bd_factor)
    average = np.eye(4)[:3]
    if np.linalg.norm(poses[:, :, 2].mean(axis=0)) > NO_DIRECTION:
        average = pose_maths.average_pose(poses)
        poses = pose_maths.recenter(poses)
    elif not spherify:
        raise ValueError(
            "the cameras look from all around: their viewing directions cancel out, so none is the scene's front; add "
            "--no_ndc --spherify --lindisp"
        )
    to_dataset = _similarity(average, 1.0 / scale)
    if not spherify:
        return poses, bounds, spiral_path(poses, bounds.min(), bounds.max()), to_dataset
    to_dataset = to_dataset @ _similarity(pose_maths.sphere_frame(poses), 1.0)
    poses, sphere_scale = pose_maths.spherify(poses)
    to_dataset = to_dataset @ np.diag([*[1.0 / sphere_scale] * 3, 1.0])
    return poses, bounds * sphere_scale, circle_path(poses), to_dataset


def _similarity(frame: np.ndarray, scale: float) -> np.ndarray:
    """The matrix [4, 4] that takes points out of the frame [3, 4], then scales them."""
    return np.concatenate([scale * frame.astype(np.float64), [[0.0, 0.0, 0.0, 1.0]]])


def _common_focal(focals: np.ndarray, path: Path) -> float:
    """Returns the first view's focal length, for all views as in the original: NDC needs one frustum."""
    if np.ptp(focals) > 1e-3 * focals[0]:
        logger.warning(
            "%s: focal lengths run from %g to %g; the first, %g, is used for all views",
            path, focals.min(), focals.max(), focals[0],
        )  # fmt: skip
    return float(focals[0])
