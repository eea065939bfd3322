"""A training run: the loop of steps, what is written when, and what happens when training goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import tensorflow as tf

from nerf_tf import build
from nerf_tf.data.pipeline import RayBatch, ray_batches
from nerf_tf.distribution.replica_views import Views
from nerf_tf.evaluation.metrics import psnr
from nerf_tf.geometry.camera import Camera
from nerf_tf.memory import planning
from nerf_tf.output import view_files
from nerf_tf.output.curve import CurveFile
from nerf_tf.output.summaries import Summaries
from nerf_tf.render.renderer import Image
from nerf_tf.run import Run
from nerf_tf.safety import diagnosis, guards
from nerf_tf.safety.stop import Stopped
from nerf_tf.settings import parsing
from nerf_tf.storage import atomic, tf1_weights
from nerf_tf.storage.run_folder import summaries_folder
from nerf_tf.train.counts import Counts
from nerf_tf.train.loop import Event, train
from nerf_tf.train.step import StepResult

logger = logging.getLogger(__name__)


def warn_if_unwritable(action: Callable[..., None], once: bool = False) -> Callable[..., None]:
    """Makes an action warn instead of raising OSError; with `once`, only at the first failure in a row."""
    failing = False

    def attempt(*arguments: object) -> None:
        """Does the action, or warns."""
        nonlocal failing
        try:
            action(*arguments)
            failing = False
        except OSError as error:
            if not (once and failing):
                logger.warning("%s; training continues", parsing.one_line(str(error)))
            failing = True

    return attempt


class TrainingLog:
    """The record of training: TensorBoard's files and `curve.png`."""

    def __init__(self, folder: Path, summaries: Path, start: int):
        self.curve = CurveFile(folder / "curve.png", summaries, start)
        self._summaries = Summaries(summaries, start)

    def add_step(self, step: int, result: StepResult, rays_per_second: float) -> None:
        """Records a step."""
        scalars = {name: getattr(result, name) for name in ("loss", "psnr", "psnr0", "learning_rate")}
        skipped = Counts(*result.counts.numpy()).skipped
        self._summaries.write_scalars(step, rays_per_second=rays_per_second, skipped_steps=float(skipped), **scalars)
        self._summaries.write_histogram(step, "tran", result.sigma)
        self.curve.add(step, loss=result.loss, psnr=result.psnr)

    def add_view(self, step: int, image: Image, photo: np.ndarray, psnr_holdout: float) -> None:
        """Records a rendered validation view and its PSNR."""
        self._summaries.write_view(step, image, photo)
        self._summaries.write_scalars(step, psnr_holdout=psnr_holdout)
        self.curve.add(step, psnr_holdout=psnr_holdout)


