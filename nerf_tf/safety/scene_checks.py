"""Checks whether a loaded scene makes sense: warnings of one line each, none for a good scene."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nerf_tf.camera_paths import around_cameras
from nerf_tf.captures.viewed_point import distances_from_middle, meeting_depths
from nerf_tf.captures.worlds import change_world
from nerf_tf.data import images as image_files
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.rays import NDC_NEAR
from nerf_tf.storage import image_folders, image_reader
from nerf_tf.storage.image_folders import listed

NDC_REMEDY = "add --no_ndc --spherify --lindisp"
# Fewest photos that can make a scene: of 3 even the focal length that COLMAP finds is wrong.
FEWEST_PHOTOS = 5
# Rows and columns of pixels in which the share of backward rays is counted: exact to about 2 %.
RAY_GRID = 50
# Views outside NDC that are at most this many, and at most a quarter of all, may be mistakes in the file.
FEW = 3
# How many times below, or above, the median a bound is an error. The authors' fern stays within 1.2; one near bound at
# a tenth of the others cost 7.6 of 29.7 dB on a small room of 24 views.
BOUND_OUTLIER = 10.0
# Likewise for a camera's distance from the middle of all, in medians of that distance: a straight line of cameras
# reaches 2, and the circles, spirals and hemispheres tried stay below 3.
CAMERA_OUTLIER = 10.0
# Largest distance from the middle of all, in depths of the scene, at which cameras stand in one place: with a focal
# length of 1000 pixels it moves things by a tenth of a pixel.
ONE_PLACE = 1e-4
# Cosine of 25 degrees: cameras look at something from several sides if one of them looks farther from their mean.
AROUND = 0.906
# Share of the views for which the scene must lie out of near and far.
SHARE_OUT_OF_RANGE = 0.25
# Seconds that a copy may be older than its photo: unpacking and copying give files the current time in any order.
OLDER = 60.0
# Most mean difference of a photo and its copy in 8x8 pixels. Measured on fern: other filters and sizes of the same
# photo 0.006, neighbouring photos 0.013.
SAME_PHOTO = 0.01


def check_scene(scene: Scene, datadir: str | os.PathLike[str] | None = None, lindisp: bool = False) -> list[str]:
    """Returns the warnings of all checks.

    Args:
        scene: with the near and far that are to be used.
        datadir: the folder it was loaded from; None leaves out the check that reads files.
        lindisp: whether depths are sampled evenly in 1/t, to which a far bound hardly matters.
    """
    warnings = [
        *check_number(scene),
        *check_ndc(scene),
        *check_range(scene),
        *check_bounds(scene, lindisp),
        *check_axes(scene),
        *check_cameras(scene),
        *check_repeats(scene),
        *check_blank(scene),
    ]
    return warnings if datadir is None else warnings + check_copies(scene, Path(datadir))


def check_number(scene: Scene, fewest: int = FEWEST_PHOTOS) -> list[str]:
    """Warns of fewer than `fewest` photos, held-out ones included."""
    count = len(scene.images)
    if count >= fewest:
        return []
    return [
        f"{count} photo{'s are' if count > 1 else ' is'} few: what lies between them is guesswork; take 20 to 60, or "
        "40 to 100 all around something, a step apart, so that neighbours show two thirds of the same"
    ]


def check_ndc(scene: Scene) -> list[str]:
    """Warns where NDC has no image of what the cameras see.

    NDC holds what lies beyond a plane at distance 1 before the average camera, along rays that run away from it.
    """
    if not scene.ndc:
        return []
    shares = np.array([_backward_share(scene, i) for i in range(len(scene.poses))])
    backward = np.flatnonzero(shares > 0)
    if backward.size:
        percent = "less than 1 %" if shares.mean() < 0.01 else f"{100 * shares.mean():.0f} %"
        who = f", {name_views(scene, backward)}" if len(backward) <= min(FEW, len(shares) // 4) else ""
        return [
            f"NDC holds only what lies in front of the average camera, and {len(backward)} of {len(shares)} views have "
            f"rays that run sideways or backwards ({percent} of all rays){who}: they cannot be "
            f"learnt; {NDC_REMEDY}"
        ]
    if scene.bounds is not None:
        nearest = scene.poses[:, 2, 3] - scene.poses[:, 2, 2] * scene.bounds[:, 0]  # z of the nearest point on the axis
        cut_off = np.count_nonzero(nearest > -NDC_NEAR)
        if 2 * cut_off >= len(nearest):
            return [
                f"NDC holds only what lies beyond distance {NDC_NEAR:g} from the average camera, and the scene begins "
                f"before that in {cut_off} of {len(nearest)} views, as it does after --spherify; {NDC_REMEDY}"
            ]
    return []


def _backward_share(scene: Scene, view: int) -> float:
    """The share of a view's rays that do not run along -z, from a grid of pixels with the corners."""
    camera = scene.cameras[view]
    rows, cols = (np.linspace(0, side - 1, min(side, RAY_GRID)) for side in (camera.height, camera.width))
    _, directions = camera.rays(scene.poses[view], *np.meshgrid(rows, cols, indexing="ij"))
    return float(np.mean(directions[..., 2] >= 0))


