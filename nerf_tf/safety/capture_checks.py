"""Checks how a scene was photographed: which way the cameras look, how far apart they stand, what each one sees.

As in `scene_checks`, a check returns warnings of one line each, none for a good scene. What is found here is seldom
mended by a flag, so `tools/check_scene.py` looks for it before training rather than each run.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nerf_tf.captures.scene_points import depths_in_images, range_of
from nerf_tf.captures.viewed_point import meeting_depths
from nerf_tf.captures.worlds import transform_points
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import NDC_NEAR
from nerf_tf.safety import scene_checks
from nerf_tf.safety.scene_checks import check_ndc, name_views, remedy_for_views
from nerf_tf.storage import camera_matrices
from nerf_tf.storage.sparse_points import Sightings

# Degrees between a ray and the mean viewing direction up to which NDC is advised. Under NDC a ray at angle a reaches
# tan(a) / tan(half the field of view) half widths of an image: 2 at 55 degrees for a phone's camera, 4 at 70, 9 at 80.
# Fern's reach 47 degrees.
WIDEST_NDC = 70.0
# Least angle in degrees between rays of the outermost cameras to the scene. COLMAP drops points seen under less than
# 1.5 degrees, as their distance is guesswork. Fern has 12.
LEAST_PARALLAX = 2.0
# A view that has fewer points in its frustum than this part of the median looks elsewhere. Of fern, lego
# and the built-in scene none has less than 0.9.
FEW_POINTS = 0.1
# Share of the points in a view that may lie out of near and far: some sparse points are always wrong.
OUT_OF_RANGE = 0.1
# Points along the rays of all views where no sparse model tells what there is.
SAMPLED_POINTS = 4000

# Fewest sparse points that a photo shows, in the median. With 110, 152 and 168 imgs2poses found focal lengths that were
# 4, 9 and 21 % off (8 and 24 photos of the built-in room, 3 of fern), with 560 (all of fern) 2 %.
FEWEST_SIGHTINGS = 200
# Most pixels, in the median, between where a photo shows points and where its camera has them: COLMAP drops a sighting
# that is farther off. With its own cameras there are 0.5 to 1.5; fern's with a focal length 2 % too long have 3.
MOST_PIXELS_OFF = 4.0

FORWARD, AROUND, MIXED = "forward-facing", "all around", "all directions"
# Fewest photos of each kind. LLFF's authors took 20 to 62; with 25 photos around a thing instead of 100 NeRF loses 3 dB
# (the paper, section 6.4).
FEWEST_PHOTOS = {FORWARD: 9, AROUND: 30, MIXED: 30}
_FLAGS = {
    FORWARD: (),
    AROUND: ("--no_ndc", "--spherify", "--lindisp"),
    MIXED: ("--no_ndc", "--spherify", "--lindisp", "--render_path", "test"),
}


@dataclasses.dataclass(frozen=True)
class Capture:
    """How cameras stand.

    Attributes:
        kind: FORWARD (they look one way, so that NDC holds all rays), AROUND (they look at something from several
            sides) or MIXED (they look at nothing in common, as from the middle of a room).
        widest: largest angle in degrees between a ray and the mean viewing direction; 180 if views cancel out.
        depth: median distance along the optical axes to what the cameras look at; None for MIXED and parallel axes.
    """

    kind: str
    widest: float
    depth: float | None

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that an LLFF scene of this kind needs; none for FORWARD, as NDC is the default."""
        return _FLAGS[self.kind]

    def describe(self) -> str:
        """The kind and its reason, for a message."""
        nothing = ", and the cameras look at nothing in common" if self.kind == MIXED else ""
        return f"{self.kind}: rays reach {self.widest:.0f} degrees from the mean viewing direction{nothing}"


def find_capture(cameras: Sequence[Camera], poses: np.ndarray) -> Capture:
    """Finds out whether photos face forward or were taken all around.

    Args:
        cameras: N cameras.
        poses: [N, 3, 4] camera-to-world, OpenGL axes, in any world.
    """
    depths = meeting_depths(poses)
    widest = _widest_angle(cameras, np.asarray(poses, np.float64))
    depth = None if depths is None else float(np.median(depths))
    if widest <= WIDEST_NDC:
        return Capture(FORWARD, widest, depth)
    return Capture(MIXED if depth is None else AROUND, widest, depth)


