"""One run of the program: trains, renders or evaluates one scene's networks, and writes what there is to show."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import tensorflow as tf

from nerf_tf import build
from nerf_tf.data.pipeline import RayBatch, ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.evaluation import report
from nerf_tf.evaluation.metrics import psnr
from nerf_tf.geometry.camera import Camera
from nerf_tf.memory import planning
from nerf_tf.output import view_files
from nerf_tf.output.curve import CurveFile, summaries_folder
from nerf_tf.output.summaries import Summaries
from nerf_tf.render.renderer import Image, Renderer
from nerf_tf.safety import diagnosis, guards
from nerf_tf.safety.stop import Stopped, StopRequest
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import atomic, tf1_weights
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.train.counts import Counts
from nerf_tf.train.loop import Event, train
from nerf_tf.train.step import StepResult, Trainer

logger = logging.getLogger(__name__)


def warn_if_unwritable(action: Callable[..., None], once: bool = False) -> Callable[..., None]:
    """Wraps an action so that it warns instead of raising OSError; with `once`, only at the first failure in a row."""
    failing = False

    def attempt(*arguments: object) -> None:
        nonlocal failing
        try:
            action(*arguments)
            failing = False
        except OSError as error:
            if not (once and failing):
                logger.warning("%s; training goes on", parsing.one_line(str(error)))
            failing = True

    return attempt


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
    return {"rendered_with": {name: getattr(settings, name) for name in names}}


# Flags that make another run of it when they change.
DECIDING = ("dataset_type", "datadir", "half_res", "factor", "white_bkgd", "no_ndc", "spherify", "lindisp", "shape")


class Log:
    """What training tells of itself: TensorBoard's files, and `curve.png`."""

    def __init__(self, folder: Path, summaries: Path, start: int):
        self.curve = CurveFile(folder / "curve.png", summaries, start)
        self._summaries = Summaries(summaries, start)

    def report(self, step: int, result: StepResult, rays_per_second: float) -> None:
        """Notes a step."""
        scalars = {name: getattr(result, name) for name in ("loss", "psnr", "psnr0", "learning_rate")}
        skipped = Counts(*result.counts.numpy()).skipped
        self._summaries.write_scalars(step, rays_per_second=rays_per_second, skipped_steps=float(skipped), **scalars)
        self._summaries.write_histogram(step, "tran", result.sigma)
        self.curve.add(step, loss=result.loss, psnr=result.psnr)

    def holdout(self, step: int, image: Image, photo: np.ndarray, psnr_holdout: float) -> None:
        """Notes a rendered validation view and its PSNR."""
        self._summaries.write_view(step, image, photo)
        self._summaries.write_scalars(step, psnr_holdout=psnr_holdout)
        self.curve.add(step, psnr_holdout=psnr_holdout)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run of the program: what its parts share.

    Attributes:
        settings: all settings.
        folder: where its files go.
        scene: photos and cameras.
        trainer: networks, optimizer, step and seed.
        store: its checkpoints.
        renderer: renders the trainer's networks.
        render_poses: [M, 3, 4] the path for videos.
        stop: whether training shall stop.
    """

    settings: Settings
    folder: Path
    scene: Scene
    trainer: Trainer
    store: CheckpointStore
    renderer: Renderer
    render_poses: np.ndarray
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)

    @property
    def start(self) -> int:
        """The step that comes next."""
        return int(self.trainer.step.numpy())

    @property
    def seed(self) -> int:
        """What decides all random draws."""
        return int(self.trainer.seed.numpy())

    def batches(self) -> Iterable[RayBatch]:
        """Training batches from the next step on.

        Raises:
            ValueError: there are fewer rays than a batch has.
        """
        return ray_batches(self.scene, build.batch_settings(self.settings), self.seed, self.start)

    def render_only_cameras(self) -> list[Camera]:
        """The photos' cameras at `--render_factor`.

        Raises:
            ValueError: nothing is left of an image.
        """
        return [camera.downscaled(max(self.settings.render_factor, 1)) for camera in self.scene.cameras]

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
        """Renders the test views from the weights of `step`; at full size also compares them with the photos."""
        scene, save_arrays = self.scene, self.settings.save_arrays
        test_cameras = [cameras[i] for i in scene.i_test]
        images = self.views(test_cameras, scene.poses[scene.i_test], description="test views")
        if (cameras[0].height, cameras[0].width) != scene.images.shape[1:3]:
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
        """What `renderer.path` renders; raises `Stopped` between two views if training shall stop."""
        return self.stop.check_each(self.renderer.path(*arguments, **keywords))

    def train(self, batches: Iterable[RayBatch], planned: planning.MemoryPlanner) -> bool:
        """Trains up to `--N_iters`, writing what the original writes, when it writes it.

        Returns:
            Whether it got there; False where the scene collapsed and all is ready to start over.

        Raises:
            guards.BadSteps: too many steps in a row had no finite gradient; the last is saved.
            guards.Collapse: the scene collapsed, and that is the end.
            Stopped: somebody asked for it; all is saved.
        """
        settings, last = self.settings, self.settings.N_iters - 1
        summaries = summaries_folder(self.folder)
        for folder in (self.folder, summaries):
            atomic.remove_unfinished(folder)
        if self.start > last and not self.store.uncommitted:
            return self.finished()
        self.archive_collapsed_run()
        log = Log(self.folder, summaries, self.start)
        save = Event(settings.i_weights, lambda step: self.store.save())
        commit = Event(settings.i_weights, warn_if_unwritable(lambda step: self.store.commit()))

        def on_out_of_memory(error: tf.errors.ResourceExhaustedError) -> None:
            plan = planned.on_out_of_memory(error)
            self.trainer.resize(plan.chunk, plan.netchunk)

        with self.stop.handle_signals():
            try:
                self.write_what_is_due(log)
                if self.start > last:
                    return self.finished()
                self.write_settings(replace=True)
                train(
                    self.trainer,
                    self.stop.check_each(batches),
                    settings.N_iters,
                    settings.expname,
                    settings.i_print,
                    warn_if_unwritable(log.report, once=True),
                    [save, *self.events(log), commit],
                    on_out_of_memory,
                    guards.TrainingMonitor(
                        settings.expname, settings.max_bad_steps, stops=settings.on_collapse != "warn"
                    ).check,
                )
                if not save.due(last):
                    self.store.save()
                self.write_the_end(last, log)
            except guards.BadSteps as error:
                self.give_up(error)
            except guards.Collapse as collapse:
                self.start_over(collapse)
                return False
            except Stopped as stopped:
                if self.store.step != self.start:
                    self.store.save()
                but = " without --ft_path and --no_reload" if settings.ft_path or settings.no_reload else ""
                how = f"the same command{but} goes on"
                logger.warning("%s: %s, saved at step %d; %s", self.folder, stopped, self.start, how)
                raise
        logger.info("%s: trained to step %d", self.folder, last)
        return True

    def write_the_end(self, last: int, log: Log) -> None:
        """Writes what shows the last step, whether or not it was due."""
        self.write_weights(last)  # once more where they were due: now it counts if they cannot be written
        i_img = self.settings.i_img
        if i_img or self.settings.i_testset:
            warn_if_unwritable(log.curve.write)()
        if i_img and last % i_img and len(self.scene.i_val):
            warn_if_unwritable(self.write_latest)(last, *self.holdout(last))
        self.store.commit()

    def finished(self) -> bool:
        """Says that there is nothing left to train."""
        logger.info("%s is at step %d already; raise --N_iters to go on", self.settings.expname, self.start)
        return True

    def give_up(self, error: guards.BadSteps) -> NoReturn:
        """Saves the last bad step, to be looked into; no checkpoint, which would take the place of a better one."""
        path = self.folder / f"bad_step_{error.step:06d}.npz"
        try:
            diagnosis.save_step(path, self.trainer, error.batch, error.step, self.scene.ndc)
            hint = f"Look into it with python tools/replay_step.py {self.folder} {path}; a lower --lrate may help"
        except OSError as unwritable:
            hint = f"The step is not kept: {unwritable}; a lower --lrate may help"
        found = diagnosis.diagnose(self.trainer, error.batch, error.step)
        raise guards.BadSteps(f"{error}; first not finite: {found}. {hint}", error.step, error.batch) from error

    def start_over(self, collapse: guards.Collapse) -> None:
        """Begins again with the next seed, where a run collapsed; its files are archived when training starts.

        Raises:
            guards.Collapse: `--on_collapse` is not restart, or it has been so too often.
        """
        restarts = Counts(*self.trainer.counts.numpy()).restarts
        if self.settings.on_collapse != "restart":
            raise collapse
        if restarts >= guards.MAX_RESTARTS:
            raise guards.Collapse(f"{collapse} (after {restarts} restarts, each with another seed)")
        build.start_over(self.settings, self.trainer)
        # From here on a start finds the new run; before, the old one, with all of its files. The checkpoints go on
        # being numbered, so this one is the newest.
        self.store.save()
        logger.warning("%s %s", self.settings.expname, collapse)

    def archive_collapsed_run(self) -> None:
        """Moves a collapsed run's files away when the new run has not yet done its first step.

        If the program is killed here, the checkpoint stays uncommitted, and the next start moves the rest.
        """
        restarts = Counts(*self.trainer.counts.numpy()).restarts
        if self.store.uncommitted and self.start == 0 and restarts > 0:
            summaries = summaries_folder(self.folder)
            archive = guards.archive_collapsed_run(self.folder, summaries, restarts, keep=self.store.path)
            self.store.commit()
            logger.warning("starting over with random_seed %d; the files so far are in %s", self.seed, archive)

    def events(self, log: Log) -> list[Event]:
        """What is written every so many steps; where it cannot be, the run goes on to the next checkpoint."""
        settings = self.settings
        events = (
            Event(settings.i_weights, self.write_weights),
            Event(settings.i_video if len(self.render_poses) else 0, self.write_path_videos, at_zero=False),
            Event(settings.i_testset if len(self.scene.i_test) else 0, self.render_test_set, at_zero=False),
            Event(settings.i_img if len(self.scene.i_val) else 0, lambda step: self.show_holdout(step, log)),
            *(Event(interval, lambda step: log.curve.write()) for interval in {settings.i_img, settings.i_testset}),
        )
        return [event._replace(action=warn_if_unwritable(event.action)) for event in events]

    def write_what_is_due(self, log: Log) -> None:
        """Writes what a run that died at its last checkpoint, or stopped there, had still to write at that step."""
        step = self.start - 1
        if self.store.uncommitted and step >= 0:
            for event in self.events(log):
                if event.due(step):
                    event.action(step)
            if step == self.settings.N_iters - 1:
                self.write_weights(step)
            self.store.commit()

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
        with contextlib.suppress(OSError, ValueError):  # there is none, or none that can be read
            for name, (was, now) in parsing.changed_flags(self.folder / "args.txt", DECIDING, self.settings).items():
                logger.warning("%s: goes on with %s = %s, which was %s", self.folder, name, now, parsing.one_line(was))

    def write_weights(self, step: int) -> None:
        """Writes the weights in the original's format."""
        # In this order: a start from weight files looks for the coarse one.
        if self.trainer.fine is not None:
            tf1_weights.save(self.folder / f"model_fine_{step:06d}.npy", self.trainer.fine.mlp.get_weights())
        tf1_weights.save(self.folder / f"model_{step:06d}.npy", self.trainer.coarse.mlp.get_weights())

    def show_holdout(self, step: int, log: Log) -> None:
        """Renders a random validation view for TensorBoard, `tboard_val_imgs`, `latest.png` and `curve.png`."""
        image, photo = self.holdout(step)
        view_files.write_png(self.folder / "tboard_val_imgs" / f"{step:06d}.png", view_files.to_8bit(image.rgb))
        log.holdout(step, image, photo, self.write_latest(step, image, photo))

    def holdout(self, step: int) -> tuple[Image, np.ndarray]:
        """A random validation view of a step, and its photo [H, W, 3]."""
        view = int(np.random.default_rng([self.seed, step]).choice(self.scene.i_val))
        return self.renderer.image(self.scene.cameras[view], self.scene.poses[view]), self.scene.images[view]

    def write_latest(self, step: int, image: Image, photo: np.ndarray) -> float:
        """Writes `latest.png`; returns the view's PSNR."""
        psnr_holdout = psnr(image.rgb, photo)
        view_files.write_side_by_side(self.folder / "latest.png", photo, image, f"step {step}, {psnr_holdout:.2f} dB")
        return psnr_holdout

    def render_test_set(self, step: int) -> None:
        """Renders the test views at full size into `testset_{step}`."""
        self.render_test_views(self.scene.cameras, self.folder / f"testset_{step:06d}", step)

    def write_path_videos(self, step: int) -> None:
        """Writes `{expname}_spiral_{step}_rgb.mp4` and `_disp.mp4`; with viewdirs also `_rgb_still.mp4`.

        In the last the camera stands still at the path's first pose while view directions come from the moving one, so
        that whatever changes is view-dependent colour.
        """
        poses, fps = self.render_poses, self.settings.fps
        cameras = [self.scene.cameras[0]] * len(poses)
        stem = f"{self.settings.expname}_spiral_{step:06d}"
        video = view_files.VideoBuffer(self.folder)
        for image in self.views(cameras, poses):
            video.append(image)
        view_files.write_video(self.folder / f"{stem}_rgb.mp4", video.rgb, fps)
        view_files.write_video(self.folder / f"{stem}_disp.mp4", video.grey_disp, fps)
        if self.settings.use_viewdirs:
            still_poses = np.repeat(poses[:1], len(poses), axis=0)
            video = view_files.VideoBuffer(self.folder)
            for image in self.views(cameras, still_poses, poses, description="still path"):
                video.append(image)
            view_files.write_video(self.folder / f"{stem}_rgb_still.mp4", video.rgb, fps)
