"""Pictures of depth, disparity and opacity in false colours, and pictures side by side."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

# 16 evenly spaced colours of the map magma (S. van der Walt and N. Smith, public domain): equal steps look equal, also
# when printed in grey.
MAGMA = np.array(
    [
        *([0, 0, 4], [11, 9, 36], [32, 17, 75], [59, 15, 112], [87, 21, 126], [114, 31, 129], [140, 41, 129]),
        *([168, 50, 125], [196, 60, 117], [222, 73, 104], [241, 96, 93], [250, 127, 94], [254, 159, 109]),
        *([254, 191, 132], [253, 222, 160], [252, 253, 191]),
    ]
)
# Pixels below this opacity are left out of the colour range, as their depth means little.
MIN_OPACITY = 0.5
INK = (34, 40, 49)
GAP = 4  # pixels between pictures in a row
CAPTION = 22  # pixels above them for names, and below for a caption


def apply_colour_map(levels: np.ndarray) -> np.ndarray:
    """Maps levels [...] to 8-bit colours [..., 3]: 0 and NaN to black, 1 to pale yellow."""
    positions = np.clip(np.nan_to_num(levels), 0.0, 1.0) * (len(MAGMA) - 1)
    channels = [np.interp(positions, np.arange(len(MAGMA)), MAGMA[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def false_colours(values: np.ndarray, acc: np.ndarray, dark: float, light: float, background: int = 0) -> np.ndarray:
    """Maps values to 8-bit colours [H, W, 3], blended with a background by opacity.

    Args:
        values: [H, W] depth, disparity or the like.
        acc: [H, W] opacity from 0 to 1.
        dark, light: the values that become black and pale yellow; for depth dark is the larger, so that near is light.
        background: 8-bit grey level.
    """
    span = light - dark
    colours = apply_colour_map((np.asarray(values, np.float64) - dark) / (span if span != 0 else 1.0))
    cover = np.clip(np.nan_to_num(acc), 0.0, 1.0)[..., None]
    return np.rint(colours * cover + background * (1.0 - cover)).astype(np.uint8)


def expected_depth(depth: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """Divides `depth` by opacity [H, W], which gives the mean t where a ray ends; 0 on empty rays."""
    return np.divide(depth, acc, out=np.zeros_like(depth), where=acc > 0)


def opaque_values(values: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """The finite values [N] among [H, W] at pixels of more than `MIN_OPACITY`."""
    return values[(acc > MIN_OPACITY) & np.isfinite(values)]


def display_range(values: Iterable[np.ndarray]) -> tuple[float, float]:
    """The 1st and the 99th percentile of all values together, which a few stray rays do not change."""
    together = np.concatenate([*values, np.empty(0, np.float32)])
    low, high = np.percentile(together, [1.0, 99.0]) if together.size else (0.0, 0.0)
    return float(low), float(max(high, low + 1e-6))


def side_by_side(pictures: dict[str, np.ndarray], caption: str = "") -> np.ndarray:
    """Joins 8-bit pictures [H, W, 3] in a row, with names above them and a caption below."""
    height, width = next(iter(pictures.values())).shape[:2]
    below = CAPTION if caption else 0
    row = PILImage.new("RGB", (len(pictures) * (width + GAP) - GAP, CAPTION + height + below), "white")
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(13)
    for i, (name, pixels) in enumerate(pictures.items()):
        row.paste(PILImage.fromarray(pixels), (i * (width + GAP), CAPTION))
        # A name wider than its picture runs into the next one.
        draw.text((i * (width + GAP) + 2, 3), name, INK, font)
    draw.text((2, CAPTION + height + 3), caption, INK, font)
    return np.asarray(row)
