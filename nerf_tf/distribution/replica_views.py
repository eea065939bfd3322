"""Views rendered by all replicas, in rounds: in each of them every replica renders one view.

Replica i of n renders views i, n + i, 2 n + i, ... with its own copy of the weights. Processes exchange pixels by the
strategy's all-gather, so they need no common folder, and a lost worker is noticed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from nerf_tf.distribution.workers import Workers
from nerf_tf.geometry.camera import Camera
from nerf_tf.render.renderer import Image, Renderer

# Fields of an `Image` that are written besides its colours.
MAPS = ("disp", "acc", "depth", "depth_ray", "depth_z")


class Views(NamedTuple):
    """Views to render.

    Attributes:
        cameras: M cameras, with images of one size.
        poses: [M, 3, 4] their poses.
        poses_viewdirs: [M, 3, 4] poses for the view directions; None: `poses`.
        description: text of the progress bar.
    """

    cameras: Sequence[Camera]
    poses: np.ndarray
    poses_viewdirs: np.ndarray | None = None
    description: str = "path"


class NotWritten(OSError):
    """The chief cannot write views, so that the others need not render them."""


@contextlib.contextmanager
def rendered_by_all(
    views: Views, renderers: Sequence[Renderer], workers: Workers, agree: Callable[[bool], None]
) -> Iterator[Iterator[Image]]:
    """Yields the rendered views in order; all workers enter this, and iterate, with equal views.

    Args:
        renderers: one for each of this worker's devices, with equal weights.
        agree: called by all workers before each round and after the last, with whether this one had an OSError in the
            block, which training survives. If the chief had one, it raises `NotWritten` on the others. It may raise
            other errors on all.
    """
    count, replicas, devices = len(views.cameras), workers.replicas, workers.devices
    sizes = [camera.height * camera.width for camera in views.cameras]

    def render(renderer: Renderer, device: str | None, i: int, progress: Callable[[int], object]) -> Image:
        with tf.device(device):
            viewdirs = None if views.poses_viewdirs is None else views.poses_viewdirs[i]
            return renderer.image(views.cameras[i], views.poses[i], viewdirs, progress)

    def rounds(pool: concurrent.futures.Executor) -> Iterator[Image]:
        """Renders a view on each device at a time; yields those of all workers."""
        for renderer, device in zip(renderers, devices, strict=True):
            if renderer.prepare is not None:  # one after the other, as they share a file
                with tf.device(device):
                    renderer.prepare()
        how = {"unit": "ray", "unit_scale": True, "dynamic_ncols": True, "disable": not workers.is_chief}
        with tqdm(total=sum(sizes), desc=views.description, **how) as bar:
            lock = threading.Lock()

            def progress(rays: int) -> None:
                """Shows how many rays this worker has rendered."""
                with lock:
                    bar.update(rays)

            for first in range(0, count, replicas):
                agree(False)
                last = min(first + replicas, count)
                bar.set_postfix_str(f"views {first + 1} to {last} of {count}", refresh=False)
                # Without enough views for all, the last one is rendered again: all workers must send equally much.
                own = np.minimum(first + workers.index * len(devices) + np.arange(len(devices)), count - 1)
                images = list(pool.map(render, renderers, devices, own, [progress] * len(own)))
                images = _images_of_all(images, workers)
                bar.update(sum(sizes[:last]) - bar.n)
                yield from images[: last - first]

    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        try:
            yield rounds(pool)
        except NotWritten:
            raise
        except OSError:
            agree(True)
            raise
        agree(False)


def _images_of_all(images: list[Image], workers: Workers) -> list[Image]:
    """Returns the images of all workers, by worker; with several, without the fields of the coarse pass."""
    if workers.count == 1:
        return images
    maps = [np.stack([getattr(image, name) for name in MAPS], axis=-1) for image in images]
    pixels = np.concatenate([[image.rgb for image in images], maps], axis=-1)  # [images, H, W, 8]
    gathered = workers.gather_pixels(pixels.reshape(-1)).reshape(-1, *pixels.shape[1:])
    # Copied, so that each lies in memory as a rendered one does: sums over it then round alike.
    return [
        Image(each[..., :3].copy(), **dict(zip(MAPS, np.moveaxis(each[..., 3:], -1, 0).copy(), strict=True)))
        for each in gathered
    ]
