"""The viewer's page: controls, training photos, keyframes, and the picture that is refined while one looks at it."""

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
from support import refinement

if TYPE_CHECKING:
    import viser

logger = logging.getLogger("viewer")

SECONDS_BETWEEN_PICTURES = 0.5  # while one grid of pixels is at work
LARGEST_PHOTO, MOST_PHOTOS = 160, 100  # pixels of a side, and how many: for a browser's sake
# In parts of the space that the cameras take up: how long one is drawn, and how near it may be before it is in the way.
PHOTO_SIZE, NEAREST_PHOTO = 0.03, 0.15
# Distances go to the browser in fixed point, and only up to here; and so coarsely, as they only say what hides a photo.
FARTHEST, DISTANCE_PIXELS = 160.0, 40_000
# Larger pictures are sent as JPEG, whose blurred colours do not show in them.
LARGEST_PNG, JPEG_QUALITY = 100_000, 92


@dataclasses.dataclass(frozen=True)
class Quality:
    """What a renderer is made for.

    Attributes:
        N_samples, N_importance: samples on a ray.
        occupancy: whether empty space is skipped.
    """

    N_samples: int
    N_importance: int
    occupancy: bool = False

    def times(self, factor: float) -> Quality:
        """So many times the samples, as far as there can be so few."""
        fewest = 3 if self.N_importance else 2
        fine = max(1, int(factor * self.N_importance)) if self.N_importance else 0
        return dataclasses.replace(self, N_samples=max(fewest, int(factor * self.N_samples)), N_importance=fine)

    def preview(self) -> Quality:
        """What the first picture after every move is rendered with, to be there at once."""
        return self.times(0.25)

    def choices(self) -> dict[str, Quality]:
        """What the page offers, by the words that it offers it in."""
        offered = [self.times(factor) for factor in (0.25, 0.5, 1.0, 2.0)]
        return {str(quality): quality for quality in offered}

    def __str__(self) -> str:
        return f"{self.N_samples} + {self.N_importance}" if self.N_importance else f"{self.N_samples}"


@dataclasses.dataclass(frozen=True)
class Look:
    """All that a rendering depends on: camera of the browser, rows of pixels, quality."""

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float
    aspect: float
    height: int
    quality: Quality


class Server(Protocol):
    """What a page needs of the viewer that serves it; `viewer.Viewer` says what each is."""

    scene: Scene
    quality: Quality
    out: Path
    pages: dict[int, Page]
    filming: Iterator[bool | None] | None

    def renderer(self, quality: Quality) -> Renderer: ...

    def is_ready(self, quality: Quality) -> bool: ...

    def wake(self) -> None: ...


