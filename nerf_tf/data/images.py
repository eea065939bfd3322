"""Finds and reads image files; lays them on white, and makes smaller copies."""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from nerf_tf.storage import readers
from nerf_tf.storage.atomic import complete_folder

logger = logging.getLogger(__name__)

# In small letters or capitals. Images with OTHER_ENDINGS are not read, but may have been converted to one that is.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
OTHER_ENDINGS = (".bmp", ".exr", ".heic", ".tga", ".tif", ".tiff", ".webp")
VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")

# Pillow's modes of 8 bits a channel or fewer that become RGB or RGBA without loss.
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})

# Largest image to unpack: more pixels than any camera's photo (151 million), fewer than Pillow itself refuses. A small
# file can claim billions.
MAX_PIXELS = 170_000_000

# The decoders to hand a file to. Pillow has dozens, some of which run other programs (EPS does).
_FORMATS = ("PNG", "JPEG")

# Names that a message lists before it only counts them.
MOST_NAMED = 4

# Files that Windows writes into folders of images; others begin with a dot.
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def _stem(name: str) -> str:
    """The name in small letters, without the endings of images."""
    stem, _, ending = name.lower().rpartition(".")
    return _stem(stem) if f".{ending}" in IMAGE_ENDINGS + OTHER_ENDINGS else name.lower()


