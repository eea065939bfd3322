"""Stream compaction with static shapes, for programs that XLA compiles."""

from __future__ import annotations

import tensorflow as tf


def compact(flags: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Lists where flags [B] are true, as `tf.where` does, but with the static shape that XLA needs.

    Returns:
        [B] int32, the indices of the true ones, ascending, then zeros; and how many are true, a scalar.
    """
    each, total = tf.cast(flags, tf.int32), flags.shape[0]
    place = tf.where(flags, tf.cumsum(each) - 1, total)  # the last place takes what is not listed
    rows = tf.tensor_scatter_nd_update(tf.zeros([total + 1], tf.int32), place[:, None], tf.range(total))
    return rows[:total], tf.reduce_sum(each)
