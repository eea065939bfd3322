"""The training loop: steps, progress, reports, events."""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.train.counts import Counts
from nerf_tf.train.step import StepResult

logger = logging.getLogger(__name__)

# Steps that are always printed, so that a new user sees at once that training works.
FIRST_STEPS = 10
# Most steps whose counts are not read yet: reading waits for a GPU, which is then idle until the next step comes.
UNREAD_STEPS = 4


class Event(NamedTuple):
    """An action every so many steps.

    Attributes:
        interval: in steps; 0: never.
        action: called with the step.
        at_zero: whether step 0 counts.
    """

    interval: int
    action: Callable[[int], None]
    at_zero: bool = True

    def due(self, step: int) -> bool:
        """Whether to act after this step."""
        return self.interval > 0 and step % self.interval == 0 and (step > 0 or self.at_zero)


class TrainerLike(Protocol):
    """What the loop needs of a trainer, as `train.step.Trainer` explains."""

    step: tf.Variable
    minutes: float | None
    train_step: Callable[[RayBatch], StepResult]

    def spend(self, seconds: float) -> bool: ...


class Speedometer:
    """Measures rays per second since the last reading, without pauses."""

    def __init__(self) -> None:
        self._rays, self._since = 0, time.perf_counter()

    def add(self, rays: int) -> None:
        """Counts rays."""
        self._rays += rays

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out the time that a block takes."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def read(self) -> float:
        """Returns rays per second, and starts over."""
        now = time.perf_counter()
        rate = self._rays / max(now - self._since, 1e-9)
        self._rays, self._since = 0, now
        return rate


def train(
    trainer: TrainerLike,
    batches: Iterable[RayBatch],
    N_iters: int,
    name: str,
    i_print: int,
    report: Callable[[int, StepResult, float], None],
    events: Sequence[Event],
    on_out_of_memory: Callable[[tf.errors.ResourceExhaustedError], None],
    watch: Callable[[int, RayBatch, Counts], None] = lambda *_: None,
    shows_progress: bool = True,
) -> None:
    """Trains from the trainer's step to step N_iters - 1, or until the trainer has no time left.

    The time that counts is that of steps, without what is written in between, and without the first step, which
    TensorFlow compiles. Counts are watched up to `UNREAD_STEPS` steps late, but before anything is written.

    Args:
        batches: batches from the trainer's step on.
        N_iters: number of steps of the whole run.
        i_print: interval in steps of printed lines, besides the first `FIRST_STEPS`, and of `report`; 0: none.
        report: called with the step, its result and the rays per second since the last call.
        events: what else to do, in this order.
        on_out_of_memory: called with the error when memory runs out; the step is repeated unless it raises.
        watch: called for each step, in order, with the step, its batch and its counts; it may raise to end the run.
    """
    start = int(trainer.step.numpy())
    speed = Speedometer()
    unread: collections.deque[tuple[int, RayBatch, tf.Tensor]] = collections.deque()

    def watch_all_but(steps: int) -> None:
        """Reads the counts of all but the last steps."""
        while len(unread) > steps:
            step, batch, counts = unread.popleft()
            watch(step, batch, Counts(*counts.numpy().tolist()))

    logger.info("%s: TensorFlow compiles the first step", name)
    total = N_iters if trainer.minutes is None else None
    how = {"unit": "step", "dynamic_ncols": True, "disable": not shows_progress}
    with logging_redirect_tqdm(), tqdm(total=total, initial=start, desc=name, **how) as bar:
        bar.set_postfix_str("TensorFlow compiles the first step")
        since = time.perf_counter()
        for step, batch in zip(range(start, N_iters), batches, strict=False):
            result = _take_step(trainer, batch, on_out_of_memory)
            unread.append((step, batch, result.counts))
            watch_all_but(UNREAD_STEPS)
            out_of_time = step > start and trainer.spend(time.perf_counter() - since)
            bar.update()
            speed.add(batch.rgb.shape[0])
            is_report_due = i_print > 0 and step % i_print == 0
            if is_report_due or step < FIRST_STEPS:
                rays_per_second = speed.read()
                _print_progress(bar, name, step, result, rays_per_second, batch.rgb.shape[0])
            due = [event for event in events if event.due(step)]
            if is_report_due or due or out_of_time:
                watch_all_but(0)
            if is_report_due or due:
                float(result.loss)  # waits for a GPU that is still working on the step: that is no pause
                with speed.pause():
                    if is_report_due:
                        report(step, result, rays_per_second)
                    for event in due:
                        event.action(step)
            if out_of_time:
                break
            since = time.perf_counter()
        watch_all_but(0)


def _take_step(
    trainer: TrainerLike,
    batch: RayBatch,
    on_out_of_memory: Callable[[tf.errors.ResourceExhaustedError], None],
) -> StepResult:
    """Takes a step; as long as memory runs out, calls `on_out_of_memory` and tries again."""
    while True:
        try:
            return trainer.train_step(batch)
        except tf.errors.ResourceExhaustedError as error:
            on_out_of_memory(error)


def _print_progress(bar: tqdm, name: str, step: int, result: StepResult, rays_per_second: float, rays: int) -> None:
    """Shows loss, PSNR and speed in the progress bar and in the log."""
    loss, psnr = float(result.loss), float(result.psnr)
    bar.set_postfix_str(f"loss {loss:.4f}, psnr {psnr:.2f}, {rays_per_second:,.0f} rays/s", refresh=False)
    logger.info("%s step %d psnr %.3f loss %.6f %.3f s/step", name, step, psnr, loss, rays / rays_per_second)