def listed(names: Sequence[str]) -> str:
    """Joins names for a message: `a`, `a and b`, `a, b and c`; of more than `MOST_NAMED` the first, and the count."""
    parts = list(names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        parts.append(f"{len(names) - MOST_NAMED} more")
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises an error if the name is too long


def _list_entries(folder: Path) -> list[str]:
    """Sorted names in a folder but hidden ones; none if there is no such folder."""
    paths = folder.iterdir() if _is_folder(folder) else ()
    return sorted(path.name for path in paths if not path.name.startswith("."))


def list_files(folder: Path) -> list[str]:
    """Sorted names of the files in a folder but hidden ones; none if there is no such folder."""
    names = _list_entries(folder)
    return [name for name in names if name.lower() not in _SYSTEM_FILES and not _is_folder(folder / name)]


def name_other_files(folder: Path) -> str:
    """The end of a message: files of a folder that do not count as images; "" if there are none."""
    others = [name for name in list_files(folder) if not _is_image(name)]
    if not others:
        return ""
    return f"; not read: {listed(others)} (save photos as PNG or JPEG)"


def list_images(folder: Path) -> list[Path]:
    """Images of `folder` sorted by name.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    names = list_files(folder)
    paths = [folder / name for name in names if _is_image(name)]
    if not paths:
        video = next((name for name in names if name.lower().endswith(VIDEO_ENDINGS)), None)
        hint = f"; save frames of {video} as images first, and find their poses" if video else name_other_files(folder)
        raise FileNotFoundError(
            f"{folder}: holds no image (looked for names that end in {', '.join(IMAGE_ENDINGS)}){hint}"
        )
    return paths


def find_images(folder: Path, names: Sequence[str]) -> list[Path]:
    """Finds images by the paths that a file in `folder` gives, as programs on any system write them.

    A path without an ending means a PNG. If there is none, backslashes count as slashes; and then the only image is
    taken whose path differs in its ending, or in small letters and capitals.

    Returns:
        N paths. Where there is no such image, or more than one, nothing but perhaps a folder has that path.
    """
    entries_by_stem = functools.cache(_entries_by_stem)
    return [_find_image(folder, name if _is_image(name) else f"{name}.png", entries_by_stem) for name in names]


def _find_image(folder: Path, name: str, entries_by_stem: Callable[[Path], dict[str, list[str]]]) -> Path:
    written = name.replace("\\", "/")
    for path in (folder / name, folder / written):
        if os.path.lexists(path) and not _is_folder(path):
            return path
    *parents, last = PurePath(written).parts
    for parent in parents:
        alike = [] if _is_folder(folder / parent) else entries_by_stem(folder)[_stem(parent)]
        alike = [entry for entry in alike if _is_folder(folder / entry)]
        folder = folder / (alike[0] if len(alike) == 1 else parent)
    alike = entries_by_stem(folder)[_stem(last)]
    alike = [entry for entry in alike if _is_image(entry) and not _is_folder(folder / entry)]
    likeness = [(entry.lower() == last.lower(), entry.startswith(last[: len(_stem(last))])) for entry in alike]
    best = [entry for entry, rank in zip(alike, likeness, strict=True) if rank == max(likeness)]
    return folder / best[0] if len(best) == 1 else path


def _entries_by_stem(folder: Path) -> dict[str, list[str]]:
    entries = collections.defaultdict(list)
    for name in _list_entries(folder):
        entries[_stem(name)].append(name)
    return entries


def require_images(paths: Sequence[Path]) -> None:
    """Checks that there is something at every path.

    Raises:
        FileNotFoundError: how many are missing, and what lies in the folder of the first.
    """
    missing = [path for path in paths if not os.path.lexists(path)]
    if not missing:
        return
    folder = missing[0].parent
    if not _is_folder(folder):
        hint = f"there is no folder {folder}"
    elif alike := _entries_by_stem(folder)[_stem(missing[0].name)]:
        hint = f"{folder} holds {listed(alike)}: give the path of one PNG or JPEG"
    else:
        hint = f"{folder} holds {listed(list_files(folder)) or 'no files'}"
    raise FileNotFoundError(f"{missing[0]}: no such image ({len(missing)} of {len(paths)} are missing); {hint}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image at `path`, not decoded yet; what goes wrong while it is used names the file."""
    readers.require_file(path)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if not image.width * image.height:
                raise ValueError("it has no pixels")
            yield image
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: its header announces more than the {MAX_PIXELS} pixels that are read") from error
    except MemoryError as error:
        raise ValueError(f"{path}: there is not enough memory to unpack it; load smaller images") from error
    except Exception as error:
        # Whatever Pillow stumbles over in a damaged file: OSError, SyntaxError, AssertionError, struct.error and more.
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: not a readable image ({reason}); replace it by a PNG or JPEG") from error


def _decode(path: Path) -> Image.Image:
    """The image at `path` as RGB, or as RGBA if the file says anything of transparency."""
    with _opened(path) as image:
        mode = image.mode
        if mode in _EIGHT_BIT_MODES:
            return image.convert("RGBA" if image.has_transparency_data else "RGB")
    raise ValueError(f"{path}: its pixels are of kind {mode}; save it as 8-bit grey, RGB or RGBA")


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """One PNG or JPEG image, float32 [H, W, 3] or, with transparency, [H, W, 4], in [0, 1].

    Values are the file's bytes over 255: neither gamma chunks nor the orientation a camera noted are applied, as in
    the original. Grey and palette images become RGB; colour PNGs of 16 bits keep their upper 8.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be decoded, has more than `MAX_PIXELS`, or pixels of another kind (16-bit grey, CMYK,
            float).
    """
    return np.divide(np.asarray(_decode(Path(path))), np.float32(255), dtype=np.float32)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of an image, from its header alone; errors are those of `read_image`."""
    with _opened(Path(path)) as image:
        return image.height, image.width


def _parallel(function: Callable[[int], None], count: int, description: str) -> None:
    """Calls `function` on range(count) from threads, under a progress bar; the first failure in order is raised.

    Threads suffice, since Pillow and numpy release Python's lock while they work. Short jobs show no bar.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(function, range(count)), desc=description, total=count, unit="image", delay=0.5):
            pass


def read_images(
    paths: Sequence[str | os.PathLike[str]],
    channels: int | None = None,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    transparency_remedy: str = "",
) -> np.ndarray:
    """Reads images of one size in parallel, into one array that is allocated once.

    Sizes are compared by the files' headers before any is decoded.

    Args:
        paths: the files, N >= 1.
        channels: 3 drops transparency while reading, with a warning; None keeps what the files have.
        transform: applied to each image [H, W, C] as it is read, so that full-size images never pile up.
        transparency_remedy: what to do, for a warning that `transform` drops transparency; "" if it does not.

    Returns:
        float32 [N, H, W, C] in [0, 1], after `transform`.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: an image cannot be read, or differs from the first in size or number of channels, or together they
            take more memory than there is.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ValueError("there are no images to read")
    require_images(paths)
    _require_one_size(paths)
    transparent = np.zeros(len(paths), bool)

    def read(index: int) -> np.ndarray:
        image = read_image(paths[index])
        transparent[index] = image.shape[-1] == 4 and image[..., 3].min() < 1.0
        return image[..., :channels]

    def finish(image: np.ndarray) -> np.ndarray:
        return image if transform is None else transform(image)

    first = read(0)
    expected = first.shape
    first = finish(first)
    try:
        images = np.empty((len(paths), *first.shape), np.float32)
    except MemoryError:
        raise ValueError(
            f"{paths[0].parent}: {len(paths)} images of {_describe(first.shape)} take {len(paths) * first.nbytes:.1e} "
            "bytes of memory, more than there is; load fewer or smaller ones (half_res, factor, testskip)"
        ) from None
    images[0] = first

    def fill(index: int) -> None:
        if index == 0:
            return
        image = read(index)
        if image.shape != expected:
            raise ValueError(
                f"{paths[index]}: {_describe(image.shape)}, but {paths[0].name} is {_describe(expected)}; "
                "all images of a scene must have one size, and all or none of them transparency"
            )
        images[index] = finish(image)

    _parallel(fill, len(paths), "Reading images")
    if channels == 3:
        transparency_remedy = "lay them on a background and save them without transparency"
    if transparency_remedy and transparent.any():
        logger.warning(
            "%s: %d of %d images have transparent pixels; alpha is dropped, and the colours stored there are used as "
            "they are; %s",
            paths[np.argmax(transparent)], transparent.sum(), len(paths), transparency_remedy,
        )  # fmt: skip
    return images


def _require_one_size(paths: Sequence[Path]) -> None:
    height, width = image_size(paths[0])
    for path in paths[1:]:
        other_height, other_width = image_size(path)
        if (other_height, other_width) != (height, width):
            raise ValueError(
                f"{path}: {other_width}x{other_height}, but {paths[0].name} is {width}x{height}; all images of a scene "
                "must have one size"
            )


def _describe(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width}x{height} with {channels} channels"


def composite_white(images: np.ndarray) -> np.ndarray:
    """Lays [..., 4] images, alpha not multiplied in, on white: [..., 3]. Those of 3 channels have no alpha and stay."""
    if images.shape[-1] == 3:
        return images
    alpha = images[..., 3:]
    return images[..., :3] * alpha + (1.0 - alpha)


def area_resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mean over each new pixel's area, float32 [..., H, W, C] -> [..., height, width, C]; sizes need not divide.

    Bit for bit what `tf.image.resize_area` of TF1 gave the original's `half_res`.
    """
    *batch, old_height, old_width, channels = images.shape
    # This op has no GPU kernel, and photos should not pass through GPU memory anyway.
    with tf.device("CPU:0"):
        resized = tf.image.resize(images.reshape(-1, old_height, old_width, channels), [height, width], method="area")
    return resized.numpy().reshape(*batch, height, width, channels)


def minify(datadir: str | os.PathLike[str], factor: int) -> Path:
    """Makes smaller PNG copies of `datadir`/images, unless they are there; the original calls mogrify for this.

    Lanczos is the filter that comes nearest to `mogrify -resize`: 51 dB, where an area mean reaches 35 to 38 dB. The
    new folder appears under its name only when it is complete, so an interrupted run leaves nothing that looks done.

    Args:
        datadir: the scene's folder.
        factor: divides both sides, rounded to the nearest pixel; the folder is images_{factor}.

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

    def shrink(path: Path, folder: Path) -> None:
        image = _decode(path)
        size = tuple(max(1, int(side / factor + 0.5)) for side in image.size)
        image.resize(size, Image.Resampling.LANCZOS).save(folder / f"{path.stem}.png")

    try:
        with complete_folder(target) as unfinished:
            _parallel(lambda index: shrink(paths[index], unfinished), len(paths), f"Making {target.name}")
    except OSError:
        if not target.is_dir():  # by another process, which was faster
            raise
    return target
