"""What the plotting programs share: the package's own figures."""

from nerf_tf.render.figures import BLUE, GREEN, GRID, INK, ORANGE, PALE, RED, new_figure, save, tidy

__all__ = ["BLUE", "GREEN", "GRID", "INK", "ORANGE", "PALE", "RED", "new_figure", "save", "tidy"]
