"""Makes an endless tf.data stream of ray batches from a scene's training photos.

Each batch is a pure function of (seed, step), so there is no iterator state to save: a stream that starts at step n
gives the same batches from there on as one that started at step 0.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nerf_tf.data.scene import Scene
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import Rays, finish_rays, pixel_rays
from nerf_tf.storage.tensor_memory import shared_tensor

# With its default of 4 rounds the shuffle's successive indices are visibly correlated.
SHUFFLE_ROUNDS = 8
# Purposes of random draws; each has its own seed.
EPOCH, IMAGE, PIXELS = range(3)


class RayBatch(NamedTuple):
    """Rays and the colours of their pixels.

    Attributes:
        rays: [N_rand, ...].
        rgb: [N_rand, 3] in [0, 1].
    """

    rays: Rays
    rgb: tf.Tensor


class AlphaRayBatch(NamedTuple):
    """A `RayBatch` of a scene with alphas.

    Attributes:
        rays, rgb: as there; rgb is composited on white.
        alpha: [N_rand, 1] in [0, 1].
    """

    rays: Rays
    rgb: tf.Tensor
    alpha: tf.Tensor


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """Which rays make a batch.

    Attributes:
        N_rand: rays in a batch.
        no_batching: take each batch from one random image, rather than from all of them.
        precrop_iters: with `no_batching`, number of first steps that draw from the centre of images only.
        precrop_frac: the part of each side that counts as the centre.
    """

    N_rand: int = 4096
    no_batching: bool = False
    precrop_iters: int = 0
    precrop_frac: float = 0.5


def ray_batches(scene: Scene, settings: BatchSettings, seed: int, first_step: int = 0) -> tf.data.Dataset:
    """Makes batches for steps first_step, first_step + 1, ...

    By default a batch holds rays of all training images; every ray comes once in an epoch, in an order keyed by
    (seed, epoch), and the short last batch of an epoch is dropped. With `no_batching` it holds different pixels of one
    random training image. Where the scene has masks, only pixels within them are drawn.

    Args:
        scene: the photos; those in i_train are used.
        seed: whole number >= 0 that decides every draw.
        first_step: the step of the first batch.

    Returns:
        An endless dataset of `RayBatch` with static shapes, prefetched; of `AlphaRayBatch` if the scene has alphas.

    Raises:
        ValueError: there are no training images, or fewer pixels to draw from than N_rand.
    """
    if len(scene.i_train) == 0:
        raise ValueError("the scene has no training images: nothing is left after the test views are held out")
    height, width = scene.images.shape[1:3]
    choose = _choose_from_one_image if settings.no_batching else _choose_from_all_images
    with tf.device("CPU:0"):  # tf.data runs on the host
        masks = None if scene.masks is None else scene.masks[scene.i_train]
        choose_rays = choose(len(scene.i_train), height, width, settings, tf.constant([seed, 0], tf.int64), masks)
        images = shared_tensor(scene.images)
        alphas = None if scene.alphas is None else shared_tensor(scene.alphas)
        views, poses = tf.constant(scene.i_train), tf.constant(scene.poses)
        intrinsics = tf.constant([[c.fx, c.fy, c.cx, c.cy] for c in scene.cameras], tf.float32)

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and finding that out takes a second
    def make_batch(step: tf.Tensor) -> RayBatch | AlphaRayBatch:
        """Makes the batch of a step."""
        image, row, col = choose_rays(step)
        view = tf.gather(views, image)
        camera = Camera(height, width, *tf.unstack(tf.gather(intrinsics, view), axis=-1))
        rays = finish_rays(
            camera, *pixel_rays(camera, tf.gather(poses, view), row, col), scene.near, scene.far, scene.ndc
        )
        pixels = tf.stack([view, row, col], axis=-1)
        batch = RayBatch(rays, tf.gather_nd(images, pixels))
        if alphas is not None:
            batch = AlphaRayBatch(*batch, tf.gather_nd(alphas, pixels)[:, None])
        return tf.nest.map_structure(lambda x: tf.ensure_shape(x, [settings.N_rand, x.shape[-1]]), batch)

    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False  # they copy the photos
    steps = tf.data.Dataset.range(first_step, np.iinfo(np.int64).max).with_options(options)
    # A batch takes milliseconds: two at a time keep ahead of training steps, and more would take their cores.
    batches = steps.map(make_batch, num_parallel_calls=2, deterministic=True)
    if tf.config.list_physical_devices("GPU"):
        return batches.apply(tf.data.experimental.prefetch_to_device("GPU:0", buffer_size=2))
    return batches.prefetch(tf.data.AUTOTUNE)


def _shuffled(index: tf.Tensor, key: tf.Tensor, purpose: int, round_: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Returns where `index`, in 0 .. count - 1, lands in the permutation keyed by (key, purpose, round_)."""
    seed = tf.random.fold_in(tf.random.fold_in(key, purpose), round_)
    # The shuffle mixes keys badly: with consecutive keys, as `fold_in` makes them, it sends an index to some places
    # far more often than to others. Three random words drawn from such a key have no such bias.
    seed = tf.random.stateless_uniform([3], seed, minval=None, maxval=None, dtype=tf.int32)
    return tf.raw_ops.RandomIndexShuffle(
        index=index, seed=seed, max_index=tf.cast(count - 1, index.dtype), rounds=SHUFFLE_ROUNDS
    )


