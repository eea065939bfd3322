"""Repeats a training step without a finite loss or gradient, and shows where its numbers go wrong.

    python tools/replay_step.py logs/lego_test logs/lego_test/bad_step_000057.npz

Training that stops after too many such steps writes the last one's rays, colours, seed and weights to that file. Of the
run's folder only args.txt is read. Prints for each tensor, in the order of the step, its shape, the finite share of its
values, and its least and largest finite value; then the name of the first tensor that is not finite.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from support import commandline

from nerf_tf import build
from nerf_tf.data.pipeline import RayBatch
from nerf_tf.safety import diagnosis
from nerf_tf.settings import parsing
from nerf_tf.storage import readers
from nerf_tf.train.step import Trainer


def restore(run: Path, path: Path) -> tuple[Trainer, RayBatch]:
    """Loads the trainer and the batch of the step.

    Raises:
        ValueError, OSError: run and file do not belong together, or cannot be read.
    """
    arrays = readers.read_npz(path, ["ndc"])
    settings = parsing.parse_settings([f"--config={run / 'args.txt'}"])
    try:
        if settings.field == "mlp":
            trainer = build.make_trainer(settings, bool(arrays["ndc"]))
        else:
            trainer = build.trainer_for(settings, build.load_scene(settings))
        return trainer, diagnosis.load_step(arrays, trainer)
    except ValueError as error:
        raise ValueError(f"{path}: does not belong to {run / 'args.txt'} ({error})") from error


def table(trainer: Trainer, batch: RayBatch) -> Iterator[str]:
    """A line for each tensor of the step."""
    yield f"{'':36}{'shape':>16}{'finite':>9}{'least':>12}{'largest':>12}"
    for name, tensor in diagnosis.replay_step(trainer, batch):
        values = np.asarray(tensor)
        finite = values[np.isfinite(values)]
        ends = f"{finite.min():12.4g}{finite.max():12.4g}" if finite.size else f"{'-':>12}{'-':>12}"
        yield f"{name:36}{list(values.shape)!s:>16}{finite.size / max(values.size, 1):9.2%}{ends}"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("replay_step", __doc__)
    parser.add_argument("run", type=Path, help="the run's folder, {basedir}/{expname}")
    parser.add_argument("step", type=Path, help="the file bad_step_{step}.npz")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    try:
        trainer, batch = restore(args.run, args.step)
    except (ValueError, OSError) as error:
        return commandline.fail("replay_step", error)
    print(f"{args.step}: step {int(trainer.step.numpy())}, random_seed {int(trainer.seed.numpy())}")
    for line in table(trainer, batch):
        print(line)
    print(f"first that is not finite: {diagnosis.find_first_non_finite(trainer, batch)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
