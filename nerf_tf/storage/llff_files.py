"""Reads what an LLFF scene consists of: poses_bounds.npy and its photos, of which it makes smaller copies."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from nerf_tf.storage import camera_matrices, image_folders, image_reader, readers
from nerf_tf.storage.atomic import complete_folder
from nerf_tf.storage.image_folders import list_images, listed

logger = logging.getLogger(__name__)

# Range of depths, in the file's units: their squares and inverses are far from float32's limits.
DEPTH_RANGE = (1e-9, 1e9)
# Most characters of view_imgs.txt, which has a line for each photo: room for some 30,000.
LARGEST_TEXT = 2**20


def read_poses_bounds(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads poses_bounds.npy as it is.

    Returns:
        Poses [N, 3, 4] in LLFF axes (down, right, back); height, width and focal length [N, 3] of the full-size photos,
        in pixels; least and greatest depth [N, 2]. All float64.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a plain array [N, 17] of finite numbers with focal > 0 and near < far, both within
            `DEPTH_RANGE`, or a pose in it is no rotation.
    """
    rows = readers.read_npy(path, "; make it of the photos with tools/imgs2poses.py")
    if not (rows.ndim == 2 and rows.shape[1] == 17 and len(rows)):
        raise ValueError(f"{path}: expected an array [N, 17], found {rows.shape}")
    with np.errstate(over="ignore"):  # of wider types, which show as infinity then
        rows = rows.astype(np.float64)
    if not np.all(np.isfinite(rows)):
        raise ValueError(f"{path}: row {np.argmin(np.isfinite(rows).all(axis=1))} holds NaN or infinity")
    matrices, bounds = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
    least, most = DEPTH_RANGE
    in_order = (bounds[:, 0] >= least) & (bounds[:, 0] < bounds[:, 1]) & (bounds[:, 1] <= most)
    wrong = np.flatnonzero(~in_order | (matrices[:, 2, 4] <= 0))
    if wrong.size:
        raise ValueError(
            f"{path}: row {wrong[0]} has focal {matrices[wrong[0], 2, 4]:g} and bounds {bounds[wrong[0]]}; "
            f"focal must be positive, and 0 < near < far (from {least:g} to {most:g})"
        )
    camera_matrices.require_rigid(matrices[..., :4], [f"{path}: row {i}" for i in range(len(rows))])
    return matrices[..., :4], matrices[..., 4], bounds


def find_photos(datadir: Path, factor: int, poses: int) -> list[Path]:
    """Lists the images to load, sorted by name like the poses; makes images_{factor}/ if it is missing.

    Args:
        datadir: the scene's folder.
        factor: which copies to load; 1: images/ itself.
        poses: how many poses there are.

    Raises:
        FileNotFoundError: there are no images.
        ValueError: they are not as many as the poses, or no copies can be made of them.
    """
    full_size, folder = datadir / "images", datadir / ("images" if factor == 1 else f"images_{factor}")
    if not (folder.is_dir() or full_size.is_dir()):
        copies = [name for name in image_folders.list_entries(datadir) if re.fullmatch(r"images_\d+", name)]
        factors = sorted(int(name.removeprefix("images_")) for name in copies)
        hint = f"; give --factor {factors[0]}, as there is images_{factors[0]}/" if factors else ""
        from_images = ", and no images/ beside it to make it from" if factor != 1 else ""
        raise FileNotFoundError(f"{folder}: no such folder{from_images}{hint}")
    if full_size.is_dir() and not folder.is_dir():
        # Checked before the copies are made, so that a failed start leaves none.
        height, width = image_reader.image_size(_list_photos(full_size, poses)[0])
        if factor > min(height, width):
            raise ValueError(f"{full_size}: factor {factor} leaves no pixels of photos of {width}x{height}")
    return _list_photos(folder if factor == 1 else minify(datadir, factor), poses)


