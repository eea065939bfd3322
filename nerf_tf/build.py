"""From flags to the parts of a run: scene, networks, plans for their memory, weights to start from, path to render."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import secrets
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags

from nerf_tf import config
from nerf_tf.data import blender, deepvoxels, llff, untrusted
from nerf_tf.data.scene import Scene
from nerf_tf.field.encoding import encoded_width
from nerf_tf.field.mlp import build_mlp, precision
from nerf_tf.field.query import Field
from nerf_tf.geometry import keyframes
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.rays import finish_rays, pixel_rays
from nerf_tf.render import memory
from nerf_tf.render.occupancy import Box, Occupancy
from nerf_tf.render.renderer import FieldFunction, Renderer, RenderSettings
from nerf_tf.train import tf1_weights
from nerf_tf.train.checkpoint import CheckpointStore
from nerf_tf.train.trainer import Trainer

logger = logging.getLogger(__name__)

# Frames of circles and spirals unless --render_frames says otherwise: four seconds, as the original's spiral.
PATH_FRAMES = 120
# Of the free memory; the rest is for what nobody planned.
PLANNED_PART = 0.8


class OutOfMemory(Exception):
    """Memory ran out, and nothing is left to halve; the text says what was in force and what may fit."""


def check_folders(values: flags.FlagValues) -> None:
    """Finds out before any work is done, and without writing, whether a run's folders can be made.

    Raises:
        ValueError: checkpoints in it could be written, and not read again.
        OSError: something else has the name of one, or there is no permission to make it.
    """
    run, summaries = Path(values.basedir) / values.expname, Path(values.basedir) / "summaries" / values.expname
    training = not (values.render_only or values.eval_only)
    if training and "[" in str(run):
        raise ValueError(
            f"{run}: TensorFlow finds no checkpoint under a name with [ in it; give another --expname or --basedir"
        )
    for folder in (run / "checkpoints", summaries) if training else (run,):
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise NotADirectoryError(f"{there}: is no folder, and a run needs one of that name (--basedir, --expname)")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"{there}: nothing can be written there; give another --basedir")


def load_scene(values: flags.FlagValues) -> Scene:
    """The scene that the flags describe, with `--near` and `--far` applied."""
    if not Path(values.datadir).is_dir():
        raise FileNotFoundError(f"{values.datadir}: no such folder; --datadir names the folder of the scene")
    if values.dataset_type == "llff":
        scene = llff.load(values.datadir, values.factor, values.spherify, values.llffhold, values.no_ndc)
    elif values.dataset_type == "blender":
        scene = blender.load(values.datadir, values.half_res, values.testskip, values.white_bkgd)
    else:
        scene = deepvoxels.load(values.datadir, values.shape, values.testskip)
    near = scene.near if values.near is None else values.near
    far = scene.far if values.far is None else values.far
    if scene.ndc and (values.near is not None or values.far is not None):
        raise ValueError("--near and --far are distances, and NDC has none: its range is 0 to 1; add --no_ndc")
    if near >= far:
        raise ValueError(f"near {near:g} is not below far {far:g}: check --near and --far")
    if values.lindisp and not scene.ndc and near <= 0:
        raise ValueError(f"--lindisp samples evenly in 1/t, which needs near > 0 (it is {near:g}): give --near")
    height, width = scene.images.shape[1:3]
    logger.info(
        "%s %s: %d images of %dx%d (%d train, %d val, %d test), near %g, far %g%s",
        values.dataset_type, values.datadir, len(scene.images), width, height,
        len(scene.i_train), len(scene.i_val), len(scene.i_test), near, far, ", NDC" if scene.ndc else "",
    )  # fmt: skip
    return dataclasses.replace(scene, near=near, far=far)


def make_trainer(values: flags.FlagValues, ndc: bool, seed: int | None = None) -> Trainer:
    """Networks with fresh weights, and an optimizer for them; without a seed `--random_seed` or a new one counts."""
    if seed is None:
        seed = secrets.randbelow(2**31) if values.random_seed is None else values.random_seed
    compiled = values.jit_compile == "true" or (values.jit_compile == "auto" and _has_gpu())

    def field(fine: bool) -> Field:
        settings = config.field_settings(values, fine)
        mlp = build_mlp(settings, [seed, int(fine)], values.mixed_precision)
        return Field(mlp, settings, memory.LARGEST_TILE, compiled=compiled)

    fine = field(True) if values.N_importance > 0 else None
    return Trainer(field(False), fine, config.render_settings(values, ndc), config.train_settings(values), seed)


def start_over(values: flags.FlagValues, trainer: Trainer) -> None:
    """Makes the trainer what a new one with the next seed is, but for the count of restarts."""
    restarts = int(trainer.counts.numpy()[-1]) + 1
    trainer.become(make_trainer(values, False, _next_seed(int(trainer.seed.numpy()), 1)), restarts)


def _next_seed(seed: int, times: int) -> int:
    return (seed + times) % 2**32  # what --random_seed takes


def plan_training(values: flags.FlagValues, trainer: Trainer) -> Memory:
    """Gives the trainer the chunk and netchunk that the flags ask for.

    Raises:
        ValueError: `--memory_budget_mb` is too little for a step.
    """
    planned = Memory(values, trainer, training=True, rays=values.N_rand)
    trainer.resize(planned.plan.chunk, planned.plan.netchunk)
    return planned


def make_renderer(values: flags.FlagValues, scene: Scene, trainer: Trainer) -> Renderer:
    """What renders the trainer's networks.

    Raises:
        ValueError: `--memory_budget_mb` is too little for it.
    """
    height, width = scene.images.shape[1:3]
    planned = Memory(values, trainer, training=False, rays=height * width)
    settings = config.render_settings(values, scene.ndc)

    networks = [field for field in (trainer.coarse, trainer.fine) if field is not None]
    folder = Path(values.basedir) / values.expname
    occupancy = Occupancy(ray_box(scene), folder / "occupancy.npz", len(networks)) if values.occupancy else None

    def sized(plan: memory.Plan) -> tuple[FieldFunction, FieldFunction | None, RenderSettings]:
        fields = [dataclasses.replace(field, netchunk=plan.netchunk) for field in networks]
        if occupancy is not None:
            fields = occupancy.restrict(fields)
        return fields[0], fields[1] if len(fields) > 1 else None, dataclasses.replace(settings, chunk=plan.chunk)

    def prepare() -> None:
        occupancy.update(networks, [field.mlp.get_weights() for field in networks])

    return Renderer(
        *sized(planned.plan),
        scene.near,
        scene.far,
        scene.ndc,
        lambda error: sized(planned.give_way(error)),
        prepare if values.occupancy else None,
        scene.unit,
    )


def ray_box(scene: Scene) -> Box:
    """The smallest box around all that the scene's cameras and its path can see, in the space that rays live in."""
    views = [*zip(scene.cameras, scene.poses, strict=True), *((scene.cameras[0], c2w) for c2w in scene.render_poses)]
    corners = []
    for camera in set(scene.cameras):
        c2w = np.stack([pose for other, pose in views if other == camera])[:, None]  # [N, 1, 3, 4]
        # What a camera sees is a frustum, under NDC too, so its corners are enough.
        rows, cols = np.array([0, 0, camera.height, camera.height]), np.array([0, camera.width, 0, camera.width])
        rays = finish_rays(camera, *pixel_rays(camera, c2w, rows, cols), scene.near, scene.far, scene.ndc)
        corners += [tf.reshape(rays.origins + t * rays.directions, [-1, 3]) for t in (scene.near, scene.far)]
    points = np.concatenate(corners)
    lower, upper = points.min(axis=0), points.max(axis=0)
    margin = 1e-3 * (upper - lower)  # so that rounding leaves no sample outside
    return Box(lower - margin, upper + margin)


