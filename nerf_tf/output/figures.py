"""What figures share: one on matplotlib that needs no display, its colours, and saving it."""

from __future__ import annotations

from pathlib import Path

from nerf_tf.storage import atomic

INK, PALE, GRID = "#222831", "#78808a", "#e2e5e9"
BLUE, ORANGE, GREEN, RED = "#2f6fb5", "#e07b2c", "#3c9a5f", "#c8444f"
DOTS_PER_INCH = 120


def new_figure(width: float, height: float):
    """An empty figure of that many inches, which no display is needed for.

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


def tidy(axes, title: str) -> None:
    """Gives a flat panel its title, and takes away the lines that carry nothing."""
    axes.set_title(title, loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure, path: Path) -> None:
    """Writes the figure as a PNG, under its name only when complete."""
    with atomic.complete_file(path) as temporary:
        figure.savefig(temporary, format="png")
