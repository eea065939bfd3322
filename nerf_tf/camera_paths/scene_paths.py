"""The camera path that a run renders: one of the scene's own, or one read from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerf_tf.camera_paths import around_cameras, keyframes
from nerf_tf.data.scene import Scene
from nerf_tf.storage import camera_matrices, readers

# Frames of circles and spirals where nothing else is asked for: four seconds, as the original's spiral.
PATH_FRAMES = 120


def scene_path(scene: Scene, kind: str = "auto", frames: int | None = None) -> np.ndarray:
    """A camera path through or around a scene.

    Args:
        kind: auto (the data set's own path), orbit (a circle around what the cameras look at), spiral (in front of
            cameras that face one way), or test (from one test view to the next).
        frames: length of the path; None: as many as the path has, or 120 for circles and spirals.

    Returns:
        [M, 3, 4] float32 camera-to-world poses.

    Raises:
        ValueError: the scene has no such path.
    """
    poses = _whole_path(scene, kind, frames or PATH_FRAMES)
    if frames is not None and len(poses) not in (0, frames):
        poses = _resample(poses, frames)
    return poses


def _whole_path(scene: Scene, kind: str, frames: int) -> np.ndarray:
    """The path of that kind; only circles and spirals have the given number of frames."""
    if kind == "auto":
        return scene.render_poses
    if kind == "test":
        return scene.poses[scene.i_test]
    if kind == "orbit":
        if scene.ndc:
            raise ValueError("--render_path orbit goes around the scene, and NDC holds its front only; take spiral")
        return around_cameras.orbit_around(scene.poses, frames).astype(np.float32)
    if not around_cameras.face_one_way(scene.poses):
        raise ValueError(
            "--render_path spiral is for cameras that face one way, and these look from around; take orbit"
        )
    if scene.ndc:
        return scene.render_poses  # the loader's own spiral; its focus follows from bounds that NDC does not keep
    return around_cameras.spiral_among(scene.poses, scene.near, scene.far, frames).astype(np.float32)


def _resample(poses: np.ndarray, frames: int) -> np.ndarray:
    """Resamples a path [M, 3, 4]; one that ends a step from where it began stays a loop without a seam."""
    steps = np.linalg.norm(np.diff(poses[:, :, 3], axis=0), axis=-1)
    loops = len(poses) > 2 and np.linalg.norm(poses[0, :, 3] - poses[-1, :, 3]) <= 1.01 * steps.max()
    if loops:
        poses = np.concatenate([poses, poses[:1]])
    every_pose = keyframes.Keyframes(np.arange(len(poses)), poses)
    times = np.linspace(0, len(poses) - 1, frames, endpoint=not loops)
    return keyframes.interpolate_at(every_pose, times).astype(np.float32)


def read_path(path: Path, fps: int) -> np.ndarray:
    """Reads a camera path from a file.

    Args:
        path: an npy file of poses [M, 3, 4] or [M, 4, 4]; or a JSON file of keyframes, which are interpolated, or of
            frames with a `transform_matrix` each, as in transforms_*.json, which are taken one by one.
        fps: frames per second of interpolated keyframes.

    Returns:
        [M, 3, 4] float32 camera-to-world poses in OpenGL axes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds none of these, or a pose that is not rigid.
    """
    if path.suffix.lower() != ".json":
        poses = readers.read_npy(path, "; --render_path_file takes poses as npy or keyframes as json")
        if poses.ndim != 3 or poses.shape[1:] not in [(3, 4), (4, 4)]:
            shape = list(poses.shape)
            raise ValueError(f"{path}: holds {shape}; --render_path_file takes poses of shape [M, 3, 4] or [M, 4, 4]")
        if not len(poses) or not np.isfinite(poses).all():
            raise ValueError(f"{path}: poses must be finite numbers, and at least one")
        return _checked(path, {f"pose {i}": pose for i, pose in enumerate(poses)})
    document = readers.read_json(path, keyframes.LARGEST_TEXT, "; expected keyframes as JSON")
    frames = document.get("frames") if isinstance(document, dict) else None
    if isinstance(frames, list) and frames and "keyframes" not in document:
        found = enumerate(frame.get("transform_matrix") if isinstance(frame, dict) else None for frame in frames)
        return _checked(path, {f"frame {i}: transform_matrix": matrix for i, matrix in found})
    keys = keyframes.load_keyframes(path)
    with readers.path_in_errors(path):
        return keyframes.interpolate(keys, fps).astype(np.float32)


def _checked(path: Path, matrices: dict[str, object]) -> np.ndarray:
    """The poses [M, 3, 4] that named matrices are, checked to be rigid."""
    names = [f"{path}: {name}" for name in matrices]
    poses = np.stack(
        [camera_matrices.parse_camera_matrix(m, name) for m, name in zip(matrices.values(), names, strict=True)]
    )
    camera_matrices.require_rigid(poses, names)
    return poses.astype(np.float32)
