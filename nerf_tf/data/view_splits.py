"""Which views of a scene are for training, validation and test. Indices are int64."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

logger = logging.getLogger(__name__)


def strides(testskip: int) -> tuple[int, int, int]:
    """Returns n where every n-th view is kept, for training, validation and test; 0 means 1, and training keeps all.

    Raises:
        ValueError: `testskip` is negative.
    """
    if testskip < 0:
        raise ValueError(f"testskip {testskip}: give 0 or 1 for every view, or a larger number to skip some")
    return 1, testskip or 1, testskip or 1


def successive(sizes: Sequence[int]) -> list[np.ndarray]:
    """Returns the indices of splits of these sizes whose views follow each other."""
    return np.split(np.arange(sum(sizes), dtype=np.int64), np.cumsum(sizes)[:-1])


def hold_out(poses: np.ndarray, llffhold: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices for training and for test of views that are in no splits, by their `poses` [N, 3, 4].

    Args:
        llffhold: every llffhold-th view is for test; 0: the one nearest the cameras' mean centre.
    """
    views = np.arange(len(poses), dtype=np.int64)
    if llffhold > 0:
        i_test = views[::llffhold]
    else:
        offsets = poses[:, :, 3] - poses[:, :, 3].mean(axis=0)
        i_test = views[[np.argmin(np.sum(np.square(offsets), axis=-1))]]
    i_train = np.setdiff1d(views, i_test)
    if not i_train.size:
        logger.warning("all %d views are held out (llffhold %d): none is left to train on", len(views), llffhold)
    return i_train, i_test
