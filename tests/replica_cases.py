"""What a process with two devices computes on both of them; `distribution_test.py` starts it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import golden_test
import numpy as np
import packed_step_test
import step_test
import tensorflow as tf

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.distribution.packed_replicas import PackedReplicaTrainer
from nerf_tf.distribution.replica_views import Views, rendered_by_all
from nerf_tf.distribution.replicas import ReplicaTrainer
from nerf_tf.distribution.workers import Workers
from nerf_tf.field.mlp import FieldSettings, build_mlp
from nerf_tf.field.query import Field
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import finish_rays
from nerf_tf.hash_grid import packed_step
from nerf_tf.render.renderer import Renderer
from nerf_tf.train.step import Trainer

DEVICES = ["CPU:0", "CPU:1"]
STEPS, GOLDEN_STEPS = 3, 50
# Rays of the golden batches that are trained on, an odd number.
RAYS = 31


def golden_batches(golden: np.lib.npyio.NpzFile) -> Iterator[RayBatch]:
    height, width, focal = golden["hwf"]
    camera = Camera.centred(int(height), int(width), float(focal))
    ndc = "ndc" in golden.files and bool(golden["ndc"])
    near, far = float(golden["near"]), float(golden["far"])
    for step in range(GOLDEN_STEPS):
        number = step % len(golden["rgb"])
        origins, directions, rgb = (tf.constant(golden[key][number][:RAYS]) for key in ("origins", "directions", "rgb"))
        yield RayBatch(finish_rays(camera, origins, directions, near, far, ndc), rgb)


def golden(path: str, initial: str, compiled: bool) -> None:
    """A golden run's networks, weights and rays: two devices come to the losses and weights of one, bit for bit."""
    file = np.load(path)
    compare_steps(functools.partial(golden_test.make_trainer, file, initial, compiled), golden_batches(file))


def precision(kind: str, compiled: bool, N_importance: int) -> None:
    """In 16 bits, too; also the loss scale of float16."""
    rendering = dataclasses.replace(step_test.RANDOM, N_importance=N_importance)
    make = functools.partial(step_test.make_trainer, rendering, precision=kind, compiled=compiled)
    compare_steps(make, (step_test.make_batch(step, count=15) for step in range(STEPS)))


def compare_steps(make: Callable[[], Trainer], batches: Iterable[RayBatch]) -> None:
    """Takes steps on one device and on two, and compares all that they report and change."""
    one, two = make(), ReplicaTrainer(tf.distribute.MirroredStrategy(DEVICES), make)
    for batch in batches:
        mine, its = one.train_step(batch), two.train_step(batch)
        for name in ("loss", "psnr", "learning_rate", "counts"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(its, name))
    step_test.assert_equal_states(step_test.state_of(one), step_test.state_of(two.first))
    check_replicas(two)


def compare(one: list[np.ndarray], other: list[np.ndarray], atol: float) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def check_replicas(two: ReplicaTrainer) -> None:
    """Both replicas hold the same."""
    step_test.assert_equal_states(*(step_test.state_of(trainer) for _, trainer in two.by_device))


def grid_batch(step: int, misses: bool) -> RayBatch:
    """An odd number of rays; every other one passes the box if it `misses`."""
    batch = tf.nest.map_structure(lambda x: x[1:], packed_step_test.make_batch(step))
    away = tf.where(tf.range(batch.rgb.shape[0]) % 2 == 0, 1000.0 * misses, 0.0)[:, None]
    return batch._replace(rays=batch.rays._replace(origins=batch.rays.origins + away))


def hash_grid() -> None:
    """A hash grid's steps on two devices, with room for all rays, are those of one; then with too little room."""
    packed_step.EARLY_FROM = 0  # the occupancy grid is updated in these steps
    packed_step_test.GRID = dataclasses.replace(packed_step_test.GRID, levels=2)  # compiles faster
    make = functools.partial(packed_step_test.make_trainer, random_background=True)
    one = make(slots=2000)
    two = PackedReplicaTrainer(tf.distribute.MirroredStrategy(DEVICES), functools.partial(make, slots=400))
    born = one.coarse.mlp.occupancy.numpy()
    for step in range(GOLDEN_STEPS):
        batch = grid_batch(step, misses=True)
        mine, its = one.train_step(batch), two.train_step(batch)
        for name in ("loss", "psnr", "learning_rate", "counts"):
            np.testing.assert_allclose(getattr(mine, name), getattr(its, name), rtol=1e-5)
    assert (one.coarse.mlp.occupancy.numpy() != born).any()
    first, second = (packed_step_test.values(trainer) for _, trainer in two.by_device)
    compare(packed_step_test.values(one), first, 1e-6)
    step_test.assert_equal_states(first, second)

    batch, trainer = grid_batch(8, misses=False), two.first
    count, draws = batch.rgb.shape[0], trainer.draw(batch.rgb.shape[0])
    middle, parts = count // 2, []
    for i, (first, end) in enumerate(((0, middle), (middle, count))):
        own = tf.nest.map_structure(lambda x, a=first, b=end: x[a:b], (batch, draws))
        with tf.device(DEVICES[i]):
            parts.append(two._gradients[i](*own))  # compiled already
    fit = np.array([int(part.rays) for part in parts])
    assert (fit < middle).all(), "some do not fit"
    assert fit[0] != fit[1]
    before = [moment.numpy() for moment in trainer.optimizer.first]
    result = two.train_step(batch)
    np.testing.assert_allclose(result.loss, np.sum(fit * [part.loss for part in parts]) / fit.sum(), rtol=1e-5)
    for moment, was, *gradients in zip(trainer.optimizer.first, before, *(p.gradients for p in parts), strict=True):
        expected = sum(n * gradient for n, gradient in zip(fit, gradients, strict=True)) / fit.sum()
        expected = packed_step.BETA_1 * was + (1 - packed_step.BETA_1) * expected
        np.testing.assert_allclose(moment, expected, rtol=1e-4, atol=1e-6)


def views() -> None:
    """An odd number of views is rendered by both devices, each with its copy of the weights, as by one."""
    settings = FieldSettings(depth=2, width=16, multires=2, multires_views=1, use_viewdirs=True)
    renderers = []
    for device in DEVICES:
        with tf.device(device):
            fields = [Field(build_mlp(settings, [5, i]), settings, 1000) for i in range(2)]
        renderers.append(Renderer(*fields, step_test.RANDOM, 2.0, 6.0, False))
    poses = np.repeat(np.eye(4, dtype=np.float32)[None, :3], 3, axis=0)
    poses[:, 0, 3] = [0.0, 0.5, 1.0]
    wanted = Views([Camera.centred(9, 7, 8.0)] * 3, poses, poses[::-1])
    workers, rounds = Workers(tf.distribute.MirroredStrategy(DEVICES)), []
    with rendered_by_all(wanted, renderers, workers, rounds.append) as images:
        found = list(images)
    assert rounds == [False] * 3
    expected = list(renderers[0].path(*wanted))
    assert len(found) == len(expected)
    for mine, its in zip(found, expected, strict=True):
        for a, b in zip(mine, its, strict=True):
            np.testing.assert_array_equal(a, b)
    assert (found[0].rgb != found[1].rgb).any()
