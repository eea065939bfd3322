"""Photos of several sizes, brought to one: shrunk, and with black beside those of other proportions."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nerf_tf.geometry.camera import Camera

logger = logging.getLogger(__name__)

Size = tuple[int, int]  # height and width


class Place(NamedTuple):
    """Where a photo lies in an image of the common size, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Its rows and columns in the image."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def is_whole(self, size: Size) -> bool:
        """Whether the photo fills an image of this size."""
        return (self.height, self.width) == size

    def camera_of_image(self, camera: Camera, size: Size) -> Camera:
        """Turns the photo's camera into that of the image of this size."""
        cx, cy = camera.cx + self.left, camera.cy + self.top
        return dataclasses.replace(camera, height=size[0], width=size[1], cx=cx, cy=cy)

    def fill(self, photo: np.ndarray, size: Size) -> np.ndarray:
        """Puts the photo [height, width, C] into an image [*size, C]; beside it is opaque black."""
        if self.is_whole(size):
            return photo
        image = np.zeros((*size, photo.shape[-1]), photo.dtype)
        image[..., 3:] = 1.0
        image[self.window] = photo
        return image


@dataclasses.dataclass(frozen=True)
class CommonSize:
    """The size of a scene's images.

    Attributes:
        photo: the smallest photo of the proportions that most photos have.
        image: this size after it was shrunk.
    """

    photo: Size
    image: Size

    def place(self, photo: Size) -> Place:
        """Returns where a photo lies in the image.

        It fills the image if it has the usual proportions. Otherwise it lies in the middle, shrunk until it fits, and
        at least as much as the image was.
        """
        if are_alike(photo, self.photo):
            return Place(0, 0, *self.image)
        scale = min(*(side / own for side, own in zip(self.image, photo, strict=True)), self.image[1] / self.photo[1])
        height, width = (max(1, round(scale * side)) for side in photo)
        return Place((self.image[0] - height) // 2, (self.image[1] - width) // 2, height, width)


def are_alike(photo: Size, other: Size) -> bool:
    """Whether two sizes have the same proportions, but for a pixel of the other's height."""
    return abs(photo[0] * other[1] / photo[1] - other[0]) <= 1


def smallest_usual(sizes: Sequence[Size]) -> Size:
    """Returns the smallest of the sizes with the proportions that most of them have; of equally many, the first's."""
    counts = collections.Counter(sizes)

    def share(size: Size) -> int:
        """How many photos have these proportions."""
        return sum(count for other, count in counts.items() if are_alike(other, size))

    usual = max(counts, key=share)
    return min((size for size in counts if are_alike(size, usual)), key=lambda size: size[0] * size[1])


def choose_common_size(sizes: Mapping[Path, Size], factor: int) -> CommonSize:
    """Chooses the size of the scene's images, and reports what that does to photos; `sizes` are by path.

    Raises:
        ValueError: `factor` leaves no pixels.
    """
    photo = smallest_usual(list(sizes.values()))
    common = CommonSize(photo, (photo[0] // factor, photo[1] // factor))
    smallest = next(path for path, size in sizes.items() if size == photo)
    if min(common.image) < 1:
        raise ValueError(f"{smallest}: factor {factor} leaves no pixels of photos of {photo[1]}x{photo[0]}")
    if factor > 1:
        shrunk = (*photo[::-1], *common.image[::-1])
        logger.info("factor %d: photos of %dx%d become %dx%d (--factor 1 keeps them)", factor, *shrunk)
    usual = {size for size in sizes.values() if are_alike(size, photo)}
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
