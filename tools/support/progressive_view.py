"""Views for the browser: rendered on a coarse grid of pixels first, then on finer ones, and drawn as pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.depth import find_surface
from nerf_tf.geometry.rays import finish_rays, pixel_rays
from nerf_tf.output import pictures, view_files
from nerf_tf.render.renderer import Image, Renderer

SHOWN = ("rgb", "disparity", "depth", "opacity")
# The least near bound, as a fraction of far, for a camera closer to the scene than the training cameras.
NEAREST = 0.01


def pose_from_browser(wxyz: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Converts a browser's camera to a pose [3, 4]: unit quaternion [4] (OpenCV's axes) and position [3]."""
    from viser.transforms import SO3

    rotation = SO3(np.asarray(wxyz, np.float64)).as_matrix()
    return pose_maths.opencv_to_opengl(np.concatenate([rotation, np.reshape(position, [3, 1])], axis=-1))


def pose_to_browser(c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts a pose [3, 4] to a browser's camera: unit quaternion [4] and position [3]."""
    from viser.transforms import SO3

    opencv = pose_maths.opengl_to_opencv(np.asarray(c2w, np.float64))
    return SO3.from_matrix(opencv[:, :3]).wxyz, opencv[:, 3]


def up_axis(poses: np.ndarray) -> np.ndarray:
    """The signed world axis [3] that is nearest to the mean up direction of `poses` [N, 3, 4]."""
    up = np.asarray(poses)[:, :3, 1].mean(axis=0)
    largest = np.argmax(np.abs(up))
    return np.eye(3)[largest] * (1.0 if up[largest] >= 0 else -1.0)


def initial_view(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The first pose [3, 4], of a test view or the path, and the point [3] around which the camera turns."""
    c2w = scene.poses[scene.i_test[0]] if len(scene.i_test) else scene.render_poses[0]
    # NDC keeps no depth; its loader puts the nearest thing a little beyond 1.
    distance = 3.0 if scene.ndc else 0.5 * (scene.near + scene.far)
    return c2w, c2w[:, 3] - distance * c2w[:, 2]


def window_camera(height: int, aspect: float, fov: float) -> Camera:
    """The camera of a window: rows, width over height, and vertical field of view in radians."""
    return Camera.centred(height, max(1, round(height * aspect)), 0.5 * height / np.tan(0.5 * fov))


def ray_range(scene: Scene, near: float, far: float, position: np.ndarray) -> tuple[float, float]:
    """The near and far bound of rays from a position [3].

    At the distances of the training cameras these are their bounds. Farther away, or closer, both move along with the
    camera, so that the scene stays between them. Under NDC they never change.
    """
    if scene.ndc:
        return near, far
    try:
        centre = pose_maths.nearest_point_to_axes(scene.poses[scene.i_train].astype(np.float64))
    except ValueError:  # the optical axes are parallel
        return near, far
    distances = np.linalg.norm(scene.poses[scene.i_train][:, :, 3] - centre, axis=-1)
    distance = float(np.linalg.norm(position - centre))
    farther = distance - float(np.clip(distance, distances.min(), distances.max()))
    return max(near + farther, min(near, NEAREST * far)), far + farther


def grid_strides(height: int, width: int, count: int) -> list[int]:
    """Distances between pixels of ever finer grids, down to 1.

    The first grid has at most `count` pixels, and each grid contains the one before. The first distance is 2^k or
    3 * 2^k, so that the first grid is not much coarser than necessary.
    """
    powers = [2**k for k in range(max(height, width).bit_length() + 1)]
    candidates = sorted(powers + [3 * power for power in powers])
    steps = [next(step for step in candidates if -(-height // step) * -(-width // step) <= count)]
    while steps[-1] > 1:
        steps.append(steps[-1] // 2 if steps[-1] % 2 == 0 else 1)
    return steps


class ProgressiveView:
    """A view rendered on ever finer grids of its pixels, each pixel once.

    Attributes:
        camera, c2w: its camera, and the camera's pose [3, 4].
        seconds: spent on rendering so far.
        rendered: number of pixels rendered so far.
    """

    def __init__(self, renderer: Renderer, scene: Scene, camera: Camera, c2w: np.ndarray):
        self.camera, self.c2w = camera, c2w
        self.seconds, self.rendered = 0.0, 0
        self._range = ray_range(scene, renderer.near, renderer.far, c2w[:, 3])
        self._renderer, self._scene = renderer, scene
        self._buffers: list[np.ndarray | None] | None = None
        self._known = np.zeros([camera.height, camera.width], bool)
        self._stride = self._coarser = 1

    def refine(self) -> Iterator[bool]:
        """Renders `chunk` pixels at every step; yields whether they complete a grid."""
        height, width, chunk = self.camera.height, self.camera.width, self._renderer.settings.chunk
        for stride in grid_strides(height, width, chunk):
            self._coarser = self._stride if self.rendered else stride
            self._stride = stride
            grid = np.zeros_like(self._known)
            grid[::stride, ::stride] = True
            pixels = np.flatnonzero(grid & ~self._known)
            for first in range(0, len(pixels), chunk):
                self._render(pixels[first : first + chunk])
                yield first + chunk >= len(pixels)

    def _render(self, pixels: np.ndarray) -> None:
        start = time.perf_counter()
        # One size for all chunks, so that all grids and views share one graph.
        padded = np.pad(pixels, (0, self._renderer.settings.chunk - len(pixels)), mode="edge")
        results = render_pixels(self._renderer, self._scene, self.camera, self.c2w, padded, *self._range)
        if self._buffers is None:
            count = self._known.size
            self._buffers = [None if r is None else np.zeros([count, *r.shape[1:]], np.float32) for r in results]
        for buffer, result in zip(self._buffers, results, strict=True):
            if buffer is not None:
                buffer[pixels] = result[: len(pixels)]
        self._known.flat[pixels] = True
        self.rendered += len(pixels)
        self.seconds += time.perf_counter() - start

    def image(self) -> Image:
        """The view so far, on the finest grid begun; missing pixels are taken from the grid before.

        Call it after the first step of `refine`.
        """
        stride, times = self._stride, self._coarser // self._stride
        known = self._known[::stride, ::stride]
        height, width = known.shape

        def grid(buffer: np.ndarray) -> np.ndarray:
            full = buffer.reshape(*self._known.shape, *buffer.shape[1:])
            coarser = full[:: self._coarser, :: self._coarser]
            coarser = coarser.repeat(times, axis=0).repeat(times, axis=1)[:height, :width]
            return np.where(known.reshape(*known.shape, *[1] * (full.ndim - 2)), full[::stride, ::stride], coarser)

        return Image(*(None if buffer is None else grid(buffer) for buffer in self._buffers))

    def distances(self, image: Image, every: int = 1) -> np.ndarray:
        """Depth along the optical axis at every `every`-th pixel; infinite where a ray meets nothing."""
        depth, acc = image.depth[::every, ::every], image.acc[::every, ::every]
        camera, stride = self.camera, self._stride * every
        intrinsics = (value / stride for value in (camera.fx, camera.fy, camera.cx, camera.cy))
        found = find_surface(Camera(*acc.shape, *intrinsics), self.c2w, depth, acc, self._scene.ndc)
        return np.nan_to_num(found.along_z, nan=np.inf)


def render_pixels(
    renderer: Renderer, scene: Scene, camera: Camera, c2w: np.ndarray, pixels: np.ndarray, near: float, far: float
) -> Image:
    """Renders R pixels of a view, counted along rows from the top left; returns fields [R, ...].

    Under NDC the coordinates are those of the scene's own camera, whatever the view's field of view. Rays that point
    away from the scene have no NDC coordinates and are black.
    """
    origins, directions = pixel_rays(camera, c2w, pixels // camera.width, pixels % camera.width)
    rays = finish_rays(scene.cameras[0], origins, directions, near, far, renderer.ndc)
    image = renderer.rays(rays)
    if not renderer.ndc:
        return image
    away = directions.numpy()[:, 2] >= 0.0
    return Image(*(None if field is None else np.where(_broadcastable(away, field), 0.0, field) for field in image))


def _broadcastable(flags: np.ndarray, field: np.ndarray) -> np.ndarray:
    return flags.reshape([-1] + [1] * (field.ndim - 1))


def select_network(image: Image, coarse: bool) -> Image:
    """The fine or the coarse network's image; the only one if there is no fine network."""
    if not coarse or image.rgb0 is None:
        return image
    depth = np.divide(image.acc0, image.disp0, out=np.zeros_like(image.acc0), where=image.disp0 > 0)
    return image._replace(rgb=image.rgb0, disp=image.disp0, acc=image.acc0, depth=depth)


def draw(image: Image, shown: str) -> np.ndarray:
    """Draws a view as an 8-bit picture [H, W, 3], in the colours of videos.

    Args:
        image: the view.
        shown: one of `SHOWN`. In disparity and depth light is near and black is empty.
    """
    if shown == "rgb":
        return view_files.to_8bit(image.rgb)
    if shown == "disparity":
        return view_files.colour_disparity(image)
    if shown == "opacity":
        return pictures.apply_colour_map(image.acc)
    depth = pictures.expected_depth(image.depth, image.acc)
    near, far = pictures.display_range([pictures.opaque_values(depth, image.acc)])
    return pictures.false_colours(depth, image.acc, dark=far, light=near)


def video_frames(film: view_files.VideoBuffer, shown: str) -> view_files.LazyFrames:
    """The frames of a video; `shown` is one of `SHOWN`."""
    return {"rgb": film.rgb, "disparity": film.disp, "depth": film.depth, "opacity": film.acc}[shown]
