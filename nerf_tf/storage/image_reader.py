"""Reads image files: PNG and JPEG to float arrays, many in parallel."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from nerf_tf.storage import readers, tensor_memory
from nerf_tf.storage.image_folders import require_images

logger = logging.getLogger(__name__)

# Pillow's modes of 8 bits a channel or fewer that become RGB or RGBA without loss.
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})

# Largest image to unpack: more pixels than any camera's photo (151 million), fewer than Pillow itself refuses. A small
# file can claim billions.
MAX_PIXELS = 170_000_000

# The decoders to hand a file to. Pillow has dozens, some of which run other programs (EPS does).
_FORMATS = ("PNG", "JPEG")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yields the image at `path`, not decoded yet; an error that the block raises names the file."""
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
        # What Pillow raises over a damaged file: OSError, SyntaxError, AssertionError, struct.error and more.
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: not a readable image ({reason}); replace it by a PNG or JPEG") from error


def decode(path: Path) -> Image.Image:
    """Decodes an image as RGB, or as RGBA if the file has transparency; errors are those of `read_image`."""
    with _opened(path) as image:
        mode = image.mode
        if mode in _EIGHT_BIT_MODES:
            return image.convert("RGBA" if image.has_transparency_data else "RGB")
    raise ValueError(f"{path}: its pixels are of kind {mode}; save it as 8-bit grey, RGB or RGBA")


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a PNG or JPEG, float32 [H, W, 3] or, with transparency, [H, W, 4], in [0, 1].

    Values are the file's bytes over 255. As in the original, neither gamma chunks nor EXIF orientation are applied.
    Grey and palette images become RGB; colour PNGs of 16 bits keep their upper 8.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be decoded, has more than `MAX_PIXELS`, or pixels of another kind (16-bit grey, CMYK,
            float).
    """
    return np.divide(np.asarray(decode(Path(path))), np.float32(255), dtype=np.float32)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Reads (height, width) of an image from its header; errors are those of `read_image`."""
    with _opened(Path(path)) as image:
        return image.height, image.width


def run_parallel(function: Callable[[int], None], count: int, description: str) -> None:
    """Calls `function` on range(count) from threads, under a progress bar.

    Threads suffice, since Pillow and numpy release Python's lock while they work. Short jobs show no bar. Of several
    failures the first in order is raised.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(function, range(count)), desc=description, total=count, unit="image", delay=0.5):
            pass


def read_images(paths: Sequence[str | os.PathLike[str]], channels: int | None = None) -> np.ndarray:
    """Reads images of one size as float32 [N, H, W, C] in [0, 1]; arguments, memory and errors as of `read_arrays`."""
    return read_arrays(paths, lambda image: [image], channels)[0]


def read_arrays(
    paths: Sequence[str | os.PathLike[str]],
    split: Callable[[np.ndarray], list[np.ndarray]],
    channels: int | None = None,
    transparency_remedy: str = "",
    one_size: bool = True,
) -> list[np.ndarray]:
    """Reads images in parallel, into arrays that are allocated once.

    Sizes are compared by the files' headers before any is decoded.

    Args:
        paths: the files, N >= 1.
        split: makes of each image [H, W, C] one element of each array, as it is read, so that images never pile up.
        channels: 3 drops transparency while reading, with a warning; None keeps what the files have.
        transparency_remedy: what to do, for a warning that `split` drops transparency; "" if it does not.
        one_size: whether the files must have one size; else `split` must make them of one.

    Returns:
        float32 arrays [N, ...], in memory that a tensor can share.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: an image cannot be read, or differs from the first in size or number of channels, or together they
            take more memory than there is.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ValueError("there are no images to read")
    require_images(paths)
    if one_size:
        _require_one_size(paths)
    transparent, expected = np.zeros(len(paths), bool), None

    def read(index: int) -> list[np.ndarray]:
        """Reads an image, checks that it is like the first, and splits it."""
        nonlocal expected
        image = read_image(paths[index])
        transparent[index] = image.shape[-1] == 4 and image[..., 3].min() < 1.0
        image = image[..., :channels]
        expected = expected or image.shape  # the first image's
        if image.shape[-1] != expected[-1] or (one_size and image.shape != expected):
            raise ValueError(
                f"{paths[index]}: {_describe(image.shape)}, but {paths[0].name} is {_describe(expected)}; "
                "all images of a scene must have one size, and all or none of them transparency"
            )
        return split(image)

    first = read(0)
    try:
        arrays = [tensor_memory.empty((len(paths), *part.shape)) for part in first]
    except MemoryError:
        size = len(paths) * sum(part.nbytes for part in first)
        raise ValueError(
            f"{paths[0].parent}: {len(paths)} images of {_describe(first[0].shape)} take {size:.1e} "
            "bytes of memory, more than there is; load fewer or smaller ones (half_res, factor, testskip)"
        ) from None

    def fill(index: int) -> None:
        for array, part in zip(arrays, read(index) if index else first, strict=True):
            array[index] = part

    run_parallel(fill, len(paths), "Reading images")
    if channels == 3:
        transparency_remedy = "lay them on a background and save them without transparency"
    if transparency_remedy and transparent.any():
        logger.warning(
            "%s: %d of %d images have transparent pixels; alpha is dropped, and the colours stored there are used as "
            "they are; %s",
            paths[np.argmax(transparent)], transparent.sum(), len(paths), transparency_remedy,
        )  # fmt: skip
    return arrays


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
