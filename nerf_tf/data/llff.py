"""The LLFF format: poses_bounds.npy (from COLMAP) and photos."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from nerf_tf.data import images as image_files
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.paths import circle_path, spiral_path
from nerf_tf.storage import readers

logger = logging.getLogger(__name__)

BD_FACTOR = 0.75  # the original's
# Depths that scenes may have, in their own units: float32 holds what is made of them.
DEPTH_RANGE = (1e-9, 1e9)


def load(
    datadir: str | os.PathLike[str],
    factor: int | None = 8,
    spherify: bool = False,
    llffhold: int = 8,
    no_ndc: bool = False,
    bd_factor: float | None = BD_FACTOR,
) -> Scene:
    """Loads photos of a real scene with poses in LLFF format.

    Poses turn to OpenGL axes, are scaled so that the nearest bound lies at 1 / bd_factor, then recentred; so a
    forward-facing scene lies beyond z = -1, which NDC needs.

    Args:
        datadir: folder of poses_bounds.npy and images/ or images_{factor}/.
        factor: use photos shrunk by this; they are made unless images_{factor}/ exists. 0, 1 or None: images/ itself.
        spherify: for cameras around an object: bring them onto the unit sphere; the path is then a circle.
        llffhold: every llffhold-th view is for test and validation; 0: the one view nearest the average pose.
        no_ndc: stay in metric space, with near and far from the bounds; otherwise NDC with near, far = 0, 1.
        bd_factor: see above; None leaves the scale as it is in the file.

    Raises:
        FileNotFoundError: poses_bounds.npy or the images are missing.
        ValueError: poses_bounds.npy is malformed or degenerate, its length differs from the number of images, or an
            image cannot be used.
    """
    datadir = Path(datadir)
    bounds_file = datadir / "poses_bounds.npy"
    poses, hwf, bounds = read_poses_bounds(bounds_file)
    factor = factor or 1
    if factor < 0 or (bd_factor is not None and bd_factor <= 0):
        raise ValueError(f"factor {factor} and bd_factor {bd_factor} must be positive")
    with readers.blamed_on(bounds_file):
        poses, bounds, render_poses, to_dataset = arrange(poses, bounds, spherify, bd_factor)
    paths = _image_paths(datadir, factor, len(poses))
    if not no_ndc:
        _warn_where_ndc_fails(poses, spherify)
    images = image_files.read_images(paths, channels=3)
    with readers.blamed_on(bounds_file):
        camera = Camera.centred(*images.shape[1:3], _common_focal(hwf[:, 2], bounds_file) / factor)
    _warn_of_other_photos(hwf / factor, *images.shape[1:3], bounds_file)
    i_train, i_test = _hold_out(poses, llffhold)
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
    )


def _warn_of_other_photos(hwf: np.ndarray, height: int, width: int, bounds_file: Path) -> None:
    """Warns where the poses' file says, over the factor, another size [N, 3] than the images have."""
    expected_height, expected_width = np.median(hwf[:, 0]), np.median(hwf[:, 1])
    if abs(expected_height - height) > 1 + 0.02 * height or abs(expected_width - width) > 1 + 0.02 * width:
        logger.warning(
            "%s is about photos that would be %gx%g here, and these are %dx%d: its focal length will be wrong; make it "
            "anew from these photos, or check --factor",
            bounds_file, expected_width, expected_height, width, height,
        )  # fmt: skip


