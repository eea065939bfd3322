"""From flags to the parts of a run: folders, scene, networks, what renders them, weights to start from."""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
from pathlib import Path

import numpy as np
import tensorflow as tf

from nerf_tf.data import blender, deepvoxels, llff, render_path
from nerf_tf.data.pipeline import BatchSettings
from nerf_tf.data.scene import Scene
from nerf_tf.field.encoding import encoded_width
from nerf_tf.field.mlp import BOTTLENECK_WIDTH, FieldSettings, build_mlp, precision
from nerf_tf.field.query import Field
from nerf_tf.geometry.rays import finish_rays, pixel_rays
from nerf_tf.memory import planning, prediction
from nerf_tf.output.curve import summaries_folder
from nerf_tf.render.occupancy import Box, Occupancy
from nerf_tf.render.passes import FieldFunction, RenderSettings
from nerf_tf.render.renderer import Renderer
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import tf1_weights
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.train.step import Trainer, TrainSettings

logger = logging.getLogger(__name__)

LONGEST_NAME = 255  # bytes, wherever anybody keeps files


def check_folders(settings: Settings) -> None:
    """Finds out before any work is done, and without writing, whether a run's folders can be made.

    Raises:
        ValueError: checkpoints in it could be written, and not read again; or the run's name is too long.
        OSError: something else has the name of one, or there is no permission to make it.
    """
    run = settings.folder
    if settings.training and "[" in str(run):
        raise ValueError(
            f"{run}: TensorFlow finds no checkpoint under a name with [ in it; give another --expname or --basedir"
        )
    if len(os.fsencode(run.name)) > LONGEST_NAME:
        raise ValueError(
            f"--expname has {len(os.fsencode(run.name))} bytes; a folder's name has {LONGEST_NAME} at most"
        )
    for folder in (run / "checkpoints", summaries_folder(run)) if settings.training else (run,):
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise NotADirectoryError(f"{there}: is no folder, and a run needs one of that name (--basedir, --expname)")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"{there}: nothing can be written there; give another --basedir")


def load_scene(settings: Settings) -> Scene:
    """The scene that the flags describe, with `--near` and `--far` applied."""
    if not Path(settings.datadir).is_dir():
        raise FileNotFoundError(f"{settings.datadir}: no such folder; --datadir names the folder of the scene")
    if settings.dataset_type == "llff":
        scene = llff.load(settings.datadir, settings.factor, settings.spherify, settings.llffhold, settings.no_ndc)
    elif settings.dataset_type == "blender":
        scene = blender.load(settings.datadir, settings.half_res, settings.testskip, settings.white_bkgd)
    else:
        scene = deepvoxels.load(settings.datadir, settings.shape, settings.testskip)
    near = scene.near if settings.near is None else settings.near
    far = scene.far if settings.far is None else settings.far
    if scene.ndc and (settings.near is not None or settings.far is not None):
        raise ValueError("--near and --far are distances, and NDC has none: its range is 0 to 1; add --no_ndc")
    if near >= far:
        raise ValueError(f"near {near:g} is not below far {far:g}: check --near and --far")
    if settings.lindisp and not scene.ndc and near <= 0:
        raise ValueError(f"--lindisp samples evenly in 1/t, which needs near > 0 (it is {near:g}): give --near")
    if near < 0:
        raise ValueError(f"near {near:g} is behind the cameras, which are closer to the scene than 1: give --near")
    height, width = scene.images.shape[1:3]
    logger.info(
        "%s %s: %d images of %dx%d (%d train, %d val, %d test), near %g, far %g%s",
        settings.dataset_type, settings.datadir, len(scene.images), width, height,
        len(scene.i_train), len(scene.i_val), len(scene.i_test), near, far, ", NDC" if scene.ndc else "",
    )  # fmt: skip
    return dataclasses.replace(scene, near=near, far=far)


def load_render_poses(settings: Settings, scene: Scene) -> np.ndarray:
    """Poses [M, 3, 4] to render as the path: of `--render_path_file`, of the test views, or of `--render_path`.

    Raises:
        ValueError, OSError: the file holds no path, or the scene has no such path.
    """
    if settings.render_path_file is not None:
        return render_path.read_path(Path(settings.render_path_file), settings.fps)
    if settings.render_test:
        return scene.poses[scene.i_test]
    return render_path.scene_path(scene, settings.render_path, settings.render_frames)


