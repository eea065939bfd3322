"""The viewer's page in one browser: its picture, controls, training photos, keyframes and video."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nerf_tf.camera_paths import keyframes
from nerf_tf.data.scene import Scene
from nerf_tf.output import view_files
from nerf_tf.render.renderer import Image, Renderer
from nerf_tf.storage import atomic
from support import progressive_view

if TYPE_CHECKING:
    import viser

logger = logging.getLogger("viewer")

SECONDS_BETWEEN_PICTURES = 0.5  # while a grid of pixels is being rendered
LARGEST_PHOTO, MOST_PHOTOS = 160, 100  # pixels of the longer side, and number: limits of what a browser draws well
# As fractions of the extent of all cameras: the length of a drawn camera, and the distance below which it is hidden.
PHOTO_SIZE, NEAREST_PHOTO = 0.03, 0.15
# The browser takes distances in fixed point, up to FARTHEST. They only decide what hides a photo, so few suffice.
FARTHEST, DISTANCE_PIXELS = 160.0, 40_000
# Larger pictures are sent as JPEG: its blurred colours are visible in small ones only.
LARGEST_PNG, JPEG_QUALITY = 100_000, 92


@dataclasses.dataclass(frozen=True)
class Quality:
    """The settings that decide how good and how fast a picture is.

    Attributes:
        N_samples, N_importance: samples on a ray.
        occupancy: whether empty space is skipped.
    """

    N_samples: int
    N_importance: int
    occupancy: bool = False

    def scaled(self, factor: float) -> Quality:
        """The same with `factor` times the samples, but never fewer than rendering needs."""
        fewest = 3 if self.N_importance else 2
        fine = max(1, int(factor * self.N_importance)) if self.N_importance else 0
        return dataclasses.replace(self, N_samples=max(fewest, int(factor * self.N_samples)), N_importance=fine)

    def preview(self) -> Quality:
        """The quality of the first picture after the camera moved."""
        return self.scaled(0.25)

    def choices(self) -> dict[str, Quality]:
        """The qualities that the page offers, by their labels."""
        offered = [self.scaled(factor) for factor in (0.25, 0.5, 1.0, 2.0)]
        return {str(quality): quality for quality in offered}

    def __str__(self) -> str:
        return f"{self.N_samples} + {self.N_importance}" if self.N_importance else f"{self.N_samples}"


@dataclasses.dataclass(frozen=True)
class ViewRequest:
    """What a page asks to be rendered: the browser's camera, rows of pixels, quality."""

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float
    aspect: float
    height: int
    quality: Quality


class Server(Protocol):
    """The part of `viewer.Viewer` that a page uses."""

    scene: Scene
    quality: Quality
    out: Path
    pages: dict[int, Page]
    video_job: Iterator[bool | None] | None

    def renderer(self, quality: Quality) -> Renderer: ...

    def has_renderer(self, quality: Quality) -> bool: ...

    def wake(self) -> None: ...