def _widest_angle(cameras: Sequence[Camera], poses: np.ndarray) -> float:
    try:
        forward = -pose_maths.average_pose(poses)[:, 2]
    except ValueError:  # they look from all around, and cancel out
        return 180.0
    cosines = []
    for camera, c2w in zip(cameras, poses, strict=True):
        # The angle is largest at a corner as long as it is below 90 degrees.
        rows, cols = np.array([0, 0, camera.height, camera.height]), np.array([0, camera.width, 0, camera.width])
        _, directions = camera.rays(c2w, rows, cols)
        cosines.append(np.min(directions @ forward / np.linalg.norm(directions, axis=-1)))
    return float(np.degrees(np.arccos(np.clip(min(cosines), -1.0, 1.0))))


def check_capture(scene: Scene) -> list[str]:
    """Warns where cameras look too far aside for NDC, unless `scene_checks.check_ndc` has warned already."""
    capture = find_capture(scene.cameras, scene.poses)
    if not scene.ndc or capture.kind == FORWARD or check_ndc(scene):
        return []
    return [
        f"{capture.describe()}, and NDC is for {WIDEST_NDC:.0f} at most, as it stretches what lies aside; add "
        f"{' '.join(capture.flags)}"
    ]


def check_number(scene: Scene) -> list[str]:
    """Warns of too few photos for the way in which they were taken."""
    return scene_checks.check_number(scene, FEWEST_PHOTOS[find_capture(scene.cameras, scene.poses).kind])


def check_rotations(scene: Scene) -> list[str]:
    """Warns of poses whose axes are no rotation, which loaders refuse."""
    warnings = []
    for i, pose in enumerate(scene.poses):
        try:
            camera_matrices.require_rigid(pose[None], [name_views(scene, [i])])
        except ValueError as error:
            warnings.append(str(error))
    return warnings


def rotation_errors(poses: np.ndarray) -> np.ndarray:
    """How far axes of `poses` [N, 3, 4] are from a rotation [N]: largest of |R^T R - 1| and |det R - 1|."""
    axes = np.asarray(poses, np.float64)[:, :, :3]
    products = np.swapaxes(axes, 1, 2) @ axes - np.eye(3)
    return np.maximum(np.abs(products).max(axis=(1, 2)), np.abs(np.linalg.det(axes) - 1.0))


