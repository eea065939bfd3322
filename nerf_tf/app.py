"""The program: flags -> Scene -> networks -> train, or render."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags

from nerf_tf import config
from nerf_tf.data import blender, deepvoxels, llff
from nerf_tf.data.pipeline import ray_batches
from nerf_tf.data.scene import Scene
from nerf_tf.field.mlp import build_mlp
from nerf_tf.field.query import Field
from nerf_tf.geometry.camera import Camera
from nerf_tf.render import outputs
from nerf_tf.render.renderer import Image, Renderer
from nerf_tf.train import tf1_weights
from nerf_tf.train.checkpoint import CheckpointStore
from nerf_tf.train.metrics import psnr
from nerf_tf.train.trainer import Event, StepResult, Trainer, train

FLAGS = flags.FLAGS
logger = logging.getLogger(__name__)


class UserError(Exception):
    """Something that the user can mend; its text is the one line to print."""


@contextlib.contextmanager
def explained(*kinds: type[Exception]) -> Iterator[None]:
    """Turns errors that a block raises about its input into `UserError`."""
    try:
        yield
    except kinds as error:
        raise UserError(" ".join(str(error).split())) from error


def main(argv: Sequence[str]) -> int:
    """Runs the program on parsed flags, and returns its exit code."""
    del argv
    verbosity = FLAGS["verbosity"]
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.WARNING)  # TensorFlow's checkpoints chatter there
    tf.get_logger().setLevel(logging.ERROR)  # its warnings are for those who change the code
    if verbosity.present:
        logging.getLogger().setLevel(logging.getLevelName(verbosity.value) if isinstance(verbosity.value, str) else 20)
    for gpu in tf.config.list_physical_devices("GPU"):
        # TensorFlow would otherwise take the whole GPU at once, and leave nothing to measure.
        tf.config.experimental.set_memory_growth(gpu, True)
    try:
        run()
    except UserError as error:
        logger.error("nerf_tf: %s", error)
        return 1
    return 0


def run() -> None:
    """Loads what the flags name, then renders or trains."""
    run_folder = Path(FLAGS.basedir) / FLAGS.expname
    with explained(ValueError, OSError):
        scene = load_scene(FLAGS)
        trainer = build_trainer()
        store = CheckpointStore(trainer, run_folder / "checkpoints")
        restore(trainer, store, run_folder)
        render_poses = load_render_poses(scene)
        render_cameras = [camera.downscaled(max(FLAGS.render_factor, 1)) for camera in scene.cameras]
    renderer = Renderer(
        trainer.coarse, trainer.fine, config.render_settings(FLAGS, scene.ndc), scene.near, scene.far, scene.ndc
    )
    with explained(OSError):
        if FLAGS.render_only:
            render_only(scene, renderer, render_cameras, render_poses, run_folder, int(trainer.step.numpy()))
        else:
            train_run(scene, trainer, store, renderer, render_poses, run_folder)


def load_scene(values: flags.FlagValues) -> Scene:
    """The scene that the flags describe, with `--near` and `--far` applied."""
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


def build_trainer() -> Trainer:
    """Networks with fresh weights, and an optimizer for them."""
    seed = secrets.randbelow(2**31) if FLAGS.random_seed is None else FLAGS.random_seed
    logger.info("random_seed %d", seed)

    def field(fine: bool) -> Field:
        settings = config.field_settings(FLAGS, fine)
        return Field(build_mlp(settings, [seed, int(fine)]), settings, FLAGS.netchunk)

    fine = field(True) if FLAGS.N_importance > 0 else None
    ndc = FLAGS.dataset_type == "llff" and not FLAGS.no_ndc
    return Trainer(field(False), fine, config.render_settings(FLAGS, ndc), config.train_settings(FLAGS), seed)


def restore(trainer: Trainer, store: CheckpointStore, run_folder: Path) -> None:
    """Gives the trainer the weights that the original would start from, and where there is a checkpoint all the rest.

    That is `--ft_path`, or else the newest checkpoint or `model_*.npy` in the run's folder; nothing with `--no_reload`.
    """
    newest = tf1_weights.newest(run_folder)
    if FLAGS.no_reload or (FLAGS.ft_path is None and newest is None and store.newest is None):
        if FLAGS.render_only:
            raise ValueError(
                f"{run_folder}: no weights to render; train first, or give --ft_path (without --no_reload)"
            )
        return
    if FLAGS.ft_path is None and (newest is None or store.next_step > tf1_weights.step_of(newest)):
        store.restore()
        if FLAGS.random_seed is not None:
            trainer.seed.assign(FLAGS.random_seed)
        logger.info("%s: goes on at step %d, random_seed %d", store.newest, trainer.step.numpy(), trainer.seed.numpy())
        return
    path = Path(FLAGS.ft_path) if FLAGS.ft_path is not None else newest
    trainer.step.assign(tf1_weights.step_of(path) + 1)
    tf1_weights.assign(trainer.coarse.mlp, tf1_weights.load(path), path)
    if trainer.fine is not None:
        fine_path = tf1_weights.fine_path(path)
        tf1_weights.assign(trainer.fine.mlp, tf1_weights.load(fine_path), fine_path)
    logger.info("%s: weights; goes on at step %d", path, trainer.step.numpy())
    if FLAGS.ft_path is not None and store.next_step > trainer.step.numpy() and not FLAGS.render_only:
        logger.warning("--ft_path goes before the newer %s; leave it out to resume from there", store.newest)


def load_render_poses(scene: Scene) -> np.ndarray:
    """Poses [M, 3, 4] to render as the path: of `--render_path_file`, of the test views, or the scene's own.

    Raises:
        ValueError: the file does not hold M camera-to-world matrices.
    """
    if FLAGS.render_path_file is None:
        return scene.poses[scene.i_test] if FLAGS.render_test else scene.render_poses
    path = Path(FLAGS.render_path_file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --render_path_file takes an npy file of poses")
    try:
        poses = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not an npy file of plain numbers ({error})") from error
    if not isinstance(poses, np.ndarray) or poses.ndim != 3 or poses.shape[1:] not in [(3, 4), (4, 4)]:
        shape = poses.shape if isinstance(poses, np.ndarray) else "several arrays"
        raise ValueError(f"{path}: holds {shape}; --render_path_file takes poses of shape [M, 3, 4] or [M, 4, 4]")
    if poses.dtype.kind not in "fiu" or not len(poses) or not np.isfinite(poses).all():
        raise ValueError(f"{path}: poses must be finite numbers, and at least one")
    return poses[:, :3].astype(np.float32)


def render_only(
    scene: Scene,
    renderer: Renderer,
    cameras: Sequence[Camera],
    render_poses: np.ndarray,
    run_folder: Path,
    step: int,
) -> None:
    """Renders the test views or the path into `renderonly_{test,path}_{step:06d}`, the path with the first camera."""
    if FLAGS.render_test and FLAGS.render_path_file is None:
        folder = run_folder / f"renderonly_test_{step:06d}"
        frames = render_test_views(scene, renderer, cameras, folder, step)
    else:
        folder = run_folder / f"renderonly_path_{step:06d}"
        images = renderer.path([cameras[0]] * len(render_poses), render_poses, description="path")
        frames = outputs.write_views(folder, images, FLAGS.save_arrays)
    outputs.write_video(folder / "video.mp4", frames.rgb, FLAGS.fps)
    outputs.write_video(folder / "video_disp.mp4", outputs.normalised_disparity(frames.disp), FLAGS.fps)
    logger.info("%s", folder)


def render_test_views(
    scene: Scene, renderer: Renderer, cameras: Sequence[Camera], folder: Path, step: int
) -> outputs.Frames:
    """Renders the test views; at full size also compares them with the photos, in the log and in metrics.json."""
    photos = scene.images[scene.i_test]
    full_size = (cameras[0].height, cameras[0].width) == photos.shape[1:3]
    float_psnrs = []

    def compared() -> Iterator[Image]:
        test_cameras = [cameras[i] for i in scene.i_test]
        images = renderer.path(test_cameras, scene.poses[scene.i_test], description="test views")
        for image, photo in zip(images, photos, strict=True):
            if full_size:
                float_psnrs.append(psnr(image.rgb, photo))
            yield image

    start = time.perf_counter()
    frames = outputs.write_views(folder, compared(), FLAGS.save_arrays)
    if full_size:
        seconds = (time.perf_counter() - start) / len(photos)
        write_metrics(folder.parent / "metrics.json", frames, photos, float_psnrs, step, seconds)
    return frames


def write_metrics(
    path: Path, frames: outputs.Frames, photos: np.ndarray, float_psnrs: list[float], step: int, seconds: float
) -> None:
    """Writes PSNR of the test views: of the 8-bit images as saved, which is what the paper reports, and of floats."""
    psnrs = [
        psnr(frame, np.rint(255 * photo).astype(np.uint8)) for frame, photo in zip(frames.rgb, photos, strict=True)
    ]
    for view, (saved, exact) in enumerate(zip(psnrs, float_psnrs, strict=True)):
        logger.info("test view %03d: psnr %.3f (8-bit %.3f)", view, exact, saved)
    logger.info("mean of %d test views: psnr %.3f (8-bit %.3f)", len(psnrs), np.mean(float_psnrs), np.mean(psnrs))
    values = {
        "step": step,
        "views": len(psnrs),
        "height": photos.shape[1],
        "width": photos.shape[2],
        "white_bkgd": FLAGS.white_bkgd,
        "seconds_per_view": seconds,
        "psnr_8bit": {"mean": float(np.mean(psnrs)), "views": psnrs},
        "psnr_float": {"mean": float(np.mean(float_psnrs)), "views": float_psnrs},
    }
    outputs.write_text(path, json.dumps(values, indent=2) + "\n")


def train_run(
    scene: Scene,
    trainer: Trainer,
    store: CheckpointStore,
    renderer: Renderer,
    render_poses: np.ndarray,
    run_folder: Path,
) -> None:
    """Trains up to `--N_iters`, writing what the original writes, when it writes it."""
    start = int(trainer.step.numpy())
    if start >= FLAGS.N_iters:
        logger.info("%s is at step %d already; raise --N_iters to go on", FLAGS.expname, start)
        return
    with explained(ValueError):
        batches = ray_batches(scene, config.batch_settings(FLAGS), int(trainer.seed.numpy()), start)
    outputs.write_text(run_folder / "args.txt", config.args_text(FLAGS))
    if FLAGS.config is not None:
        outputs.write_text(run_folder / "config.txt", config.config_text(FLAGS))
    summaries = outputs.Summaries(Path(FLAGS.basedir) / "summaries" / FLAGS.expname)

    def report(step: int, result: StepResult, rays_per_second: float) -> None:
        summaries.histogram(step, "tran", result.sigma)
        summaries.scalars(
            step,
            loss=result.loss,
            psnr=result.psnr,
            psnr0=result.psnr0,
            learning_rate=result.learning_rate,
            rays_per_second=rays_per_second,
        )

    def save(step: int) -> None:
        tf1_weights.save(run_folder / f"model_{step:06d}.npy", trainer.coarse.mlp.get_weights())
        if trainer.fine is not None:
            tf1_weights.save(run_folder / f"model_fine_{step:06d}.npy", trainer.fine.mlp.get_weights())
        store.save()

    def holdout(step: int) -> None:
        view = int(np.random.default_rng([int(trainer.seed.numpy()), step]).choice(scene.i_val))
        image = renderer.image(scene.cameras[view], scene.poses[view])
        outputs.write_png(run_folder / "tboard_val_imgs" / f"{step:06d}.png", outputs.to_8bit(image.rgb))
        summaries.view(step, image, scene.images[view])
        summaries.scalars(step, psnr_holdout=psnr(image.rgb, scene.images[view]))

    def test_set(step: int) -> None:
        render_test_views(scene, renderer, scene.cameras, run_folder / f"testset_{step:06d}", step)

    def video(step: int) -> None:
        write_path_videos(scene, renderer, render_poses, run_folder / f"{FLAGS.expname}_spiral_{step:06d}")

    events = [
        Event(FLAGS.i_weights, save),
        Event(FLAGS.i_video, video, at_zero=False),
        Event(FLAGS.i_testset, test_set, at_zero=False),
        Event(FLAGS.i_img if len(scene.i_val) else 0, holdout),
    ]
    train(trainer, batches, FLAGS.N_iters, FLAGS.expname, FLAGS.i_print, report, events)
    last = FLAGS.N_iters - 1
    if not events[0].due(last):
        save(last)
    logger.info("%s: trained to step %d", run_folder, last)


def write_path_videos(scene: Scene, renderer: Renderer, poses: np.ndarray, stem: Path) -> None:
    """Writes `{stem}_rgb.mp4` and `{stem}_disp.mp4`; with viewdirs also `{stem}_rgb_still.mp4`.

    In the last the camera stands still at the path's first pose while view directions come from the moving one, so that
    whatever changes is view-dependent colour.
    """
    cameras = [scene.cameras[0]] * len(poses)
    frames = outputs.Frames([], [])
    for image in renderer.path(cameras, poses, description="path"):
        frames.rgb.append(outputs.to_8bit(image.rgb))
        frames.disp.append(image.disp)
    outputs.write_video(stem.with_name(f"{stem.name}_rgb.mp4"), frames.rgb, FLAGS.fps)
    outputs.write_video(stem.with_name(f"{stem.name}_disp.mp4"), outputs.normalised_disparity(frames.disp), FLAGS.fps)
    if FLAGS.use_viewdirs:
        still = renderer.path(cameras, np.repeat(poses[:1], len(poses), axis=0), poses, description="still path")
        outputs.write_video(
            stem.with_name(f"{stem.name}_rgb_still.mp4"), [outputs.to_8bit(image.rgb) for image in still], FLAGS.fps
        )
