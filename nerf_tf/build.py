"""Builds the parts of a run from its settings: scene, networks, renderer, starting weights."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import secrets
from pathlib import Path

import numpy as np
import tensorflow as tf

from nerf_tf import __version__, build_hash_grid, tensor_float
from nerf_tf.camera_paths import scene_paths
from nerf_tf.captures import transforms
from nerf_tf.data import blender, deepvoxels, llff
from nerf_tf.data.pipeline import BatchSettings
from nerf_tf.data.scene import Scene
from nerf_tf.distribution.packed_replicas import PackedReplicaTrainer
from nerf_tf.distribution.replicas import ReplicaTrainer
from nerf_tf.distribution.workers import Workers, find_cluster, mirrored, multi_worker
from nerf_tf.field.encoding import encoded_width
from nerf_tf.field.mlp import BOTTLENECK_WIDTH, FieldSettings, build_mlp, precision
from nerf_tf.field.query import Field
from nerf_tf.geometry.camera import Camera
from nerf_tf.hash_grid.packed_step import PackedTrainer
from nerf_tf.marching.occupancy import Occupancy
from nerf_tf.marching.visible_space import ray_box
from nerf_tf.memory import planning, prediction
from nerf_tf.render.passes import FieldFunction, RenderSettings
from nerf_tf.render.renderer import Renderer
from nerf_tf.safety import dataset_types, scene_checks, worker_checks
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import run_folder, tf1_weights
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.train.step import Trainer, falling_rate

logger = logging.getLogger(__name__)


@functools.cache
def set_up_tensorflow() -> None:
    """Makes TensorFlow take a GPU's memory only as needed; without effect once it has computed something."""
    for gpu in tf.config.list_physical_devices("GPU"):
        # By default TensorFlow takes the whole GPU at once, and leaves nothing to measure.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)


def load_scene(settings: Settings) -> Scene:
    """Loads the scene that `datadir` and `dataset_type` name, and warns where it makes no sense.

    `near` and `far`, if given, replace the scene's own.

    Returns:
        Photos [N, H, W, 3] in [0, 1], camera-to-world poses [N, 3, 4] in OpenGL axes, cameras, near and far, and the
        indices of training, validation and test views.

    Raises:
        ValueError, OSError: files are missing or wrong, or flags do not go with the scene.
    """
    scene = read_scene(settings)
    for warning in scene_checks.check_scene(scene, settings.datadir, settings.lindisp):
        logger.warning("%s", warning)
    return scene


def read_scene(settings: Settings) -> Scene:
    """Loads the scene as `load_scene` does, without its checks of what was loaded; errors are the same."""
    set_up_tensorflow()
    if not Path(settings.datadir).is_dir():
        raise FileNotFoundError(f"{settings.datadir}: no such folder; --datadir names the folder of the scene")
    dataset_types.require_type(Path(settings.datadir), settings.dataset_type)
    keep_alpha = settings.field == "hash_grid"
    if settings.dataset_type == "llff":
        scene = llff.load(settings.datadir, settings.factor, settings.spherify, settings.llffhold, settings.no_ndc)
    elif settings.dataset_type == "blender":
        scene = blender.load(settings.datadir, settings.half_res, settings.testskip, settings.white_bkgd, keep_alpha)
    elif settings.dataset_type == "transforms":
        scene = transforms.load(settings.datadir, settings.factor, settings.llffhold, settings.white_bkgd, keep_alpha)
    else:
        scene = deepvoxels.load(settings.datadir, settings.shape, settings.testskip)
    near = scene.near if settings.near is None else settings.near
    far = scene.far if settings.far is None else settings.far
    of_flags = [f"--{name}" for name in ("near", "far") if getattr(settings, name) is not None]
    if scene.ndc and of_flags:
        raise ValueError("--near and --far are distances, and NDC has none: its range is 0 to 1; add --no_ndc")
    if near >= far:
        raise ValueError(f"near {near:g} is not below far {far:g}: check --near and --far")
    if settings.lindisp and not scene.ndc and near <= 0:
        raise ValueError(f"--lindisp samples evenly in 1/t, which needs near > 0 (it is {near:g}): give --near")
    if near < 0:
        raise ValueError(f"near {near:g} is behind the cameras, which are closer to the scene than 1: give --near")
    wanting = [f"--{name}" for name in ("eval_only", "eval_folder", "render_test") if getattr(settings, name)]
    if wanting and not settings.training and not len(scene.i_test):
        raise ValueError(f"{settings.datadir}: no test views, which {wanting[0]} needs; name some as tests")
    if settings.field == "hash_grid" and settings.without_effect_on_hash_grid():
        names = ", ".join(f"--{name}" for name in settings.without_effect_on_hash_grid())
        logger.warning("no effect with --field=hash_grid: %s", names)
    for name in settings.without_effect():
        logger.warning("--%s has no effect on a %s scene; leave it out", name, settings.dataset_type)
    if settings.lindisp and scene.ndc:
        logger.warning("--lindisp has no effect under NDC, which is even in disparity; leave it out or add --no_ndc")
    logger.info(
        "%s %s: %d images of %dx%d (%d train, %d val, %d test), near %g, far %g%s%s",
        settings.dataset_type, settings.datadir, len(scene.images), *scene.images.shape[2:0:-1],
        len(scene.i_train), len(scene.i_val), len(scene.i_test), near, far,
        f" ({' and '.join(of_flags)} given)" if of_flags else "", ", NDC" if scene.ndc else "",
    )  # fmt: skip
    cameras = scene.cameras
    if settings.field == "hash_grid":
        # Photos show the centres of pixels. The original's rays go through corners, which only its networks must match.
        cameras = tuple(camera.through_pixel_centres() for camera in cameras)
    return dataclasses.replace(scene, near=near, far=far, cameras=cameras)


