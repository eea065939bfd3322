"""The program: loads what the settings name, then trains, renders or evaluates."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from absl.logging import converter

from nerf_tf import build
from nerf_tf.data.scene import Scene
from nerf_tf.distribution.replicas import ReplicaTrainer
from nerf_tf.distribution.workers import Workers
from nerf_tf.evaluation import report
from nerf_tf.memory import planning
from nerf_tf.run import Run, photos_of_test_views, run_info
from nerf_tf.safety import guards, run_checks, worker_checks
from nerf_tf.safety.stop import Stopped
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import lock, run_folder
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.training import FollowingRun, TrainingRun

logger = logging.getLogger(__name__)


class UserError(Exception):
    """What ends the program early; its text is the one line to print."""


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turns exceptions of these kinds, raised by the block, into `UserError`."""
    try:
        yield
    except kinds as error:
        raise UserError(parsing.one_line(str(error))) from error


def main(settings: Settings, verbosity: int | None = None) -> int:
    """Runs the program and returns its exit code.

    Args:
        settings: what to do.
        verbosity: how much to log, in absl's numbers; None: progress and warnings.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    if verbosity is not None:
        logging.getLogger().setLevel(converter.absl_to_standard(verbosity))
    logging.getLogger("absl").setLevel(logging.WARNING)  # TensorFlow's checkpoints log details there
    tf.get_logger().setLevel(logging.ERROR)  # its warnings are for those who change the code
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()  # of what XLA compiles, too
        if settings.field == "hash_grid" and planning.has_gpu():
            logger.warning(
                "--deterministic: on a GPU XLA then adds up a hash grid's gradients one by one, which may take seconds "
                "a step; leave it out unless two runs must be equal to the last bit"
            )
    code, reason = end_of_run(settings)
    if reason is not None:
        logger.error("nerf_tf: %s", reason)
    return code


def end_of_run(settings: Settings) -> tuple[int, str | None]:
    """Runs the program; returns the exit code, and what went wrong if something did.

    When this returns, progress bars are closed, so that the reason can be printed on a line of its own.
    """
    try:
        run(settings)
    except Stopped as stopped:
        return stopped.exit_code, None
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, "interrupted"
    except (UserError, planning.OutOfMemory, worker_checks.LostWorker) as error:
        return 1, str(error)
    except tf.errors.ResourceExhaustedError as error:
        return 1, f"out of memory ({planning.failed_allocation(error)})"
    except MemoryError as error:
        return 1, f"out of memory ({parsing.one_line(str(error)) or 'no details'})"
    return 0, None


def run(settings: Settings) -> None:
    """Loads what the settings name, then renders, evaluates or trains.

    Raises:
        UserError: files or flags are wrong, a file cannot be written, or training failed.
        planning.OutOfMemory: memory ran out.
        worker_checks.LostWorker: another worker is gone.
        Stopped: a signal asked to stop.
    """
    with user_errors(ValueError, OSError):
        workers = build.find_workers(settings)
    with workers.lingering():
        _run_as_one_of(workers, settings)


def _run_as_one_of(workers: Workers, settings: Settings) -> None:
    """Does what `run` does, as one of the workers."""
    folder = settings.folder
    with user_errors(ValueError, OSError):
        if workers.is_chief:
            run_checks.check_folders(settings)
        elif logging.getLogger().level == logging.INFO:
            logging.getLogger().setLevel(logging.WARNING)  # the chief reports
        scene = build.load_scene(settings)
        if settings.eval_folder is not None:
            compare_folder(settings, folder, scene)
            return
        poses = build.load_render_poses(settings, scene)
        with worker_checks.lost_workers(workers):
            trainer = build.replica_trainer(settings, scene, poses, workers)
        renderers = build.make_renderers(settings, scene, trainer, workers)
    # Rendering may go on beside training: it reads, and writes to folders of its own.
    locked = settings.training and workers.is_chief
    with (
        user_errors(OSError),
        lock.lock_run(folder) if locked else contextlib.nullcontext(),
        worker_checks.lost_workers(workers),
    ):
        with user_errors(ValueError, OSError):
            store = CheckpointStore(trainer.state, folder / run_folder.CHECKPOINTS)
            if workers.is_chief:
                build.restore(settings, trainer, store)
            if isinstance(trainer, ReplicaTrainer):
                trainer.share_state()
            kind = FollowingRun if not workers.is_chief else TrainingRun if settings.training else Run
            this = kind(settings, folder, scene, trainer, store, renderers, poses, workers=workers)
            if settings.render_only:
                cameras = this.view_cameras()
            elif settings.training:
                on_out_of_memory = build.plan_training(settings, trainer)
                batches = this.batches()
        with user_errors(OSError, guards.Collapse, guards.BadSteps):
            if settings.training:
                while not this.train(batches, on_out_of_memory):
                    batches = this.batches()
                return
            if settings.eval_only:
                this.evaluate()
            else:
                this.render_only(cameras)
            workers.largest(0)  # the others wait for what the chief has yet to write


def compare_folder(settings: Settings, folder: Path, scene: Scene) -> None:
    """Compares the views in `--eval_folder` with the photos; writes metrics.json into the run's folder."""
    views = Path(settings.eval_folder)
    result = report.score_folder(views, photos_of_test_views(scene))
    report.write_report(folder / "metrics.json", run_info(settings, report.weights_step(views)), result)
