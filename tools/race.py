"""Trains several configs for equally many minutes, and draws their PSNR over the minutes.

    python tools/race.py --minutes 10 configs/fast/lego.txt configs/lego.txt --datadir data/nerf_synthetic/lego
    python tools/race.py --minutes 15 configs/lego.txt "configs/lego.txt --mixed_precision bfloat16"

Each RUN is a config, with flags of its own if it is quoted with them; flags after the runs are for all of them. They
take turns, a step at a time, so that a slow phase of the machine slows all; each needs memory of its own. The minutes
are those of steps, without the first, which TensorFlow compiles. PSNR is that of random pixels of the validation views.
A hash grid's learning rate falls to its end in these minutes; of the paper's networks it goes by steps. Nothing is kept
of what is learnt: race.json and race.png are written, and their paths printed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from support import commandline

from nerf_tf import build
from nerf_tf.data.pipeline import ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.evaluation.metrics import psnr
from nerf_tf.geometry.rays import Rays, image_rays
from nerf_tf.output import figures
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import atomic

# Random pixels of validation views, how many are rendered at once, and how often in a race.
HELD_OUT_RAYS, RENDERED_AT_ONCE, EVALUATIONS = 2048, 512, 20
LONGEST_NAME = 60  # characters that fit into the picture
COLOURS = (figures.ORANGE, figures.BLUE, figures.PALE, "#4aa3a2", "#8f5aa8")


def held_out_rays(scene: Scene, seed: int) -> tuple[Rays, np.ndarray]:
    """Returns rays of random pixels of the validation views, [R, ...], and their colours [R, 3].

    Raises:
        ValueError: there is no such view.
    """
    if not len(scene.i_val):
        raise ValueError("the scene has no validation views to compare with: name some, or lower --llffhold")
    rng = np.random.default_rng(seed)
    height, width = scene.images.shape[1:3]
    rays, colours = [], []
    for view in scene.i_val:
        pixels = rng.choice(height * width, min(HELD_OUT_RAYS // len(scene.i_val), height * width), replace=False)
        own = image_rays(
            scene.cameras[view], scene.poses[view], scene.near, scene.far, scene.ndc, tf.constant(pixels, tf.int32)
        )
        rays.append(own)
        colours.append(scene.images[view].reshape(-1, 3)[pixels])
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *rays), np.concatenate(colours)


class Racer:
    """One of the configs: its training so far.

    Attributes:
        spent: seconds of its steps.
        record: step, seconds and psnr of its evaluations.
    """

    def __init__(self, name: str, settings: Settings, scene: Scene, seconds: float):
        self.spent = 0.0
        self.record: dict[str, list[float]] = {"step": [], "seconds": [], "psnr": []}
        self._name, self._every = name, seconds / EVALUATIONS
        self._trainer = build.trainer_for(settings, scene)
        build.plan_training(settings, self._trainer)
        self._renderer = build.make_renderer(settings, scene, self._trainer)
        self._rays, self._colours = held_out_rays(scene, settings.random_seed)
        self._batches = iter(ray_batches(scene, build.batch_settings(settings), settings.random_seed))
        self._batch = next(self._batches)
        self.evaluate()
        self._step()  # compiled in it

    def _step(self) -> float:
        """Takes a step, and returns its seconds."""
        start = time.perf_counter()
        float(self._trainer.train_step(self._batch).loss)  # waits for the device
        self._batch = next(self._batches)
        return time.perf_counter() - start

    def advance(self) -> None:
        """Takes a step; evaluates if that is due."""
        seconds = self._step()
        self._trainer.spend(seconds)
        before, self.spent = self.spent, self.spent + seconds
        if self.spent // self._every > before // self._every:
            self.evaluate()

    def evaluate(self) -> None:
        """Records PSNR of the held-out rays."""
        parts = [
            tf.nest.map_structure(lambda x, first=first: x[first : first + RENDERED_AT_ONCE], self._rays)
            for first in range(0, len(self._colours), RENDERED_AT_ONCE)
        ]
        found = psnr(np.concatenate([self._renderer.rays(part).rgb for part in parts]), self._colours)
        step = int(self._trainer.step.numpy())
        for name, value in (("step", step), ("seconds", self.spent), ("psnr", float(found))):
            self.record[name].append(value)
        print(f"{self._name}: {self.spent:.0f} s, step {step}, PSNR {found:.2f} dB", file=sys.stderr, flush=True)


def run(racers: Sequence[Racer], seconds: float) -> None:
    """Trains all of them for so many seconds each, in turns."""
    while (slowest := min(racers, key=lambda racer: racer.spent)).spent < seconds:
        slowest.advance()
    for racer in racers:
        racer.evaluate()


def draw(records: dict[str, dict[str, list[float]]]):
    """Draws PSNR over minutes of training."""
    figure = figures.new_figure(7.6, 4.4)
    axes = figure.subplots()
    figures.style_axes(axes, "PSNR of validation views in dB")
    for i, (name, record) in enumerate(records.items()):
        minutes = np.array(record["seconds"]) / 60.0
        shown = name if len(name) <= LONGEST_NAME else f"... {name[-LONGEST_NAME:]}"
        label = f"{shown}: {record['step'][-1]:,} steps, {record['psnr'][-1]:.1f} dB"
        axes.plot(minutes, record["psnr"], "o-", color=COLOURS[i % len(COLOURS)], ms=3.5, lw=1.8, label=label)
    axes.grid(lw=0.6)
    axes.set_xlabel("minutes of training")
    axes.legend(loc="best", frameon=False)
    figure.tight_layout()
    return figure


def _settings(name: str, flags: Sequence[str], minutes: float) -> Settings:
    """Parses the flags of a racer."""
    settings = parsing.parse_settings(["--config", *shlex.split(name), *flags, "--expname=race"])
    settings = settings.replace(random_seed=settings.random_seed or 0)
    return settings.replace(train_minutes=minutes) if settings.field == "hash_grid" else settings


def _arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = commandline.Parser("race", __doc__, "%(prog)s --minutes M RUN [RUN ...] [flags of the program]")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a config, with flags if it is quoted with them")
    parser.add_argument("--minutes", type=float, required=True, help="of training, for each")
    parser.add_argument("--out", type=Path, default=Path("race"), help="folder to write to (default: race)")
    args, rest = parser.parse_known_args(argv)
    if not args.minutes > 0:
        parser.error(f"--minutes {args.minutes:g}: give a positive number")
    return args, rest


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args, rest = _arguments(argv)
    seconds = 60.0 * args.minutes
    try:
        racers = {}
        for name in dict.fromkeys(args.runs):
            settings = _settings(name, rest, args.minutes)
            racers[name] = Racer(name, settings, build.load_scene(settings), seconds)
        run(list(racers.values()), seconds)
        records = {name: racer.record for name, racer in racers.items()}
        atomic.write_text(args.out / "race.json", json.dumps(records, indent=1) + "\n")
        figures.save(draw(records), args.out / "race.png")
    except (ValueError, OSError) as error:
        return commandline.fail("race", error)
    print(args.out / "race.json", args.out / "race.png", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
