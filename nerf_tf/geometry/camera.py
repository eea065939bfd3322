"""The pinhole camera."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion; every length is in pixels.

    Attributes:
        height, width: size of the image.
        fx, fy: focal lengths.
        cx, cy: principal point, measured from the top left corner of the top left pixel.
    """

    height: int
    width: int
    fx: float
    fy: float
    cx: float
    cy: float

    @classmethod
    def centred(cls, height: int, width: int, focal: float) -> Camera:
        """The camera of the original code: square pixels, principal point at (width / 2, height / 2)."""
        return cls(height, width, focal, focal, 0.5 * width, 0.5 * height)

    def downscaled(self, factor: int) -> Camera:
        """The same camera with sides divided by `factor` and rounded down, as `--render_factor` does."""
        if not 1 <= factor <= min(self.height, self.width):
            raise ValueError(
                f"render_factor {factor} leaves no pixels of a {self.width}x{self.height} image; "
                f"give a whole number from 1 to {min(self.height, self.width)}"
            )
        height, width = self.height // factor, self.width // factor
        return Camera(
            height,
            width,
            self.fx / factor,
            self.fy / factor,
            self.cx * width / self.width,
            self.cy * height / self.height,
        )