def read_poses_bounds(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads poses_bounds.npy as it is.

    Returns:
        poses [N, 3, 4] in LLFF axes (down, right, back); height, width and focal length of the full-size photos
        [N, 3]; least and greatest depth [N, 2]. All float64.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a plain array [N, 17] of finite numbers with 0 < near < far and focal > 0, or a pose in it
            is no rotation.
    """
    rows = readers.read_array(path, "; run COLMAP and LLFF's imgs2poses on the photos to make it")
    if not (rows.ndim == 2 and rows.shape[1] == 17 and len(rows)):
        raise ValueError(f"{path}: expected an array [N, 17], found {rows.shape}")
    with np.errstate(over="ignore"):  # of wider types, which show as infinity then
        rows = rows.astype(np.float64)
    if not np.all(np.isfinite(rows)):
        raise ValueError(f"{path}: row {np.argmin(np.isfinite(rows).all(axis=1))} holds NaN or infinity")
    matrices, bounds = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
    least, most = DEPTH_RANGE
    in_order = (bounds[:, 0] >= least) & (bounds[:, 0] < bounds[:, 1]) & (bounds[:, 1] <= most)
    wrong = np.flatnonzero(~in_order | (matrices[:, 2, 4] <= 0))
    if wrong.size:
        raise ValueError(
            f"{path}: row {wrong[0]} has focal {matrices[wrong[0], 2, 4]:g} and bounds {bounds[wrong[0]]}; "
            f"focal must be positive, and 0 < near < far (from {least:g} to {most:g})"
        )
    pose_maths.require_rigid(matrices[..., :4], [f"{path}: row {i}" for i in range(len(rows))])
    return matrices[..., :4], matrices[..., 4], bounds


def _image_paths(datadir: Path, factor: int, expected: int) -> list[Path]:
    """The images to load, in the order of the poses: by name. Smaller copies are made only of photos that fit."""
    full_size, folder = datadir / "images", datadir / ("images" if factor == 1 else f"images_{factor}")
    if full_size.is_dir() and not folder.is_dir():
        height, width = image_files.image_size(_as_many(full_size, expected)[0])
        if factor > min(height, width):
            raise ValueError(f"{full_size}: factor {factor} leaves no pixels of photos of {width}x{height}")
    return _as_many(folder if factor == 1 else image_files.minify(datadir, factor), expected)


def _as_many(folder: Path, expected: int) -> list[Path]:
    paths = image_files.list_images(folder)
    if len(paths) != expected:
        raise ValueError(
            f"{folder}: holds {len(paths)} images, but poses_bounds.npy has {expected} poses; remove the photos that "
            "COLMAP could not place, or the folder if it is an incomplete copy of images/"
        )
    return paths


def rescale(poses: np.ndarray, bounds: np.ndarray, bd_factor: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Poses [N, 3, 4] of the file with OpenGL axes, and bounds [N, 2], the nearest at 1 / bd_factor; and the scale."""
    poses, bounds = pose_maths.llff_to_opengl(poses).astype(np.float32), bounds.astype(np.float32)
    scale = 1.0 if bd_factor is None else 1.0 / (bounds.min() * np.float32(bd_factor))
    poses[:, :, 3] *= scale
    return poses, bounds * scale, float(scale)


def arrange(
    poses: np.ndarray, bounds: np.ndarray, spherify: bool, bd_factor: float | None = BD_FACTOR
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The original's order: axes, scale, recenter, then sphere and circle, or spiral.

    All in float32 as there, so that renders from its weights agree to rounding (see `poses.recenter`).

    Returns:
        Poses, bounds, render poses, and [4, 4] in float64, the similarity that undoes it all.
    """
    poses, bounds, scale = rescale(poses, bounds, bd_factor)
    to_dataset = _similarity(pose_maths.average_pose(poses), 1.0 / scale)
    poses = pose_maths.recenter(poses)
    if not spherify:
        return poses, bounds, spiral_path(poses, bounds.min(), bounds.max()), to_dataset
    to_dataset = to_dataset @ _similarity(pose_maths.sphere_frame(poses), 1.0)
    poses, sphere_scale = pose_maths.spherify(poses)
    to_dataset = to_dataset @ np.diag([*[1.0 / sphere_scale] * 3, 1.0])
    return poses, bounds * sphere_scale, circle_path(poses), to_dataset


def _similarity(frame: np.ndarray, scale: float) -> np.ndarray:
    """[4, 4]: out of the frame [3, 4], then scaled."""
    return np.concatenate([scale * frame.astype(np.float64), [[0.0, 0.0, 0.0, 1.0]]])


def _warn_where_ndc_fails(poses: np.ndarray, spherify: bool) -> None:
    """NDC holds only what lies in front of one plane; the original says nothing and learns a broken scene."""
    backwards = int(np.sum(poses[:, 2, 2] <= 0))
    if spherify or backwards:
        logger.warning(
            "NDC cannot hold a capture from all around (%s): add --no_ndc --spherify --lindisp",
            "spherify is on" if spherify else f"{backwards} of {len(poses)} cameras face away from the scene's front",
        )


def _common_focal(focals: np.ndarray, path: Path) -> float:
    """The first view's focal length, which the original takes for all; NDC needs one frustum for all views."""
    if np.ptp(focals) > 1e-3 * focals[0]:
        logger.warning(
            "%s: focal lengths run from %g to %g; the first, %g, is used for all views",
            path,
            focals.min(),
            focals.max(),
            focals[0],
        )
    return float(focals[0])


def _hold_out(poses: np.ndarray, llffhold: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and test."""
    views = np.arange(len(poses), dtype=np.int64)
    if llffhold > 0:
        i_test = views[::llffhold]
    else:
        offsets = poses[:, :, 3] - pose_maths.average_pose(poses)[:, 3]
        i_test = views[[np.argmin(np.sum(np.square(offsets), axis=-1))]]
    i_train = np.setdiff1d(views, i_test)
    if not i_train.size:
        logger.warning("all %d views are held out (llffhold %d): none is left to train on", len(views), llffhold)
    return i_train, i_test
