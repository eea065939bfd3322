"""Writes photos of the built-in scene to folders in the three data formats."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from nerf_tf.geometry import paths
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.storage.atomic import complete_folder
from still_life import objects
from still_life.tracing import depth, render

logger = logging.getLogger(__name__)

# Written into every folder, so that one from another revision of the scene is not reused.
_REVISION = 1
_STAMP = "scene.json"

# Horizontal angle of view in radians: about that of the original's synthetic scenes; all toys fit in.
BLENDER_ANGLE = 0.72


def dome_poses(count: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Poses [count, 3, 4] that look at the origin from all around, 8 to 65 degrees above the horizon.

    Golden-angle steps in azimuth and even steps in height cover the dome evenly for any count; `rng` jitters both.
    """
    number = np.arange(count)
    theta = (
        number * 180.0 * (3.0 - math.sqrt(5.0)) + rng.uniform(0.0, 360.0) + rng.uniform(-12.0, 12.0, count)
    ) % 360.0
    low, high = np.sin(np.radians([8.0, 65.0]))
    height = low + (high - low) * (rng.permutation(count) + rng.uniform(size=count)) / count
    return np.stack(
        [paths.spherical_pose(t - 180.0, -np.degrees(np.arcsin(h)), radius) for t, h in zip(theta, height, strict=True)]
    )