class TrainingRun(Run):
    """A run that trains."""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.start >= self.settings.N_iters or self.trainer.spend(0.0)

    @property
    def seed(self) -> int:
        """The seed of all random draws."""
        return int(self.trainer.seed.numpy())

    def batches(self) -> Iterable[RayBatch]:
        """Training batches from the next step on.

        Raises:
            ValueError: there are fewer rays than a batch has.
        """
        return ray_batches(self.scene, build.batch_settings(self.settings), self.seed, self.start)

    def train(self, batches: Iterable[RayBatch], on_out_of_memory: planning.OnOutOfMemory) -> bool:
        """Trains up to step `--N_iters`, or for `--train_minutes`, and writes at the original's intervals.

        Returns:
            True when all steps are done; False when the scene collapsed and training is ready to start over.

        Raises:
            guards.BadSteps: too many steps in a row had no finite gradient; the last is saved.
            guards.Collapse: the scene collapsed and the run ends.
            planning.OutOfMemory: a step does not fit into memory.
            Stopped: a signal asked to stop; everything is saved.
        """
        settings = self.settings
        summaries = summaries_folder(self.folder)
        for folder in (self.folder, summaries):
            atomic.remove_unfinished(folder)
        if self.is_over and not self.store.uncommitted:
            self.workers.largest(0)  # nothing is overdue
            return self.log_finished()
        self.archive_collapsed_run()
        log = TrainingLog(self.folder, summaries, self.start)
        save = Event(settings.i_weights, lambda step: self.store.save())
        commit = Event(settings.i_weights, warn_if_unwritable(lambda step: self.store.commit()))

        with self.stop.handle_signals():
            try:
                self.write_overdue(log)
                if self.is_over:
                    return self.log_finished()
                self.write_settings(replace=True)
                report = warn_if_unwritable(log.add_step, once=True)
                self.take_steps(batches, on_out_of_memory, report, [save, *self.events(log), commit])
                last = self.start - 1
                if not save.due(last):
                    self.store.save()
                self.write_last_step(last, log)
            except guards.BadSteps as error:
                self.end_on_bad_steps(error)
            except guards.Collapse as collapse:
                self.start_over(collapse)
                return False
            except Stopped as stopped:
                self.save_stopped(stopped)
                raise
            self.workers.largest(0)  # the others wait for what has just been written
        logger.info("%s: trained to step %d", self.folder, last)
        return True

    def take_steps(
        self,
        batches: Iterable[RayBatch],
        on_out_of_memory: planning.OnOutOfMemory,
        report: Callable[[int, StepResult, float], None],
        events: Sequence[Event],
    ) -> None:
        """Takes the steps that are left; arguments and errors as of `loop.train`."""
        settings = self.settings
        monitor = guards.TrainingMonitor(settings.expname, settings.max_bad_steps, settings.on_collapse != "warn")

        def take_less(error: tf.errors.ResourceExhaustedError) -> None:
            """Makes the next attempt at a step take less memory; raises `error` if there are other workers."""
            if self.workers.count > 1:
                raise error
            plan = on_out_of_memory(error)
            self.trainer.resize(plan.chunk, plan.netchunk)

        train(
            self.trainer,
            self.until_stopped(batches),
            settings.N_iters,
            settings.expname,
            settings.i_print,
            report,
            events,
            take_less,
            monitor.check,
            shows_progress=self.workers.is_chief,
        )

    def until_stopped(self, batches: Iterable[RayBatch]) -> Iterator[RayBatch]:
        """Yields the batches; raises `Stopped` on all workers before one step if one was asked to stop."""
        for batch in batches:
            self.agree()
            yield batch

    def save_stopped(self, stopped: Stopped) -> None:
        """Saves a checkpoint of a run that a signal stopped, and logs how to continue."""
        if self.store.step != self.start:
            self.store.save()
        but = " without --ft_path and --no_reload" if self.settings.ft_path or self.settings.no_reload else ""
        how = f"the same command{but} continues"
        logger.warning("%s: %s, saved at step %d; %s", self.folder, stopped, self.start, how)

    def write_last_step(self, last: int, log: TrainingLog) -> None:
        """Writes weights, curve and `latest.png` of the last step, due or not."""
        self.write_weights(last)  # again where they were due: this time a failure ends the run
        i_img = self.settings.i_img
        if i_img or self.settings.i_testset:
            warn_if_unwritable(log.curve.write)()
        if i_img and last % i_img and len(self.scene.i_val):
            warn_if_unwritable(self.write_latest)(last, *self.holdout(last))
        self.store.commit()

    def log_finished(self) -> bool:
        """Logs that there is nothing left to train."""
        limit = "--N_iters" if self.settings.train_minutes is None else "--train_minutes"
        logger.info("%s is at step %d already; raise %s to continue", self.settings.expname, self.start, limit)
        self.workers.largest(0)
        return True

    def end_on_bad_steps(self, error: guards.BadSteps) -> NoReturn:
        """Saves the last bad step for diagnosis, and raises `BadSteps` with its cause.

        No checkpoint is saved: the last good one stays the newest.
        """
        path = self.folder / f"bad_step_{error.step:06d}.npz"
        rate = "grid_lrate" if self.settings.field == "hash_grid" else "lrate"
        try:
            diagnosis.save_step(path, self.trainer, error.batch, error.step, self.scene.ndc)
            hint = f"Look into it with python tools/replay_step.py {self.folder} {path}; a lower --{rate} may help"
        except OSError as unwritable:
            hint = f"The step is not kept: {unwritable}; a lower --{rate} may help"
        found = diagnosis.diagnose(self.trainer, error.batch, error.step)
        raise guards.BadSteps(f"{error}; first not finite: {found}. {hint}", error.step, error.batch) from error

    def start_over(self, collapse: guards.Collapse) -> None:
        """Starts over with the next seed after a collapse.

        The old files are archived when training starts again.

        Raises:
            guards.Collapse: `--on_collapse` is not restart, or there were too many restarts.
        """
        restarts = Counts(*self.trainer.counts.numpy()).restarts
        if self.settings.on_collapse != "restart":
            raise collapse
        if restarts >= guards.MAX_RESTARTS:
            raise guards.Collapse(f"{collapse} (after {restarts} restarts, each with another seed)")
        build.start_over(self.settings, self.scene, self.trainer)
        if self.workers.is_chief:
            # A program started before this line finds the old run with all its files, one started after it the new run.
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

    def events(self, log: TrainingLog | None) -> list[Event]:
        """What is written at intervals of steps; a file that cannot be written does not stop training.

        Args:
            log: the record of training; None if only the intervals matter.
        """
        settings = self.settings
        events = (
            Event(settings.i_weights, self.write_weights),
            Event(settings.i_video if len(self.render_poses) else 0, self.write_path_videos, at_zero=False),
            Event(settings.i_testset if len(self.scene.i_test) else 0, self.render_test_set, at_zero=False),
            Event(settings.i_img if len(self.scene.i_val) else 0, lambda step: self.write_holdout(step, log)),
            *(Event(interval, lambda step: self.write_curve(log)) for interval in {settings.i_img, settings.i_testset}),
        )
        return [event._replace(action=warn_if_unwritable(event.action)) for event in events]

    def write_overdue(self, log: TrainingLog | None) -> None:
        """Writes what was due at the last checkpoint's step, if the run ended before it was written.

        The chief knows whether it was; all workers render its views.
        """
        step = self.start - 1
        if self.workers.largest(int(self.store.uncommitted and step >= 0)):
            for event in self.events(log):
                if event.due(step):
                    event.action(step)
            if self.is_over:
                self.write_weights(step)
        if self.store.uncommitted and step >= 0:
            self.store.commit()

    def write_weights(self, step: int) -> None:
        """Writes the weights in the original's format."""
        # In this order: a start from weight files looks for the coarse one.
        if self.trainer.fine is not None:
            tf1_weights.save(self.folder / f"model_fine_{step:06d}.npy", self.trainer.fine.mlp.get_weights())
        tf1_weights.save(self.folder / f"model_{step:06d}.npy", self.trainer.coarse.mlp.get_weights())

    def write_holdout(self, step: int, log: TrainingLog) -> None:
        """Renders a random validation view for TensorBoard, `tboard_val_imgs`, `latest.png` and `curve.png`."""
        image, photo = self.holdout(step)
        view_files.write_png(self.folder / "tboard_val_imgs" / f"{step:06d}.png", view_files.to_8bit(image.rgb))
        log.add_view(step, image, photo, self.write_latest(step, image, photo))

    def holdout(self, step: int) -> tuple[Image, np.ndarray]:
        """A random validation view of a step, and its photo [H, W, 3]."""
        view = int(np.random.default_rng([self.seed, step]).choice(self.scene.i_val))
        return self.renderers[0].image(self.scene.cameras[view], self.scene.poses[view]), self.scene.images[view]

    def write_latest(self, step: int, image: Image, photo: np.ndarray) -> float:
        """Writes `latest.png`; returns the view's PSNR."""
        psnr_holdout = psnr(image.rgb, photo)
        view_files.write_side_by_side(self.folder / "latest.png", photo, image, f"step {step}, {psnr_holdout:.2f} dB")
        return psnr_holdout

    def write_curve(self, log: TrainingLog) -> None:
        """Writes `curve.png`."""
        log.curve.write()

    def write_path_videos(self, step: int) -> None:
        """Writes `{expname}_spiral_{step}_rgb.mp4` and `_disp.mp4`; with viewdirs also `_rgb_still.mp4`.

        In the last the camera stays at the path's first pose while view directions come from the moving one: whatever
        changes is view-dependent colour.
        """
        fps, stem = self.settings.fps, f"{self.settings.expname}_spiral_{step:06d}"
        path, *still = self.videos_views()
        video = self.render_video(path)
        view_files.write_video(self.folder / f"{stem}_rgb.mp4", video.rgb, fps)
        view_files.write_video(self.folder / f"{stem}_disp.mp4", video.grey_disp, fps)
        for views in still:
            view_files.write_video(self.folder / f"{stem}_rgb_still.mp4", self.render_video(views).rgb, fps)

    def videos_views(self) -> list[Views]:
        """The views of the path, and with viewdirs those of the still camera."""
        path = self.path_views(build.view_camera(self.settings, self.scene.cameras[0]))
        still_poses = np.repeat(path.poses[:1], len(path.poses), axis=0)
        still = Views(path.cameras, still_poses, path.poses, "still path")
        return [path, still] if self.settings.use_viewdirs else [path]

    def render_video(self, views: Views) -> view_files.VideoBuffer:
        """Renders the views of a video."""
        with self.rendered(views) as images:
            video = view_files.VideoBuffer(self.folder)
            for image in images:
                video.append(image)
        return video


