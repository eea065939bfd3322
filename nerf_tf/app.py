"""The program: flags -> Scene -> networks -> train, or render."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags
from absl.logging import converter

from nerf_tf import build, config
from nerf_tf.data.pipeline import RayBatch, ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.geometry.camera import Camera
from nerf_tf.render import outputs
from nerf_tf.render.renderer import Image, Renderer
from nerf_tf.train import lock, tf1_weights
from nerf_tf.train.checkpoint import CheckpointStore
from nerf_tf.train.metrics import psnr, psnr_8bit
from nerf_tf.train.stop import Stopped, StopRequest
from nerf_tf.train.trainer import Event, StepResult, Trainer, train

FLAGS = flags.FLAGS
logger = logging.getLogger(__name__)


class UserError(Exception):
    """Something that the user can mend; its text is the one line to print."""


@contextlib.contextmanager
def explained(*kinds: type[Exception]) -> Iterator[None]:
    """Turns errors that a block raises about its input into `UserError`."""
    try:
        yield
    except kinds as error:
        raise UserError(" ".join(str(error).split())) from error


def unless_unwritable(action: Callable[..., None]) -> Callable[..., None]:
    """The same action, which warns where it cannot write its file rather than raise OSError."""

    def attempt(*arguments: object) -> None:
        try:
            action(*arguments)
        except OSError as error:
            logger.warning("%s; training goes on", " ".join(str(error).split()))

    return attempt


def main(argv: Sequence[str]) -> int:
    """Runs the program on parsed flags, and returns its exit code."""
    del argv
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    if FLAGS["verbosity"].present:
        logging.getLogger().setLevel(converter.absl_to_standard(FLAGS.verbosity))
    logging.getLogger("absl").setLevel(logging.WARNING)  # TensorFlow's checkpoints chatter there
    tf.get_logger().setLevel(logging.ERROR)  # its warnings are for those who change the code
    for gpu in tf.config.list_physical_devices("GPU"):
        # TensorFlow would otherwise take the whole GPU at once, and leave nothing to measure.
        tf.config.experimental.set_memory_growth(gpu, True)
    # On recent GPUs float32 products would keep 10 bits, and renders would miss the original's by far.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        # Rendering may go on beside training: it reads, and writes to folders of its own.
        with explained(OSError), contextlib.nullcontext() if FLAGS.render_only else lock.held(run_folder(FLAGS)):
            run(FLAGS)
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        logger.error("nerf_tf: interrupted")
        return 128 + signal.SIGINT
    except (UserError, build.OutOfMemory) as error:
        logger.error("nerf_tf: %s", error)
        return 1
    except tf.errors.ResourceExhaustedError as error:
        logger.error("nerf_tf: out of memory (%s)", build.failed_allocation(error))
        return 1
    return 0


def run_folder(values: flags.FlagValues) -> Path:
    """Where a run's files go."""
    return Path(values.basedir) / values.expname


