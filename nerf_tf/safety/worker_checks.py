"""Checks that all workers train the same run, and reports a lost worker."""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from nerf_tf.data.scene import Scene
from nerf_tf.distribution.workers import Workers
from nerf_tf.settings.options import OPTIONS
from nerf_tf.settings.settings import Settings

# Flags that may differ between machines: where files are, and what a machine can hold.
PLACES = {"config", "basedir", "datadir", "ft_path", "render_path_file", "memory_budget_mb"}
SEED = "seed"


class LostWorker(Exception):
    """Another worker is gone, and no step can be taken without it."""


def agree(settings: Settings, scene: Scene, render_poses: np.ndarray, version: str, seed: int, workers: Workers) -> int:
    """Checks that all workers have equal flags, versions, photos and paths; returns the chief's seed.

    Raises:
        ValueError: they differ; the message says who, and in what.
    """
    flags = {f"--{name}": str(getattr(settings, name)) for name in OPTIONS if name not in PLACES}
    versions = {"nerf_tf": version, "tensorflow": tf.__version__, "keras": keras.__version__}
    scene_files = {"photos and poses": _fingerprint(scene), "render path": f"{zlib.crc32(_bytes(render_poses)):08x}"}
    record = versions | flags | scene_files | {SEED: seed}
    records = [json.loads(text) for text in workers.gather_texts(json.dumps(record))]
    different = differences(records)
    if different:
        raise ValueError(f"{different}; start all workers with the same flags, versions and photos")
    return records[0][SEED]


def differences(records: Sequence[dict[str, object]]) -> str:
    """Describes how workers' records differ from the first, the chief's, but for seeds; "" if nowhere."""
    chief, found = records[0], []
    for i, record in enumerate(records):
        names = [n for n in sorted(chief.keys() | record.keys()) if n != SEED and chief.get(n) != record.get(n)]
        found += [f"worker {i} has {n} {record.get(n, 'none')}, worker 0 has {chief.get(n, 'none')}" for n in names]
    return "; ".join(found)


def _fingerprint(scene: Scene) -> str:
    """A checksum of what training and evaluation use of a scene."""
    total = 0
    parts = (scene.images, scene.poses, scene.alphas, scene.masks, scene.i_train, scene.i_val, scene.i_test)
    for array in parts:
        total = total if array is None else zlib.crc32(_bytes(array), total)
    return f"{zlib.crc32(repr((scene.cameras, scene.near, scene.far)).encode(), total):08x}"


def _bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order."""
    return np.ascontiguousarray(array).data


@contextlib.contextmanager
def lost_workers(workers: Workers) -> Iterator[None]:
    """Raises `LostWorker` instead of the TensorFlow errors that a lost worker causes in the block."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, tf.errors.InvalidArgumentError):
        raise
    except tf.errors.OpError as error:
        if workers.count == 1:
            raise
        tasks = set(re.findall(r"/job:\w+/replica:\d+/task:(\d+)", str(error))) - {str(workers.index)}
        who = f"worker {', '.join(sorted(tasks))}" if tasks else "another worker"
        kind = type(error).__name__.removesuffix("Error")
        raise LostWorker(
            f"worker {workers.index} of {workers.count} stops: {who} is gone or cannot be reached ({kind}); "
            "start all workers again: training continues from the last checkpoint"
        ) from error
