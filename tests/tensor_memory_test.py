"""Arrays and tensors in the same memory."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.data import blender
from nerf_tf.data.pipeline import BatchSettings, ray_batches
from nerf_tf.storage.tensor_memory import empty, shared_tensor

STATM = Path("/proc/self/statm")
SCENE = Path(__file__).parent / "data" / "portable" / "scenes" / "blender"


@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (1,), (0, 4)])
def test_a_tensor_shares_the_memory_of_an_array(shape):
    array = empty(shape)
    array[...] = 1.0
    tensor = shared_tensor(array)
    array[...] = 2.0
    np.testing.assert_array_equal(tensor, np.full(shape, 2.0, np.float32))
    assert "CPU" in tensor.device


def test_the_memory_lives_as_long_as_the_tensor():
    tensor = shared_tensor(np.negative(np.ones(1000, np.float32), out=empty((1000,))))
    filler = [empty((1000,)) for _ in range(100)]
    for array in filler:
        array[:] = 5.0
    np.testing.assert_array_equal(tensor, -np.ones(1000))


def test_memory_that_does_not_suit_is_copied():
    whole = empty((33, 4))
    whole[:] = np.arange(132).reshape(33, 4)
    read_only = whole.copy()
    read_only.flags.writeable = False
    for array in (whole.reshape(-1)[1:], whole[:, 1:], read_only, whole[::-1]):
        expected, tensor = array.copy(), shared_tensor(array)
        whole += 1.0
        np.testing.assert_array_equal(tensor, expected)
        np.testing.assert_array_equal(tf.gather(tensor, [0, 2]), expected[[0, 2]])


def memory_in_use() -> int:
    """Bytes of the process, and not only what TensorFlow's allocator counts."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not STATM.exists(), reason="Linux tells how much memory a process has")
def test_batches_do_not_copy_the_photos():
    small = blender.load(SCENE, white_bkgd=True, keep_alpha=True)
    views, (height, width) = len(small.images), small.images.shape[1:3]
    scale = 100
    images, alphas = empty((views, scale * height, scale * width, 3)), empty((views, scale * height, scale * width))
    images[:], alphas[:] = 0.25, 0.5
    cameras = tuple(dataclasses.replace(camera, height=scale * height, width=scale * width) for camera in small.cameras)
    scene = dataclasses.replace(small, images=images, alphas=alphas, cameras=cameras)
    before = memory_in_use()
    batches = iter(ray_batches(scene, BatchSettings(N_rand=64), seed=0))
    for _ in range(3):
        batch = next(batches)
    assert memory_in_use() - before < 0.5 * images.nbytes
    np.testing.assert_array_equal(batch.rgb, np.full((64, 3), 0.25, np.float32))
    np.testing.assert_array_equal(batch.alpha, np.full((64, 1), 0.5, np.float32))