class Page:
    """One browser: its controls, what it looks at, and its keyframes. Only the render thread calls `work`."""

    def __init__(self, viewer: Server, client: viser.ClientHandle):
        self._viewer, self._client = viewer, client
        self._look: Look | None = None
        self._view: refinement.View | None = None
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
            self.shown = gui.add_dropdown("Show", refinement.SHOWN)
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
            save, film = gui.add_button("Save keyframes"), gui.add_button("Save and render video")
            stop = gui.add_button("Stop the video")
        for control in (self.shown, self.network, self.height, self.samples, self.occupancy):
            control.on_update(lambda _: viewer.wake())
        self.cameras.on_update(lambda _: setattr(self._all_photos, "visible", self.cameras.value))
        add.on_click(lambda _: self._change_keyframes([*self._poses, self._pose()]))
        remove.on_click(lambda _: self._change_keyframes(self._poses[:-1]))
        save.on_click(lambda _: self._save())
        film.on_click(lambda _: self._start_film())
        stop.on_click(lambda _: self._stop_film())

    def _add_photos(self) -> None:
        data = self._viewer.scene
        shrink = -(-max(data.images.shape[1:3]) // LARGEST_PHOTO)
        for i in data.i_train[:: -(-len(data.i_train) // MOST_PHOTOS)]:
            camera = data.cameras[i]
            wxyz, position = refinement.to_browser(data.poses[i])
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

    def _clear_the_way(self, look: Look) -> None:
        """Hides the photos that would cover the picture, and shows the others."""
        for photo in self._photos:
            distance = float(np.linalg.norm(photo.position - np.array(look.position)))
            if photo.visible != (distance > NEAREST_PHOTO * self._spread):
                photo.visible = not photo.visible

    def _pose(self) -> np.ndarray:
        return refinement.from_browser(self._client.camera.wxyz, self._client.camera.position)

    def look(self) -> Look:
        """What the page asks for now."""
        camera = self._client.camera
        quality = self._viewer.quality.choices()[self.samples.value]
        return Look(
            tuple(camera.wxyz),
            tuple(camera.position),
            camera.fov,
            camera.aspect,
            int(self.height.value),
            dataclasses.replace(quality, occupancy=self.occupancy.value),
        )

    def work(self) -> bool:
        """Renders a chunk for the picture; returns whether there is more to do."""
        try:
            look = self.look()
            if look != self._look:
                self._look, self._refining = look, self._refine(look)
            refined = next(self._refining, True)
            if self._view is not None and self._shown != self._wanted():
                self._draw()
            if not self._photos and self._view is not None:  # not before the first picture
                self._add_photos()
            self._clear_the_way(look)
        except Exception as error:  # whatever goes wrong with one page is not to stop the others
            logger.exception("rendering failed")
            self._refining = iter(())
            self.status.content = f"rendering failed: {' '.join(str(error).split())[:200]}"
            return False
        return not refined

    def _view_of(self, look: Look, c2w: np.ndarray) -> refinement.View:
        camera = refinement.camera_of(look.height, look.aspect, look.fov)
        return refinement.View(self._viewer.renderer(look.quality), self._viewer.scene, camera, c2w)

    def _refine(self, look: Look) -> Iterator[None]:
        c2w = refinement.from_browser(look.wxyz, look.position)
        if not self._viewer.is_ready(look.quality):
            what = "finding empty space takes a minute, once" if look.quality.occupancy else f"{look.quality} samples"
            self.status.content = f"preparing: {what}"
        preview = self._view_of(dataclasses.replace(look, quality=look.quality.preview()), c2w)
        next(preview.refine())
        self._view = preview
        self._draw()
        yield
        view, drawn = self._view_of(look, c2w), 0.0
        for complete in view.refine():
            self._view = view
            if complete or time.perf_counter() - drawn > SECONDS_BETWEEN_PICTURES:
                self._draw()
                drawn = time.perf_counter()
            yield

    def _wanted(self) -> tuple[str, bool]:
        return self.shown.value, self.network.value == "coarse"

    def _draw(self) -> None:
        if self._client.client_id not in self._viewer.pages:
            return  # the browser has gone meanwhile
        self._shown = self._wanted()
        view, (shown, coarse) = self._view, self._shown
        image = refinement.of_network(view.image(), coarse)
        height, width = image.acc.shape
        self._client.scene.set_background_image(
            refinement.picture(image, shown),
            format="png" if height * width <= LARGEST_PNG else "jpeg",
            jpeg_quality=JPEG_QUALITY,
            depth=self._distances(view, image),
        )
        rest = view.camera.height * view.camera.width - view.rendered
        text = f"{width} × {height} pixels in {view.seconds:.2f} s, {view.rendered / view.seconds:,.0f} rays/s"
        self.status.content = f"{text}; {rest / view.rendered * view.seconds:.0f} s to go" if rest else text

    def _distances(self, view: refinement.View, image: Image) -> np.ndarray | None:
        """What the photos in front of and behind the scene are told apart by; None where the browser cannot."""
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
        """Writes the keyframes under a name that is free; None if there are none."""
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

    def _start_film(self) -> None:
        if len(self._poses) < 2:
            self.keyframes.content = "a video needs two keyframes or more"
            return
        if self._viewer.filming is not None:
            self.keyframes.content = "a video is being rendered: wait for it, or stop it"
            return
        look, shown = self.look(), self._wanted()
        try:
            poses = keyframes.interpolate(self._path(), int(self.fps.value))
        except ValueError as error:
            self.keyframes.content = f"no video: {error}"
            return
        path = self._save()
        if path is not None:
            self._viewer.filming = self._film(look, shown, poses, int(self.fps.value), path.with_suffix(".mp4"))
            self._viewer.wake()

    def _stop_film(self) -> None:
        self._viewer.filming = None
        self._change_keyframes(self._poses)

    def _film(self, look: Look, wanted: tuple[str, bool], poses: np.ndarray, fps: int, path: Path) -> Iterator[None]:
        """Renders a video, a chunk at every step; goes on when the browser has gone."""
        film, (shown, coarse) = view_files.VideoBuffer(path.parent), wanted
        try:
            for i, c2w in enumerate(poses):
                self._tell(f"rendering frame {i + 1} of {len(poses)}")
                view = self._view_of(look, c2w)
                for _ in view.refine():
                    yield
                film.append(refinement.of_network(view.image(), coarse))
            view_files.write_video(path, refinement.frames(film, shown), fps)
        except Exception as error:  # nor is a video to stop the pages
            logger.exception("no %s", path)
            self._tell(f"no video: {' '.join(str(error).split())[:200]}")
            return
        if path.exists():
            logger.info("%s", path)
        self._tell(f"`{path}`" if path.exists() else "the video could not be written, see the console")

    def _tell(self, text: str) -> None:
        """Shows how the video gets on, to a browser that is still there."""
        if self._client.client_id in self._viewer.pages:
            self.keyframes.content = text
