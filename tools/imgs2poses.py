"""Finds the poses of photos, or of a video's frames, and writes a scene to train on. Needs no COLMAP, but pycolmap.

    python tools/imgs2poses.py photos data/room
    python tools/imgs2poses.py room.mp4 data/room --frames 80
    python tools/imgs2poses.py photos data/room --sparse colmap/sparse/0

    data/room/images/            the photos that have a pose: upright, undistorted, without tags
    data/room/poses_bounds.npy   what --dataset_type llff reads: LLFF's poses, sizes, focal lengths and depths
    data/room/transforms.json    the same cameras as instant-ngp and nerfstudio have them
    data/room/view_imgs.txt      names of the photos, in the order of poses_bounds.npy
    data/room/sparse/0/          COLMAP's model of these photos
    data/room/imgs2poses.txt     the report that is printed

Photos are PNG or JPEG, of one camera and one zoom. Of a video the sharpest frame of each of --frames equal parts is
taken. What no pose was found for is named and left out. --sparse takes the poses from a model that COLMAP
made, text or binary, and its photos from PHOTOS, by their names.

One camera serves all photos of a size, by default of COLMAP's kind SIMPLE_RADIAL: a focal length and one number for
distortion. Photos of several sizes, as portraits among landscapes, have no poses_bounds.npy. LLFF's format and the
loader have one focal length and no distortion, so more (OPENCV has eight numbers) would be fitted only to be averaged,
and photos of things that lie before the camera do not determine it well. The photos are then undistorted, so that every
ray is straight; with --camera_model OPENCV or OPENCV_FISHEYE those of wider lenses too.

The scene appears when it is complete. Until then a hidden folder beside it keeps photos, features and matches, so that
a run that was stopped continues where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from support import camera_files, commandline, photo_folders

from nerf_tf.storage import atomic, image_folders, readers

FRAMES = 60
CAMERA_MODELS = ("SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "PINHOLE")
MATCHING = ("exhaustive", "sequential")
ADVICE = "take 20 to 60 sharp photos that overlap by two thirds, a step apart, of textured things that do not move"


class Report:
    """Lines about what was done, each with its label; and how long the stages took."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._times: list[str] = []
        self._start = time.monotonic()

    def add(self, label: str, text: str) -> None:
        self.lines.append(f"{label:<14}{text}")

    def end_stage(self, name: str) -> None:
        now = time.monotonic()
        self._times.append(f"{name} {now - self._start:.0f} s")
        self._start = now

    def text(self) -> str:
        return "\n".join([*self.lines, f"{'time':<14}{', '.join(self._times)}"]) + "\n"


def prepare_work(args: argparse.Namespace) -> Path:
    """Makes the working folder: empty, unless an earlier run for the same photos left it."""
    is_folder = args.photos.is_dir()
    sources = photo_folders.list_photos(args.photos) if is_folder else [args.photos]
    readers.require_file(sources[0])
    stamp = {
        "photos": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in sources],
        "frames": None if is_folder else args.frames,
        "camera_model": args.camera_model,
        "quick": args.quick,
    }
    work = args.scene.parent / f".{args.scene.name}.imgs2poses"
    stamp_file = work / "source.json"
    text = json.dumps(stamp, indent=1)
    if not stamp_file.is_file() or stamp_file.read_text(encoding="utf-8") != text:
        shutil.rmtree(work, ignore_errors=True)
        atomic.write_text(stamp_file, text)
    photos = work / "photos"
    if not photos.is_dir():
        with atomic.complete_folder(photos) as unfinished:
            if is_folder:
                photo_folders.copy_upright(sources, unfinished)
            else:
                photo_folders.write_sharpest_frames(args.photos, unfinished, args.frames)
    return work


