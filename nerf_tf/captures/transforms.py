"""Loads scenes of a transforms.json.

instant-ngp, nerfstudio, Polycam, Record3D and BlenderNeRF write such files.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nerf_tf.camera_paths import around_cameras
from nerf_tf.captures import photo_sizes, scene_points
from nerf_tf.captures.distortion import Distortion, find_pinhole, resample, source_pixels
from nerf_tf.captures.photo_sizes import CommonSize, Place, Size
from nerf_tf.captures.scene_points import ScenePoints
from nerf_tf.captures.viewed_point import meeting_depths
from nerf_tf.captures.worlds import transform_points
from nerf_tf.data import images as image_files
from nerf_tf.data import llff
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.storage import camera_matrices, image_folders, image_reader, readers, transforms_files
from nerf_tf.storage.image_folders import listed
from nerf_tf.storage.transforms_files import Split

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
# Accepted values of `camera_model`: models whose distortion `captures.distortion` covers.
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
MODELS = (*PINHOLES, "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
# Keys by which instant-ngp marks other kinds of lenses, and coefficients that `Distortion` does not have.
OTHER_LENSES, OTHER_DISTORTIONS = ("is_fisheye", "latlong", "ftheta_p0"), ("k4", "k5", "k6")
INTRINSICS = (*transforms_files.INTRINSICS, "camera_angle_y", "k5", "k6")
# Keys that do not change the poses: instant-ngp's unit cube, and what has been done to the poses already.
WITHOUT_EFFECT = ("aabb_scale", "scale", "offset", "from_na", "applied_transform", "applied_scale")
# Largest distortion coefficient: far beyond the thousands that long lenses have, where x and y are small.
LARGEST_COEFFICIENT = 1e7
# Near and far where the data does not tell them, as multiples of the distance to the point that cameras look at: for an
# object on an empty background, as in the original's Blender scenes (2 and 6 at distance 4), and for photos, which show
# the surroundings.
OBJECT_RANGE, PHOTO_RANGE = (0.5, 1.5), (0.2, 8.0)
# The same for cameras that look at no common point, as multiples of their median distance from their middle.
UNKNOWN_RANGE = (0.1, 20.0)
# Cameras whose distances are no larger than this part of their coordinates stand in one place, but for rounding.
ROUNDING = 1e-9
# Cameras face one way if all look within 50 degrees of their mean direction; this is the cosine.
ONE_WAY = 0.64
# A resized or undistorted pixel counts as within its mask if more than this part of it is: all but rounding.
INSIDE = 0.999

Lens = tuple[Camera, Distortion]


def load(
    datadir: str | os.PathLike[str],
    factor: int = 8,
    llffhold: int = 8,
    white_bkgd: bool = False,
    keep_alpha: bool = False,
) -> Scene:
    """Loads a scene of transforms.json, or of transforms_train.json and those for val and test beside it.

    The origin moves to the point that the cameras look at, or to their middle if there is none, and the world is scaled
    so that half of the cameras are within distance 1 of it. Distorted photos are resampled to those of a pinhole
    camera. There is no NDC.

    Args:
        datadir: folder of the file.
        factor: divides the photos' sides (area mean, sides rounded down); 0 or 1: full size. Photos of several sizes
            are all shrunk to what this makes of the smallest. Those of other proportions than most are shrunk until
            they fit into it; masks leave out the black beside them, and they are for training only.
        llffhold: without splits in the file, every llffhold-th photo by name is for test and validation, as in LLFF.
        white_bkgd: composite photos on white. Where near and far are a guess, it is then for an object alone.
        keep_alpha: with white_bkgd, also keep the images' alpha, as `Scene.alphas`.

    Raises:
        FileNotFoundError: the file or an image is missing.
        ValueError: the file is malformed, its cameras contradict themselves or are no pinholes, or `factor` leaves no
            pixels of images.
    """
    datadir, factor = Path(datadir), factor or 1
    files = _read_files(datadir)
    main = next(iter(files.values()))
    paths, mask_paths = [], []
    for file in files.values():
        photos = _find(file, "file_path", file.names, file.paths)
        paths += photos
        mask_paths += _find_masks(file, photos)
    size_of = {path: image_reader.image_size(path) for path in paths}
    common = _common_size(size_of, factor)
    sizes = [size_of[path] for path in paths]
    places = [common.place(size) for size in sizes]
    frames = [(file, i) for file in files.values() for i in file.frames]
    lenses = [_lens(*frame, size, place) for frame, size, place in zip(frames, sizes, places, strict=True)]
    with readers.path_in_errors(main.file):
        pinholes = {lens: find_pinhole(*lens) if any(lens[1]) else lens[0] for lens in dict.fromkeys(lenses)}
        placed = zip(places, lenses, strict=True)
        cameras = tuple(place.camera_of_image(pinholes[lens], common.image) for place, lens in placed)
        in_dataset = np.concatenate([file.poses for file in files.values()])
        points = scene_points.find_points(datadir, cameras, in_dataset, main.meta)
        poses, to_dataset = _normalise(in_dataset)
        depths = meeting_depths(poses)
        near, far = _near_far(main, poses, depths, cameras, points, to_dataset, white_bkgd)
        path = _path(poses, depths, near, far)
    is_whole = np.array([place.is_whole(common.image) for place in places])
    i_train, i_val, i_test = _split(files, poses, llffhold, is_whole)

    def fit(image: np.ndarray) -> np.ndarray:
        place = common.place(image.shape[:2])
        return place.fill(image_files.shrink(image, place.height, place.width, white_bkgd, keep_alpha), common.image)

    images, alphas = image_files.read_photos(paths, fit, white_bkgd, one_size=False)
    masks = _read_masks(mask_paths, sizes, places, common.image)
    _undistort(images, alphas, masks, lenses, pinholes, places)
    return Scene(
        images=images,
        alphas=alphas,
        poses=poses.astype(np.float32),
        cameras=cameras,
        near=near,
        far=far,
        ndc=False,
        i_train=i_train,
        i_val=i_val,
        i_test=i_test,
        render_poses=path.astype(np.float32),
        to_dataset=to_dataset,
        names=tuple(os.path.relpath(path, datadir) for path in paths),
        masks=masks,
    )


def read_meta(datadir: Path) -> dict[str, object]:
    """Returns what the first transforms file of a scene holds; errors are those of `load`."""
    return next(iter(_read_files(datadir).values())).meta


def _read_files(datadir: Path) -> dict[str, Split]:
    """Reads the files of a scene: {name of the split: its file}; a file of all photos is under ""."""
    single, of_split = datadir / "transforms.json", {name: datadir / f"transforms_{name}.json" for name in SPLITS}
    of_split = {name: path for name, path in of_split.items() if os.path.lexists(path)}
    if "train" not in of_split:
        of_split = {"": single}
    elif os.path.lexists(single):
        logger.info("%s is not read, as there is transforms_train.json", single)
    if list(of_split) == ["train"]:
        of_split = {"": of_split["train"]}
    hint = "; --dataset_type transforms takes it, or transforms_train.json and transforms_test.json"
    files = {name: transforms_files.read_split(path, 1, INTRINSICS, hint) for name, path in of_split.items()}
    for file in files.values():
        if ignored := [name for name in WITHOUT_EFFECT if name in file.meta]:
            logger.info("%s: %s without effect: poses count as they stand", file.file, listed(ignored))
    return files


# Photos and masks


def _find_masks(file: Split, photos: Sequence[Path]) -> list[Path | None]:
    """Finds the path of each frame's mask; None where it has none."""
    names = {i: file.meta["frames"][i].get("mask_path") for i in file.frames}
    names = {i: name for i, name in names.items() if name not in (None, "")}
    for i, name in names.items():
        if not (isinstance(name, str) and 0 < len(name) <= transforms_files.LONGEST_NAME):
            raise ValueError(f"{file.file}: frame {i}: mask_path must be the path of an image")
    written = list(names.values())
    found = _find(file, "mask_path", written, image_folders.find_images(file.file.parent, written), photos)
    return list(map(dict(zip(names, found, strict=True)).get, file.frames))


