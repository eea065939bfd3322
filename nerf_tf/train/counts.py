"""Counts of a run's bad steps: skipped ones, and those with an empty or a solid scene."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# A ray is transparent below the first opacity and opaque above the second.
TRANSPARENT, OPAQUE = 0.01, 0.99
# A scene counts as empty or solid if this part of the batch's rays is transparent or opaque; a few may cross fog.
MOST_RAYS = 0.99
# The error of an image of a single colour is at least the variance of the photos. Above this part of the variance,
# training has learnt next to nothing.
STALLED = 0.95
# If the variance of the batch's colours is below this (a standard deviation of 8 of 255), all rays may be background,
# and the step tells nothing.
BLANK = 1e-3


class Counts(NamedTuple):
    """Counts of steps that went wrong, and of restarts.

    Attributes:
        bad: consecutive steps up to now that were skipped because loss or gradient were not finite.
        skipped: steps skipped in the whole run.
        empty: consecutive steps up to now with a collapse to empty space, leaving out steps that tell nothing.
        solid: the same for a collapse to a solid block.
        restarts: how often the run started over with another seed.
    """

    bad: int
    skipped: int
    empty: int
    solid: int
    restarts: int


def opacities(acc: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    """Computes the shares [2] of transparent and of opaque rays.

    Args:
        acc: [R] accumulated opacity.
        shares: [R] weight of each ray; the weights of a batch add up to 1.
    """
    kinds = tf.stack([acc < TRANSPARENT, acc > OPAQUE])
    return tf.reduce_sum(tf.where(kinds, shares, 0.0), axis=-1)


def update_counts(
    counts: tf.Tensor, is_bad: tf.Tensor, error: tf.Tensor, opacity: tf.Tensor, rgb: tf.Tensor
) -> tf.Tensor:
    """Updates `Counts` after a step.

    A collapse means that all rays are transparent, or all opaque, while the image is no better than a single colour.
    Opacity alone does not tell, since a room is opaque along every ray; neither does a loss that has stopped falling.

    Args:
        counts: [5] int64, `Counts` before the step.
        is_bad: whether the step was skipped.
        error: scalar, mean squared error of the final pass.
        opacity: [2] see `opacities`.
        rgb: [R, 3] the photos' colours.

    Returns:
        [5] int64, `Counts` after the step.
    """
    variance = tf.reduce_mean(tf.math.reduce_variance(rgb, axis=0))
    tells_nothing = is_bad | (variance < BLANK)
    collapsed = (error >= STALLED * variance) & (opacity >= MOST_RAYS)  # [2]
    in_a_row = tf.where(tells_nothing, counts[2:4], tf.where(collapsed, counts[2:4] + 1, 0))
    skipped = tf.cast(is_bad, tf.int64)
    return tf.concat([[skipped * (counts[0] + 1), counts[1] + skipped], in_a_row, counts[4:]], axis=0)