class FollowingRun(TrainingRun):
    """A run that takes part in the steps and views of the chief's run, and writes nothing."""

    def train(self, batches: Iterable[RayBatch], on_out_of_memory: planning.OnOutOfMemory) -> bool:
        """Takes every step with the other workers; returns and raises as `TrainingRun.train` does."""
        save = Event(self.settings.i_weights, lambda step: None)
        with self.stop.handle_signals():
            try:
                self.write_overdue(None)
                if not self.is_over:
                    # Due as the chief's: there counts are read, which may end the run on all workers.
                    self.take_steps(batches, on_out_of_memory, lambda *_: None, [save, *self.events(None)])
            except guards.Collapse as collapse:
                self.start_over(collapse)
                return False
            self.workers.largest(0)  # until the chief has written everything
        return True

    def render_only(self, cameras: Sequence[Camera]) -> None:
        """Renders this worker's part of the views."""
        self.follow(self.test_views(cameras) if self.renders_test_views else self.path_views(cameras[0]))

    def evaluate(self) -> None:
        """Renders this worker's part of the test views."""
        self.render_test_set(self.start - 1)

    def render_test_set(self, step: int) -> None:
        """Renders this worker's part of the test views."""
        self.follow(self.test_views(self.view_cameras()))

    def write_path_videos(self, step: int) -> None:
        """Renders this worker's part of the videos' views."""
        for views in self.videos_views():
            self.follow(views)

    def follow(self, views: Views) -> None:
        """Renders this worker's part of the views; the chief writes them."""
        with self.rendered(views) as images:
            for _ in images:
                pass

    def write_nothing(self, *_: object) -> None:
        """Stands for what the chief does alone."""

    write_weights = write_holdout = write_curve = write_nothing
