"""Plans chunk and netchunk for the memory there is, and makes them smaller when it runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NoReturn

import tensorflow as tf

from nerf_tf.memory import prediction

logger = logging.getLogger(__name__)

# Returns a plan that takes less memory, or raises `OutOfMemory`.
OnOutOfMemory = Callable[[tf.errors.ResourceExhaustedError], prediction.Plan]

# Share of the free memory that a plan may use; the rest is for what the prediction leaves out.
PLANNED_SHARE = 0.8


class OutOfMemory(Exception):
    """Memory ran out, and there is nothing left to halve; the message names the work and what may fit."""


class MemoryPlanner:
    """Chooses chunk and netchunk for one workload, as `plan`, and smaller ones when memory runs out."""

    def __init__(self, work: prediction.Workload, chunk: int | str, netchunk: int | str, budget_mb: int | None):
        """Makes the first plan.

        Args:
            chunk, netchunk: rays and points at once; "auto" for the largest that fit.
            budget_mb: megabytes (10^6 bytes) to plan for; None for `PLANNED_SHARE` of the free memory.

        Raises:
            ValueError: nothing fits, or the free memory is unknown.
        """
        self.work = work
        chunk, netchunk = (None if value == "auto" else value for value in (chunk, netchunk))
        self._auto = {"halve_chunk": chunk is None, "halve_netchunk": netchunk is None}
        if budget_mb is not None:
            budget = budget_mb * prediction.MEGABYTE
        elif any(self._auto.values()):
            budget = PLANNED_SHARE * prediction.free_memory()
        else:
            budget = math.inf
        self.plan = self._plan_within(budget, chunk, netchunk)
        logger.info("%s", self)

    def __str__(self) -> str:
        return prediction.describe_plan(self.work, self.plan)

    def on_out_of_memory(self, error: tf.errors.ResourceExhaustedError) -> prediction.Plan:
        """Halves chunk and netchunk where they are "auto", and returns the new plan.

        Raises:
            OutOfMemory: neither is "auto", or halving no longer helps.
        """
        reason = f"out of memory ({failed_allocation(error)}) with {self}"
        reduced = prediction.reduce_plan(self.work, self.plan, **self._auto)
        if reduced is None:
            suggestion = self._suggest_plan()
            raise OutOfMemory(f"{reason}. What may fit: {suggestion}; --chunk auto --netchunk auto finds what does")
        self.plan = reduced
        logger.warning("%s; continuing with %s", reason, self)
        return reduced

    def _suggest_plan(self) -> str:
        """Describes the best plan in half the memory of the current one, or else one that takes less."""
        budget = self.work.resident + prediction.MARGIN * self.plan.predicted / 2
        try:
            plan = self._plan_within(budget, None, None)
        except ValueError:
            plan = prediction.reduce_plan(self.work, self.plan, halve_chunk=True, halve_netchunk=True)
        return prediction.describe_plan(self.work, plan) if plan else "lower N_samples or netwidth"

    def _plan_within(self, budget: float, chunk: int | None, netchunk: int | None) -> prediction.Plan:
        largest_tile = prediction.LARGEST_GPU_TILE if has_gpu() else prediction.LARGEST_TILE
        return prediction.choose_plan(self.work, budget, chunk, netchunk, largest_tile)


def give_up(work: str, error: tf.errors.ResourceExhaustedError) -> NoReturn:
    """Raises OutOfMemory where settings fix the memory; `work` says what took it, and what would take less."""
    raise OutOfMemory(f"out of memory ({failed_allocation(error)}) with {work}")


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def failed_allocation(error: tf.errors.ResourceExhaustedError) -> str:
    """The line of TensorFlow's error message that says which allocation failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "OOM" in line or "allocat" in line), lines[0] if lines else "no details")