def make_trainer(settings: Settings, ndc: bool, seed: int | None = None) -> Trainer:
    """Networks with fresh weights, and an optimizer for them; without a seed `--random_seed` or a new one counts."""
    if seed is None:
        seed = secrets.randbelow(2**31) if settings.random_seed is None else settings.random_seed
    compiled = settings.jit_compile == "true" or (settings.jit_compile == "auto" and planning.has_gpu())

    def field(fine: bool) -> Field:
        own = field_settings(settings, fine)
        mlp = build_mlp(own, [seed, int(fine)], settings.mixed_precision)
        return Field(mlp, own, prediction.LARGEST_TILE, compiled=compiled)

    fine = field(True) if settings.N_importance > 0 else None
    return Trainer(field(False), fine, render_settings(settings, ndc), train_settings(settings), seed)


def start_over(settings: Settings, trainer: Trainer) -> None:
    """Makes the trainer what a new one with the next seed is, but for the count of restarts."""
    restarts = int(trainer.counts.numpy()[-1]) + 1
    trainer.become(make_trainer(settings, False, _next_seed(int(trainer.seed.numpy()), 1)), restarts)


def _next_seed(seed: int, times: int) -> int:
    return (seed + times) % 2**32  # what --random_seed takes


def make_memory(settings: Settings, trainer: Trainer, training: bool, rays: int) -> planning.Memory:
    """The memory plan of training steps, or of rendering views, of so many rays.

    Raises:
        ValueError: `--memory_budget_mb` is too little for it.
    """
    return planning.Memory(
        workload(trainer, training, rays), settings.chunk, settings.netchunk, settings.memory_budget_mb
    )


def workload(trainer: Trainer, training: bool, rays: int) -> prediction.Workload:
    """What the memory of training steps or of rendering depends on, but for chunk and netchunk."""

    def shape(field: Field) -> prediction.NetworkShape:
        own = field.settings
        viewdirs = encoded_width(3, own.multires_views) if own.use_viewdirs else 0
        points = encoded_width(3, own.multires)
        weights = field.mlp.count_params()
        return prediction.NetworkShape(own.depth, own.width, points, viewdirs, BOTTLENECK_WIDTH, weights)

    return prediction.Workload(
        training=training,
        rays=rays,
        N_samples=trainer.rendering.N_samples,
        N_importance=trainer.rendering.N_importance,
        coarse=shape(trainer.coarse),
        fine=trainer.fine and shape(trainer.fine),
        value_bytes=tf.as_dtype(precision(trainer.coarse.mlp)).size,
        compiled=trainer.coarse.compiled,
    )


def plan_training(settings: Settings, trainer: Trainer) -> planning.Memory:
    """Gives the trainer the chunk and netchunk that the settings ask for; returns their plan.

    Raises:
        ValueError: `--memory_budget_mb` is too little for a step.
    """
    planned = make_memory(settings, trainer, training=True, rays=settings.N_rand)
    trainer.resize(planned.plan.chunk, planned.plan.netchunk)
    return planned