def run(values: flags.FlagValues) -> None:
    """Loads what the flags name, then renders or trains."""
    folder = run_folder(values)
    with explained(ValueError, OSError):
        scene = build.load_scene(values)
        trainer = build.make_trainer(values, scene.ndc)
        renderer = build.make_renderer(values, scene, trainer)
        store = CheckpointStore(trainer, folder / "checkpoints")
        build.restore(values, trainer, store, folder)
        this = Run(values, folder, scene, trainer, store, renderer, build.load_render_poses(values, scene))
        if values.render_only:
            cameras = this.render_only_cameras()
        else:
            planned = build.plan_training(values, trainer)
            batches = ray_batches(scene, config.batch_settings(values), this.seed, this.start)
    with explained(OSError):
        if values.render_only:
            this.render_only(cameras)
        else:
            this.train(batches, planned)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run of the program: what its parts share.

    Attributes:
        values: the flags.
        folder: where its files go.
        scene: photos and cameras.
        trainer: networks, optimizer, step and seed.
        store: its checkpoints.
        renderer: renders the trainer's networks.
        render_poses: [M, 3, 4] the path for videos.
        stop: whether training shall stop.
    """

    values: flags.FlagValues
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

    def render_only_cameras(self) -> list[Camera]:
        """The photos' cameras at `--render_factor`.

        Raises:
            ValueError: there is nothing to render, or nothing left of an image.
        """
        if not len(self.render_poses):
            raise ValueError(f"{self.values.datadir}: no views to render; give --render_path_file, or more test images")
        return [camera.downscaled(max(self.values.render_factor, 1)) for camera in self.scene.cameras]

    def render_only(self, cameras: Sequence[Camera]) -> None:
        """Renders the test views or the path into `renderonly_{test,path}_{step}`, the path with the first camera."""
        self.write_settings(replace=False)
        if self.values.render_test and self.values.render_path_file is None:
            folder = self.folder / f"renderonly_test_{self.start:06d}"
            frames = self.render_test_views(cameras, folder, self.start)
        else:
            folder = self.folder / f"renderonly_path_{self.start:06d}"
            images = self.renderer.path([cameras[0]] * len(self.render_poses), self.render_poses)
            frames = outputs.write_views(folder, images, self.values.save_arrays)
        outputs.write_video(folder / "video.mp4", frames.rgb, self.values.fps)
        disparities = outputs.normalised_disparity(frames.disp)
        outputs.write_video(folder / "video_disp.mp4", disparities, self.values.fps)
        logger.info("%s", folder)

    def render_test_views(self, cameras: Sequence[Camera], folder: Path, step: int) -> outputs.Frames:
        """Renders the test views; at full size also compares them with the photos, in the log and in metrics.json."""
        scene = self.scene
        full_size = (cameras[0].height, cameras[0].width) == scene.images.shape[1:3]
        float_psnrs = []

        def compared() -> Iterator[Image]:
            test_cameras = [cameras[i] for i in scene.i_test]
            images = self.views(test_cameras, scene.poses[scene.i_test], description="test views")
            for i, image in zip(scene.i_test, images, strict=True):
                if full_size:
                    float_psnrs.append(psnr(image.rgb, scene.images[i]))
                yield image

        start = time.perf_counter()
        frames = outputs.write_views(folder, compared(), self.values.save_arrays)
        if full_size:
            seconds = (time.perf_counter() - start) / len(scene.i_test)
            psnrs = [psnr_8bit(frame, scene.images[i]) for i, frame in zip(scene.i_test, frames.rgb, strict=True)]
            self.write_metrics(step, seconds, psnrs, float_psnrs)
        return frames

    def write_metrics(self, step: int, seconds: float, psnrs: list[float], float_psnrs: list[float]) -> None:
        """Logs, and writes to metrics.json, PSNR of the test views: of the saved 8-bit images, and before rounding."""
        for view, (saved, exact) in enumerate(zip(psnrs, float_psnrs, strict=True)):
            logger.info("test view %03d: psnr %.3f (8-bit %.3f)", view, exact, saved)
        logger.info("mean of %d test views: psnr %.3f (8-bit %.3f)", len(psnrs), np.mean(float_psnrs), np.mean(psnrs))
        metrics = {
            "step": step,
            "views": len(psnrs),
            "height": self.scene.images.shape[1],
            "width": self.scene.images.shape[2],
            "white_bkgd": self.values.white_bkgd,
            "seconds_per_view": seconds,
            "psnr_8bit": {"mean": float(np.mean(psnrs)), "views": psnrs},
            "psnr_float": {"mean": float(np.mean(float_psnrs)), "views": float_psnrs},
        }
        outputs.write_text(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")

    def views(self, *arguments: object, **keywords: object) -> Iterator[Image]:
        """What `renderer.path` renders; raises `Stopped` between two views if training shall stop."""
        return self.stop.guarded(self.renderer.path(*arguments, **keywords))

    def train(self, batches: Iterable[RayBatch], planned: build.Memory) -> None:
        """Trains up to `--N_iters`, writing what the original writes, when it writes it."""
        values, last = self.values, self.values.N_iters - 1
        summaries = outputs.Summaries(Path(values.basedir) / "summaries" / values.expname, self.start)

        def report(step: int, result: StepResult, rays_per_second: float) -> None:
            scalars = {name: getattr(result, name) for name in ("loss", "psnr", "psnr0", "learning_rate")}
            summaries.scalars(step, rays_per_second=rays_per_second, **scalars)
            summaries.histogram(step, "tran", result.sigma)

        def give_way(error: tf.errors.ResourceExhaustedError) -> None:
            plan = planned.give_way(error)
            self.trainer.resize(plan.chunk, plan.netchunk)

        with self.stop.listening():
            try:
                self.write_what_is_due(summaries)
                if self.start > last:
                    logger.info("%s is at step %d already; raise --N_iters to go on", values.expname, self.start)
                    return
                self.write_settings(replace=True)
                outputs.remove_unfinished(self.folder)
                save = Event(values.i_weights, lambda step: self.store.save())
                settle = Event(values.i_weights, unless_unwritable(lambda step: self.store.settle()))
                events = [save, *self.events(summaries), settle]
                guarded = self.stop.guarded(batches)
                report = unless_unwritable(report)
                train(self.trainer, guarded, values.N_iters, values.expname, values.i_print, report, events, give_way)
                if not save.due(last):
                    self.store.save()
                self.write_weights(last)  # once more where they were due: now it counts if they cannot be written
                self.store.settle()
            except Stopped as stopped:
                if self.store.step != self.start:
                    self.store.save()
                logger.warning("%s: %s, saved at step %d; the same command goes on", self.folder, stopped, self.start)
                raise
        logger.info("%s: trained to step %d", self.folder, last)

    def events(self, summaries: outputs.Summaries) -> list[Event]:
        """What is written every so many steps; where it cannot be, the run goes on to the next checkpoint."""
        values = self.values
        return [
            event._replace(action=unless_unwritable(event.action))
            for event in (
                Event(values.i_weights, self.write_weights),
                Event(values.i_video if len(self.render_poses) else 0, self.write_path_videos, at_zero=False),
                Event(values.i_testset if len(self.scene.i_test) else 0, self.render_test_set, at_zero=False),
                Event(values.i_img if len(self.scene.i_val) else 0, lambda step: self.show_holdout(step, summaries)),
            )
        ]

    def write_what_is_due(self, summaries: outputs.Summaries) -> None:
        """Writes what a run that died at its last checkpoint, or stopped there, had still to write at that step."""
        step = self.start - 1
        if self.store.unsettled:
            for event in self.events(summaries):
                if event.due(step):
                    event.action(step)
            if step == self.values.N_iters - 1:
                self.write_weights(step)
            self.store.settle()

    def write_settings(self, replace: bool) -> None:
        """Writes args.txt and config.txt; unless `replace`, leaves those of an earlier run."""
        if replace or not (self.folder / "args.txt").exists():
            outputs.write_text(self.folder / "args.txt", config.args_text(self.values))
            if self.values.config is not None:
                outputs.write_text(self.folder / "config.txt", config.config_text(self.values))

    def write_weights(self, step: int) -> None:
        """Writes the weights in the original's format."""
        # In this order: a start from weight files looks for the coarse one.
        if self.trainer.fine is not None:
            tf1_weights.save(self.folder / f"model_fine_{step:06d}.npy", self.trainer.fine.mlp.get_weights())
        tf1_weights.save(self.folder / f"model_{step:06d}.npy", self.trainer.coarse.mlp.get_weights())

    def show_holdout(self, step: int, summaries: outputs.Summaries) -> None:
        """Renders a random validation view for TensorBoard and into `tboard_val_imgs`."""
        view = int(np.random.default_rng([self.seed, step]).choice(self.scene.i_val))
        image, photo = self.renderer.image(self.scene.cameras[view], self.scene.poses[view]), self.scene.images[view]
        outputs.write_png(self.folder / "tboard_val_imgs" / f"{step:06d}.png", outputs.to_8bit(image.rgb))
        summaries.view(step, image, photo)
        summaries.scalars(step, psnr_holdout=psnr(image.rgb, photo))

    def render_test_set(self, step: int) -> None:
        """Renders the test views at full size into `testset_{step}`."""
        self.render_test_views(self.scene.cameras, self.folder / f"testset_{step:06d}", step)

    def write_path_videos(self, step: int) -> None:
        """Writes `{expname}_spiral_{step}_rgb.mp4` and `_disp.mp4`; with viewdirs also `_rgb_still.mp4`.

        In the last the camera stands still at the path's first pose while view directions come from the moving one, so
        that whatever changes is view-dependent colour.
        """
        poses, fps = self.render_poses, self.values.fps
        cameras = [self.scene.cameras[0]] * len(poses)
        stem = f"{self.values.expname}_spiral_{step:06d}"
        frames = outputs.Frames([], [])
        for image in self.views(cameras, poses):
            frames.rgb.append(outputs.to_8bit(image.rgb))
            frames.disp.append(image.disp)
        outputs.write_video(self.folder / f"{stem}_rgb.mp4", frames.rgb, fps)
        outputs.write_video(self.folder / f"{stem}_disp.mp4", outputs.normalised_disparity(frames.disp), fps)
        if self.values.use_viewdirs:
            still_poses = np.repeat(poses[:1], len(poses), axis=0)
            still = self.views(cameras, still_poses, poses, description="still path")
            outputs.write_video(
                self.folder / f"{stem}_rgb_still.mp4", [outputs.to_8bit(image.rgb) for image in still], fps
            )