def view_camera(settings: Settings, camera: Camera) -> Camera:
    """The camera of a rendered view: a photo's camera at the size of views.

    That is `--render_width`; or, with `--render_only`, the photo's sides over `--render_factor`; or the photo's size.

    Raises:
        ValueError: nothing is left of an image.
    """
    through_centres = settings.field == "hash_grid"  # see `read_scene`
    if through_centres:
        camera = camera.through_pixel_corners()
    if settings.render_width is not None:
        camera = camera.resized(settings.render_width)
    elif settings.render_only:
        camera = camera.downscaled(max(settings.render_factor, 1))
    return camera.through_pixel_centres() if through_centres else camera


def load_render_poses(settings: Settings, scene: Scene) -> np.ndarray:
    """The path's poses [M, 3, 4]: of `--render_path_file`, the test views, or `--render_path`.

    Raises:
        ValueError, OSError: the file holds no path, or the scene has no such path.
    """
    if settings.render_path_file is not None:
        return scene_paths.read_path(Path(settings.render_path_file), settings.fps)
    if settings.render_test:
        return scene.poses[scene.i_test]
    return scene_paths.scene_path(scene, settings.render_path, settings.render_frames)


def trainer_for(settings: Settings, scene: Scene, seed: int | None = None) -> Trainer | PackedTrainer:
    """Builds the trainer of `--field` with fresh weights; `seed` as for `make_trainer`.

    Raises:
        ValueError: a hash grid needs another near.
    """
    if settings.field == "hash_grid":
        return build_hash_grid.make_trainer(settings, scene, _seed_of(settings) if seed is None else seed)
    return make_trainer(settings, scene.ndc, seed)


def replica_trainer(
    settings: Settings, scene: Scene, render_poses: np.ndarray, workers: Workers
) -> Trainer | ReplicaTrainer | PackedTrainer:
    """Builds what trains on the workers' devices: a trainer as `trainer_for`, or one on each device.

    Raises:
        ValueError: the workers have different flags, versions, photos or paths, or a step has too few rays for them.
    """
    if workers.strategy is None:
        return trainer_for(settings, scene)
    seed = worker_checks.agree(settings, scene, render_poses, __version__, _seed_of(settings), workers)
    if settings.training and settings.N_rand < workers.replicas:
        raise ValueError(f"--N_rand={settings.N_rand} rays are too few for {workers.replicas} devices; raise it")
    kind = PackedReplicaTrainer if settings.field == "hash_grid" else ReplicaTrainer
    return kind(workers.strategy, lambda: trainer_for(settings, scene, seed))


def find_workers(settings: Settings) -> Workers:
    """Finds the devices and processes that `--distribute` names, and sets TensorFlow up.

    Raises:
        ValueError: there is no such cluster.
    """
    kind = settings.distribute if settings.eval_folder is None else "none"
    resolver = find_cluster(os.environ) if kind == "multi_worker" else None  # under Slurm this chooses the GPUs
    set_up_tensorflow()
    if resolver is not None:
        return multi_worker(resolver)
    several = len(tf.config.list_physical_devices("GPU")) > 1
    return mirrored() if kind == "mirrored" or (kind == "auto" and several) else Workers()


