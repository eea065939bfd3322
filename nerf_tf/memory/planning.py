"""How much memory a run may take: plans for training and rendering, and what to do when it runs out all the same."""

from __future__ import annotations

import logging
import math

import tensorflow as tf

from nerf_tf.memory import prediction

logger = logging.getLogger(__name__)

# Of the free memory; the rest is for what nobody planned.
PLANNED_PART = 0.8


class OutOfMemory(Exception):
    """Memory ran out, and nothing is left to halve; the text says what was in force and what may fit."""


class Memory:
    """The memory of one kind of work: the plan in force, and what to do when it turns out to be too much.

    Attributes:
        work: what there is to do.
        plan: how much of it at once.
    """

    def __init__(self, work: prediction.Workload, chunk: int | str, netchunk: int | str, budget_mb: int | None):
        """Makes a plan: chunk and netchunk as they are given, and what fits the budget where they are "auto".

        Args:
            work: what there is to do.
            chunk, netchunk: rays and points at once, or "auto".
            budget_mb: megabytes (10^6 bytes) to plan for; None: most of what is free.

        Raises:
            ValueError: nothing fits, or the free memory cannot be told.
        """
        self.work = work
        chunk, netchunk = (None if value == "auto" else value for value in (chunk, netchunk))
        self._auto = {"halve_chunk": chunk is None, "halve_netchunk": netchunk is None}
        if budget_mb is not None:
            budget = budget_mb * prediction.MEGABYTE
        elif any(self._auto.values()):
            budget = PLANNED_PART * prediction.free_memory()
        else:
            budget = math.inf
        self.plan = self._plan_within(budget, chunk, netchunk)
        logger.info("%s", self)

    def __str__(self) -> str:
        return prediction.in_words(self.work, self.plan)

    def give_way(self, error: tf.errors.ResourceExhaustedError) -> prediction.Plan:
        """Halves what is auto after memory ran out, and returns the new plan.

        Raises:
            OutOfMemory: nothing is auto, or nothing is left of it.
        """
        reason = f"out of memory ({failed_allocation(error)}) with {self}"
        smaller = prediction.smaller(self.work, self.plan, **self._auto)
        if smaller is None:
            raise OutOfMemory(
                f"{reason}. What may fit: {self._half_of_it()}; --chunk auto --netchunk auto finds what does"
            )
        self.plan = smaller
        logger.warning("%s; going on with %s", reason, self)
        return smaller

    def _half_of_it(self) -> str:
        """The best plan in half of the memory that the one in force takes, or one that takes less, in words."""
        budget = self.work.resident + prediction.MARGIN * self.plan.predicted / 2
        try:
            plan = self._plan_within(budget, None, None)
        except ValueError:
            plan = prediction.smaller(self.work, self.plan, halve_chunk=True, halve_netchunk=True)
        return prediction.in_words(self.work, plan) if plan else "lower N_samples or netwidth"

    def _plan_within(self, budget: float, chunk: int | None, netchunk: int | None) -> prediction.Plan:
        largest_tile = prediction.LARGEST_GPU_TILE if has_gpu() else prediction.LARGEST_TILE
        return prediction.plan(self.work, budget, chunk, netchunk, largest_tile)


def has_gpu() -> bool:
    """Whether there is a GPU to work on."""
    return bool(tf.config.list_physical_devices("GPU"))


def failed_allocation(error: tf.errors.ResourceExhaustedError) -> str:
    """The line of TensorFlow's message that says what did not fit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "OOM" in line or "allocat" in line), lines[0] if lines else "no details")