def make_renderer(settings: Settings, scene: Scene, trainer: Trainer) -> Renderer:
    """What renders the trainer's networks.

    Raises:
        ValueError: `--memory_budget_mb` is too little for it.
    """
    height, width = scene.images.shape[1:3]
    planned = make_memory(settings, trainer, training=False, rays=height * width)
    rendering = render_settings(settings, scene.ndc)

    networks = [field for field in (trainer.coarse, trainer.fine) if field is not None]
    occupancy = (
        Occupancy(ray_box(scene), settings.folder / "occupancy.npz", len(networks)) if settings.occupancy else None
    )

    def in_tiles(plan: prediction.Plan) -> list[FieldFunction]:
        return [dataclasses.replace(field, netchunk=plan.netchunk) for field in networks]

    def sized(plan: prediction.Plan) -> tuple[FieldFunction, FieldFunction | None, RenderSettings]:
        fields = in_tiles(plan) if occupancy is None else occupancy.restrict(in_tiles(plan))
        return fields[0], fields[1] if len(fields) > 1 else None, dataclasses.replace(rendering, chunk=plan.chunk)

    def prepare() -> None:
        occupancy.update(in_tiles(planned.plan), [field.mlp.get_weights() for field in networks])

    return Renderer(
        *sized(planned.plan),
        scene.near,
        scene.far,
        scene.ndc,
        lambda error: sized(planned.give_way(error)),
        prepare if settings.occupancy else None,
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


def load_weights(trainer: Trainer, path: Path) -> None:
    """Gives the networks the weights of a coarse `.npy` file, and of the fine one that is found beside it by name.

    Raises:
        ValueError, OSError: a file is missing, is none, or belongs to another network.
    """
    tf1_weights.assign(trainer.coarse.mlp, tf1_weights.load(path), path)
    if trainer.fine is not None:
        fine_path = tf1_weights.fine_path(path)
        tf1_weights.assign(trainer.fine.mlp, tf1_weights.load(fine_path), fine_path)


def restore(settings: Settings, trainer: Trainer, store: CheckpointStore, folder: Path) -> None:
    """Gives the trainer the weights that the original would start from, and where there is a checkpoint all the rest.

    That is `--ft_path`, or else the newest checkpoint in the run's folder, or else, in a folder that the original
    wrote, the newest `model_*.npy`; nothing with `--no_reload`. Given back as `--config`, a run's own args.txt says how
    it began, and not where it goes on: from its checkpoint, if it has one.
    """
    newest = tf1_weights.newest(folder)
    own = settings.config is not None and Path(settings.config).resolve() == (folder / "args.txt").resolve()
    ft_path, no_reload = (
        None if own and store.newest is not None and name not in settings.from_command_line else getattr(settings, name)
        for name in ("ft_path", "no_reload")
    )
    if no_reload or (ft_path is None and newest is None and store.newest is None):
        if not settings.training:
            raise ValueError(f"{folder}: no weights to render; train first, or give --ft_path (without --no_reload)")
        for there in filter(None, (newest, store.newest)):
            logger.warning("%s holds an earlier run, up to %s: its files make room for this one's", folder, there.name)
    elif ft_path is None and store.newest is not None:
        path = store.restore()
        if settings.random_seed is not None:
            # A run that has started over since has another one.
            trainer.seed.assign(_next_seed(settings.random_seed, int(trainer.counts.numpy()[-1])))
        logger.info("%s: goes on at step %d", path, trainer.step.numpy())
    else:
        path = newest if ft_path is None else Path(ft_path)
        trainer.step.assign(tf1_weights.step_of(path) + 1)
        load_weights(trainer, path)
        logger.info("%s: weights; goes on at step %d", path, trainer.step.numpy())
        if store.newest is not None and settings.training:
            logger.warning("--ft_path goes before %s; leave it out to resume from there", store.newest)
    logger.info("random_seed %d", trainer.seed.numpy())


def field_settings(settings: Settings, fine: bool) -> FieldSettings:
    """Shape of the coarse or the fine network."""
    encoded = settings.i_embed == 0
    return FieldSettings(
        depth=settings.netdepth_fine if fine else settings.netdepth,
        width=settings.netwidth_fine if fine else settings.netwidth,
        multires=settings.multires if encoded else 0,
        multires_views=settings.multires_views if encoded else 0,
        use_viewdirs=settings.use_viewdirs,
    )


def render_settings(settings: Settings, ndc: bool) -> RenderSettings:
    """How rays become colours; `lindisp` has no effect under NDC, where t is even in disparity already.

    With `--chunk auto` the chunk is the default one until there is a plan.
    """
    chunk = {} if settings.chunk == "auto" else {"chunk": settings.chunk}
    return RenderSettings(
        N_samples=settings.N_samples,
        N_importance=settings.N_importance,
        perturb=settings.perturb,
        raw_noise_std=settings.raw_noise_std,
        white_bkgd=settings.white_bkgd,
        lindisp=settings.lindisp and not ndc,
        **chunk,
    )


def batch_settings(settings: Settings) -> BatchSettings:
    """Which rays make a training batch."""
    return BatchSettings(
        N_rand=settings.N_rand,
        no_batching=settings.no_batching,
        precrop_iters=settings.precrop_iters,
        precrop_frac=settings.precrop_frac,
    )


def train_settings(settings: Settings) -> TrainSettings:
    """How weights move."""
    return TrainSettings(lrate=settings.lrate, lrate_decay=settings.lrate_decay)
