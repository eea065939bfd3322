"""Reads transforms files: poses, paths of images, and intrinsics in the words of several programs."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nerf_tf.storage import camera_matrices, image_folders, readers

# Most characters of a transforms file: room for some 30,000 views.
LARGEST_TEXT = 2**24
# Most characters of an image's path: systems allow some hundred to some thousand, and messages quote it.
LONGEST_NAME = 1000
# What to do about images that a transforms file names and that are not there.
MISSING_REMEDY = "; put the missing ones there, or remove their frames from the transforms file"
# Intrinsics that other programs write, for all frames or in each; lengths are in pixels of images of w x h.
LENGTHS, DISTORTIONS = ("fl_x", "fl_y", "cx", "cy"), ("k1", "k2", "k3", "k4", "p1", "p2")
INTRINSICS = ("camera_angle_x", "w", "h", *LENGTHS, *DISTORTIONS)
# The first of these that a frame has gives its focal length.
FOCALS = ("camera_angle_x", "fl_x", "fl_y")
# Values must lie between 0 and these limits, given with their words in messages.
LIMITS = dict.fromkeys(("camera_angle_x", "camera_angle_y"), (np.pi, "pi (radians)")) | dict.fromkeys(
    ("fl_x", "fl_y", "w", "h"), (1e9, "1e9 (pixels)")
)
# Cameras here have one focal length, a centred principal point and no distortion. A file whose numbers differ from that
# by more than this part is refused.
TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The content of one transforms file.

    Attributes:
        file: the transforms file.
        meta: all that it holds.
        names: N paths of images, as the file gives them.
        paths: N paths of the image files, which may be missing.
        poses: [N, 3, 4] camera-to-world.
        frames: N numbers of frames in the file, from 0.
        intrinsics: for each of N cameras {name: (value, the place in the file that gives it)}.
    """

    file: Path
    meta: dict[str, object]
    names: list[str]
    paths: list[Path]
    poses: np.ndarray
    frames: Sequence[int]
    intrinsics: list[dict[str, tuple[float, str]]]

    def focal(self, height: int, width: int) -> float:
        """Returns the one focal length of all cameras, in pixels of images of this size.

        Raises:
            ValueError: the file gives none, or its cameras are not those of `Camera.centred`.
        """
        focals = []
        for frame, intrinsics in zip(self.frames, self.intrinsics, strict=True):
            if not any(name in intrinsics for name in FOCALS):
                raise ValueError(f"{self.file} lacks 'camera_angle_x' (radians), and frame {frame} 'fl_x' (pixels)")
            focals.append(_focal(intrinsics, height, width))
            if abs(focals[-1] - focals[0]) > TOLERANCE * focals[0]:
                raise ValueError(
                    f"{self.file}: frame {frame} has focal length {focals[-1]:g}, but frame 0 has {focals[0]:g} (in "
                    f"pixels of {width}x{height}): cameras here have one; export one camera for all images"
                )
        return focals[0]


def _focal(intrinsics: dict[str, tuple[float, str]], height: int, width: int) -> float:
    """Focal length of one camera, in pixels of an image of this size; raises ValueError as `Split.focal`."""
    given = {name: value for name, (value, _) in intrinsics.items()}
    w, h = former_size(intrinsics, height, width)
    source = next(name for name in FOCALS if name in given)
    focal = 0.5 * w / math.tan(0.5 * given[source]) if source == "camera_angle_x" else given[source]
    expected = dict(zip(LENGTHS, (focal, focal, 0.5 * w, 0.5 * h), strict=True))
    for name, (value, where) in intrinsics.items():
        if name in DISTORTIONS and value != 0.0:
            raise ValueError(f"{where} has {name} {value:g}, and cameras here have no distortion: undistort the images")
        if name in LENGTHS and not abs(value - expected[name]) <= TOLERANCE * expected[name]:
            raise ValueError(
                f"{where} has {name} {value:g}, but images of {w:g}x{h:g} with this {source} have {expected[name]:g}: "
                "cameras here have one focal length, and their centre in the middle of the image"
                + ("" if "w" in given or "h" in given else "; if the images were resized, add the former w and h")
            )
    return focal * (width / w)


def former_size(intrinsics: dict[str, tuple[float, str]], height: int, width: int) -> tuple[float, float]:
    """Returns width and height of the images before they were resized, to which the file's lengths refer.

    Raises:
        ValueError: those on disk, of the given height and width, have other proportions.
    """
    given = {name: value for name, (value, _) in intrinsics.items()}
    w = given.get("w", given.get("h", height) * width / height)
    h = given.get("h", w * height / width)
    if not abs(w / h * height - width) <= 1.0 + TOLERANCE * width:
        remedy = "export the cameras of these images"
        if abs(h / w * height - width) <= 1.0 + TOLERANCE * width:
            remedy = "turn the images by 90 degrees and save them (a camera only notes in EXIF how to turn them)"
        raise ValueError(
            f"{intrinsics['w'][1]} has w {w:g} and h {h:g}, but images are {width}x{height}, of other proportions; "
            + remedy
        )
    return w, h


def read_split(
    path: Path,
    stride: int = 1,
    intrinsic_names: Sequence[str] = INTRINSICS,
    hint: str = "; a Blender scene has transforms_train, _val and _test.json",
) -> Split:
    """Reads every stride-th frame of a transforms file; images are named, not opened.

    Args:
        intrinsic_names: which numbers of cameras to read.
        hint: end of the message if there is no such file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON, lacks a key, has no frames, or holds an impossible value.
    """
    meta = readers.read_json(path, LARGEST_TEXT, hint)
    if not isinstance(meta, dict):
        raise ValueError(f"{path} lacks 'camera_angle_x' and 'frames'")
    shared = _read_intrinsics(meta, str(path), intrinsic_names)
    frames = _field(meta, "frames", str(path))
    if not (isinstance(frames, list) and frames):
        raise ValueError(f"{path}: frames must be a list of at least one view")
    names, poses, intrinsics, kept = [], [], [], range(0, len(frames), stride)
    for index in kept:
        where = f"{path}: frame {index}"
        intrinsics.append(shared | _read_intrinsics(frames[index], where, intrinsic_names))
        name = _field(frames[index], "file_path", where)
        if not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME):
            raise ValueError(f"{where}: file_path is {reprlib.repr(name)}; it must be the path of an image")
        names.append(name)
        matrix = _field(frames[index], "transform_matrix", where)
        poses.append(camera_matrices.parse_camera_matrix(matrix, f"{where}: transform_matrix"))
    poses = np.stack(poses)
    camera_matrices.require_rigid(poses, [f"{path}: frame {i}" for i in kept])
    return Split(path, meta, names, image_folders.find_images(path.parent, names), poses, kept, intrinsics)


def _read_intrinsics(record: object, where: str, names: Sequence[str]) -> dict[str, tuple[float, str]]:
    """Reads the intrinsics in the record of a file or a frame: {name: (value, `where`)}; null counts as left out."""
    found = {}
    for name in names:
        if isinstance(record, dict) and record.get(name) is not None:
            value = readers.parse_number(record[name], f"{where}: {name}")
            below, words = LIMITS.get(name, (np.inf, ""))
            if name in LIMITS and not 0 < 0.5 * value < 0.5 * below:  # half of the angle is used; it may round to 0
                raise ValueError(f"{where}: {name} is {value}; it must lie between 0 and {words}")
            found[name] = (value, where)
    return found


def _field(record: object, key: str, where: str) -> object:
    if not (isinstance(record, dict) and key in record):
        raise ValueError(f"{where} lacks {key!r}")
    return record[key]
