"""What the plotting programs share: a figure on matplotlib, its colours, and saving it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nerf_tf.render import outputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PALE, GRID = "#222831", "#78808a", "#e2e5e9"
BLUE, ORANGE, GREEN, RED = "#2f6fb5", "#e07b2c", "#3c9a5f", "#c8444f"
DOTS_PER_INCH = 120


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, which no display is needed for.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("drawing needs matplotlib: pip install 'nerf_tf[plots]'") from error
    style = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": PALE}
    style |= {"xtick.color": PALE, "ytick.color": PALE, "axes.titlesize": 11, "grid.color": GRID}
    matplotlib.rcParams.update(style)
    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")


def tidy(axes: Axes, title: str) -> None:
    """Gives a flat panel its title, and takes away the lines that carry nothing."""
    axes.set_title(title, loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG, under its name only when complete."""
    with outputs.complete_file(path) as temporary:
        figure.savefig(temporary, format="png")