def check_range(scene: Scene) -> list[str]:
    """Warns where near and far leave out the scene: its bounds, or the point that the cameras look at."""
    if scene.ndc:
        return []
    if scene.bounds is not None:
        least, most = scene.bounds.T
        what, remedy = f"the scene lies at {least.min():.3g} to {most.max():.3g}", "leave --near and --far out"
    else:
        depths = meeting_depths(scene.poses)
        if depths is None:
            return []
        least = most = depths
        lower, upper = np.percentile(depths, [10, 90])  # without the views that look elsewhere
        what = f"the cameras look at a point {np.median(depths):.3g} away"
        remedy = f"try --near {0.5 * lower:.2g} --far {1.5 * upper:.2g}"
    outside = np.count_nonzero((most < scene.near) | (least > scene.far))
    if outside < SHARE_OUT_OF_RANGE * len(least):
        return []
    return [
        f"near {scene.near:.3g} and far {scene.far:.3g} leave out what {outside} of {len(least)} views show: {what}; "
        f"{remedy}"
    ]


def check_bounds(scene: Scene, lindisp: bool = False) -> list[str]:
    """Warns of rows of poses_bounds.npy with a far too small near bound or a far too large far bound."""
    if scene.bounds is None:
        return []
    bounds, warnings = scene.bounds * scene.unit, []  # as in the file
    near, far = np.median(bounds, axis=0)
    low = np.flatnonzero(bounds[:, 0] * BOUND_OUTLIER < near)
    if low.size:
        warnings.append(
            f"{name_views(scene, low)}: near bound {bounds[low, 0].min():.3g} is {near / bounds[low, 0].min():.0f} "
            f"times smaller than the median {near:.3g}; the whole scene is scaled by it; {remedy_for_views(scene, low)}"
        )
    high = np.flatnonzero(bounds[:, 1] > BOUND_OUTLIER * far)
    # Under NDC and lindisp far hardly counts, and --far may have corrected it.
    if high.size and not (scene.ndc or lindisp) and scene.far > BOUND_OUTLIER * far / scene.unit:
        warnings.append(
            f"{name_views(scene, high)}: far bound {bounds[high, 1].max():.3g} is {bounds[high, 1].max() / far:.0f} "
            f"times larger than the median {far:.3g}; samples are spread as far; give --far {far / scene.unit:.3g} or "
            f"--lindisp, or {remedy_for_views(scene, high)}"
        )
    return warnings


def check_axes(scene: Scene) -> list[str]:
    """Warns of cameras that all stand in one place, or that look at a common point only if their poses are corrected.

    Poses of another convention, read as if they were of the right one, give such cameras.
    """
    as_given = change_world(scene.to_dataset, scene.poses)
    if len(as_given) < FEWEST_PHOTOS or meeting_depths(as_given) is not None:
        return []
    if distances_from_middle(scene.poses).max() <= ONE_PLACE * _nearest_depth(scene):
        return [
            "all cameras stand in one place, and photos from there do not tell how far away things are; take each a "
            "step aside; if they were taken so, make the poses anew: these have no positions, or are world-to-camera "
            "matrices"
        ]
    turned, inverted = pose_maths.opencv_to_opengl(as_given), pose_maths.invert(as_given)
    if meeting_depths(turned) is not None:
        remedy = "multiply the second and third columns of each pose by -1"
        if scene.bounds is not None:
            remedy = "convert them to LLFF's (down, right, back), as tools/convert_poses.py does"
        return [
            "all cameras look away from the place where their axes meet: unless the photos were taken from there "
            f"outwards, their axes are of another convention, as OpenCV's are instead of OpenGL's; {remedy}"
        ]
    meet = any(meeting_depths(p) is not None for p in (inverted, pose_maths.opencv_to_opengl(inverted)))
    if meet and not around_cameras.face_one_way(inverted, AROUND):  # the axes of those that do may meet by chance
        return [
            "the cameras look at no common point, but would if their poses were inverted: they may be world-to-camera "
            "matrices; if so, invert each of them"
        ]
    return []


def _nearest_depth(scene: Scene) -> float:
    """How near the scene comes to a camera, about."""
    return scene.near if scene.bounds is None else float(np.median(scene.bounds[:, 0]))


