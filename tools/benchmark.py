"""Measures the engine: how fast it trains and renders, in how much memory, next to the plain way of doing it.

    python tools/benchmark.py --config configs/lego.txt --datadir data/nerf_synthetic/lego --ft_path .../model_200000.npy
    python tools/benchmark.py --config configs/lego.txt --datadir data/nerf_synthetic/lego --race 15

Every flag of the program may be given and means what it means there. The engines are
  dense     all points at once under one gradient tape, compiled into a graph: what TensorFlow does when asked plainly
  float32   the program's own, as its flags have it
  bfloat16  the same with --mixed_precision bfloat16
Steps are taken from the weights that --ft_path names, or from random ones, and do not move them. --race trains each
engine from the same random weights for so many minutes and draws held-out PSNR against the time spent training.
Writes a JSON file and a picture, whose path it prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import drawing
import numpy as np
import tensorflow as tf
from absl import flags

from nerf_tf import app, config
from nerf_tf.data.pipeline import RayBatch, ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.field.encoding import positional_encoding
from nerf_tf.field.query import Field
from nerf_tf.geometry.rays import image_rays
from nerf_tf.render import outputs
from nerf_tf.render.renderer import Renderer, coarse_pass, fine_pass, render_rays
from nerf_tf.train import tf1_weights
from nerf_tf.train.metrics import mse, psnr
from nerf_tf.train.trainer import Trainer

ENGINES = ("dense", "float32", "bfloat16")
# Of validation views, to see how far training got; rendered so many at a time, every so often.
HELD_OUT_RAYS, LOOK_RAYS, SECONDS_BETWEEN_LOOKS = 4096, 512, 60.0
COLOURS = dict(zip(ENGINES, (drawing.PALE, drawing.BLUE, drawing.ORANGE), strict=True))


class DenseField(Field):
    """A network on all points at once, differentiated by the tape like any other Keras model."""

    def __call__(self, points: tf.Tensor, viewdirs: tf.Tensor, visible_above: object = None) -> tf.Tensor:
        inputs = [positional_encoding(tf.reshape(points, [-1, 3]), self.settings.multires)]
        if self.settings.use_viewdirs:
            each = tf.repeat(viewdirs, points.shape[1], axis=0)
            inputs.append(positional_encoding(each, self.settings.multires_views))
        return tf.reshape(self.mlp(inputs), [*points.shape[:2], 4])


class DenseTrainer(Trainer):
    """A step of all rays, both passes under one tape."""

    def _rays_at_once(self, count: int) -> int:
        return count

    def _gradients(self, batch: RayBatch, shares: tf.Tensor, seed: tf.Tensor, first_ray: tf.Tensor | int):
        with tf.GradientTape() as tape:
            passes = [coarse_pass(self.coarse, batch.rays, self._rendering, seed)]
            if self.fine is not None:
                passes.append(fine_pass(self.fine, batch.rays, passes[0], self._rendering, seed)[0])
            losses = [mse(result.rendering.rgb, batch.rgb) for result in passes]
            loss = tf.add_n(losses)
        gradients = tape.gradient(loss, [variable.value for variable in self._variables])
        return losses, gradients, passes[-1].raw[..., 3]


def build(engine: str, values: flags.FlagValues, ndc: bool) -> Trainer:
    """A trainer as the program would make it, but for the engine."""
    values["mixed_precision"].value = "float32" if engine == "dense" else engine
    trainer = app.build_trainer(values, ndc)
    if engine != "dense":
        return trainer
    fields = [f and DenseField(f.mlp, f.settings, f.netchunk) for f in (trainer.coarse, trainer.fine)]
    return DenseTrainer(*fields, config.render_settings(values, ndc), config.train_settings(values), values.random_seed)


def held_out_rays(scene: Scene, count: int, seed: int) -> RayBatch:
    """Random pixels of the validation views, in chunks that any engine can take."""
    rng = np.random.default_rng(seed)
    height, width = scene.images.shape[1:3]
    parts = []
    for view in scene.i_val:
        pixels = rng.choice(height * width, count // len(scene.i_val), replace=False)
        camera, c2w = scene.cameras[view], scene.poses[view]
        rays = image_rays(camera, c2w, scene.near, scene.far, scene.ndc, tf.constant(pixels, tf.int32))
        parts.append(RayBatch(rays, tf.constant(scene.images[view].reshape(-1, 3)[pixels])))
    return tf.nest.map_structure(lambda *pieces: tf.concat(pieces, axis=0), *parts)


def race(engine: str, values: flags.FlagValues, scene: Scene, seconds: float, steps: int | None) -> dict:
    """Trains from random weights for so long, or for so many steps; time spent on looking does not count.

    Returns:
        step, seconds and psnr [N] of held-out rays each, and train_psnr [steps].
    """
    trainer = build(engine, values, scene.ndc)
    unseen = held_out_rays(scene, HELD_OUT_RAYS, values.random_seed)
    settings = dataclasses.replace(config.render_settings(values, scene.ndc), perturb=0.0, raw_noise_std=0.0)

    @tf.function
    def look(batch: RayBatch) -> tf.Tensor:
        return render_rays(trainer.coarse, trainer.fine, batch.rays, settings).fine.rgb

    record = {"step": [], "seconds": [], "psnr": [], "train_psnr": []}
    spent, next_look = 0.0, 0.0
    batches = iter(ray_batches(scene, config.batch_settings(values), values.random_seed))
    first = next(batches)
    trainer.train_step.get_concrete_function(first)  # the time to trace is not the time to train
    batch, step = first, 0
    while True:
        over = spent >= seconds if steps is None else step >= steps
        if over or spent >= next_look:
            rgb = np.concatenate([look(part) for part in _split(unseen, LOOK_RAYS)])
            record["step"].append(step)
            record["seconds"].append(spent)
            record["psnr"].append(psnr(rgb, unseen.rgb.numpy()))
            print(f"{engine:9} step {step:5d} {spent:7.1f} s held-out psnr {record['psnr'][-1]:.3f}", flush=True)
            next_look = spent + SECONDS_BETWEEN_LOOKS
        if over:
            return record
        start = time.perf_counter()
        result = trainer.train_step(batch)
        record["train_psnr"].append(float(result.psnr))
        batch, step = next(batches), step + 1
        spent += time.perf_counter() - start


def _split(batch: RayBatch, size: int) -> list[RayBatch]:
    return [tf.nest.map_structure(lambda x, i=i: x[i : i + size], batch) for i in range(0, batch.rgb.shape[0], size)]
