"""Lens distortion, and the pinhole camera that takes its place. NumPy, float64.

The model is OPENCV's (FULL_OPENCV's up to k3), also in COLMAP and nerfstudio. Positions x, y are those on the plane at
distance 1 before the camera, y down.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nerf_tf.geometry.camera import Camera

# Focal lengths tried for the pinhole camera, in those of the distorted one: half shows twice as much, and if twice that
# is not enough the lens is a fisheye, or the numbers are another's.
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
        """Returns the radius, at most `radius`, up to which the picture does not fold back on itself."""
        r = np.linspace(0.0, radius, 1001)
        growth = 1.0 + r**2 * (3.0 * self.k1 + r**2 * (5.0 * self.k2 + r**2 * 7.0 * self.k3))
        folded = np.flatnonzero(~(growth > 0.0))
        return float(r[folded[0] - 1]) if folded.size else radius


def find_pinhole(camera: Camera, distortion: Distortion) -> Camera:
    """Finds the pinhole camera of the same size and centre with the widest view that the distorted photo fills.

    Raises:
        ValueError: it would show less than half of the photo's sides.
    """
    # The edges of the image, [2, E]: what lies within them comes from within the photo if they do.
    along, across = np.linspace(0.0, 1.0, 65), np.array([[0.0], [1.0]])
    edges = np.stack(np.broadcast_arrays(along, across)).reshape(2, -1)
    u, v = np.concatenate([edges, edges[::-1]], axis=1) * [[camera.width], [camera.height]]
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    radius = np.hypot(x, y).max()
    with np.errstate(over="ignore", invalid="ignore"):  # absurd coefficients, which no zoom makes good
        reach = distortion.reach(radius / LEAST_ZOOM)

        def fits(zoom: float) -> bool:
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
    """Returns fractional rows and columns [H, W] at which a distorted photo shows the pinhole camera's pixels.

    Both cameras are measured from the corner of the first pixel, and light falls on the middle of pixels.
    """
    rows, cols = np.mgrid[: pinhole.height, : pinhole.width] + 0.5
    x, y = distortion.distort((cols - pinhole.cx) / pinhole.fx, (rows - pinhole.cy) / pinhole.fy)
    return camera.fy * y + camera.cy - 0.5, camera.fx * x + camera.cx - 0.5
