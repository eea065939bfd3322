"""The training loop: steps, progress, reports, and what is done every so many steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.train.counts import Counts
from nerf_tf.train.step import StepResult, Trainer

logger = logging.getLogger(__name__)

# Steps that are always printed, so that a new user sees at once that something happens.
FIRST_STEPS = 10


class Event(NamedTuple):
    """Something to do every so many steps.

    Attributes:
        interval: in steps; 0 for never.
        action: called with the step.
        at_zero: whether step 0 counts.
    """

    interval: int
    action: Callable[[int], None]
    at_zero: bool = True

    def due(self, step: int) -> bool:
        """Whether to act after this step."""
        return self.interval > 0 and step % self.interval == 0 and (step > 0 or self.at_zero)


class Speedometer:
    """Rays per second since it was last read, leaving out pauses."""

    def __init__(self) -> None:
        self._rays, self._since = 0, time.perf_counter()

    def add(self, rays: int) -> None:
        """Counts rays."""
        self._rays += rays

    def leave_out(self, seconds: float) -> None:
        """Forgets time that was spent on something else."""
        self._since += seconds

    def read(self) -> float:
        """Rays per second, and starts over."""
        now = time.perf_counter()
        rate = self._rays / max(now - self._since, 1e-9)
        self._rays, self._since = 0, now
        return rate


def train(
    trainer: Trainer,
    batches: Iterable[RayBatch],
    N_iters: int,
    name: str,
    i_print: int,
    report: Callable[[int, StepResult, float], None],
    events: Sequence[Event],
    on_out_of_memory: Callable[[tf.errors.ResourceExhaustedError], None],
    watch: Callable[[int, RayBatch, Counts], None] = lambda *_: None,
) -> None:
    """Trains from the trainer's step up to, but not including, N_iters.

    Args:
        trainer: what to train.
        batches: batches for the trainer's step and those after it.
        N_iters: number of steps in all.
        name: what the log calls the run.
        i_print: interval in steps of printed lines and of `report`; 0 for never.
        report: called with the step, its result and the rays per second since the last call.
        events: what else to do, in this order.
        on_out_of_memory: called with the error when memory runs out; the step is repeated unless it raises.
        watch: called after each step with the step, its batch and the counts of trouble; may raise to end the run.
    """
    start = int(trainer.step.numpy())
    speed = Speedometer()
    with logging_redirect_tqdm(), tqdm(total=N_iters, initial=start, desc=name, unit="step", dynamic_ncols=True) as bar:
        for step, batch in zip(range(start, N_iters), batches, strict=False):
            result = None
            while result is None:
                try:
                    result = trainer.train_step(batch)
                except tf.errors.ResourceExhaustedError as error:
                    on_out_of_memory(error)
            watch(step, batch, Counts(*result.counts.numpy().tolist()))
            bar.update()
            speed.add(batch.rgb.shape[0])
            reporting = i_print > 0 and step % i_print == 0
            if reporting or step < FIRST_STEPS:
                loss, psnr = float(result.loss), float(result.psnr)
                rays_per_second = speed.read()
                bar.set_postfix_str(f"loss {loss:.4f}, psnr {psnr:.2f}, {rays_per_second:,.0f} rays/s", refresh=False)
                seconds = batch.rgb.shape[0] / rays_per_second
                logger.info("%s step %d psnr %.3f loss %.6f %.3f s/step", name, step, psnr, loss, seconds)
            due = [event for event in events if event.due(step)]
            if reporting or due:
                float(result.loss)  # a GPU may still be at it, and its time is not a pause
                paused = time.perf_counter()
                if reporting:
                    report(step, result, rays_per_second)
                for event in due:
                    event.action(step)
                speed.leave_out(time.perf_counter() - paused)
