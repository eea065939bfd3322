"""Lens distortion, and the pinhole camera of undistorted photos. NumPy, float64.

The model is the one that COLMAP and nerfstudio call OPENCV, with k3 of FULL_OPENCV. Positions x, y are those on the
plane at distance 1 in front of the camera, x right and y down.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nerf_tf.geometry.camera import Camera

# Focal lengths tried for the pinhole camera, as multiples of the distorted one's. Half of it shows twice as much. If
# twice as long a focal length still shows more than the photo does, the lens is a fisheye, or the coefficients are
# those of other photos.
LEAST_ZOOM, MOST_ZOOM = 0.5, 2.0


class Distortion(NamedTuple):
    """Coefficients: radial k1, k2, k3 and tangential p1, p2. All 0: a pinhole camera."""

    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    p1: float = 0.0
    p2: float = 0.0

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions [...] at which the lens shows what a pinhole would show at x, y [...]."""
        r2 = x * x + y * y
        radial = 1.0 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        return (
            x * radial + 2.0 * self.p1 * x * y + self.p2 * (r2 + 2.0 * x * x),
            y * radial + 2.0 * self.p2 * x * y + self.p1 * (r2 + 2.0 * y * y),
        )

    def reach(self, radius: float) -> float:
        """Returns the radius, at most `radius`, up to which radial distortion does not fold the image over."""
        r = np.linspace(0.0, radius, 1001)
        # The derivative of the distorted radius by the radius.
        growth = 1.0 + r**2 * (3.0 * self.k1 + r**2 * (5.0 * self.k2 + r**2 * 7.0 * self.k3))
        folded = np.flatnonzero(~(growth > 0.0))
        return float(r[folded[0] - 1]) if folded.size else radius


def find_pinhole(camera: Camera, distortion: Distortion) -> Camera:
    """Finds the widest pinhole camera, of equal size and centre, whose image the distorted photo fills.

    Raises:
        ValueError: its focal length would be more than `MOST_ZOOM` times the photo's.
    """
    # The edges of the image, [2, E]: if the photo shows them, it shows all that lies within them.
    along, across = np.linspace(0.0, 1.0, 65), np.array([[0.0], [1.0]])
    edges = np.stack(np.broadcast_arrays(along, across)).reshape(2, -1)
    u, v = np.concatenate([edges, edges[::-1]], axis=1) * [[camera.width], [camera.height]]
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    radius = np.hypot(x, y).max()
    with np.errstate(over="ignore", invalid="ignore"):  # of absurd coefficients, which no zoom fits
        reach = distortion.reach(radius / LEAST_ZOOM)

        def fits(zoom: float) -> bool:
            """Whether all pixels of an image with this zoom come from within the photo."""
            sources = zip(distortion.distort(x / zoom, y / zoom), (camera.fx, camera.fy), strict=True)
            col, row = (f * position for position, f in sources)
            inside = (np.abs(col + camera.cx - camera.width / 2) <= camera.width / 2) & (
                np.abs(row + camera.cy - camera.height / 2) <= camera.height / 2
            )
            return radius / zoom <= reach and bool(inside.all())

        if not fits(MOST_ZOOM):
            raise ValueError(
                f"the lens distortion {', '.join(f'{n} {k:g}' for n, k in distortion._asdict().items() if k)} leaves "
                f"less than half of the sides of {camera.width}x{camera.height}: its numbers are not of these images, "
                "or it is a fisheye; undistort the images first"
            )
        least, most = LEAST_ZOOM, MOST_ZOOM
        while most - least > 1e-6:
            middle = 0.5 * (least + most)
            least, most = (least, middle) if fits(middle) else (middle, most)
    return Camera(camera.height, camera.width, most * camera.fx, most * camera.fy, camera.cx, camera.cy)


def source_pixels(pinhole: Camera, camera: Camera, distortion: Distortion) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows and columns [H, W] of the pinhole camera's pixels in the distorted photo.

    They are fractional and, like array indices, count from the centre of the first pixel; the cameras' principal points
    count from its corner.
    """
    rows, cols = np.mgrid[: pinhole.height, : pinhole.width] + 0.5
    x, y = distortion.distort((cols - pinhole.cx) / pinhole.fx, (rows - pinhole.cy) / pinhole.fy)
    return camera.fy * y + camera.cy - 0.5, camera.fx * x + camera.cx - 0.5


def resample(image: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Samples an image [H, W, C] bilinearly at fractional rows and columns [...]: [..., C].

    They count from the centre of the first pixel. Outside of the image its edge is repeated.
    """
    height, width = image.shape[:2]
    rows, cols = np.clip(rows, 0, height - 1), np.clip(cols, 0, width - 1)
    top, left = rows.astype(int), cols.astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (np.float32(x)[..., None] for x in (rows - top, cols - left))
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down
