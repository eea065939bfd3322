"""Converts camera poses between the conventions of LLFF, NeRF, COLMAP, IBRNet and transforms.json.

    python tools/convert_poses.py data/room/poses_bounds.npy data/room/transforms.json
    python tools/convert_poses.py data/room/poses_bounds.npy c2w.npy --to opencv
    python tools/convert_poses.py data/room/poses_bounds.npy path.npy --to opengl --to_world loaded
    python tools/convert_poses.py path.npy back.npy --from opengl --from_world loaded --to colmap \\
        --scene data/room/poses_bounds.npy

    llff        poses_bounds.npy [N, 17]: axes down, right, back; with size, focal length and bounds
    transforms  transforms.json: camera-to-world, axes right, up, back; with sizes and focal lengths
    opengl      .npy [N, 4, 4] or [N, 3, 4]: camera-to-world, axes right, up, back, as this package has them
    opencv      the same with axes right, down, forward, as GNT wants it
    colmap      the same inverted: world-to-camera, axes right, down, forward
    ibrnet      .npy [N, 34]: height, width, a 4x4 matrix of the camera, then opencv's 4x4 matrix

A name that ends in .json means transforms, and poses_bounds.npy means llff; give --from and --to for other .npy files.
The world is that of the data set or, with --from_world or --to_world loaded, the scaled and recentred one in which an
LLFF scene is trained. It is computed from the scene's poses_bounds.npy: the source, or what --scene names. --scene also
provides sizes, focal lengths and bounds that a source lacks; so do --hwf and --bounds. Frames of transforms.json are
ordered by the names of their images, as the rows of LLFF are. Prints the file written.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
from support import commandline
from support.camera_files import FORMATS, PLAIN, Cameras, centred, write

from nerf_tf.captures import worlds
from nerf_tf.data import llff
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.storage import camera_matrices, image_reader, llff_files, readers, transforms_files

WORLDS = ("dataset", "loaded")


def read(path: Path, kind: str, only_poses: bool = False) -> Cameras:
    """Reads a file of one of `FORMATS`; with `only_poses` not the intrinsics of transforms.json.

    Raises:
        FileNotFoundError, ValueError: it is missing or malformed.
    """
    if kind == "llff":
        poses, hwf, bounds = llff_files.read_poses_bounds(path)
        return Cameras(pose_maths.llff_to_opengl(poses), centred(hwf), bounds)
    if kind == "transforms":
        return _read_transforms(path, only_poses)
    rows = readers.read_npy(path).astype(np.float64)
    intrinsics = None
    if kind == "ibrnet":
        if rows.ndim != 2 or rows.shape[1] != 34:
            raise ValueError(f"{path}: holds {list(rows.shape)}; ibrnet has [N, 34]")
        k = rows[:, 2:18].reshape(-1, 4, 4)
        intrinsics = np.stack([rows[:, 0], rows[:, 1], k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], axis=-1)
        rows = rows[:, 18:].reshape(-1, 4, 4)
    if rows.ndim != 3 or not len(rows):
        raise ValueError(f"{path}: holds {list(rows.shape)}; {kind} has [N, 4, 4] or [N, 3, 4]")
    names = [f"{path}: pose {i}" for i in range(len(rows))]
    poses = np.stack([camera_matrices.parse_camera_matrix(row, name) for row, name in zip(rows, names, strict=True)])
    camera_matrices.require_rigid(poses, names)
    if kind == "colmap":
        poses = pose_maths.invert(poses)
    return Cameras(poses if kind == "opengl" else pose_maths.opencv_to_opengl(poses), intrinsics)


def _read_transforms(path: Path, only_poses: bool) -> Cameras:
    split = transforms_files.read_split(path)
    order = sorted(range(len(split.paths)), key=lambda i: split.paths[i].name)
    poses, names = split.poses[order], [split.paths[i] for i in order]
    if only_poses:
        return Cameras(poses, names=names)
    rows = [_intrinsics(split.intrinsics[i], split.paths[i]) for i in order]
    return Cameras(poses, None if None in rows else np.array(rows), names=names)


def _intrinsics(given: dict[str, tuple[float, str]], image: Path) -> tuple[float, ...] | None:
    """Height, width, fx, fy, cx, cy of a frame; None if file and image do not give them.

    Raises:
        ValueError: its camera is distorted, or the image cannot be read.
    """
    for name in transforms_files.DISTORTIONS:
        if given.get(name, (0.0, ""))[0]:
            raise ValueError(f"{given[name][1]}: has {name} {given[name][0]:g}; undistort the images first")
    numbers = {name: value for name, (value, _) in given.items()}
    if not {"w", "h"} <= numbers.keys() and image.is_file():
        numbers["h"], numbers["w"] = image_reader.image_size(image)
    if "fl_x" not in numbers and {"w", "camera_angle_x"} <= numbers.keys():
        numbers["fl_x"] = 0.5 * numbers["w"] / math.tan(0.5 * numbers["camera_angle_x"])
    if not {"w", "h", "fl_x"} <= numbers.keys():
        return None
    height, width, fx = numbers["h"], numbers["w"], numbers["fl_x"]
    return height, width, fx, numbers.get("fl_y", fx), numbers.get("cx", width / 2), numbers.get("cy", height / 2)


def complete(cameras: Cameras, args: argparse.Namespace) -> Cameras:
    """Takes intrinsics and bounds from --hwf and --bounds, else from the source, else from --scene.

    Those of a --scene with another number of cameras are not taken, which is said.

    Raises:
        FileNotFoundError, ValueError: --scene is missing or malformed.
    """
    count = len(cameras.poses)
    intrinsics, bounds = cameras.intrinsics, cameras.bounds
    if args.scene is not None and (intrinsics is None or bounds is None):
        of_scene = read(args.scene, "llff")
        if len(of_scene.poses) != count:
            print(
                f"convert_poses: {args.scene}: {len(of_scene.poses)} cameras, but {args.source} has {count}: sizes, "
                "focal lengths and depths are not taken from there; give --hwf and --bounds, if they are needed",
                file=sys.stderr,
            )
        else:
            intrinsics = of_scene.intrinsics if intrinsics is None else intrinsics
            if bounds is None:
                bounds = of_scene.bounds / (1.0 if args.from_world == "dataset" else _unit(_to_dataset(args)))
    if args.hwf is not None:
        intrinsics = centred(np.tile(args.hwf, (count, 1)))
    if args.bounds is not None:
        bounds = np.tile(np.array(args.bounds), (count, 1))
    return dataclasses.replace(cameras, intrinsics=intrinsics, bounds=bounds)


def _to_dataset(args: argparse.Namespace) -> np.ndarray:
    """The transform [4, 4] from the loaded world of --scene to the world of its file."""
    poses, _, bounds = llff_files.read_poses_bounds(args.scene)
    with readers.path_in_errors(args.scene):
        return llff.arrange(poses, bounds, args.spherify)[-1]


def _unit(to_dataset: np.ndarray) -> float:
    return float(np.cbrt(np.linalg.det(to_dataset[:3, :3])))


def change_world(cameras: Cameras, args: argparse.Namespace) -> Cameras:
    """Transforms cameras from --from_world to --to_world."""
    if args.from_world == args.to_world:
        return cameras
    similarity = _to_dataset(args)
    if args.to_world == "loaded":
        similarity = np.linalg.inv(similarity)
    bounds = None if cameras.bounds is None else cameras.bounds * _unit(similarity)
    return dataclasses.replace(cameras, poses=worlds.change_world(similarity, cameras.poses), bounds=bounds)


def _format_of(path: Path) -> str | None:
    if path.suffix.lower() == ".json":
        return "transforms"
    return "llff" if path.name.lower() == "poses_bounds.npy" else None


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("convert_poses", __doc__)
    parser.add_argument("source", type=Path, help="file to read")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--from", dest="from_", choices=FORMATS, help="what the source is")
    parser.add_argument("--to", choices=FORMATS, help="what the target is to be")
    parser.add_argument("--from_world", choices=WORLDS, default="dataset", help="world of the source")
    parser.add_argument("--to_world", choices=WORLDS, default="dataset", help="world of the target")
    parser.add_argument("--scene", type=Path, metavar="FILE", help="the scene's poses_bounds.npy")
    parser.add_argument("--spherify", action="store_true", help="the scene is loaded with --spherify")
    parser.add_argument("--hwf", type=float, nargs=3, metavar=("H", "W", "F"), help="pixels")
    parser.add_argument("--bounds", type=float, nargs=2, metavar=("NEAR", "FAR"), help="depths, of the source's world")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images to name; images/ beside the source")
    args = parser.parse_args(argv)
    args.from_, args.to = args.from_ or _format_of(args.source), args.to or _format_of(args.target)
    for path, kind, flag in ((args.source, args.from_, "--from"), (args.target, args.to, "--to")):
        if kind is None:
            parser.error(f"{path}: its name does not say which format it has; give {flag} ({', '.join(FORMATS)})")
    if args.scene is None and args.from_ == "llff" and args.from_world == "dataset":
        args.scene = args.source
    if args.scene is None and args.from_world != args.to_world:
        parser.error("give --scene, the poses_bounds.npy from which the loaded world follows")
    if args.bounds is not None and not 0 < args.bounds[0] < args.bounds[1]:
        parser.error("--bounds: expected 0 < NEAR < FAR")
    if args.hwf is not None and not min(args.hwf) > 0:
        parser.error("--hwf: expected three numbers > 0")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    try:
        cameras = complete(read(args.source, args.from_, only_poses=args.to in PLAIN), args)
        write(args.target, args.to, change_world(cameras, args), args.images or args.source.parent / "images")
    except (ValueError, OSError) as error:
        return commandline.fail("convert_poses", error)
    print(args.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
