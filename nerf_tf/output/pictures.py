"""Numbers as colours: depth, disparity and opacity that an eye can read. Numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

# The map magma (S. van der Walt and N. Smith, in the public domain) at 16 evenly spread places: even steps look even,
# and grey prints keep the order.
MAGMA = np.array(
    [
        *([0, 0, 4], [11, 9, 36], [32, 17, 75], [59, 15, 112], [87, 21, 126], [114, 31, 129], [140, 41, 129]),
        *([168, 50, 125], [196, 60, 117], [222, 73, 104], [241, 96, 93], [250, 127, 94], [254, 159, 109]),
        *([254, 191, 132], [253, 222, 160], [252, 253, 191]),
    ]
)
# Below this opacity a pixel shows too little for its depth to count.
SOLID = 0.5
INK = (34, 40, 49)
GAP = 4  # pixels between pictures in a row
CAPTION = 22  # pixels above them, and below


def coloured(levels: np.ndarray) -> np.ndarray:
    """8-bit colours [..., 3] of levels [...]: 0 is black, 1 a pale yellow, and NaN is as 0."""
    places = np.clip(np.nan_to_num(levels), 0.0, 1.0) * (len(MAGMA) - 1)
    channels = [np.interp(places, np.arange(len(MAGMA)), MAGMA[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def false_colours(values: np.ndarray, acc: np.ndarray, dark: float, light: float, background: int = 0) -> np.ndarray:
    """8-bit colours [H, W, 3] of values [H, W], fading to the grey `background` where the opacity `acc` [H, W] is 0.

    Args:
        dark, light: the values at the ends of the colours; of depth, dark is the larger, so that near is light.
    """
    span = light - dark
    colours = coloured((np.asarray(values, np.float64) - dark) / (span if span != 0 else 1.0))
    cover = np.clip(np.nan_to_num(acc), 0.0, 1.0)[..., None]
    return np.rint(colours * cover + background * (1.0 - cover)).astype(np.uint8)


def expected_depth(depth: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """The t [H, W] where a ray ends, if it does: sum of weight times t over sum of weights; 0 on empty rays."""
    return np.divide(depth, acc, out=np.zeros_like(depth), where=acc > 0)


def solid_values(values: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """Those [N] of values [H, W] that are finite and not on empty pixels."""
    return values[(acc > SOLID) & np.isfinite(values)]


def shown_range(values: Iterable[np.ndarray]) -> tuple[float, float]:
    """Least and greatest of arrays of `solid_values`, without the outermost hundredths, which a few stray rays make."""
    together = np.concatenate([*values, np.empty(0, np.float32)])
    low, high = np.percentile(together, [1.0, 99.0]) if together.size else (0.0, 0.0)
    return float(low), float(max(high, low + 1e-6))


def side_by_side(pictures: dict[str, np.ndarray], caption: str = "") -> np.ndarray:
    """8-bit pictures [H, W, 3] in a row [CAPTION + H, ..., 3], below their names; a caption adds CAPTION under them."""
    height, width = next(iter(pictures.values())).shape[:2]
    below = CAPTION if caption else 0
    row = PILImage.new("RGB", (len(pictures) * (width + GAP) - GAP, CAPTION + height + below), "white")
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(13)
    for i, (name, pixels) in enumerate(pictures.items()):
        row.paste(PILImage.fromarray(pixels), (i * (width + GAP), CAPTION))
        # Where pictures are too narrow for words, only the first name is whole.
        draw.text((i * (width + GAP) + 2, 3), name, INK, font)
    draw.text((2, CAPTION + height + 3), caption, INK, font)
    return np.asarray(row)