def forward_poses(count: int, rng: np.random.Generator) -> np.ndarray:
    """Poses [count, 3, 4] on a jittered grid in front of the room, all facing its back wall."""
    columns = math.ceil(math.sqrt(1.5 * count))
    rows = math.ceil(count / columns)
    number = np.arange(count)
    across = (number % columns + 0.5 + rng.uniform(-0.25, 0.25, count)) / columns - 0.5
    above = (number // columns + 0.5 + rng.uniform(-0.25, 0.25, count)) / rows - 0.5
    centres = np.stack([1.5 * across, -4.1 + rng.uniform(-0.1, 0.1, count), 0.75 + 0.8 * above], axis=-1)
    # They look at a point far behind the toys, so they are nearly parallel.
    return np.stack([pose_maths.look_at(centre - [0.0, 4.0, -0.35], [0.0, 0.0, 1.0], centre) for centre in centres])


def walk_poses(count: int, rng: np.random.Generator) -> np.ndarray:
    """Poses [count, 3, 4] of a walk around the toys, at the height of a hand that holds a phone."""
    angles = 2.0 * math.pi * (np.arange(count) + rng.uniform(-0.2, 0.2, count)) / count
    radius, height = 3.4 + rng.uniform(-0.2, 0.2, count), 0.7 + 0.3 * np.sin(3.0 * angles) + rng.uniform(0, 0.1, count)
    centres = np.stack([radius * np.cos(angles), radius * np.sin(angles), height], axis=-1)
    return np.stack([pose_maths.look_at(centre - [0.0, 0.0, 0.3], [0.0, 0.0, 1.0], centre) for centre in centres])


# What surrounds the toys, and from where that is photographed.
_SURROUNDINGS = {"room": (objects.room, forward_poses), "hall": (objects.hall, walk_poses)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Photo:
    """A picture to render: its file, camera and pose, and what surrounds the toys; None: nothing."""

    path: Path
    camera: Camera
    c2w: np.ndarray
    surroundings: str | None = None
    on_white: bool = False


def _take(photo: _Photo) -> None:
    # As a real camera, whose pixels show what falls on their middle; `Camera`'s rays go through their corners.
    rgba = render(
        photo.camera.through_pixel_centres(),
        photo.c2w,
        _SURROUNDINGS[photo.surroundings][0]() if photo.surroundings else None,
    )
    if photo.surroundings or photo.on_white:
        rgba = rgba[..., :3] * rgba[..., 3:] + (1.0 - rgba[..., 3:])
    Image.fromarray(np.uint8(np.rint(255.0 * rgba))).save(photo.path)


def _take_all(photos: Sequence[_Photo], workers: int) -> None:
    """Renders photos, in several processes if workers > 1: numpy on small arrays holds Python's lock."""
    for folder in {photo.path.parent for photo in photos}:
        folder.mkdir(parents=True)
    bar = {"desc": "Rendering the built-in scene", "total": len(photos), "unit": "image"}
    if workers == 1:
        for _ in tqdm(map(_take, photos), **bar):
            pass
        return
    # Spawned, because a forked process may hang if TensorFlow runs threads.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for _ in tqdm(pool.map(_take, photos, chunksize=2), **bar):
            pass


def _write_once(datadir: str | Path, settings: dict, make: Callable[[Path], None]) -> Path:
    """Lets `make` fill a new folder, which gets its name when complete; keeps one made from equal settings.

    Raises:
        ValueError: the folder exists and holds something else.
        OSError: it cannot be written.
    """
    datadir = Path(datadir).absolute()
    settings = {"revision": _REVISION, **settings}
    if datadir.exists() and (not datadir.is_dir() or any(datadir.iterdir())):
        stamp = datadir / _STAMP
        if not stamp.is_file() or json.loads(stamp.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"{datadir}: exists and was not written with {settings}; remove it or name another folder")
        logger.info("%s: is there already, with the same settings", datadir)
        return datadir
    with complete_folder(datadir) as unfinished:
        make(unfinished)
        (unfinished / _STAMP).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return datadir


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} = {value}: give a positive number")


def write_blender(
    datadir: str | Path, height: int, width: int, n_train: int, n_val: int, n_test: int, seed: int = 0, workers: int = 1
) -> Path:
    """Writes the toys in Blender format: RGBA PNGs and transforms_{train,val,test}.json, cameras at radius 4.

    Args:
        datadir: folder to make; a complete one written with the same settings is kept.
        height, width: size of the images.
        n_train, n_val, n_test: numbers of views; no view is in two splits.
        seed: of the cameras.
        workers: processes that render; more than 1 need an importable `__main__` (see multiprocessing).

    Returns:
        The folder.

    Raises:
        ValueError: a number is not positive, or the folder holds something else.
    """
    _check(height=height, width=width, n_train=n_train, n_val=n_val, n_test=n_test, workers=workers)
    counts = {"train": n_train, "val": n_val, "test": n_test}
    camera = Camera.centred(height, width, 0.5 * width / math.tan(0.5 * BLENDER_ANGLE))

    def make(folder: Path) -> None:
        photos = []
        for number, (split, count) in enumerate(counts.items()):
            frames = []
            for i, c2w in enumerate(dome_poses(count, 4.0, np.random.default_rng([seed, number]))):
                photos.append(_Photo(folder / split / f"r_{i}.png", camera, c2w))
                matrix = [*c2w.tolist(), [0.0, 0.0, 0.0, 1.0]]
                frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": matrix})
            text = json.dumps({"camera_angle_x": BLENDER_ANGLE, "frames": frames}, indent=1)
            (folder / f"transforms_{split}.json").write_text(text + "\n", encoding="utf-8")
        _take_all(photos, workers)

    settings = {"format": "blender", "height": height, "width": width, "views": counts, "seed": seed}
    return _write_once(datadir, settings, make)


def write_llff(
    datadir: str | Path,
    height: int,
    width: int,
    n_views: int,
    seed: int = 0,
    workers: int = 1,
    surroundings: str = "room",
) -> Path:
    """Writes the toys in their surroundings in LLFF format: images/, images_2/ (half the size) and poses_bounds.npy.

    Args:
        datadir, seed, workers: as in `write_blender`.
        height, width: size of the images, even.
        n_views: number of views; the loader decides which are held out.
        surroundings: "room", seen from its front, or "hall", seen all around.

    Returns:
        The folder.

    Raises:
        ValueError: a number is not positive, a side is odd, or the folder holds something else.
    """
    _check(height=height, width=width, n_views=n_views, workers=workers)
    if height % 2 or width % 2:
        raise ValueError(f"{width}x{height}: sides must be even, for images_2/")
    camera = Camera.centred(height, width, 0.5 * width / math.tan(0.4))
    make_solids, make_poses = _SURROUNDINGS[surroundings]
    poses = make_poses(n_views, np.random.default_rng(seed))

    def make(folder: Path) -> None:
        rows = []
        for c2w in poses:
            seen = depth(camera, c2w, make_solids())
            matrix = np.concatenate([pose_maths.opengl_to_llff(c2w), [[height], [width], [camera.fx]]], axis=-1)
            rows.append([*matrix.ravel(), seen.min(), seen.max()])
        np.save(folder / "poses_bounds.npy", np.array(rows))
        sizes = {"images": camera, "images_2": camera.downscaled(2)}
        photos = [
            _Photo(folder / name / f"{i:03d}.png", size, c2w, surroundings)
            for name, size in sizes.items()
            for i, c2w in enumerate(poses)
        ]
        _take_all(photos, workers)

    settings = {"format": "llff", "height": height, "width": width, "views": n_views, "seed": seed}
    if surroundings != "room":
        settings["surroundings"] = surroundings
    return _write_once(datadir, settings, make)


def write_deepvoxels(
    datadir: str | Path,
    shape: str,
    n_train: int,
    n_val: int,
    n_test: int,
    side: int = 512,
    seed: int = 0,
    workers: int = 1,
) -> Path:
    """Writes the toys, scaled into the unit ball, in DeepVoxels format, on white, cameras at radius 2.5.

    Args:
        datadir, n_train, n_val, n_test, seed, workers: as in `write_blender`.
        shape: name of the object: one that `--shape` takes.
        side: of the square images; the original's code reads 512 only.

    Returns:
        The folder.

    Raises:
        ValueError: a number is not positive, or the folder holds something else.
    """
    _check(side=side, n_train=n_train, n_val=n_val, n_test=n_test, workers=workers)
    counts = {"train": n_train, "validation": n_val, "test": n_test}
    radius, focal = 2.5, 560.0  # focal length at a side of 512, as in the published data
    camera = Camera.centred(side, side, focal * side / 512.0)

    def make(folder: Path) -> None:
        photos = []
        for number, (split, count) in enumerate(counts.items()):
            home = folder / split / shape
            (home / "pose").mkdir(parents=True)
            (home / "intrinsics.txt").write_text(
                f"{focal} 256. 256. 0.\n0. 0. 0.\n1.\n1.\n512 512\n1\n", encoding="utf-8"
            )
            for i, c2w in enumerate(dome_poses(count, radius, np.random.default_rng([seed, number]))):
                matrix = np.concatenate([pose_maths.opengl_to_opencv(c2w), [[0.0, 0.0, 0.0, 1.0]]])
                np.savetxt(home / "pose" / f"{i:06d}.txt", matrix.reshape(1, 16), fmt="%.9f")
                # The unit of length in the file is the scene's radius.
                in_scene = c2w * [1.0, 1.0, 1.0, objects.RADIUS]
                photos.append(_Photo(home / "rgb" / f"{i:06d}.png", camera, in_scene, on_white=True))
        _take_all(photos, workers)

    settings = {"format": "deepvoxels", "side": side, "shape": shape, "views": counts, "seed": seed}
    return _write_once(datadir, settings, make)
