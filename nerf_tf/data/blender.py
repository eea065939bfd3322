"""The Blender ("nerf_synthetic") format: transforms_{train,val,test}.json and PNGs with alpha."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import reprlib
from pathlib import Path

import numpy as np

from nerf_tf.data import images as image_files
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.paths import orbit_path
from nerf_tf.storage import readers

# These scenes are rendered from a sphere of radius about 4 around an object within radius 2.
NEAR, FAR = 2.0, 6.0

# Characters in a transforms file: room for some 30,000 views.
LARGEST_TEXT = 2**24
# Characters in an image's path; systems allow some hundred to some thousand, and a message quotes it.
LONGEST_NAME = 1000
# What other programs say of a camera in files like these. Here it has one focal length, that of `camera_angle_x`, its
# axis meets the middle of the image, and nothing distorts it; what says otherwise by more than that part is refused.
LENGTHS, DISTORTIONS = ("fl_x", "fl_y", "cx", "cy"), ("k1", "k2", "k3", "k4", "p1", "p2")
TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """What one transforms file, `file`, says: N image paths, poses [N, 3, 4], horizontal angle of view in radians.

    `claims` are what else it says of cameras: where, name and value.
    """

    file: Path
    paths: list[Path]
    poses: np.ndarray
    angle: float
    claims: list[tuple[str, str, float]]


def load(datadir: str | os.PathLike[str], half_res: bool = False, testskip: int = 8, white_bkgd: bool = False) -> Scene:
    """Loads a scene in Blender format.

    Args:
        datadir: folder of the three transforms files.
        half_res: halve the sides (odd ones rounded down) by an area mean of colour and alpha.
        testskip: keep every testskip-th validation and test view; 0 means 1. Training views are all kept.
        white_bkgd: lay colours on white by their alpha. Otherwise alpha is dropped, not multiplied, as in the original.

    Raises:
        FileNotFoundError: a transforms file or an image is missing.
        ValueError: a transforms file is malformed, or images differ in size or channels.
    """
    if testskip < 0:
        raise ValueError(f"testskip {testskip}: give 0 or 1 for every view, or a larger number to skip some")
    strides = {"train": 1, "val": testskip or 1, "test": testskip or 1}
    splits = [read_split(Path(datadir) / f"transforms_{name}.json", stride) for name, stride in strides.items()]
    paths = [path for split in splits for path in split.paths]
    height, width = image_files.image_size(paths[0])
    if half_res and min(height, width) < 2:
        raise ValueError(f"{paths[0]}: half_res leaves no pixels of a {width}x{height} image")
    for split in splits:
        _require_plain_cameras(split, height, width)
    images = image_files.read_images(
        paths, transform=functools.partial(_prepare, half_res=half_res, white_bkgd=white_bkgd)
    )
    cameras = []
    for split in splits:
        with readers.blamed_on(split.file):
            focal = 0.5 * width / math.tan(0.5 * split.angle) / (2 if half_res else 1)
            cameras += [Camera.centred(*images.shape[1:3], focal)] * len(split.paths)
    starts = np.cumsum([len(split.paths) for split in splits])[:-1]
    i_train, i_val, i_test = np.split(np.arange(len(paths), dtype=np.int64), starts)
    return Scene(
        images=images,
        poses=np.concatenate([split.poses for split in splits]).astype(np.float32),
        cameras=tuple(cameras),
        near=NEAR,
        far=FAR,
        ndc=False,
        i_train=i_train,
        i_val=i_val,
        i_test=i_test,
        render_poses=orbit_path().astype(np.float32),
    )


def _require_plain_cameras(split: Split, height: int, width: int) -> None:
    """Raises ValueError if a file says of its cameras what would be ignored."""
    focal = 0.5 * width / math.tan(0.5 * split.angle)
    expected = dict(zip(LENGTHS, (focal, focal, 0.5 * width, 0.5 * height), strict=True))
    for where, name, value in split.claims:
        if name in DISTORTIONS and value != 0.0:
            raise ValueError(f"{where} has {name} {value:g}, and cameras here have no distortion: undistort the images")
        if name in LENGTHS and not abs(value - expected[name]) <= TOLERANCE * expected[name]:
            raise ValueError(
                f"{where} has {name} {value:g}, but images of {width}x{height} with this camera_angle_x have "
                f"{expected[name]:g}: cameras here have one focal length, and their centre in the middle of the image"
            )


def _prepare(image: np.ndarray, half_res: bool, white_bkgd: bool) -> np.ndarray:
    """[H, W, 3 or 4] -> [h, w, 3]. Alpha is resized with the colours and only then used, as in the original."""
    if half_res:
        image = image_files.area_resize(image, image.shape[0] // 2, image.shape[1] // 2)
    return image_files.composite_white(image) if white_bkgd else image[..., :3]


def read_split(path: Path, stride: int = 1) -> Split:
    """Reads every stride-th frame of a transforms file; images are named, not opened.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON, lacks a key, has no frames, or a value in it makes no sense.
    """
    meta = readers.read_json(path, LARGEST_TEXT, "; a Blender scene has transforms_train, _val and _test.json")
    angle = readers.number(_field(meta, "camera_angle_x", str(path)), f"{path}: camera_angle_x")
    if not 0 < 0.5 * angle < 0.5 * np.pi:  # halved, as it is used: half of the smallest number is 0
        raise ValueError(f"{path}: camera_angle_x is {angle}; it must lie between 0 and pi (radians)")
    frames = _field(meta, "frames", str(path))
    if not (isinstance(frames, list) and frames):
        raise ValueError(f"{path}: frames must be a list of at least one view")
    paths, poses, claims = [], [], _claims(meta, str(path))
    for index in range(0, len(frames), stride):
        where = f"{path}: frame {index}"
        claims += _claims(frames[index], where)
        name = _field(frames[index], "file_path", where)
        if not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME):
            raise ValueError(f"{where}: file_path is {reprlib.repr(name)}; it must be the path of an image")
        # The official files leave the ending out; many programs that write this format do not.
        paths.append(path.parent / (name if name.lower().endswith((".png", ".jpg", ".jpeg")) else f"{name}.png"))
        matrix = _field(frames[index], "transform_matrix", where)
        poses.append(readers.camera_matrix(matrix, f"{where}: transform_matrix"))
    poses = np.stack(poses)
    pose_maths.require_rigid(poses, [f"{path}: frame {i}" for i in range(0, len(frames), stride)])
    return Split(path, paths, poses, angle, claims)


def _claims(record: object, where: str) -> list[tuple[str, str, float]]:
    if not isinstance(record, dict):
        return []
    return [
        (where, name, readers.number(record[name], f"{where}: {name}"))
        for name in LENGTHS + DISTORTIONS
        if name in record
    ]


def _field(record: object, key: str, where: str) -> object:
    if not (isinstance(record, dict) and key in record):
        raise ValueError(f"{where} lacks {key!r}")
    return record[key]
