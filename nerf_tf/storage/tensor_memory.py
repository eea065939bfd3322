"""Arrays in memory that tensors share with them, so that photos are in memory once."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

# TensorFlow's kernels take tensors whose address is a multiple of this, in bytes; NumPy promises less.
ALIGNMENT = 64


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """Makes a float32 array whose memory `shared_tensor` can share; its values are not set yet."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].view(np.float32).reshape(shape)


def shared_tensor(array: np.ndarray) -> tf.Tensor:
    """Makes a tensor on the CPU that shares an array's memory; a copy if this memory does not suit TensorFlow.

    Whoever changes the array afterwards changes the tensor.
    """
    if array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous and array.flags.writeable:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    with tf.device("CPU:0"):
        return tf.constant(array)