class Memory:
    """The memory of one kind of work: the plan in force, and what to do when it turns out to be too much.

    Attributes:
        work: what there is to do.
        plan: how much of it at once.
    """

    def __init__(self, values: flags.FlagValues, trainer: Trainer, training: bool, rays: int):
        """Makes a plan: `--chunk` and `--netchunk`, and what fits `--memory_budget_mb` where these are auto.

        Raises:
            ValueError: nothing does, or nobody knows how much there is.
        """
        self.work = workload(trainer, training, rays)
        chunk, netchunk = (None if value == "auto" else value for value in (values.chunk, values.netchunk))
        self._auto = {"halve_chunk": chunk is None, "halve_netchunk": netchunk is None}
        if values.memory_budget_mb is not None:
            budget = values.memory_budget_mb * memory.MEGABYTE
        elif any(self._auto.values()):
            budget = PLANNED_PART * memory.free_memory()
        else:
            budget = math.inf
        largest_tile = memory.LARGEST_GPU_TILE if _has_gpu() else memory.LARGEST_TILE
        self.plan = memory.plan(self.work, budget, chunk, netchunk, largest_tile)
        logger.info("%s", self)

    def __str__(self) -> str:
        return memory.in_words(self.work, self.plan)

    def give_way(self, error: tf.errors.ResourceExhaustedError) -> memory.Plan:
        """Halves what is auto after memory ran out, and returns the new plan.

        Raises:
            OutOfMemory: nothing is auto, or nothing is left of it.
        """
        reason = f"out of memory ({failed_allocation(error)}) with {self}"
        smaller = memory.smaller(self.work, self.plan, **self._auto)
        if smaller is None:
            smaller = memory.smaller(self.work, self.plan, halve_chunk=True, halve_netchunk=True)
            proposal = memory.in_words(self.work, smaller) if smaller else "lower N_samples or netwidth"
            raise OutOfMemory(f"{reason}. What may fit: {proposal}; --chunk auto --netchunk auto finds what does")
        self.plan = smaller
        logger.warning("%s; going on with %s", reason, self)
        return smaller