def make_trainer(settings: Settings, ndc: bool, seed: int | None = None) -> Trainer:
    """Builds fresh networks and their optimizer; `seed` defaults to `--random_seed` or a new one.

    Turns TensorFloat-32 on or off for the process, as the settings say.

    Raises:
        ValueError: the settings ask for another kind of field.
    """
    if settings.field != "mlp":
        raise ValueError(f"--field={settings.field}: this is about the paper's networks; add --field=mlp")
    set_up_tensorflow()
    tensor_float.use(settings.mixed_precision == "tf32")
    seed = _seed_of(settings) if seed is None else seed
    layer_type = "float32" if settings.mixed_precision == "tf32" else settings.mixed_precision
    compiled = settings.jit_compile == "true" or (settings.jit_compile == "auto" and planning.has_gpu())

    def field(fine: bool) -> Field:
        own = field_settings(settings, fine)
        mlp = build_mlp(own, [seed, int(fine)], layer_type)
        return Field(mlp, own, prediction.LARGEST_TILE, compiled=compiled)

    fine = field(True) if settings.N_importance > 0 else None
    rate = falling_rate(settings.lrate, settings.lrate_decay)
    return Trainer(field(False), fine, render_settings(settings, ndc), rate, seed)


def _seed_of(settings: Settings) -> int:
    return secrets.randbelow(2**31) if settings.random_seed is None else settings.random_seed


def start_over(settings: Settings, scene: Scene, trainer: Trainer | PackedTrainer) -> None:
    """Resets the trainer to fresh weights of the next seed, and counts the restart."""
    restarts = int(trainer.counts.numpy()[-1]) + 1
    trainer.copy_state_from(trainer_for(settings, scene, _next_seed(int(trainer.seed.numpy()), 1)), restarts)


def _next_seed(seed: int, times: int) -> int:
    return (seed + times) % 2**32  # what --random_seed takes


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
        parts=trainer.parts if training else 1,
    )


def plan_training(settings: Settings, trainer: Trainer | ReplicaTrainer | PackedTrainer) -> planning.OnOutOfMemory:
    """Gives the trainer the chunk and netchunk that the settings ask for; returns what plans smaller ones.

    Raises:
        ValueError: `--memory_budget_mb` is too little for a step.
    """
    if settings.field == "hash_grid":
        return functools.partial(planning.give_up, f"{settings.grid_slots} samples in a step; lower --grid_slots")
    rays = settings.N_rand
    if isinstance(trainer, ReplicaTrainer):
        rays = trainer.rays_of_replica(rays)
    work = workload(trainer, True, rays)
    planned = planning.MemoryPlanner(work, settings.chunk, settings.netchunk, settings.memory_budget_mb)
    trainer.resize(planned.plan.chunk, planned.plan.netchunk)
    return planned.on_out_of_memory


def make_renderers(
    settings: Settings, scene: Scene, trainer: Trainer | ReplicaTrainer | PackedTrainer, workers: Workers
) -> list[Renderer]:
    """Builds a renderer for each of this process's devices; errors as for `make_renderer`."""
    if not isinstance(trainer, ReplicaTrainer):
        return [make_renderer(settings, scene, trainer)]
    renderers = []
    for device, own in trainer.by_device:
        with tf.device(device):
            renderers.append(make_renderer(settings, scene, own, workers.is_chief))
    return renderers


def make_renderer(
    settings: Settings, scene: Scene, trainer: Trainer | PackedTrainer, keeps_occupancy: bool = True
) -> Renderer:
    """Builds the renderer of the trainer's field.

    `keeps_occupancy` is whether the grid of `--occupancy` is kept in a file of the run's folder.

    Raises:
        ValueError: `--memory_budget_mb` is too little to render in.
    """
    if isinstance(trainer, PackedTrainer):
        return build_hash_grid.make_renderer(settings, scene, trainer)
    views = (scene.cameras[0], view_camera(settings, scene.cameras[0]))
    work = workload(trainer, False, max(view.height * view.width for view in views))
    planned = planning.MemoryPlanner(work, settings.chunk, settings.netchunk, settings.memory_budget_mb)
    rendering = render_settings(settings, scene.ndc)

    networks = [field for field in (trainer.coarse, trainer.fine) if field is not None]
    path = settings.folder / "occupancy.npz" if keeps_occupancy else None
    occupancy = Occupancy(ray_box(scene), path, len(networks)) if settings.occupancy else None

    def in_tiles(plan: prediction.Plan) -> list[FieldFunction]:
        return [dataclasses.replace(field, netchunk=plan.netchunk) for field in networks]

    def sized(plan: prediction.Plan) -> tuple[FieldFunction, FieldFunction | None, RenderSettings]:
        fields, compiled = in_tiles(plan), trainer.coarse.compiled
        if occupancy is not None:
            fields = occupancy.restrict(fields, plan.netchunk if compiled else None)
        return fields[0], fields[1] if len(fields) > 1 else None, dataclasses.replace(rendering, chunk=plan.chunk)

    def prepare() -> None:
        occupancy.update(in_tiles(planned.plan), [field.mlp.get_weights() for field in networks])

    return Renderer(
        *sized(planned.plan),
        scene.near,
        scene.far,
        scene.ndc,
        lambda error: sized(planned.on_out_of_memory(error)),
        prepare if settings.occupancy else None,
        scene.unit,
        trainer.coarse.compiled,
    )


