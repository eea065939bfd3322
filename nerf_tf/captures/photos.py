"""Photos and masks of a transforms.json: found, read, and freed of distortion."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nerf_tf.captures.distortion import resample, source_pixels
from nerf_tf.captures.lenses import Lens
from nerf_tf.captures.photo_sizes import Place, Size
from nerf_tf.data import images as image_files
from nerf_tf.geometry.camera import Camera
from nerf_tf.storage import image_folders, image_reader, transforms_files
from nerf_tf.storage.image_folders import listed
from nerf_tf.storage.transforms_files import Split

logger = logging.getLogger(__name__)

# A resized or undistorted pixel counts as within its mask if more than this part of it is: all but rounding.
INSIDE = 0.999


def find_masks(file: Split, photos: Sequence[Path]) -> list[Path | None]:
    """Finds the path of each frame's mask; None where it has none. `photos` are those of the file.

    Raises:
        FileNotFoundError, ValueError: as `find_photos`; or a name is no path.
    """
    names = {i: file.meta["frames"][i].get("mask_path") for i in file.frames}
    names = {i: name for i, name in names.items() if name not in (None, "")}
    for i, name in names.items():
        if not (isinstance(name, str) and 0 < len(name) <= transforms_files.LONGEST_NAME):
            raise ValueError(f"{file.file}: frame {i}: mask_path must be the path of an image")
    written = list(names.values())
    found = find_photos(file, "mask_path", written, image_folders.find_images(file.file.parent, written), photos)
    return list(map(dict(zip(names, found, strict=True)).get, file.frames))


def find_photos(
    file: Split, key: str, names: Sequence[str], paths: Sequence[Path], not_meant: Sequence[Path] = ()
) -> list[Path]:
    """Returns the paths; if none of them exists, as on another machine, images whose paths end alike.

    Args:
        file: the transforms file.
        key: its key that names the images; for messages.
        names, paths: N paths as the file gives them, and the files that they mean.
        not_meant: images that are not looked for.

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


def read_masks(
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
        raise ValueError(
            f"{next(filter(None, paths))}: this mask and all others are black; white is what is kept: invert them"
        )
    return masks


def undistort_photos(
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