def workload(trainer: Trainer, training: bool, rays: int) -> memory.Workload:
    """What the memory of training steps or of rendering depends on, but for chunk and netchunk."""

    def shape(field: Field) -> memory.NetworkShape:
        settings = field.settings
        viewdirs = encoded_width(3, settings.multires_views) if settings.use_viewdirs else 0
        points = encoded_width(3, settings.multires)
        return memory.NetworkShape(settings.depth, settings.width, points, viewdirs, field.mlp.count_params())

    return memory.Workload(
        training=training,
        rays=rays,
        N_samples=trainer.rendering.N_samples,
        N_importance=trainer.rendering.N_importance,
        coarse=shape(trainer.coarse),
        fine=trainer.fine and shape(trainer.fine),
        value_bytes=tf.as_dtype(precision(trainer.coarse.mlp)).size,
        compiled=trainer.coarse.compiled,
    )


def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def failed_allocation(error: tf.errors.ResourceExhaustedError) -> str:
    """The line of TensorFlow's message that says what did not fit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "OOM" in line or "allocat" in line), lines[0] if lines else "no details")


def load_weights(trainer: Trainer, path: Path) -> None:
    """Gives the networks the weights of a coarse `.npy` file, and of the fine one that is found beside it by name.

    Raises:
        ValueError, OSError: a file is missing, is none, or belongs to another network.
    """
    tf1_weights.assign(trainer.coarse.mlp, tf1_weights.load(path), path)
    if trainer.fine is not None:
        fine_path = tf1_weights.fine_path(path)
        tf1_weights.assign(trainer.fine.mlp, tf1_weights.load(fine_path), fine_path)


def restore(values: flags.FlagValues, trainer: Trainer, store: CheckpointStore, folder: Path) -> None:
    """Gives the trainer the weights that the original would start from, and where there is a checkpoint all the rest.

    That is `--ft_path`, or else the newest checkpoint in the run's folder, or else, in a folder that the original
    wrote, the newest `model_*.npy`; nothing with `--no_reload`.
    """
    newest, training = tf1_weights.newest(folder), not (values.render_only or values.eval_only)
    if values.no_reload or (values.ft_path is None and newest is None and store.newest is None):
        if not training:
            raise ValueError(f"{folder}: no weights to render; train first, or give --ft_path (without --no_reload)")
        if newest is not None:
            logger.warning("%s holds an earlier run, up to %s: files of equal names are replaced", folder, newest.name)
    elif values.ft_path is None and store.newest is not None:
        path = store.restore()
        if values.random_seed is not None:
            # A run that has started over since has another one.
            trainer.seed.assign(_next_seed(values.random_seed, int(trainer.counts.numpy()[-1])))
        logger.info("%s: goes on at step %d", path, trainer.step.numpy())
    else:
        path = newest if values.ft_path is None else Path(values.ft_path)
        trainer.step.assign(tf1_weights.step_of(path) + 1)
        load_weights(trainer, path)
        logger.info("%s: weights; goes on at step %d", path, trainer.step.numpy())
        if store.newest is not None and training:
            logger.warning("--ft_path goes before %s; leave it out to resume from there", store.newest)
    logger.info("random_seed %d", trainer.seed.numpy())


def load_render_poses(values: flags.FlagValues, scene: Scene) -> np.ndarray:
    """Poses [M, 3, 4] to render as the path: of `--render_path_file`, of the test views, or of `--render_path`.

    Raises:
        ValueError: the file does not hold M camera-to-world matrices or keyframes, or the scene has no such path.
    """
    if values.render_path_file is not None:
        path = Path(values.render_path_file)
        if path.suffix.lower() == ".json":
            return _interpolated(path, values.fps)
        return _load_poses(path)
    if values.render_test:
        return scene.poses[scene.i_test]
    poses = _scene_path(values, scene)
    if values.render_frames is not None and len(poses) not in (0, values.render_frames):
        every = keyframes.Keyframes(np.arange(len(poses)), poses)
        poses = keyframes.resample(every, np.linspace(0, len(poses) - 1, values.render_frames)).astype(np.float32)
    return poses


def _scene_path(values: flags.FlagValues, scene: Scene) -> np.ndarray:
    """The path that `--render_path` names; circles and spirals have `--render_frames` frames from the start."""
    if values.render_path == "auto":
        return scene.render_poses
    if values.render_path == "test":
        return scene.poses[scene.i_test]
    frames = values.render_frames or PATH_FRAMES
    if values.render_path == "orbit":
        if scene.ndc:
            raise ValueError("--render_path orbit goes around the scene, and NDC holds its front only; take spiral")
        return pose_maths.orbit_around(scene.poses, frames).astype(np.float32)
    middle = pose_maths.average_pose(scene.poses)
    if np.any(scene.poses[:, :, 2] @ middle[:, 2] <= 0):
        raise ValueError(
            "--render_path spiral is for cameras that face one way, and these look from around; take orbit"
        )
    if scene.ndc:
        return scene.render_poses  # LLFF's own is the spiral; what makes its focus is not in NDC
    recentred = pose_maths.compose(pose_maths.invert(middle), scene.poses)
    return pose_maths.compose(middle, pose_maths.spiral_path(recentred, scene.near, scene.far, frames)).astype(
        np.float32
    )


def _interpolated(path: Path, fps: int) -> np.ndarray:
    keys = keyframes.load_keyframes(path)
    try:
        return keyframes.interpolate(keys, fps).astype(np.float32)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load_poses(path: Path) -> np.ndarray:
    poses = untrusted.read_array(path, "; --render_path_file takes poses as npy or keyframes as json")
    if poses.ndim != 3 or poses.shape[1:] not in [(3, 4), (4, 4)]:
        shape = list(poses.shape)
        raise ValueError(f"{path}: holds {shape}; --render_path_file takes poses of shape [M, 3, 4] or [M, 4, 4]")
    if not len(poses) or not np.isfinite(poses).all():
        raise ValueError(f"{path}: poses must be finite numbers, and at least one")
    pose_maths.require_rigid(poses[:, :3], [f"{path}: pose {i}" for i in range(len(poses))])
    return poses[:, :3].astype(np.float32)