def check_cameras(scene: Scene) -> list[str]:
    """Warns of cameras far away from all others, by which the scene's origin and scale are spoilt."""
    distances = distances_from_middle(scene.poses)
    # A hand that hardly moves has outliers too; they are harmless as long as the scene is farther away than they are.
    usual = np.median(distances)
    away = np.flatnonzero(distances > CAMERA_OUTLIER * max(usual, _nearest_depth(scene)))
    if not away.size:
        return []
    return [
        f"{name_views(scene, away)}: the camera is {distances[away].max() * scene.unit:.3g} from the middle of all, "
        f"and the median is {usual * scene.unit:.3g}; it moves the whole scene out of place; "
        f"{remedy_for_views(scene, away)}"
    ]


def check_repeats(scene: Scene) -> list[str]:
    """Warns of photos that are listed more than once for training, or for training and for tests."""
    if not scene.names:
        return []
    counts = Counter(scene.names[i] for i in scene.i_train)
    twice = [name for name, count in counts.items() if count > 1]
    known = sorted({scene.names[i] for i in scene.i_test} & counts.keys())
    warnings = []
    if twice:
        warnings.append(f"{listed(twice)}: listed more than once for training; a photo has one pose: remove the others")
    if known:
        warnings.append(
            f"{listed(known)}: listed twice, for training and for tests, so scores say nothing of new views; take "
            f"{'it' if len(known) == 1 else 'them'} out of one of the two"
        )
    return warnings


def check_blank(scene: Scene) -> list[str]:
    """Warns of photos of one colour all over, as those of failed exports are."""
    blank = [i for i, image in enumerate(scene.images) if _is_blank(image[::16, ::16]) and _is_blank(image)]
    if not blank:
        return []
    remedy = "it again, or remove it and its pose" if len(blank) == 1 else "them again, or remove them and their poses"
    return [f"{name_views(scene, blank)}: of one colour all over; export {remedy}"]


def _is_blank(image: np.ndarray) -> bool:
    """Whether all pixels of an image [H, W, 3] are equal."""
    return bool((image == image[:1, :1]).all())


def check_copies(scene: Scene, datadir: Path) -> list[str]:
    """Warns of an images_N that are not copies of the photos in images/: by names, times and content."""
    folder, originals = Path(scene.names[0]).parent if scene.names else Path(), datadir / "images"
    if not re.fullmatch(r"images_\d+", str(folder)) or not originals.is_dir():
        return []
    copies = [datadir / name for name in scene.names]
    remedy = f"delete {folder}/ so that it is made anew"
    try:
        photos = image_folders.list_images(originals)
    except FileNotFoundError:  # an empty folder says nothing of the copies
        return []
    by_stem = {photo.stem: photo for photo in photos}
    strangers = [copy.name for copy in copies if copy.stem not in by_stem]
    numbered = [copy.stem for copy in copies] == [f"image{i:03d}" for i in range(len(photos))]
    if strangers and not numbered:  # the authors' copies are image000 and so on, whatever their photos are called
        return [
            f"{datadir / folder}: no photo in images/ has the name of {listed(strangers)}; these may be copies of "
            f"earlier photos: {remedy}"
        ]
    sources = photos if strangers else [by_stem[copy.stem] for copy in copies]
    older = [i for i, copy in enumerate(copies) if copy.stat().st_mtime < sources[i].stat().st_mtime - OLDER]
    if all(_shows(sources[i], scene.images[i]) for i in older[:: max(1, len(older) // 4)]):  # a few are enough
        return []
    return [
        f"{datadir / folder}: {listed([copies[i].name for i in older])} {'is' if len(older) == 1 else 'are'} older "
        f"than the photos in images/ and show something else; {remedy}"
    ]


def _shows(photo: Path, image: np.ndarray) -> bool:
    """Whether `image` [H, W, 3] is a smaller copy of the photo, or the photo cannot be read."""
    try:
        whole = image_reader.read_image(photo)[..., :3]
    except ValueError:
        return True
    return bool(np.abs(image_files.area_resize(whole, 8, 8) - image_files.area_resize(image, 8, 8)).mean() < SAME_PHOTO)


def name_views(scene: Scene, views: Sequence[int]) -> str:
    """Names views in a message: as rows of poses_bounds.npy if there are bounds; with their photos."""
    photos = [f" ({scene.names[i]})" if scene.names else "" for i in views]
    if scene.bounds is None:
        return listed([f"view {i}{photo}" for i, photo in zip(views, photos, strict=True)])
    rows = listed([f"{i}{photo}" for i, photo in zip(views, photos, strict=True)])
    return f"poses_bounds.npy: row{'s' if len(views) > 1 else ''} {rows}"


def remedy_for_views(scene: Scene, views: Sequence[int]) -> str:
    """What to do about views that are wrong in the file."""
    what = "view" if scene.bounds is None else "row"
    if len(views) == 1:
        return f"correct the {what}, or remove it and its photo"
    return f"correct the {what}s, or remove them and their photos"
