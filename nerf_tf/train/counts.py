"""What a training step counts: skipped steps, and steps that see an empty or a solid scene."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# A ray is transparent below the first opacity and opaque above the second.
TRANSPARENT, OPAQUE = 0.01, 0.99
# A scene counts as empty or solid when so many of the batch's rays are; a few may cross a last bit of fog.
MOST_RAYS = 0.99
# A picture of one colour has at least the error that the photos' variance is, whatever the colour; training has got
# nowhere while it explains no more than a twentieth of that variance.
STALLED = 0.95
# Rays whose colours vary less than this (a standard deviation of 8 of 255) say nothing: all may be background.
BLANK = 1e-3


class Counts(NamedTuple):
    """What a run has seen of trouble.

    Attributes:
        bad: last steps, in a row, that were skipped because loss or gradient were not finite.
        skipped: all steps that were.
        empty: last steps, in a row, that saw a collapse to empty space; what cannot be judged does not count.
        solid: the same of a collapse to a solid block.
        restarts: how often the run started over with another seed.
    """

    bad: int
    skipped: int
    empty: int
    solid: int
    restarts: int


def opacities(acc: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    """The part of rays that are transparent, and that are opaque: [2].

    Args:
        acc: [R] accumulated opacity.
        shares: [R] weight of each ray; they add up to 1 over the batch.
    """
    kinds = tf.stack([acc < TRANSPARENT, acc > OPAQUE])
    return tf.reduce_sum(tf.where(kinds, shares, 0.0), axis=-1)


def update_counts(counts: tf.Tensor, bad: tf.Tensor, error: tf.Tensor, opacity: tf.Tensor, rgb: tf.Tensor) -> tf.Tensor:
    """`Counts` after a step, as an int64 tensor [5], from those before it.

    A step sees a collapse where all rays are transparent, or all opaque, while the picture is no better than one of a
    single colour. Opacity alone says nothing, as a room is opaque along every ray; nor does a loss that has stopped
    falling, as that of a run that has converged.

    Args:
        counts: [5] before the step.
        bad: whether it was skipped.
        error: mean squared error of the final pass.
        opacity: [2] see `opacities`.
        rgb: [R, 3] the photos' colours.
    """
    variance = tf.reduce_mean(tf.math.reduce_variance(rgb, axis=0))
    no_verdict = bad | (variance < BLANK)
    collapsed = (error >= STALLED * variance) & (opacity >= MOST_RAYS)  # [2]
    in_a_row = tf.where(no_verdict, counts[2:4], tf.where(collapsed, counts[2:4] + 1, 0))
    skipped = tf.cast(bad, tf.int64)
    return tf.concat([[skipped * (counts[0] + 1), counts[1] + skipped], in_a_row, counts[4:]], axis=0)
