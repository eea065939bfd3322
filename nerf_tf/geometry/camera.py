"""The pinhole camera."""

from __future__ import annotations

import dataclasses

import numpy as np

# Shortest and longest focal length, as multiples of the image's longer side: fields of view of 178 and 0.06 degrees.
# Outside of this range units or files have been mixed up.
FOCAL_RANGE = (0.01, 1000.0)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera; every length is in pixels.

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
        """Makes the original's camera: square pixels, principal point at (width / 2, height / 2).

        Raises:
            ValueError: the focal length is outside of `FOCAL_RANGE`.
        """
        return cls(height, width, focal, focal, 0.5 * width, 0.5 * height).checked()

    def checked(self) -> Camera:
        """Returns this camera; raises ValueError if a focal length is outside of `FOCAL_RANGE`."""
        longer, (shortest, longest) = max(self.height, self.width), FOCAL_RANGE
        for focal in (self.fx, self.fy):
            if not shortest * longer <= focal <= longest * longer:
                raise ValueError(
                    f"focal length {focal:g} does not go with images of {self.width}x{self.height}; expected pixels, "
                    f"{shortest * longer:g} to {longest * longer:g}"
                )
        return self

    def through_pixel_centres(self) -> Camera:
        """Returns the camera whose rays go through the centres of pixels rather than their corners.

        A pixel shows the light around its centre, so the original's rays, through corners, are half a pixel off. That
        shift has another direction in the world for each view, which blurs details a pixel wide.
        """
        return dataclasses.replace(self, cx=self.cx - 0.5, cy=self.cy - 0.5)

    def through_pixel_corners(self) -> Camera:
        """Undoes `through_pixel_centres`."""
        return dataclasses.replace(self, cx=self.cx + 0.5, cy=self.cy + 0.5)

    def downscaled(self, factor: int) -> Camera:
        """Returns this camera with sides divided by `factor` and rounded down, as `--render_factor` does.

        Raises:
            ValueError: `factor` is below 1 or above the shorter side.
        """
        if not 1 <= factor <= min(self.height, self.width):
            raise ValueError(
                f"render_factor {factor} leaves no pixels of a {self.width}x{self.height} image; "
                f"give a whole number from 1 to {min(self.height, self.width)}"
            )
        height, width = self.height // factor, self.width // factor
        cx, cy = self.cx * width / self.width, self.cy * height / self.height
        return Camera(height, width, self.fx / factor, self.fy / factor, cx, cy)

    def resized(self, width: int) -> Camera:
        """Returns this camera for images of another width and equal proportions, as for `--render_width`.

        It must be one whose rays go through pixel corners. The field of view stays exactly the same, as NDC needs:
        where the height is rounded, fy is scaled by the rounded height.
        """
        height = max(1, round(self.height * width / self.width))
        across, down = width / self.width, height / self.height
        return Camera(height, width, self.fx * across, self.fy * down, self.cx * across, self.cy * down)

    def rays(self, c2w: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Computes rays through image positions as `geometry.rays.pixel_rays` does, but in NumPy and float64.

        Args:
            c2w: [3, 4] or [4, 4] the camera's pose.
            rows, cols: [...] positions in pixels.

        Returns:
            origins [..., 3] and directions [..., 3] in the world; directions have z = -1 in the camera's frame.
        """
        c2w = np.asarray(c2w, np.float64)
        x, y = (cols - self.cx) / self.fx, -(rows - self.cy) / self.fy
        directions = np.stack([x, y, -np.ones(np.shape(x))], axis=-1) @ c2w[:3, :3].T
        return np.broadcast_to(c2w[:3, 3], directions.shape), directions

    def project(self, c2w: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Projects points of the world into the image.

        Args:
            c2w: [3, 4] the camera's pose.
            points: [P, 3].

        Returns:
            Rows [P] and columns [P] in pixels, and z [P] in the camera's frame; only points with z < 0 are in front.
        """
        x, y, z = ((points - c2w[:, 3]) @ c2w[:, :3]).T
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.cy + self.fy * y / z, self.cx - self.fx * x / z, z