def sample_points(scene: Scene) -> np.ndarray:
    """Samples points [P, 3] of the volume that the cameras look at, from near to far along random rays.

    Under NDC, where far is infinite, near and far are those of `depth_range`.
    """
    rng, points = np.random.default_rng(0), []
    for i, (camera, c2w) in enumerate(zip(scene.cameras, scene.poses, strict=True)):
        count = -(-SAMPLED_POINTS // len(scene.poses))
        rows, cols = rng.uniform(0, camera.height, count), rng.uniform(0, camera.width, count)
        origins, directions = camera.rays(c2w, rows, cols)
        points.append(origins + rng.uniform(*depth_range(scene, i), count)[:, None] * directions)
    return np.concatenate(points)


def depth_range(scene: Scene, view: int) -> tuple[float, float]:
    """Near and far depth of a view; under NDC those of its bounds, or 1 and 10 without bounds."""
    if scene.ndc:
        near, far = (NDC_NEAR, 10.0 * NDC_NEAR) if scene.bounds is None else map(float, scene.bounds[view])
        return near, far
    return scene.near, scene.far


def shares_in_frusta(scene: Scene, points: np.ndarray, sampled: bool = False) -> np.ndarray:
    """The share [N] of points [P, 3] inside the frustum of each view, from near to far.

    Under NDC the range is 0 to infinity. With `sampled`, `points` are those of `sample_points`, and a view's own do
    not count, as all of them lie inside.
    """
    near, far = (0.0, np.inf) if scene.ndc else (scene.near, scene.far)
    depths = depths_in_images(scene.cameras, scene.poses, points)
    shares, own = np.mean((depths >= near) & (depths <= far), axis=1), 1.0 / len(scene.poses)
    return np.clip((shares - own) / (1.0 - own), 0.0, 1.0) if sampled and len(scene.poses) > 1 else shares


def check_frusta(scene: Scene, shares: np.ndarray) -> list[str]:
    """Warns of views that see next to none of the scene's points; `shares` [N] is of `shares_in_frusta`."""
    few = np.flatnonzero(shares < FEW_POINTS * np.median(shares))
    if not few.size:
        return []
    return [
        f"{name_views(scene, few)}: sees {100 * shares[few].max():.1f} % of the scene's points at most, and the median "
        f"is {100 * np.median(shares):.0f} %; {'it looks' if len(few) == 1 else 'they look'} elsewhere; "
        f"{remedy_for_views(scene, few)}"
    ]


def check_point_range(scene: Scene, points: np.ndarray) -> list[str]:
    """Warns where near and far, or NDC's near plane, leave out sparse points [P, 3] that views show."""
    depths = depths_in_images(scene.cameras, scene.poses, points)
    depths = depths[np.isfinite(depths)]
    if not depths.size:
        return []
    if scene.ndc:
        share = float(np.mean(points[:, 2] > -NDC_NEAR))
        what = f"NDC begins at distance {NDC_NEAR:g} from the average camera, which leaves out"
        remedy = "lower the near bounds in poses_bounds.npy"
    else:
        share = float(np.mean((depths < scene.near) | (depths > scene.far)))
        what = f"near {scene.near:.3g} and far {scene.far:.3g} leave out"
        lower, upper = range_of(depths)
        remedy = f"try --near {lower:.2g} --far {upper:.2g}"
    if share <= OUT_OF_RANGE:
        return []
    return [f"{what} {100 * share:.0f} % of the sparse points that views show; {remedy}"]


@dataclasses.dataclass(frozen=True, eq=False)
class Reprojection:
    """How well a scene's cameras agree with where its photos show the points of COLMAP's model.

    Attributes:
        counts: [N] points that each photo shows; 0 for photos that the model lacks.
        errors: [N] median distance from where a photo shows points to where its camera has them, in pixels of the
            photos that COLMAP had; NaN for photos that the model lacks.
        zoom: what all focal lengths would have to be multiplied by to fit best.
        error_at_zoom: the median distance then, in pixels.
    """

    counts: np.ndarray
    errors: np.ndarray
    zoom: float
    error_at_zoom: float


def reproject(scene: Scene, sightings: Sequence[Sightings], from_model: np.ndarray) -> Reprojection | None:
    """Compares a scene's cameras with where a model's photos show its points.

    Photos of scene and model are matched by their names without folder and ending.

    Args:
        scene: the scene; its images may be smaller than the model's.
        sightings: where the model's photos show its points.
        from_model: [4, 4] takes the model's points to the scene's world.

    Returns:
        How well they agree; None if the model has none of the photos.
    """
    stems = Counter(Path(seen.name).stem for seen in sightings)
    by_stem = {Path(seen.name).stem: seen for seen in sightings if stems[Path(seen.name).stem] == 1}
    counts, errors, shown, expected = np.zeros(len(scene.poses), int), np.full(len(scene.poses), np.nan), [], []
    for i, name in enumerate(scene.names):
        seen, camera, c2w = by_stem.get(Path(name).stem), scene.cameras[i], scene.poses[i]
        if seen is None or not len(seen.pixels):
            continue
        rows, cols, z = camera.project(c2w.astype(np.float64), transform_points(from_model, seen.points))
        scale, centre = np.array([seen.width / camera.width, seen.height / camera.height]), [camera.cx, camera.cy]
        before = z < 0
        expected.append((np.stack([cols, rows], axis=-1) - centre)[before] * scale)
        shown.append((seen.pixels - centre * scale)[before])
        counts[i] = len(seen.pixels)
        errors[i] = np.median(np.linalg.norm(shown[-1] - expected[-1], axis=-1)) if before.any() else np.inf
    if not shown:
        return None
    shown, expected = np.concatenate(shown), np.concatenate(expected)
    if not len(shown):
        return Reprojection(counts, errors, 1.0, np.inf)
    zoom = float(np.median(np.linalg.norm(shown, axis=-1) / np.maximum(np.linalg.norm(expected, axis=-1), 1.0)))
    return Reprojection(counts, errors, zoom, float(np.median(np.linalg.norm(shown - zoom * expected, axis=-1))))


def check_reprojection(scene: Scene, reprojection: Reprojection) -> list[str]:
    """Warns of cameras, or of a focal length, that do not agree with where photos show the sparse points."""
    errors, zoom = reprojection.errors, reprojection.zoom
    off = np.flatnonzero(errors > MOST_PIXELS_OFF)
    if not off.size:
        return []
    if 2 * len(off) <= np.count_nonzero(reprojection.counts):
        which, remedy = name_views(scene, off), remedy_for_views(scene, off)
    else:
        which = f"{len(off)} of {np.count_nonzero(reprojection.counts)} photos"
        remedy = "their poses or intrinsics are not those of COLMAP's model: make them anew"
        if reprojection.error_at_zoom <= MOST_PIXELS_OFF:
            least = f"{reprojection.error_at_zoom:.1f}"
            remedy = f"they would be {least} off with focal lengths {zoom:.3f} times as long: correct them"
    return [
        f"{which}: sparse points appear {np.median(errors[off]):.1f} pixels from where the cameras have them, and "
        f"COLMAP keeps those within {MOST_PIXELS_OFF:g}; {remedy}"
    ]


def check_sightings(reprojection: Reprojection) -> list[str]:
    """Warns where photos show few sparse points, as poses and focal length are unreliable then."""
    usual = np.median(reprojection.counts[reprojection.counts > 0])
    if usual >= FEWEST_SIGHTINGS:
        return []
    return [
        f"a photo shows {usual:.0f} of the sparse points, in the median; below {FEWEST_SIGHTINGS} their focal length "
        "may be wrong; take more photos, sharp ones, of things with texture, or larger ones"
    ]


def parallax(scene: Scene, points: np.ndarray | None = None) -> float | None:
    """Angle in degrees between the outermost cameras, seen from the scene; None if that is not known.

    The scene is at the median distance of a sparse model's points [P, 3], else of the bounds, else where the optical
    axes meet. Outermost means the 90th percentile of all distances between two cameras, which a stray one hardly moves.
    """
    depth = _typical_depth(scene, points)
    if depth is None or len(scene.poses) < 2:
        return None
    centres = scene.poses[:, :, 3].astype(np.float64)
    first, second = np.triu_indices(len(centres), 1)
    baseline = np.percentile(np.linalg.norm(centres[first] - centres[second], axis=-1), 90)
    return float(np.degrees(2.0 * np.arctan2(0.5 * baseline, depth)))


def _typical_depth(scene: Scene, points: np.ndarray | None) -> float | None:
    if points is not None:
        depths = depths_in_images(scene.cameras, scene.poses, points)
        return float(np.nanmedian(depths)) if np.isfinite(depths).any() else None
    if scene.bounds is not None:
        return float(np.median(np.sqrt(scene.bounds.prod(axis=1))))
    depths = meeting_depths(scene.poses)
    return None if depths is None else float(np.median(depths))


def check_parallax(scene: Scene, points: np.ndarray | None = None) -> list[str]:
    """Warns where all photos are of one place, which shows no depth; arguments as of `parallax`."""
    angle = parallax(scene, points)
    if angle is None or angle >= LEAST_PARALLAX:
        return []
    return [
        f"the cameras stand too close together: seen from the scene, under {angle:.1f} degrees, and depth needs "
        f"{LEAST_PARALLAX:g}; take photos from places apart, a step for every few of distance; turning on the spot "
        "shows no depth"
    ]
