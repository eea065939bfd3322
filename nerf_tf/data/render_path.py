"""The path that a run renders: poses of a scene's own path, of one around or through it, or of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags

from nerf_tf.data import keyframe_file
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import keyframes
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.storage import readers

# Frames of circles and spirals unless --render_frames says otherwise: four seconds, as the original's spiral.
PATH_FRAMES = 120


def load_render_poses(values: flags.FlagValues, scene: Scene) -> np.ndarray:
    """Poses [M, 3, 4] to render as the path: of `--render_path_file`, of the test views, or of `--render_path`.

    Raises:
        ValueError: the file does not hold M camera-to-world matrices or keyframes, or the scene has no such path.
    """
    if values.render_path_file is not None:
        path = Path(values.render_path_file)
        if path.suffix.lower() == ".json":
            return _interpolated(path, values.fps)
        return _load_poses(path)
    if values.render_test:
        return scene.poses[scene.i_test]
    poses = _scene_path(values, scene)
    if values.render_frames is not None and len(poses) not in (0, values.render_frames):
        poses = _resampled(poses, values.render_frames)
    return poses


def _resampled(poses: np.ndarray, frames: int) -> np.ndarray:
    """A path [M, 3, 4] in so many frames; one whose last frame is a step from the first stays a loop without a seam."""
    steps = np.linalg.norm(np.diff(poses[:, :, 3], axis=0), axis=-1)
    loops = len(poses) > 2 and np.linalg.norm(poses[0, :, 3] - poses[-1, :, 3]) <= 1.01 * steps.max()
    if loops:
        poses = np.concatenate([poses, poses[:1]])
    every = keyframes.Keyframes(np.arange(len(poses)), poses)
    times = np.linspace(0, len(poses) - 1, frames, endpoint=not loops)
    return keyframes.resample(every, times).astype(np.float32)


def _scene_path(values: flags.FlagValues, scene: Scene) -> np.ndarray:
    """The path that `--render_path` names; circles and spirals have `--render_frames` frames from the start."""
    if values.render_path == "auto":
        return scene.render_poses
    if values.render_path == "test":
        return scene.poses[scene.i_test]
    frames = values.render_frames or PATH_FRAMES
    if values.render_path == "orbit":
        if scene.ndc:
            raise ValueError("--render_path orbit goes around the scene, and NDC holds its front only; take spiral")
        return pose_maths.orbit_around(scene.poses, frames).astype(np.float32)
    middle = pose_maths.average_pose(scene.poses)
    if np.any(scene.poses[:, :, 2] @ middle[:, 2] <= 0):
        raise ValueError(
            "--render_path spiral is for cameras that face one way, and these look from around; take orbit"
        )
    if scene.ndc:
        return scene.render_poses  # LLFF's own is the spiral; what makes its focus is not in NDC
    recentred = pose_maths.compose(pose_maths.invert(middle), scene.poses)
    return pose_maths.compose(middle, pose_maths.spiral_path(recentred, scene.near, scene.far, frames)).astype(
        np.float32
    )


def _interpolated(path: Path, fps: int) -> np.ndarray:
    keys = keyframe_file.load_keyframes(path)
    with readers.blamed_on(path):
        return keyframes.interpolate(keys, fps).astype(np.float32)


def _load_poses(path: Path) -> np.ndarray:
    poses = readers.read_array(path, "; --render_path_file takes poses as npy or keyframes as json")
    if poses.ndim != 3 or poses.shape[1:] not in [(3, 4), (4, 4)]:
        shape = list(poses.shape)
        raise ValueError(f"{path}: holds {shape}; --render_path_file takes poses of shape [M, 3, 4] or [M, 4, 4]")
    if not len(poses) or not np.isfinite(poses).all():
        raise ValueError(f"{path}: poses must be finite numbers, and at least one")
    poses = np.stack([readers.camera_matrix(pose, f"{path}: pose {i}") for i, pose in enumerate(poses)])
    pose_maths.require_rigid(poses, [f"{path}: pose {i}" for i in range(len(poses))])
    return poses.astype(np.float32)
