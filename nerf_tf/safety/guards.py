"""Training that goes wrong: steps without a finite gradient, and scenes that collapse to nothing or to a solid block.

A step counts what it sees, in the graph and in one variable that checkpoints hold; a `Watch` reads the counts after
each step and says what they mean. So a run that stops and goes on comes to the same verdict at the same step.
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

# A healthy run may begin so, and leaves it within a few hundred steps; one that has not by now never does.
COLLAPSE_AFTER = 1000
# A scene that collapses under so many seeds has another reason.
MAX_RESTARTS = 3

REMEDIES = (
    "--precrop_iters 500 --precrop_frac 0.5 with --no_batching (objects on plain background), another --random_seed, a "
    "lower --lrate, --raw_noise_std 1 (photos), --white_bkgd where images are transparent"
)


class BadSteps(Exception):
    """Too many steps in a row had no finite gradient.

    Attributes:
        step: the last of them.
        batch: its rays.
    """

    def __init__(self, text: str, step: int, batch: RayBatch):
        super().__init__(text)
        self.step, self.batch = step, batch


class Collapse(Exception):
    """The scene has collapsed; the text says to what, and what is known to help."""


class Watch:
    """Looks at the counts after each step: warns, or raises what ends a run.

    Args:
        name: what the log calls the run.
        max_bad_steps: skipped steps in a row that end the run; 0: none do.
        stops: whether a collapse does.
    """

    def __init__(self, name: str, max_bad_steps: int, stops: bool):
        self._name, self._max_bad_steps, self._stops = name, max_bad_steps, stops
        self._seen = 0

    def look(self, step: int, batch: RayBatch, counts: Counts) -> None:
        """Judges the counts after `step`, which saw `batch`.

        Raises:
            BadSteps: there are too many.
            Collapse: there is one, and it ends the run.
        """
        if counts.bad == 1:
            logger.warning(
                "%s step %d: loss or gradient is not finite; the weights stay as they are (%d skipped so far)",
                self._name, step, counts.skipped,
            )  # fmt: skip
        if 0 < self._max_bad_steps <= counts.bad:
            text = f"step {step}: no finite loss and gradient, {counts.bad} steps in a row by now"
            raise BadSteps(text, step, batch)
        kind, steps = max(("empty space", counts.empty), ("a solid block", counts.solid), key=lambda found: found[1])
        if steps >= COLLAPSE_AFTER and self._stops:
            raise Collapse(_verdict(step, kind, steps))
        # Not at each step: once, and again should it go on for as long as that.
        if steps >= COLLAPSE_AFTER and steps % COLLAPSE_AFTER == 0 and steps != self._seen:
            logger.warning("%s %s", self._name, _verdict(step, kind, steps))
        self._seen = steps


def _verdict(step: int, kind: str, steps: int) -> str:
    return (
        f"step {step}: the scene has collapsed to {kind}: for {steps} steps its pictures have been no better than one "
        f"colour. What helps: {REMEDIES}"
    )


def put_aside(folder: Path, summaries: Path, number: int, keep: Path) -> Path:
    """Moves what training has written from a run's folder into `collapsed_{number}` there.

    Done again after it was cut short anywhere, it moves what is left.

    Args:
        folder: the run's.
        summaries: what the run wrote for TensorBoard; becomes a run of its own, `{name}_collapsed_{number}`.
        number: of the collapse.
        keep: the one checkpoint that stays, with which the new run begins.

    Returns:
        Where the files are.

    Raises:
        OSError: they cannot all be moved.
    """
    aside = folder / f"collapsed_{number}"
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
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path != keep]
    moves = {path: aside / path.relative_to(folder) for path in found}
    if summaries.exists():
        moves[summaries] = summaries.with_name(f"{summaries.name}_collapsed_{number}")
    try:
        for path, target in moves.items():
            make_folder(target.parent)
            _move(path, target)
        for changed in {path.parent for pair in moves.items() for path in pair}:
            sync_folder(changed)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{aside}: what the collapsed run wrote cannot be moved there ({reason})") from error
    return aside


def _move(path: Path, target: Path) -> None:
    """Renames a file or a folder; into a folder that is there already, one file after the other."""
    if path.is_dir() and target.is_dir():
        for part in path.iterdir():
            _move(part, target / part.name)
        path.rmdir()
    else:
        shutil.move(path, target)  # copies where a link has led to another disk
