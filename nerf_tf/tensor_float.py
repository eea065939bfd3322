"""Switches TensorFloat-32, in which float32 products keep 10 of the 23 bits of their factors.

Recent NVIDIA GPUs have it, and TensorFlow uses it by default: renders would be far from the original's. Importing
`nerf_tf.field` turns it off, and a trainer with `--mixed_precision tf32` turns it on. TensorFlow has one switch for
all of a process, so the trainer that was built last decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf


def use(enabled: bool) -> None:
    """Turns TensorFloat-32 on or off, for all that is computed or compiled from now on."""
    tf.config.experimental.enable_tensor_float_32_execution(enabled)


@contextlib.contextmanager
def turned_off() -> Iterator[None]:
    """Turns TensorFloat-32 off for a block, or as a decorator for a function."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    use(False)
    try:
        yield
    finally:
        use(before)
