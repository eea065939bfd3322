"""Checks of photos themselves, in the order in which they were taken: exposure and sharpness.

As in `scene_checks`, a check returns warnings of one line each, none for good photos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nerf_tf.captures.scene_points import pixels_in_image, thinned
from nerf_tf.data.scene import Scene
from nerf_tf.storage.image_folders import listed

# Most stops (factors of 2 of light) between the first and the last third of the photos.
DRIFT = 0.5
# A larger difference is still no drift up to this many times the spread of the photos within a third.
DRIFT_SPREADS = 2.0
# Most stops by which a photo may differ from the NEIGHBOURS before it and from those after it; or, if that is more,
# ODD_SPREADS times the spread of such differences.
ODD, ODD_SPREADS, NEIGHBOURS = 0.5, 6.0, 2
# Fewest photos to find a drift in.
FEWEST = 6
# Sharpness, over the median, below which a photo is blurred. The least of lego on black is 0.35, of fern 0.71; a
# Gaussian blur of fern's photos leaves 0.34 (0.5 pixels), 0.13 (0.7 pixels) and 0.03 (1 pixel).
BLURRED = 0.25
# A photo's values are about the GAMMA-th root of the light. A photo with less mean light than DARKEST counts as black.
GAMMA, DARKEST = 2.2, 1e-4
# How many points are compared, about; fewest points that two photos must both show; range of colours that are neither
# dark nor clipped; by how many places in the order two photos differ that are compared.
COMPARED_POINTS, FEWEST_POINTS, EXPOSED, STEPS = 2000, 20, (0.02, 0.98), (*range(1, 11), 16, 32, 64, 128)
# Fewest rows and columns of pixels to take a photo's mean over.
PIXELS_A_SIDE = 100
# The standard deviation of a normal distribution, in median absolute deviations.
_SPREAD = 1.4826


def brightness_stops(images: Sequence[np.ndarray]) -> np.ndarray:
    """Mean light [N] of photos [H, W, 3] in [0, 1], in stops (powers of 2) over the median photo's."""
    every = max(1, min(images[0].shape[:2]) // PIXELS_A_SIDE)
    light = [float(np.mean(np.float64(image[::every, ::every]) ** GAMMA)) for image in images]
    stops = np.log2(np.maximum(light, DARKEST))
    return stops - np.median(stops)


def exposure_of_points(scene: Scene, points: np.ndarray) -> np.ndarray:
    """How bright photos [N] show the same points, in stops over the median photo.

    NaN for photos that show too few. Unlike a photo's mean, this does not depend on what it shows: pairs of photos are
    compared by the median of their common points, and all pairs by least squares. So what hides a point from a photo
    hardly matters.

    Args:
        scene: the scene, its photos in the order in which they were taken.
        points: [P, 3] of a sparse model, in the scene's world.
    """
    points, count = thinned(points, COMPARED_POINTS), len(scene.images)
    values = np.full([count, len(points)], np.nan)
    for view, image in enumerate(scene.images):
        rows, cols, _ = pixels_in_image(scene.cameras[view], scene.poses[view], points)
        seen = np.flatnonzero(np.isfinite(rows))
        colours = np.float64(image[rows[seen].astype(int), cols[seen].astype(int)])
        usable = (colours.min(axis=-1) > EXPOSED[0]) & (colours.max(axis=-1) < EXPOSED[1])
        values[view, seen[usable]] = np.log2(np.mean(colours[usable] ** GAMMA, axis=-1))
    equations, differences, compared = [], [], np.zeros(count, bool)
    for first, second in ((i, i + step) for step in STEPS for i in range(count - step)):
        difference = values[second] - values[first]
        difference = difference[np.isfinite(difference)]
        if len(difference) >= FEWEST_POINTS:
            weight = np.sqrt(len(difference))
            equation = np.zeros(count)
            equation[[first, second]] = -weight, weight
            equations.append(equation)
            differences.append(weight * np.median(difference))
            compared[[first, second]] = True
    if not equations:
        return np.full(count, np.nan)
    stops = np.linalg.lstsq(np.array(equations), np.array(differences), rcond=None)[0]
    return np.where(compared, stops - np.median(stops[compared]), np.nan)


def sharpness(image: np.ndarray) -> float:
    """Sharpness of an image [H, W, 3]: the variance of the Laplacian of its green.

    It compares images of the same things. Values are bytes, or floats in [0, 1], alike in all of them.
    """
    green = image[..., 1]
    green = green.astype(np.int16) if green.dtype == np.uint8 else green
    laplacian = 4 * green[1:-1, 1:-1] - green[:-2, 1:-1] - green[2:, 1:-1] - green[1:-1, :-2] - green[1:-1, 2:]
    return float(laplacian.var(dtype=np.float64)) if laplacian.size else 0.0


def relative_sharpness(images: Sequence[np.ndarray]) -> np.ndarray:
    """`sharpness` of images [N] over its median; 1 where nothing in any of them has an edge."""
    values = np.array([sharpness(image) for image in images])
    median = np.median(values)
    return values / median if median > 0 else np.ones(len(values))


def exposure_drift(stops: np.ndarray) -> tuple[float, float]:
    """Stops between the medians of the first and the last third of photos, and the spread in a third.

    Args:
        stops: [N] as for `check_exposure`, none of them NaN.
    """
    thirds = np.array_split(stops, 3)
    spreads = [_SPREAD * np.median(np.abs(third - np.median(third))) for third in thirds]
    return float(np.median(thirds[-1]) - np.median(thirds[0])), float(np.median(spreads))


def odd_exposures(stops: np.ndarray) -> np.ndarray:
    """Indices of photos far brighter, or far darker, than those before and after; `stops` [N]."""
    differences = np.full([2, len(stops)], np.nan)
    for i in range(len(stops)):
        for side, others in enumerate((stops[max(0, i - NEIGHBOURS) : i], stops[i + 1 : i + 1 + NEIGHBOURS])):
            if others.size:
                differences[side, i] = stops[i] - np.median(others)
    spread = _SPREAD * np.nanmedian(np.abs(differences))
    limit = max(ODD, ODD_SPREADS * spread)
    return np.flatnonzero((np.nanmin(differences, axis=0) > limit) | (np.nanmax(differences, axis=0) < -limit))


def check_exposure(stops: np.ndarray, names: Sequence[str]) -> list[str]:
    """Warns where photos get brighter or darker, or single ones differ from their neighbours.

    Args:
        stops: [N] in the order in which the photos were taken: of `exposure_of_points`, or, if all photos show the
            same things, of `brightness_stops`.
        names: N names of the photos.
    """
    known = np.isfinite(stops)
    stops, names = stops[known], [names[i] for i in np.flatnonzero(known)]
    if len(stops) < FEWEST:
        return []
    warnings = []
    drift, spread = exposure_drift(stops)
    if abs(drift) > max(DRIFT, DRIFT_SPREADS * spread):
        warnings.append(
            f"the last third of the photos is {abs(drift):.1f} stops {'brighter' if drift > 0 else 'darker'} than the "
            "first: the camera changed its exposure, and NeRF has one colour for each place; lock exposure and white "
            "balance, or bring the photos to one brightness"
        )
    odd = odd_exposures(stops)
    if odd.size:
        warnings.append(
            f"{listed([names[i] for i in odd])}: exposed otherwise than the photos before and after; leave "
            f"{'it' if len(odd) == 1 else 'them'} out, or bring the photos to one brightness"
        )
    return warnings


def check_sharpness(relative: np.ndarray, names: Sequence[str]) -> list[str]:
    """Warns of blurred photos; `relative` [N] is their `relative_sharpness`."""
    blurred = np.flatnonzero(relative < BLURRED)
    if not blurred.size:
        return []
    is_one = len(blurred) == 1
    return [
        f"{listed([names[i] for i in blurred])}: {'is' if is_one else 'are'} blurred (sharpness "
        f"{relative[blurred].min():.2g} of the median); leave {'it' if is_one else 'them'} out, and find the poses anew"
    ]