def _choose_from_all_images(
    images: int, height: int, width: int, settings: BatchSettings, key: tf.Tensor, masks: np.ndarray | None
):
    kept = None if masks is None else tf.constant(np.flatnonzero(masks))
    total = images * height * width if kept is None else len(kept)
    batches = total // settings.N_rand
    if batches == 0:
        raise ValueError(f"N_rand {settings.N_rand} is more than the {total} rays of all training images; lower N_rand")

    def choose(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Chooses the rays of a step: image, row and column of each, [N_rand]."""
        epoch, batch = step // batches, step % batches
        index = batch * settings.N_rand + tf.range(settings.N_rand, dtype=tf.int64)
        ray = _shuffled(index, key, EPOCH, epoch, total)
        ray = ray if kept is None else tf.gather(kept, ray)
        image, pixel = ray // (height * width), ray % (height * width)
        return image, pixel // width, pixel % width

    return choose


def _choose_from_one_image(
    images: int, height: int, width: int, settings: BatchSettings, key: tf.Tensor, masks: np.ndarray | None
):
    half_rows, half_cols = int(height // 2 * settings.precrop_frac), int(width // 2 * settings.precrop_frac)
    centre = np.zeros([height, width], bool)
    centre[height // 2 - half_rows :, width // 2 - half_cols :][: 2 * half_rows, : 2 * half_cols] = True
    whole = np.ones([1, height, width], bool) if masks is None else masks  # without masks one for all images
    crops = [("an image", "", whole)]
    if settings.precrop_iters > 0:
        crops.append(("the centre crop", ", or raise precrop_frac", whole & centre))
    within, kept = "" if masks is None else " within its mask", []
    for name, remedy, crop in crops:
        pixels = [np.flatnonzero(mask) for mask in crop]
        if settings.N_rand > (fewest := min(map(len, pixels))):
            raise ValueError(
                f"N_rand {settings.N_rand} is more than the {fewest} pixels of {name}{within}; lower N_rand{remedy}"
            )
        kept += pixels
    counts = tf.constant([len(pixels) for pixels in kept], tf.int64)
    firsts, kept = tf.cumsum(counts, exclusive=True), tf.constant(np.concatenate(kept))

    def choose(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Chooses the rays of a step: their image, and row and column of each, [N_rand]."""
        image_seed = tf.random.fold_in(tf.random.fold_in(key, IMAGE), step)
        image = tf.random.stateless_uniform([], image_seed, maxval=images, dtype=tf.int64)
        entry = tf.where(step < settings.precrop_iters, np.int64(len(whole)), np.int64(0))
        entry += tf.minimum(image, len(whole) - 1)
        index = _shuffled(tf.range(settings.N_rand, dtype=tf.int64), key, PIXELS, step, tf.gather(counts, entry))
        pixel = tf.gather(kept, tf.gather(firsts, entry) + index)
        return tf.fill([settings.N_rand], image), pixel // width, pixel % width

    return choose
