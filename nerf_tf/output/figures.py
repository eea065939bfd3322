"""Figures drawn with matplotlib without a display: size, style, colours and saving."""

from __future__ import annotations

from pathlib import Path

from nerf_tf.storage import atomic

INK, PALE, GRID = "#222831", "#78808a", "#e2e5e9"
BLUE, ORANGE, GREEN, RED = "#2f6fb5", "#e07b2c", "#3c9a5f", "#c8444f"
DOTS_PER_INCH = 120


def new_figure(width: float, height: float):
    """Makes an empty figure; width and height are in inches.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("drawing needs matplotlib: pip install -e '.[plots]'") from error
    style = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": PALE}
    style |= {"xtick.color": PALE, "ytick.color": PALE, "axes.titlesize": 11, "grid.color": GRID}
    matplotlib.rcParams.update(style)
    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")


def style_axes(axes, title: str) -> None:
    """Sets the title of a 2D plot and hides its top and right border."""
    axes.set_title(title, loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure, path: Path) -> None:
    """Writes a figure as PNG; the file appears only when complete."""
    with atomic.complete_file(path) as temporary:
        figure.savefig(temporary, format="png")
