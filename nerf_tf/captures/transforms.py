"""Loads scenes of a transforms.json.

instant-ngp, nerfstudio, Polycam, Record3D and BlenderNeRF write such files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nerf_tf.camera_paths import around_cameras
from nerf_tf.captures import photo_sizes, scene_points
from nerf_tf.captures.distortion import find_pinhole
from nerf_tf.captures.lenses import read_lens
from nerf_tf.captures.photos import find_masks, find_photos, read_masks, undistort_photos
from nerf_tf.captures.scene_points import ScenePoints
from nerf_tf.captures.viewed_point import meeting_depths
from nerf_tf.captures.worlds import transform_points
from nerf_tf.data import images as image_files
from nerf_tf.data import view_splits
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.storage import camera_matrices, image_reader, readers, transforms_files
from nerf_tf.storage.image_folders import listed
from nerf_tf.storage.transforms_files import Split

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
INTRINSICS = (*transforms_files.INTRINSICS, "camera_angle_y", "k5", "k6")
# Keys that do not change the poses: instant-ngp's unit cube, and what has been done to the poses already.
WITHOUT_EFFECT = ("aabb_scale", "scale", "offset", "from_na", "applied_transform", "applied_scale")
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
        photos = find_photos(file, "file_path", file.names, file.paths)
        paths += photos
        mask_paths += find_masks(file, photos)
    size_of = {path: image_reader.image_size(path) for path in paths}
    common = photo_sizes.choose_common_size(size_of, factor)
    sizes = [size_of[path] for path in paths]
    places = [common.place(size) for size in sizes]
    frames = [(file, i) for file in files.values() for i in file.frames]
    lenses = [read_lens(*frame, size, place) for frame, size, place in zip(frames, sizes, places, strict=True)]
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
    masks = read_masks(mask_paths, sizes, places, common.image)
    undistort_photos(images, alphas, masks, lenses, pinholes, places)
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
        train, test = (order[chosen] for chosen in view_splits.hold_out(poses[order], llffhold))
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
