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
from nerf_tf.distribution.replica_views import NotWritten, Views, rendered_by_all
from nerf_tf.distribution.replicas import ReplicaTrainer
from nerf_tf.distribution.workers import Workers
from nerf_tf.evaluation import report
from nerf_tf.geometry.camera import Camera
from nerf_tf.hash_grid.packed_step import PackedTrainer
from nerf_tf.output import view_files
from nerf_tf.render.renderer import Image, Renderer
from nerf_tf.safety.stop import Stopped, StopRequest
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import atomic
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.train.step import Trainer

logger = logging.getLogger(__name__)

# What the chief tells the others when it cannot write views; greater than any signal's number.
FAILS = 128
# Flags that decide which scene is learnt: a run that continues with others is warned of.
SCENE_FLAGS = ("dataset_type", "datadir", "half_res", "factor", "white_bkgd", "no_ndc", "spherify", "lindisp", "shape")


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
    of_mlp = ("N_samples", "N_importance", "mixed_precision", "occupancy")
    names = ("grid_samples",) if settings.field == "hash_grid" else of_mlp
    return {"rendered_with": {name: getattr(settings, name) for name in ("field", *names)}}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run: its parts, and rendering and evaluating with them.

    Attributes:
        settings: all settings.
        folder: where its files go.
        scene: photos and cameras.
        trainer: networks, optimizer, step and seed.
        store: its checkpoints.
        renderers: render the trainer's networks, one on each of this process's devices.
        render_poses: [M, 3, 4] the path for videos.
        stop: whether a signal asked to stop.
        workers: the processes that train together.
    """

    settings: Settings
    folder: Path
    scene: Scene
    trainer: Trainer | ReplicaTrainer | PackedTrainer
    store: CheckpointStore
    renderers: Sequence[Renderer]
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
        """Renders test views, or the path with the first camera, into `renderonly_{test,path}_{step}`."""
        atomic.remove_unfinished(self.folder)
        self.write_settings(replace=False)
        if self.renders_test_views:
            folder = self.folder / f"renderonly_test_{self.start:06d}"
            frames = self.render_test_views(cameras, folder, self.start - 1)
        else:
            folder = self.folder / f"renderonly_path_{self.start:06d}"
            with self.rendered(self.path_views(cameras[0])) as images:
                frames = view_files.write_views(folder, images, self.settings.save_arrays)
        videos = {"": frames.rgb, "_disp": frames.disp, "_depth": frames.depth, "_acc": frames.acc}
        for kind, video in videos.items():
            view_files.write_video(folder / f"video{kind}.mp4", video, self.settings.fps)
        logger.info("%s", folder)

    def render_test_views(self, cameras: Sequence[Camera], folder: Path, step: int) -> view_files.VideoBuffer:
        """Renders the test views; at the photos' size also scores them, as of the weights of `step`."""
        scene, save_arrays = self.scene, self.settings.save_arrays
        size, photo = (cameras[0].height, cameras[0].width), scene.images.shape[1:3]
        with self.rendered(self.test_views(cameras)) as images:
            if size != photo:
                logger.info("no PSNR: views of %dx%d are not compared with photos of %dx%d", *size[::-1], *photo[::-1])
                return view_files.write_views(folder, images, save_arrays)
            frames, result = report.write_and_score_views(
                folder, images, photos_of_test_views(scene), save_arrays, self.workers.replicas
            )
        info = run_info(self.settings, step) | render_info(self.settings)
        report.write_report(self.folder / "metrics.json", info, result)
        return frames

    def evaluate(self) -> None:
        """Renders the test views into `testset_{step}`, the weights' step, and scores them."""
        atomic.remove_unfinished(self.folder)
        self.write_settings(replace=False)
        self.render_test_set(self.start - 1)

    @property
    def renders_test_views(self) -> bool:
        """Whether `--render_only` renders the test views, rather than the path."""
        return self.settings.render_test and self.settings.render_path_file is None

    def test_views(self, cameras: Sequence[Camera]) -> Views:
        """The test views, with the photos' cameras at the size of views."""
        i_test = self.scene.i_test
        return Views([cameras[i] for i in i_test], self.scene.poses[i_test], description="test views")

    def path_views(self, camera: Camera) -> Views:
        """The views along the path."""
        return Views([camera] * len(self.render_poses), self.render_poses)

    @contextlib.contextmanager
    def rendered(self, views: Views) -> Iterator[Iterator[Image]]:
        """Yields rendered views; raises `Stopped` between two of them if a signal asked to stop.

        All workers call this with equal views, and iterate; a signal to one of them stops all.
        """
        if self.workers.replicas == 1:
            yield self.stop.check_each(self.renderers[0].path(*views))
            return
        with rendered_by_all(views, self.renderers, self.workers, self.agree) as images:
            yield images

    def agree(self, fails: bool = False) -> None:
        """Waits for all workers; raises if one of them was asked to stop, or the chief cannot write.

        Raises:
            Stopped: a signal asked one of them to stop.
            NotWritten: the chief, which calls this with `fails`, cannot write views; raised on the others.
        """
        number = self.workers.largest(FAILS if fails else self.stop.number)
        if number == FAILS and not fails:
            raise NotWritten("worker 0 cannot write views, and says why")
        if number not in (0, FAILS):
            raise Stopped(number)

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
                logger.warning(
                    "%s: continues with %s = %s, which was %s", self.folder, name, now, parsing.one_line(was)
                )

    def render_test_set(self, step: int) -> None:
        """Renders the test views into `testset_{step}`."""
        self.render_test_views(self.view_cameras(), self.folder / f"testset_{step:06d}", step)