def reconstruct(args: argparse.Namespace, work: Path, report: Report) -> tuple[Any, dict[str, Path], list[str]]:
    """Finds poses of the photos in the working folder.

    Returns:
        The model of most photos, the photos by name, and the names of those without a pose in it.

    Raises:
        ValueError: too few photos have a pose in it.
    """
    from support import sparse_models

    photos = {path.name: path for path in image_folders.list_images(work / "photos")}
    sparse_models.set_up(args.seed)
    database = work / "database.db"
    report.end_stage("photos")
    sparse_models.find_features(database, work / "photos", list(photos), args.camera_model, args.quick)
    report.end_stage("features")
    matching = args.matching or ("exhaustive" if args.photos.is_dir() else "sequential")
    sparse_models.match_features(database, len(photos), matching == "sequential", args.seed)
    report.end_stage("matching")
    models = sparse_models.find_models(database, work / "photos", work / "models", len(photos), args.seed)
    report.end_stage("poses")
    placed = [sparse_models.names_with_pose(model) for model in models]
    fewest = max(photo_folders.FEWEST, args.min_registered or (len(photos) + 1) // 2)
    if not models or len(placed[0]) < fewest:
        missing = sorted(set(photos) - set(placed[0] if models else ()))
        without = f"; without: {image_folders.listed(missing)}" if missing else ""
        raise ValueError(
            f"{args.photos}: {len(photos) - len(missing)} of {len(photos)} photos have a pose, fewer than {fewest}"
            f"{without}; {ADVICE}, or lower --min_registered"
        )
    for names in placed[1:]:
        if elsewhere := sorted(set(names) - set(placed[0])):
            report.add("other model", f"not taken, {len(elsewhere)} photos: {', '.join(elsewhere)}")
    return models[0], photos, sorted(set(photos) - set(placed[0]))


def convert(args: argparse.Namespace, report: Report) -> tuple[Any, dict[str, Path], list[str]]:
    """Reads the model --sparse, and finds its photos by their names.

    Returns:
        The model, its photos by the names it has for them, and the names of photos that it has no pose for.

    Raises:
        ValueError: too few photos of the model are there.
    """
    from support import sparse_models

    model = sparse_models.read_model(args.sparse)
    names = sparse_models.names_with_pose(model)
    # As the model has them, from the folder that COLMAP was given; or all in one folder.
    places = [
        image_folders.find_images(args.photos, names),
        image_folders.find_images(args.photos, [PureWindowsPath(name).name for name in names]),
    ]
    found: dict[str, Path] = {}
    for name, *paths in zip(names, *places, strict=True):
        path = next((path for path in paths if path.is_file() and path not in found.values()), None)
        if path is not None:
            found[name] = path
    missing = [name for name in names if name not in found]
    fewest = max(photo_folders.FEWEST, args.min_registered or (len(names) + 1) // 2)
    if len(found) < fewest:
        raise ValueError(
            f"{args.photos}: holds {len(found)} of the {len(names)} photos that {args.sparse} has poses for, fewer "
            f"than {fewest}; missing: {image_folders.listed(missing)}; give the folder of the model's own photos"
        )
    if missing:
        report.add("no photo", f"{len(missing)} poses left out: {', '.join(missing)}")
    there = {path for folder in {path.parent for path in found.values()} for path in image_folders.list_images(folder)}
    report.end_stage("reading")
    return model, found, sorted(path.name for path in there - set(found.values()))


def flat_names(photos: dict[str, Path]) -> dict[str, str]:
    """Names for photos in one folder, by the names that a model has for them.

    Raises:
        ValueError: two photos would have one name, but perhaps for its ending.
    """
    flat: dict[str, str] = {}
    for name, path in photos.items():
        stem = "_".join(part for part in PureWindowsPath(name).with_suffix("").parts if part not in ("..", "\\", "/"))
        flat[name] = stem + (".png" if path.suffix.lower() == ".png" else ".jpg")
        twice = [other for other in flat if other != name and Path(flat[other]).stem == stem]
        if twice:
            raise ValueError(f"{twice[0]} and {name}: would both be {stem} in one folder; rename one")
    return flat


def problem_of_llff(views: Sequence[Any]) -> str | None:
    """Why poses_bounds.npy cannot hold views; None if it can."""
    sizes = {view.intrinsics[:2] for view in views}
    focals = [view.intrinsics[2] for view in views]
    if len(sizes) > 1:
        return "the photos have several sizes"
    if max(focals) - min(focals) > camera_files.CENTRED * min(focals):
        return f"focal lengths run from {min(focals):.5g} to {max(focals):.5g}"
    pointless = [view.name for view in views if view.bounds is None]
    if pointless:
        return f"the model has no points, so no depths, for {image_folders.listed(pointless)}"
    return None


def write_scene(folder: Path, model: Any, photos: dict[str, Path], args: argparse.Namespace, report: Report) -> None:
    """Writes all files of a scene but the report into an empty folder."""
    from support import sparse_models

    names = flat_names({name: path for name, path in photos.items() if name in sparse_models.names_with_pose(model)})
    for name in ("images", "sparse/0"):
        (folder / name).mkdir(parents=True)
    before = {image.camera_id: image.camera for image in model.images.values() if image.name in names}
    undistorted = sparse_models.undistort(model, photos, names, folder / "images")
    undistorted.write(folder / "sparse/0")
    views = sparse_models.views(undistorted)
    cameras = camera_files.Cameras(
        poses=np.stack([view.c2w for view in views]),
        intrinsics=np.array([view.intrinsics for view in views]),
        bounds=np.array([view.bounds or (0.0, 0.0) for view in views]),
        names=[folder / "images" / view.name for view in views],
    )
    camera_files.write(folder / "transforms.json", "transforms", cameras, None)
    atomic.write_text(folder / "view_imgs.txt", "".join(f"{view.name}\n" for view in views))
    report.add(
        "model",
        f"{undistorted.num_points3D()} points, {undistorted.compute_mean_reprojection_error():.2f} pixels from where "
        "they are seen, in the mean",
    )
    for number, camera in before.items():
        pinhole = undistorted.cameras[number]
        report.add(
            "camera",
            f"{camera.model_name} {camera.width}x{camera.height}, {camera.params_info} "
            f"{', '.join(f'{value:.6g}' for value in camera.params)}; undistorted {pinhole.width}x{pinhole.height}, "
            f"focal length {pinhole.mean_focal_length():.6g} pixels",
        )
    problem = problem_of_llff(views)
    if problem is None:
        try:
            camera_files.write(folder / "poses_bounds.npy", "llff", cameras, None)
        except ValueError as error:
            problem = str(error).partition(": ")[2]
    if problem is None:
        near, far = cameras.bounds[:, 0].min(), cameras.bounds[:, 1].max()
        report.add("bounds", f"{near:.4g} to {far:.4g}, in the model's units")
    else:
        report.add("llff", f"no poses_bounds.npy: {problem}; use transforms.json")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("imgs2poses", __doc__)
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of photos, or a video file")
    parser.add_argument("scene", type=Path, metavar="SCENE", help="folder to make")
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N", help=f"frames of a video ({FRAMES})")
    parser.add_argument("--sparse", type=Path, metavar="DIR", help="a COLMAP model of the photos, to convert")
    parser.add_argument("--matching", choices=MATCHING, help="pairs: all (photos), or neighbours (frames of a video)")
    parser.add_argument(
        "--camera_model", choices=CAMERA_MODELS, default=CAMERA_MODELS[0], help="COLMAP's kind of camera"
    )
    parser.add_argument("--quick", action="store_true", help="fewer features, of smaller photos: several times as fast")
    parser.add_argument("--min_registered", type=int, metavar="N", help="fewest photos with a pose (half of them)")
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (0)")
    args = parser.parse_args(argv)
    if args.frames < photo_folders.FEWEST:
        parser.error(f"--frames: expected a whole number >= {photo_folders.FEWEST}")
    if args.sparse is not None and not args.photos.is_dir():
        parser.error("--sparse needs the folder of the model's photos as PHOTOS")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    try:
        import pycolmap  # noqa: F401  after minutes of work would be late to say that it is missing
    except ImportError:
        return commandline.fail("imgs2poses", "needs pycolmap: pip install -e '.[colmap]'")
    report, work = Report(), None
    try:
        args.scene = args.scene.resolve()
        if args.scene.exists() and not (args.scene.is_dir() and not any(args.scene.iterdir())):
            raise ValueError(f"{args.scene}: exists and is not an empty folder; name a new one, or move it away")
        if args.sparse is None:
            work = prepare_work(args)
            model, photos, without = reconstruct(args, work, report)
            count = len(photos)
        else:
            model, photos, without = convert(args, report)
            count = len(photos) + len(without)
        report.add("photos", f"{count - len(without)} of {count} in {args.photos} have a pose")
        if without:
            report.add("left out", f"no pose for {', '.join(without)}")
        with atomic.complete_folder(args.scene) as unfinished:
            write_scene(unfinished, model, photos, args, report)
            report.end_stage("writing")
            atomic.write_text(unfinished / "imgs2poses.txt", report.text())
    except (ValueError, OSError, RuntimeError) as error:
        return commandline.fail("imgs2poses", error)
    except KeyboardInterrupt:
        return commandline.fail("imgs2poses", "stopped; the same command continues from there", 130)
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
    print(args.scene)
    print(report.text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
