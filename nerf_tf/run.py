"""One run: its settings, scene, networks and renderer; renders and evaluates with them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nerf_tf import build
from nerf_tf.data.scene import Scene
from nerf_tf.evaluation import report
from nerf_tf.geometry.camera import Camera
from nerf_tf.output import view_files
from nerf_tf.render.renderer import Image, Renderer
from nerf_tf.safety.stop import StopRequest
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import atomic
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.train.packed_step import PackedTrainer
from nerf_tf.train.replicas import ReplicaTrainer
from nerf_tf.train.step import Trainer
from nerf_tf.train.workers import Workers

logger = logging.getLogger(__name__)


def photos_of_test_views(scene: Scene) -> list[np.ndarray]:
    """The photos [H, W, 3] of the test views, without a copy."""
    return [scene.images[i] for i in scene.i_test]


def run_info(settings: Settings, step: int | None) -> dict[str, object]:
    """The entries of metrics.json about the run; `step` is that of its weights."""
    scene = Path(settings.datadir).resolve().name
    info = {name: getattr(settings, name) for name in ("expname", "dataset_type", "white_bkgd")}
    return {"scene": scene, "step": step} | info


def render_info(settings: Settings) -> dict[str, object]:
    """The entry of metrics.json with the settings that scores and speed depend on besides the weights."""
    names = ("N_samples", "N_importance", "mixed_precision", "occupancy")
    if settings.field == "hash_grid":
        names = ("grid_samples",)
    return {"rendered_with": {name: getattr(settings, name) for name in ("field", *names)}}


# Flags that decide which scene is learnt: a run that continues with others is warned of.
SCENE_FLAGS = ("dataset_type", "datadir", "half_res", "factor", "white_bkgd", "no_ndc", "spherify", "lindisp", "shape")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run: its parts, and rendering and evaluating with them.

    Attributes:
        settings: all settings.
        folder: where its files go.
        scene: photos and cameras.
        trainer: networks, optimizer, step and seed.
        store: its checkpoints.
        renderer: renders the trainer's networks.
        render_poses: [M, 3, 4] the path for videos.
        stop: whether a signal asked to stop.
        workers: the processes that train together.
    """

    settings: Settings
    folder: Path
    scene: Scene
    trainer: Trainer | ReplicaTrainer | PackedTrainer
    store: CheckpointStore
    renderer: Renderer
    render_poses: np.ndarray
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)
    workers: Workers = dataclasses.field(default_factory=Workers)

    @property
    def start(self) -> int:
        """The step that comes next."""
        return int(self.trainer.step.numpy())

    def view_cameras(self) -> list[Camera]:
        """The photos' cameras at the size of rendered views; see `build.view_camera`."""
        return [build.view_camera(self.settings, camera) for camera in self.scene.cameras]

    def render_only(self, cameras: Sequence[Camera]) -> None:
        """Renders the test views or the path into `renderonly_{test,path}_{step}`, the path with the first camera."""
        atomic.remove_unfinished(self.folder)
        self.write_settings(replace=False)
        if self.settings.render_test and self.settings.render_path_file is None:
            folder = self.folder / f"renderonly_test_{self.start:06d}"
            frames = self.render_test_views(cameras, folder, self.start - 1)
        else:
            folder = self.folder / f"renderonly_path_{self.start:06d}"
            images = self.renderer.path([cameras[0]] * len(self.render_poses), self.render_poses)
            frames = view_files.write_views(folder, images, self.settings.save_arrays)
        videos = {"": frames.rgb, "_disp": frames.disp, "_depth": frames.depth, "_acc": frames.acc}
        for kind, video in videos.items():
            view_files.write_video(folder / f"video{kind}.mp4", video, self.settings.fps)
        logger.info("%s", folder)

    def render_test_views(self, cameras: Sequence[Camera], folder: Path, step: int) -> view_files.VideoBuffer:
        """Renders the test views from the weights of `step`; at the photos' size also compares them with these."""
        scene, save_arrays = self.scene, self.settings.save_arrays
        test_cameras = [cameras[i] for i in scene.i_test]
        images = self.views(test_cameras, scene.poses[scene.i_test], description="test views")
        size, photo = (cameras[0].height, cameras[0].width), scene.images.shape[1:3]
        if size != photo:
            logger.info("no PSNR: views of %dx%d are not compared with photos of %dx%d", *size[::-1], *photo[::-1])
            return view_files.write_views(folder, images, save_arrays)
        frames, result = report.write_and_score_views(folder, images, photos_of_test_views(scene), save_arrays)
        info = run_info(self.settings, step) | render_info(self.settings)
        report.write_report(self.folder / "metrics.json", info, result)
        return frames

    def evaluate(self) -> None:
        """Renders the test views into `testset_{step}`, named after the weights, and compares them with the photos."""
        atomic.remove_unfinished(self.folder)
        self.write_settings(replace=False)
        self.render_test_set(self.start - 1)

    def views(self, *arguments: object, **keywords: object) -> Iterator[Image]:
        """Yields what `renderer.path` renders; raises `Stopped` between two views if a signal asked to stop."""
        return self.stop.check_each(self.renderer.path(*arguments, **keywords))

    def write_settings(self, replace: bool) -> None:
        """Writes args.txt and config.txt; unless `replace`, leaves those of an earlier run."""
        if replace and self.start > 0:
            self.warn_of_changed_flags()
        if replace or not (self.folder / "args.txt").exists():
            atomic.write_text(self.folder / "args.txt", parsing.args_text(self.settings))
            if self.settings.config is not None:
                atomic.write_text(self.folder / "config.txt", parsing.config_text(self.settings))

    def warn_of_changed_flags(self) -> None:
        """Warns of flags that differ from those in the run's args.txt."""
        with contextlib.suppress(OSError, ValueError):  # no such file, or unreadable
            for name, (was, now) in parsing.changed_flags(self.folder / "args.txt", SCENE_FLAGS, self.settings).items():
                logger.warning("%s: goes on with %s = %s, which was %s", self.folder, name, now, parsing.one_line(was))

    def render_test_set(self, step: int) -> None:
        """Renders the test views into `testset_{step}`."""
        self.render_test_views(self.view_cameras(), self.folder / f"testset_{step:06d}", step)