def _list_photos(folder: Path, poses: int) -> list[Path]:
    """Lists the images of a folder, which must be as many as there are poses.

    Raises:
        ValueError: they are not; the message names those without a pose, or the poses' photos that are missing.
    """
    paths, posed = image_folders.list_images(folder), _read_posed_names(folder.parent, poses)
    stems = {path.stem for path in paths}  # without endings: copies are PNGs of JPEGs
    without_pose = [path.name for path in paths if posed and path.stem not in posed]
    without_photo = [name for stem, name in posed.items() if stem not in stems]
    if len(paths) == poses:
        if 0 < len(without_pose) < poses:  # if all names differ, the photos were renamed
            logger.warning(
                "%s: view_imgs.txt lists no pose for %s, but poses for %s, which %s missing; photos may get the poses "
                "of others: put back the photos that it lists, or make poses_bounds.npy anew",
                folder, listed(without_pose), listed(without_photo), "is" if len(without_photo) == 1 else "are",
            )  # fmt: skip
        return paths
    problem = f"{folder}: holds {len(paths)} images, but poses_bounds.npy has {poses} poses"
    originals = folder.parent / "images"
    names = [] if folder == originals else image_folders.list_files(originals)
    count = sum(name.lower().endswith(image_folders.IMAGE_ENDINGS) for name in names)
    if count == poses:
        raise ValueError(f"{problem}, as many as images/ has photos; delete {folder.name}/ so that it is made anew")
    if len(paths) > poses:
        where = f"{folder.name}/ and images/" if count else f"{folder.name}/"
        if len(without_pose) == len(paths) - poses:
            raise ValueError(
                f"{problem}; view_imgs.txt lists no pose for {listed(without_pose)}: move these photos out of {where}"
            )
        raise ValueError(
            f"{problem}; {len(paths) - poses} of the photos have none: move those that COLMAP could not place out of "
            f"{where} (COLMAP's images.txt lists the others)"
        )
    not_read = image_folders.name_other_files(folder)
    missing = f": {listed(without_photo)}, says view_imgs.txt" if len(without_photo) == poses - len(paths) else ""
    raise ValueError(f"{problem}; photos are missing{missing}; put them back, or make poses_bounds.npy anew{not_read}")


def _read_posed_names(datadir: Path, poses: int) -> dict[str, str]:
    """Reads the names of photos with a pose from LLFF's view_imgs.txt: {stem: name}.

    It is empty if the file is missing or does not list as many as there are poses.
    """
    try:
        lines = readers.read_text(datadir / "view_imgs.txt", LARGEST_TEXT).splitlines()
    except (FileNotFoundError, ValueError):  # the file only serves messages
        return {}
    names = [Path(line.strip()).name for line in lines if line.strip()]
    by_stem = {Path(name).stem: name for name in names}
    return by_stem if len(by_stem) == poses else {}


def minify(datadir: str | os.PathLike[str], factor: int) -> Path:
    """Makes smaller PNG copies of `datadir`/images, unless they exist; the original runs mogrify.

    Lanczos is the filter closest to `mogrify -resize`: copies match mogrify's with a PSNR of 51 dB; with area means it
    is 35 to 38 dB. The new folder appears under its name only when it is complete.

    Args:
        factor: divides both sides, which are rounded to the nearest pixel; the folder is images_{factor}.

    Returns:
        The folder of the smaller images.

    Raises:
        FileNotFoundError: there is nothing to shrink.
        OSError: the folder cannot be written.
        ValueError: the factor is not positive, an image cannot be read, or two images differ in their ending only.
    """
    if factor <= 0:
        raise ValueError(f"factor {factor}: images can be shrunk by a positive number only")
    source = Path(datadir) / "images"
    target = Path(datadir) / f"images_{factor}"
    if target.is_dir():
        return target
    if not source.is_dir():
        raise FileNotFoundError(f"{target}: no such folder, and no images/ beside it to make it from")
    paths = list_images(source)
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"{source}: two images differ only in their ending, so their PNG copies would share a name")

    def copy(path: Path, folder: Path) -> None:
        image = image_reader.decode(path)
        size = tuple(max(1, int(side / factor + 0.5)) for side in image.size)
        image.resize(size, Image.Resampling.LANCZOS).save(folder / f"{path.stem}.png")

    try:
        with complete_folder(target) as unfinished:
            image_reader.run_parallel(lambda index: copy(paths[index], unfinished), len(paths), f"Making {target.name}")
    except OSError:
        if not target.is_dir():  # else another process has made it meanwhile
            raise
    return target