def _find(
    file: Split, key: str, names: Sequence[str], paths: Sequence[Path], not_meant: Sequence[Path] = ()
) -> list[Path]:
    """Returns the paths; if none of them exists, as on another machine, images whose paths end alike.

    Raises:
        FileNotFoundError: an image is missing, or several paths end alike.
        ValueError: two names lead to one image.
    """
    folder = file.file.parent
    if any(map(os.path.lexists, paths)) or not paths:
        image_folders.require_images(paths, transforms_files.MISSING_REMEDY)
        return list(paths)
    owners = {}
    for name, found in zip(names, image_folders.match_images(folder, names, not_meant), strict=True):
        if len(found) != 1:
            several = listed([str(path.relative_to(folder)) for path in found])
            there = f"{folder} holds {listed(image_folders.list_entries(folder))}"
            raise FileNotFoundError(
                f"{file.file}: {key} {name[:200]!r}: no such image ({len(paths)} of {len(paths)} are missing); "
                + (f"{several} end alike: correct the paths" if found else f"{there}, and no image of that name")
            )
        if owners.setdefault(found[0], name) != name:
            meant = found[0].relative_to(folder)
            raise ValueError(f"{file.file}: {key} of two frames may mean {meant}: correct the paths")
    found = {name: path for path, name in owners.items()}
    logger.info(
        "%s: %d images were found by the ends of their paths: %s is %s",
        file.file, len(names), names[0], found[names[0]].relative_to(folder),
    )  # fmt: skip
    return [found[name] for name in names]