def load_weights(trainer: Trainer | PackedTrainer, path: Path) -> None:
    """Loads weights into the networks: of a coarse `.npy` file, and of the fine one beside it.

    Raises:
        ValueError, OSError: a file is missing, is no weight file, or belongs to another network.
    """
    tf1_weights.assign(trainer.coarse.mlp, tf1_weights.load(path), path)
    if trainer.fine is not None:
        fine_path = tf1_weights.fine_path(path)
        tf1_weights.assign(trainer.fine.mlp, tf1_weights.load(fine_path), fine_path)


def restored_trainer(settings: Settings, scene: Scene) -> Trainer | PackedTrainer:
    """Networks with the weights that the settings name, see `restore`.

    Raises:
        ValueError, OSError: there are none, or they belong to other networks.
    """
    trainer = trainer_for(settings, scene)
    restore(settings, trainer, CheckpointStore(trainer.state, settings.folder / run_folder.CHECKPOINTS))
    return trainer


def restore(settings: Settings, trainer: Trainer | PackedTrainer, store: CheckpointStore) -> None:
    """Loads what the run starts from into the trainer.

    That is `--ft_path`; else the newest checkpoint in the run's folder, with the optimizer's state; else the newest
    `model_*.npy` there, as the original does; nothing with `--no_reload`. Where `--config` is the run's own args.txt,
    its `ft_path` and `no_reload` say how the run began and are not applied again once it has a checkpoint.

    Raises:
        ValueError, OSError: there are no weights to render, or a file is missing, damaged or of other networks.
    """
    folder = settings.folder
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
            logger.warning("%s holds an earlier run, up to %s; this run replaces its files", folder, there.name)
    elif ft_path is None and store.newest is not None:
        path = store.restore()
        if settings.random_seed is not None:
            # A run that has started over since has another one.
            trainer.seed.assign(_next_seed(settings.random_seed, int(trainer.counts.numpy()[-1])))
        logger.info("%s: continues at step %d", path, trainer.step.numpy())
    else:
        path = newest if ft_path is None else Path(ft_path)
        run_folder.require_coarse_weights(path)
        trainer.step.assign(tf1_weights.step_of(path) + 1)
        load_weights(trainer, path)
        logger.info("%s: weights; continues at step %d", path, trainer.step.numpy())
        if store.newest is not None and settings.training:
            logger.warning("--ft_path goes before %s; leave it out to resume from there", store.newest)
    logger.info("random_seed %d", trainer.seed.numpy())


def field_settings(settings: Settings, fine: bool) -> FieldSettings:
    """The shape of the coarse or the fine network."""
    encoded = settings.i_embed == 0
    return FieldSettings(
        depth=settings.netdepth_fine if fine else settings.netdepth,
        width=settings.netwidth_fine if fine else settings.netwidth,
        multires=settings.multires if encoded else 0,
        multires_views=settings.multires_views if encoded else 0,
        use_viewdirs=settings.use_viewdirs,
    )


def render_settings(settings: Settings, ndc: bool) -> RenderSettings:
    """How rays are sampled and composited.

    Under NDC `lindisp` has no effect: t is even in disparity already. With `--chunk auto` the chunk is the default one
    until memory is planned.
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
    """Which rays a training batch holds."""
    return BatchSettings(
        N_rand=settings.N_rand,
        no_batching=settings.no_batching,
        precrop_iters=settings.precrop_iters,
        precrop_frac=settings.precrop_frac,
    )
