"""Guards against failed training: steps without finite gradients, and scenes that collapse.

Each training step updates `Counts`, which checkpoints hold, and a `TrainingMonitor` judges them. So a resumed run is
judged at the same step as one that was never interrupted.
"""

from __future__ import annotations

import glob
import logging
import shutil
from pathlib import Path

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.storage.atomic import make_folder, sync_folder
from nerf_tf.train.counts import Counts

logger = logging.getLogger(__name__)

# A healthy run may start out collapsed but recovers within a few hundred steps; after this many it never does.
COLLAPSE_STEPS = 1000
# When this many further seeds collapse too, the seed is not the reason.
MAX_RESTARTS = 3

REMEDIES = (
    "--precrop_iters 500 --precrop_frac 0.5 with --no_batching (objects on plain background), another --random_seed, a "
    "lower --lrate, --raw_noise_std 1 (photos), --white_bkgd where images are transparent"
)


class BadSteps(Exception):
    """Too many steps in a row had no finite gradient.

    Attributes:
        step: the last of these steps.
        batch: its rays.
    """

    def __init__(self, message: str, step: int, batch: RayBatch):
        super().__init__(message)
        self.step, self.batch = step, batch


class Collapse(Exception):
    """The scene has collapsed; the message says to what, and names remedies."""


class TrainingMonitor:
    """Checks the counts after each step, and warns or ends the run.

    Args:
        name: of the run, for the log.
        max_bad_steps: how many skipped steps in a row end the run; 0 for no limit.
        stops: whether a collapse ends the run.
    """

    def __init__(self, name: str, max_bad_steps: int, stops: bool):
        self._name, self._max_bad_steps, self._stops = name, max_bad_steps, stops
        self._last_collapsed = 0

    def check(self, step: int, batch: RayBatch, counts: Counts) -> None:
        """Checks the counts after `step`, which trained on `batch`.

        Raises:
            BadSteps: too many steps in a row were skipped.
            Collapse: the scene has collapsed, and that ends the run.
        """
        if counts.bad == 1:
            logger.warning(
                "%s step %d: loss or gradient is not finite; the weights stay as they are (%d skipped so far)",
                self._name, step, counts.skipped,
            )  # fmt: skip
        if 0 < self._max_bad_steps <= counts.bad:
            message = f"step {step}: loss or gradient was not finite in {counts.bad} steps in a row"
            raise BadSteps(message, step, batch)
        kind, steps = max(("empty space", counts.empty), ("a solid block", counts.solid), key=lambda pair: pair[1])
        if steps >= COLLAPSE_STEPS and self._stops:
            raise Collapse(_collapse_message(step, kind, steps))
        # Once every so many steps; the count stays the same over steps that cannot be judged.
        if steps >= COLLAPSE_STEPS and steps % COLLAPSE_STEPS == 0 and steps != self._last_collapsed:
            logger.warning("%s %s", self._name, _collapse_message(step, kind, steps))
        self._last_collapsed = steps


def _collapse_message(step: int, kind: str, steps: int) -> str:
    return (
        f"step {step}: the scene has collapsed to {kind}: for {steps} steps its pictures have been no better than one "
        f"colour. What helps: {REMEDIES}"
    )


def archive_collapsed_run(folder: Path, summaries: Path, number: int, keep: Path) -> Path:
    """Moves the outputs of a collapsed run into the folder `collapsed_{number}` within its folder.

    If it was interrupted, calling it again moves the rest.

    Args:
        summaries: the run's TensorBoard folder; renamed to `{name}_collapsed_{number}`.
        keep: the checkpoint that stays, with which the new run begins.

    Returns:
        The folder with the moved files.

    Raises:
        OSError: a file cannot be moved.
    """
    archive = folder / f"collapsed_{number}"
    patterns = (
        "model_*.npy",
        "tboard_val_imgs",
        "testset_*",
        f"{glob.escape(folder.name)}_spiral_*",
        "metrics.json",
        "curve.png",
        "latest.png",
        "checkpoints/ckpt-*",
    )
    outputs = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path != keep]
    moves = {path: archive / path.relative_to(folder) for path in outputs}
    if summaries.exists():
        moves[summaries] = summaries.with_name(f"{summaries.name}_collapsed_{number}")
    try:
        for path, target in moves.items():
            make_folder(target.parent)
            _move(path, target)
        for parent in {path.parent for pair in moves.items() for path in pair}:
            sync_folder(parent)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{archive}: the collapsed run's files cannot be moved there ({reason})") from error
    return archive


def _move(path: Path, target: Path) -> None:
    """Renames a file or folder; where the target folder exists already, moves the contents one by one."""
    if path.is_dir() and target.is_dir():
        for member in path.iterdir():
            _move(member, target / member.name)
        path.rmdir()
    else:
        shutil.move(path, target)  # copies if a link leads to another disk