class Page:
    """One browser's controls, picture and keyframes. Only the render thread calls `render_chunk`."""

    def __init__(self, viewer: Server, client: viser.ClientHandle):
        self._viewer, self._client = viewer, client
        self._request: ViewRequest | None = None
        self._view: progressive_view.ProgressiveView | None = None
        self._refining: Iterator[None] = iter(())
        self._shown: tuple[str, bool] | None = None
        self._poses: list[np.ndarray] = []
        self._all_photos = client.scene.add_frame("/cameras", show_axes=False)
        self._photos: list[viser.CameraFrustumHandle] = []
        self._spread = float(np.ptp(viewer.scene.poses[:, :, 3], axis=0).max()) or 1.0
        self._add_controls(client.gui)
        client.camera.on_update(lambda _: viewer.wake())

    def _add_controls(self, gui: viser.GuiApi) -> None:
        viewer = self._viewer
        self.status = gui.add_markdown("rendering")
        with gui.add_folder("Picture"):
            self.shown = gui.add_dropdown("Show", progressive_view.SHOWN)
            self.network = gui.add_dropdown("Network", ("fine", "coarse"), visible=viewer.quality.N_importance > 0)
            full = viewer.scene.images.shape[1]
            heights = sorted({max(1, full // 4), max(1, full // 2), full, 2 * full})
            self.height = gui.add_dropdown(
                "Rows", [str(height) for height in heights], initial_value=str(max(1, full // 2))
            )
            self.samples = gui.add_dropdown(
                "Samples", list(viewer.quality.choices()), initial_value=str(viewer.quality), hint="coarse + fine"
            )
            self.occupancy = gui.add_checkbox("Skip empty space", viewer.quality.occupancy)
            self.cameras = gui.add_checkbox("Training cameras", True)
        with gui.add_folder("Path"):
            self.keyframes = gui.add_markdown("no keyframes")
            add, remove = gui.add_button("Add keyframe"), gui.add_button("Remove the last")
            self.seconds = gui.add_number("Seconds between", 2.0, min=0.1, max=60.0, step=0.1)
            self.fps = gui.add_number("Frames per second", 30, min=1, max=120, step=1)
            save, video = gui.add_button("Save keyframes"), gui.add_button("Save and render video")
            stop = gui.add_button("Stop the video")
        for control in (self.shown, self.network, self.height, self.samples, self.occupancy):
            control.on_update(lambda _: viewer.wake())
        self.cameras.on_update(lambda _: setattr(self._all_photos, "visible", self.cameras.value))
        add.on_click(lambda _: self._change_keyframes([*self._poses, self._pose()]))
        remove.on_click(lambda _: self._change_keyframes(self._poses[:-1]))
        save.on_click(lambda _: self._save())
        video.on_click(lambda _: self._start_video())
        stop.on_click(lambda _: self._stop_video())

    def _add_photos(self) -> None:
        data = self._viewer.scene
        shrink = -(-max(data.images.shape[1:3]) // LARGEST_PHOTO)
        for i in data.i_train[:: -(-len(data.i_train) // MOST_PHOTOS)]:
            camera = data.cameras[i]
            wxyz, position = progressive_view.pose_to_browser(data.poses[i])
            photo = self._client.scene.add_camera_frustum(
                f"/cameras/{i}",
                fov=2.0 * np.arctan(0.5 * camera.height / camera.fy),
                aspect=camera.width / camera.fx * camera.fy / camera.height,
                scale=PHOTO_SIZE * self._spread,
                thickness=1.5,
                thickness_units="screen",
                image=view_files.to_8bit(data.images[i, ::shrink, ::shrink]),
                wxyz=wxyz,
                position=position,
            )
            self._photos.append(photo)

    def _hide_close_photos(self, request: ViewRequest) -> None:
        """Hides the photos so close to the camera that they would cover the picture; shows the others."""
        for photo in self._photos:
            distance = float(np.linalg.norm(photo.position - np.array(request.position)))
            if photo.visible != (distance > NEAREST_PHOTO * self._spread):
                photo.visible = not photo.visible

    def _pose(self) -> np.ndarray:
        return progressive_view.pose_from_browser(self._client.camera.wxyz, self._client.camera.position)

    def request(self) -> ViewRequest:
        """The view that the page asks for now."""
        camera = self._client.camera
        quality = self._viewer.quality.choices()[self.samples.value]
        return ViewRequest(
            tuple(camera.wxyz),
            tuple(camera.position),
            camera.fov,
            camera.aspect,
            int(self.height.value),
            dataclasses.replace(quality, occupancy=self.occupancy.value),
        )

    def render_chunk(self) -> bool:
        """Renders the next chunk of the picture; returns whether more is left."""
        try:
            request = self.request()
            if request != self._request:
                self._request, self._refining = request, self._refine(request)
            refined = next(self._refining, True)
            if self._view is not None and self._shown != self._display_choice():
                self._draw()
            if not self._photos and self._view is not None:  # not before the first picture
                self._add_photos()
            self._hide_close_photos(request)
        except Exception as error:  # an error of one page must not stop the others
            logger.exception("rendering failed")
            self._refining = iter(())
            self.status.content = f"rendering failed: {' '.join(str(error).split())[:200]}"
            return False
        return not refined

    def _make_view(self, request: ViewRequest, c2w: np.ndarray) -> progressive_view.ProgressiveView:
        camera = progressive_view.window_camera(request.height, request.aspect, request.fov)
        return progressive_view.ProgressiveView(self._viewer.renderer(request.quality), self._viewer.scene, camera, c2w)

    def _refine(self, request: ViewRequest) -> Iterator[None]:
        c2w = progressive_view.pose_from_browser(request.wxyz, request.position)
        if not self._viewer.has_renderer(request.quality):
            what = (
                "finding empty space takes a minute, once"
                if request.quality.occupancy
                else f"{request.quality} samples"
            )
            self.status.content = f"preparing: {what}"
        preview = self._make_view(dataclasses.replace(request, quality=request.quality.preview()), c2w)
        next(preview.refine())
        self._view = preview
        self._draw()
        yield
        view, drawn = self._make_view(request, c2w), 0.0
        for complete in view.refine():
            self._view = view
            if complete or time.perf_counter() - drawn > SECONDS_BETWEEN_PICTURES:
                self._draw()
                drawn = time.perf_counter()
            yield

    def _display_choice(self) -> tuple[str, bool]:
        return self.shown.value, self.network.value == "coarse"

    def _draw(self) -> None:
        if self._client.client_id not in self._viewer.pages:
            return  # the browser was closed meanwhile
        self._shown = self._display_choice()
        view, (shown, coarse) = self._view, self._shown
        image = progressive_view.select_network(view.image(), coarse)
        height, width = image.acc.shape
        self._client.scene.set_background_image(
            progressive_view.draw(image, shown),
            format="png" if height * width <= LARGEST_PNG else "jpeg",
            jpeg_quality=JPEG_QUALITY,
            depth=self._distances(view, image),
        )
        rest = view.camera.height * view.camera.width - view.rendered
        text = f"{width} × {height} pixels in {view.seconds:.2f} s, {view.rendered / view.seconds:,.0f} rays/s"
        self.status.content = f"{text}; {rest / view.rendered * view.seconds:.0f} s to go" if rest else text

    def _distances(self, view: progressive_view.ProgressiveView, image: Image) -> np.ndarray | None:
        """Distances that let the browser hide photos behind the scene; None where they exceed its range."""
        distances = view.distances(image, max(1, int(np.sqrt(image.acc.size / DISTANCE_PIXELS))))
        farthest_photo = np.linalg.norm(self._viewer.scene.poses[:, :, 3] - view.c2w[:, 3], axis=-1).max()
        if max(farthest_photo, distances.max(where=np.isfinite(distances), initial=0.0)) > FARTHEST:
            return None
        return np.minimum(distances, FARTHEST)

    def _change_keyframes(self, poses: list[np.ndarray]) -> None:
        self._poses = poses
        count = len(poses)
        self.keyframes.content = f"{count} keyframe{'' if count == 1 else 's'}" if count else "no keyframes"

    def _path(self) -> keyframes.Keyframes:
        times = self.seconds.value * np.arange(len(self._poses))
        return keyframes.Keyframes(times, np.stack(self._poses))

    def _save(self) -> Path | None:
        """Writes the keyframes under the next free name; returns it, or None if nothing was written."""
        if not self._poses:
            self.keyframes.content = "no keyframes: add some first"
            return None
        out = self._viewer.out
        number = next(i for i in range(10**6) if not list(out.glob(f"viewer_{i:03d}.*")))
        path = out / f"viewer_{number:03d}.json"
        try:
            atomic.write_text(path, keyframes.keyframes_json(self._path()))
        except OSError as error:
            self.keyframes.content = f"not written: {error}"
            return None
        self.keyframes.content = f"{len(self._poses)} keyframes in `{path}`"
        return path

    def _start_video(self) -> None:
        if len(self._poses) < 2:
            self.keyframes.content = "a video needs two keyframes or more"
            return
        if self._viewer.video_job is not None:
            self.keyframes.content = "a video is being rendered: wait for it, or stop it"
            return
        request, display = self.request(), self._display_choice()
        try:
            poses = keyframes.interpolate(self._path(), int(self.fps.value))
        except ValueError as error:
            self.keyframes.content = f"no video: {error}"
            return
        path = self._save()
        if path is not None:
            self._viewer.video_job = self._render_video(
                request, display, poses, int(self.fps.value), path.with_suffix(".mp4")
            )
            self._viewer.wake()

    def _stop_video(self) -> None:
        self._viewer.video_job = None
        self._change_keyframes(self._poses)

    def _render_video(
        self, request: ViewRequest, display: tuple[str, bool], poses: np.ndarray, fps: int, path: Path
    ) -> Iterator[None]:
        """Renders a video, a chunk at every step; continues when the browser is closed."""
        video, (shown, coarse) = view_files.VideoBuffer(path.parent), display
        try:
            for i, c2w in enumerate(poses):
                self._show_video_status(f"rendering frame {i + 1} of {len(poses)}")
                view = self._make_view(request, c2w)
                for _ in view.refine():
                    yield
                video.append(progressive_view.select_network(view.image(), coarse))
            view_files.write_video(path, progressive_view.video_frames(video, shown), fps)
        except Exception as error:  # an error of a video must not stop the pages
            logger.exception("no %s", path)
            self._show_video_status(f"no video: {' '.join(str(error).split())[:200]}")
            return
        if path.exists():
            logger.info("%s", path)
        self._show_video_status(f"`{path}`" if path.exists() else "the video could not be written, see the console")

    def _show_video_status(self, text: str) -> None:
        """Shows the video's progress, unless the browser was closed."""
        if self._client.client_id in self._viewer.pages:
            self.keyframes.content = text