def _common_size(sizes: Mapping[Path, Size], factor: int) -> CommonSize:
    """Chooses the size of the scene's images, and reports what that does to photos; `sizes` are by path.

    Raises:
        ValueError: `factor` leaves no pixels.
    """
    photo = photo_sizes.smallest_usual(list(sizes.values()))
    common = CommonSize(photo, (photo[0] // factor, photo[1] // factor))
    smallest = next(path for path, size in sizes.items() if size == photo)
    if min(common.image) < 1:
        raise ValueError(f"{smallest}: factor {factor} leaves no pixels of photos of {photo[1]}x{photo[0]}")
    if factor > 1:
        shrunk = (*photo[::-1], *common.image[::-1])
        logger.info("factor %d: photos of %dx%d become %dx%d (--factor 1 keeps them)", factor, *shrunk)
    usual = {size for size in sizes.values() if photo_sizes.are_alike(size, photo)}
    others = [path for path, size in sizes.items() if size not in usual]
    if others:
        logger.warning(
            "%s: %d of %d photos have other proportions (%dx%d) than most (%dx%d): they are shrunk to fit, and "
            "used for training only; to keep more detail make them a scene of their own",
            others[0], len(others), len(sizes), *sizes[others[0]][::-1], *photo[::-1],
        )  # fmt: skip
    if (largest := max(usual)) != photo:
        logger.warning(
            "%s: photos of several sizes, up to %dx%d, are shrunk to this one's, %dx%d; leave small ones out to keep "
            "more detail",
            smallest, *largest[::-1], *photo[::-1],
        )  # fmt: skip
    return common


def _read_masks(
    paths: Sequence[Path | None], photos: Sequence[Size], places: Sequence[Place], size: Size
) -> np.ndarray | None:
    """Reads masks [N, H, W] for images of `size`; None if no frame has one and photos fill all images.

    White is within the mask, black is left out, and so is what lies beside a photo.

    Args:
        paths: of the masks; None where a frame has none.
        photos: sizes of the photos, before they were shrunk.
        places: where they are in the images.
        size: that of the images.
    """
    if not any(paths) and all(place.is_whole(size) for place in places):
        return None
    masks = np.zeros([len(paths), *size], bool)

    def read(i: int) -> None:
        """Reads the mask of a photo, if it has one."""
        if paths[i] is None:
            masks[i][places[i].window] = True
            return
        mask = image_reader.read_image(paths[i])[..., :3].max(axis=-1, keepdims=True)
        if mask.shape[:2] != photos[i]:
            raise ValueError(
                f"{paths[i]}: {mask.shape[1]}x{mask.shape[0]}, but photos are {photos[i][1]}x{photos[i][0]}; a mask "
                "has the size of its photo"
            )
        white = np.float32(mask > 0.5 * mask.max())  # white is 1 of 255 in some files
        shrunk = image_files.shrink(white, places[i].height, places[i].width, white_bkgd=False)
        masks[i][places[i].window] = shrunk[..., 0] > INSIDE

    image_reader.run_parallel(read, len(paths), "Reading masks")
    if not masks.any():
        raise ValueError(f"{next(filter(None, paths))}: this mask and all others are black; white is what is kept")
    return masks


def _undistort(
    images: np.ndarray,
    alphas: np.ndarray | None,
    masks: np.ndarray | None,
    lenses: Sequence[Lens],
    pinholes: Mapping[Lens, Camera],
    places: Sequence[Place],
) -> None:
    """Replaces distorted photos in [N, H, W, 3], alphas and masks [N, H, W], in place, by those of pinhole cameras."""
    source = functools.lru_cache(maxsize=2)(source_pixels)
    distorted = [i for i, (_, distortion) in enumerate(lenses) if any(distortion)]

    def undistort(index: int) -> None:
        """Replaces a distorted photo, its alpha and its mask."""
        i = distorted[index]
        rows, cols = source(pinholes[lenses[i]], *lenses[i])
        photo = images[i][places[i].window]
        photo[:] = resample(photo, rows, cols)
        if alphas is not None:
            alpha = alphas[i][places[i].window]
            alpha[:] = resample(alpha[..., None], rows, cols)[..., 0]
        if masks is not None:
            mask = masks[i][places[i].window]
            mask[:] = resample(np.float32(mask[..., None]), rows, cols)[..., 0] > INSIDE

    image_reader.run_parallel(undistort, len(distorted), "Undistorting images")


# Cameras


def _lens(file: Split, frame: int, photo: Size, place: Place) -> Lens:
    """Reads a frame's distortion, and its camera for the photo shrunk from its size to its place.

    Raises:
        ValueError: the camera contradicts itself, or is no pinhole with the distortion of `Distortion`.
    """
    given = file.intrinsics[frame]
    w, h = transforms_files.former_size(given, *photo)
    with readers.path_in_errors(f"{file.file}: frame {frame}"):
        record = file.meta | file.meta["frames"][frame]
        numbers = {name: value for name, (value, _) in given.items()} | _read_k(record)
        distortion = _read_distortion(record, numbers)
        sides = {"x": w, "y": h}
        fx, fy = (_agreed(numbers, (f"fl_{x}", f"K's f{x}", f"camera_angle_{x}"), sides[x]) for x in "xy")
        cx, cy = (_agreed(numbers, (f"c{x}", f"K's c{x}"), sides[x]) for x in "xy")
        cx, cy = 0.5 * w if cx is None else cx, 0.5 * h if cy is None else cy
        if fx is None and fy is None:
            raise ValueError("it has no focal length: fl_x (pixels), camera_angle_x (radians) or a 3x3 K")
        if not (0 < cx < w and 0 < cy < h):
            raise ValueError(
                f"its principal point {cx:g}, {cy:g} is outside of images of {w:g}x{h:g}; if the images were "
                "resized, add the former w and h"
            )
        across, down = place.width / w, place.height / h
        focals = (fx or fy) * across, (fy or fx) * down
        return Camera(place.height, place.width, *focals, cx * across, cy * down).checked(), distortion


def _read_k(record: dict[str, object]) -> dict[str, float]:
    """Reads the numbers of a 3x3 matrix `K`, under the names that messages use."""
    if record.get("K") is None:
        return {}
    matrix = readers.parse_matrix(record["K"], "K", ((3, 3),))
    rest = matrix * [[0, 1, 0], [1, 0, 0], [1, 1, 1]] - np.diag([0, 0, 1])
    if min(matrix[0, 0], matrix[1, 1]) <= 0 or np.abs(rest).max() > 1e-6:
        raise ValueError("K must be [fx, 0, cx], [0, fy, cy], [0, 0, 1]")
    (fx, _, cx), (_, fy, cy), _ = matrix.tolist()
    return {"K's fx": fx, "K's fy": fy, "K's cx": cx, "K's cy": cy}


def _read_distortion(record: dict[str, object], numbers: dict[str, float]) -> Distortion:
    """Reads the distortion of a frame; raises ValueError if its lens is of another kind."""
    model = record.get("camera_model") or "OPENCV"
    lens = next((name for name in OTHER_LENSES if record.get(name)), f"camera_model {str(model)[:40]!r}")
    if lens in OTHER_LENSES or not (isinstance(model, str) and model.upper() in MODELS):
        raise ValueError(f"{lens} is not one of {', '.join(MODELS)}: undistort the images, and export them again")
    given = {name: numbers[name] for name in (*Distortion._fields, *OTHER_DISTORTIONS) if numbers.get(name)}
    for name, value in given.items():
        if name in OTHER_DISTORTIONS or model.upper() in PINHOLES:
            raise ValueError(f"{name} {value:g} is no distortion of {model}: undistort the images, or correct the file")
        if not abs(value) <= LARGEST_COEFFICIENT:
            raise ValueError(f"{name} {value:g} is no coefficient of a lens")
    return Distortion(**given)


def _agreed(numbers: dict[str, float], names: Sequence[str], side: float) -> float | None:
    """Returns the length in pixels that any of `names` gives; None if none of them is in `numbers`.

    `side` is the side of the images, for fields of view.

    Raises:
        ValueError: two of them contradict each other.
    """
    found = {name: numbers[name] for name in names if name in numbers}
    lengths = [
        0.5 * side / math.tan(0.5 * value) if name.startswith("camera") else value for name, value in found.items()
    ]
    for length in lengths[1:]:
        if not abs(length - lengths[0]) <= transforms_files.TOLERANCE * abs(lengths[0]):
            said = " and ".join(f"{name} {value:g}" for name, value in found.items())
            pixels = " and ".join(f"{length:g}" for length in lengths)
            raise ValueError(f"{said} contradict each other ({pixels} pixels of {side:g}); remove or correct one")
    return lengths[0] if lengths else None


# World, range, path and splits


def _normalise(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres and scales the world as `load` says.

    Returns:
        The new poses [N, 3, 4], and the similarity [4, 4] that takes points back to the file's world.

    Raises:
        ValueError: a camera is too far away.
    """
    meet = meeting_depths(poses) is not None
    origin = pose_maths.nearest_point_to_axes(poses) if meet else np.median(poses[:, :, 3], axis=0)
    unit = float(np.median(np.linalg.norm(poses[:, :, 3] - origin, axis=-1)))
    unit = unit if unit > ROUNDING * np.abs(poses).max() else 1.0
    to_dataset = np.eye(4)
    to_dataset[:3] = np.concatenate([unit * np.eye(3), origin[:, None]], axis=-1)
    poses = np.concatenate([poses[:, :, :3], (poses[:, :, 3:] - origin[:, None]) / unit], axis=-1)
    camera_matrices.require_rigid(poses, [f"view {i}, centred and scaled" for i in range(len(poses))])
    return poses, to_dataset


def _near_far(
    file: Split,
    poses: np.ndarray,
    depths: np.ndarray | None,
    cameras: Sequence[Camera],
    points: ScenePoints | None,
    to_dataset: np.ndarray,
    white_bkgd: bool,
) -> tuple[float, float]:
    """Chooses near and far: the file's, else those of the sparse points, else a guess from the cameras.

    `depths` are the `meeting_depths` of the poses.

    Raises:
        ValueError: it is not true that 0 <= near < far.
    """
    unit, limits = to_dataset[0, 0], []
    if points is not None:
        some = scene_points.thinned(points.positions, scene_points.POINTS_FOR_RANGE)
        in_scene = transform_points(np.linalg.inv(to_dataset), some)
        seen = scene_points.depths_in_images(cameras, poses, in_scene)
        if np.isfinite(seen).any():
            limits, source = scene_points.range_of(seen), points.source
    if not len(limits) and depths is not None:
        typical = np.percentile(depths, [10, 90])  # leaves out views that look elsewhere
        limits, source = typical * (OBJECT_RANGE if white_bkgd else PHOTO_RANGE), "the point that cameras look at"
    elif not len(limits):
        limits, source = np.array(UNKNOWN_RANGE), "nothing but the cameras' distances from each other"
    sources = [source, source]
    for i, name in enumerate(("near", "far")):
        if file.meta.get(name) is not None:
            limits[i], sources[i] = readers.parse_number(file.meta[name], name) / unit, "the file"
    near, far = map(float, limits)
    if not 0 <= near < far <= camera_matrices.MAX_COORDINATE:
        raise ValueError(f"near {near * unit:g} and far {far * unit:g}: expected 0 <= near < far")
    origin = unit * np.round(to_dataset[:3, 3] / unit, 4) + 0.0  # no minus before 0
    logger.info(
        "%s: 1 unit is %.4g of the file's, and the origin is at %.4g, %.4g, %.4g there; near %.3g and far %.3g follow "
        "from %s (--near and --far, in units, set others)",
        file.file, unit, *origin, near, far, " and ".join(dict.fromkeys(sources)),
    )  # fmt: skip
    return near, far


def _path(poses: np.ndarray, depths: np.ndarray | None, near: float, far: float) -> np.ndarray:
    """Makes the render path [M, 3, 4]: a spiral, a circle, or the cameras' own poses.

    A spiral if cameras face one way, else a circle around the point that they look at, if `depths` say there is one.
    """
    if around_cameras.face_one_way(poses, ONE_WAY):
        # A spiral looks at what the cameras look at, where that is known.
        near, far = (near, far) if depths is None else np.median(depths) * np.array(OBJECT_RANGE)
        return around_cameras.spiral_among(poses, max(near, 0.05 * far), far)
    return poses if depths is None else around_cameras.orbit_around(poses)


def _split(files: dict[str, Split], poses: np.ndarray, llffhold: int, is_whole: np.ndarray) -> list[np.ndarray]:
    """Splits views into indices for training, validation and test.

    If validation or test has no views, it has those of the other. Both have only views where `is_whole` [N] bool.
    """
    views = np.arange(len(poses), dtype=np.int64)
    if "" not in files:
        labels = np.repeat(list(files), [len(file.names) for file in files.values()])
        train, val, test = (views[labels == name] for name in SPLITS)
    elif any(f"{name}_filenames" in files[""].meta for name in SPLITS):
        train, val, test = _listed_views(files[""])
    else:
        order = np.array(sorted(views[is_whole], key=lambda i: files[""].names[i]))
        train, test = (order[chosen] for chosen in llff.hold_out(poses[order], llffhold))
        train, val = np.concatenate([train, views[~is_whole]]), test
    val, test = (some[is_whole[some]] for some in (val, test))
    return [train, val if val.size else test, test if test.size else val]


def _listed_views(file: Split) -> list[np.ndarray]:
    """Splits views as train_filenames, val_filenames and test_filenames list them.

    Without train_filenames, all views that the others do not list are for training.

    Raises:
        ValueError: a list is malformed, or a view is listed for training and for another split.
    """
    views = {os.path.normpath(name.replace("\\", "/")): i for i, name in enumerate(file.names)}
    chosen = {}
    for split in SPLITS:
        listing = file.meta.get(f"{split}_filenames", [])
        if not (isinstance(listing, list) and all(isinstance(name, str) for name in listing)):
            raise ValueError(f"{file.file}: {split}_filenames must be a list of paths")
        names = {os.path.normpath(name.replace("\\", "/")) for name in listing}
        if unknown := sorted(names - views.keys()):
            logger.warning("%s: %s_filenames: no frame has %s", file.file, split, listed(unknown))
        chosen[split] = {views[name] for name in names & views.keys()}
    if both := chosen["train"] & (chosen["val"] | chosen["test"]):
        name = file.names[min(both)][:200]
        raise ValueError(f"{file.file}: {name!r} is listed for training and for tests: take it out of one list")
    if "train_filenames" not in file.meta:
        chosen["train"] = set(views.values()) - chosen["val"] - chosen["test"]
    return [np.array(sorted(chosen[split]), np.int64) for split in SPLITS]
