"""One optimisation step, and the loop around it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.field.query import Field
from nerf_tf.render.renderer import RenderSettings, render_rays
from nerf_tf.train.metrics import mse, mse_to_psnr

logger = logging.getLogger(__name__)

# Steps that are always printed, so that a new user sees at once that something happens.
FIRST_STEPS = 10


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How weights move.

    Attributes:
        lrate: learning rate at step 0.
        lrate_decay: thousands of steps in which the rate falls to a tenth; 0 for a constant rate.
    """

    lrate: float = 5e-4
    lrate_decay: int = 250

    def learning_rate(self, step: tf.Tensor) -> tf.Tensor:
        """Learning rate at `step`."""
        if self.lrate_decay == 0:
            return tf.constant(self.lrate)
        return self.lrate * 0.1 ** (tf.cast(step, tf.float32) / (self.lrate_decay * 1000))


class StepResult(NamedTuple):
    """What one step saw, before it moved the weights.

    Attributes:
        loss: scalar, mean squared errors of both passes added up.
        psnr: scalar, of the final pass, in dB.
        psnr0: scalar, of the coarse pass; None when there is no fine pass.
        learning_rate: scalar.
        sigma: [N_rand, S] raw density of the final pass.
    """

    loss: tf.Tensor
    psnr: tf.Tensor
    psnr0: tf.Tensor | None
    learning_rate: tf.Tensor
    sigma: tf.Tensor


class Trainer:
    """All that training changes: both networks, the optimizer's moments, the step.

    Attributes:
        coarse, fine: the networks; `fine` is None when there is no fine pass.
        optimizer: Adam with the original's constants.
        step: int64 variable, the step that comes next.
        seed: int64 variable that decides, with the step, every random draw.
    """

    def __init__(
        self, coarse: Field, fine: Field | None, rendering: RenderSettings, training: TrainSettings, seed: int
    ):
        self.coarse, self.fine = coarse, fine
        self._rendering, self._training = rendering, training
        self.step = tf.Variable(0, dtype=tf.int64, name="step")
        self.seed = tf.Variable(seed, dtype=tf.int64, name="seed")
        self.optimizer = keras.optimizers.Adam(training.lrate, beta_1=0.9, beta_2=0.999, epsilon=1e-7)
        self.optimizer.build(self._variables)

    @property
    def _variables(self) -> list[keras.Variable]:
        return [v for field in (self.coarse, self.fine) if field for v in field.mlp.trainable_variables]

    @tf.function
    def train_step(self, batch: RayBatch) -> StepResult:
        """Renders a batch, and moves the weights against the gradient of its error.

        The loss is the sum of both passes' mean squared errors (paper, equation 6).
        """
        seed = tf.random.fold_in(tf.stack([self.seed, 0]), self.step)
        with tf.GradientTape(persistent=True) as tape:
            fine, coarse, _, raw = render_rays(self.coarse, self.fine, batch.rays, self._rendering, seed, keep_raw=True)
            fine_loss = mse(fine.rgb, batch.rgb)
            coarse_loss = mse(coarse.rgb, batch.rgb) if coarse else None
        loss = fine_loss + coarse_loss if coarse else fine_loss
        # No gradient flows from one pass to the other's network, so each loss is taken by itself, and one after the
        # other: at once, they would need the memory of two tiles.
        gradients = tape.gradient(fine_loss, _values(self.fine or self.coarse))
        if coarse:
            with tf.control_dependencies(gradients):
                gradients = tape.gradient(coarse_loss, _values(self.coarse)) + gradients
        learning_rate = self._training.learning_rate(self.step)
        self.optimizer.learning_rate.assign(learning_rate)
        self.optimizer.apply(gradients, self._variables)
        self.step.assign_add(1)
        psnr0 = mse_to_psnr(coarse_loss) if coarse else None
        return StepResult(loss, mse_to_psnr(fine_loss), psnr0, learning_rate, raw[..., 3])


def _values(field: Field) -> list[tf.Variable]:
    return [variable.value for variable in field.mlp.trainable_variables]


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
    """
    start = int(trainer.step.numpy())
    speed = Speedometer()
    with logging_redirect_tqdm(), tqdm(total=N_iters, initial=start, desc=name, unit="step", dynamic_ncols=True) as bar:
        for step, batch in zip(range(start, N_iters), batches, strict=False):
            result = trainer.train_step(batch)
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
