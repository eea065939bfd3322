"""A training step: gradients of a batch, then applying them.

    batch -> gradients -> StepGradients -> apply -> StepResult

Whatever returns `StepGradients` can take the place of `Trainer.gradients`: a compiled step, another kind of field, the
sum over several replicas. `apply` moves the weights and counts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.field.mlp import precision
from nerf_tf.field.query import Field
from nerf_tf.render.passes import RenderSettings
from nerf_tf.train.counts import Counts, update_counts
from nerf_tf.train.gradients import StepGradients, batch_gradients


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The schedule of the learning rate.

    Attributes:
        lrate: learning rate at step 0.
        lrate_decay: thousands of steps in which the rate falls to a tenth; 0: constant rate.
    """

    lrate: float = 5e-4
    lrate_decay: int = 250

    def learning_rate(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate at `step`, a scalar."""
        if self.lrate_decay == 0:
            return tf.constant(self.lrate)
        return self.lrate * 0.1 ** (tf.cast(step, tf.float32) / (self.lrate_decay * 1000))


class StepResult(NamedTuple):
    """What a step reports; losses are those before the weights moved.

    Attributes:
        loss: scalar, sum of both passes' mean squared errors.
        psnr: scalar, of the final pass, in dB.
        psnr0: scalar, of the coarse pass; None when there is no fine pass.
        learning_rate: scalar.
        sigma: [R, S] raw density of the final pass, of the batch's last chunk.
        counts: [5] int64, `Counts` after the step.
    """

    loss: tf.Tensor
    psnr: tf.Tensor
    psnr0: tf.Tensor | None
    learning_rate: tf.Tensor
    sigma: tf.Tensor
    counts: tf.Tensor


class Trainer:
    """The training step and everything that it changes: networks, optimizer, step, counts.

    Attributes:
        coarse, fine: the networks; `fine` is None when there is no fine pass.
        rendering: how rays become colours.
        optimizer: Adam with the original's constants; for float16 networks with a dynamic loss scale.
        step: int64 variable, number of the next step.
        seed: int64 variable; with the step it determines every random draw.
        counts: int64 variable [5], `Counts`.
        train_step: `RayBatch` -> `StepResult`: takes a step, as a `tf.function`.
    """

    minutes = None  # it stops by steps alone

    def __init__(
        self, coarse: Field, fine: Field | None, rendering: RenderSettings, training: TrainSettings, seed: int
    ):
        self.coarse, self.fine = coarse, fine
        self.rendering, self._training = rendering, training
        self.step = tf.Variable(0, dtype=tf.int64, name="step")
        self.seed = tf.Variable(seed, dtype=tf.int64, name="seed")
        self.counts = tf.Variable(Counts(0, 0, 0, 0, 0), dtype=tf.int64, name="counts")
        self.optimizer = keras.optimizers.Adam(training.lrate, beta_1=0.9, beta_2=0.999, epsilon=1e-7)
        if precision(coarse.mlp) == "float16":  # small gradients would underflow
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self.optimizer.build(self._variables)
        # Without AutoGraph, which has nothing to convert here and takes seconds to find that out.
        self.train_step = tf.function(self._train_step, autograph=False)

    def resize(self, chunk: int, netchunk: int) -> None:
        """Changes chunk and netchunk from the next step on; memory changes, results do not."""
        self.rendering = dataclasses.replace(self.rendering, chunk=chunk)
        self.coarse = dataclasses.replace(self.coarse, netchunk=netchunk)
        self.fine = self.fine and dataclasses.replace(self.fine, netchunk=netchunk)
        self.train_step = tf.function(self._train_step, autograph=False)

    def copy_state_from(self, other: Trainer, restarts: int) -> None:
        """Copies weights, optimizer state, step and seed from a trainer with equal networks; resets counts.

        Args:
            other: the trainer to copy from.
            restarts: the new count of restarts.
        """
        for variable, source in zip(self._state, other._state, strict=True):
            variable.assign(source)
        self.counts.assign(Counts(0, 0, 0, 0, restarts))

    def spend(self, seconds: float) -> bool:
        """Counts the time that a step took; whether there is none left, which never is so."""
        del seconds
        return False

    @property
    def state(self) -> dict[str, Any]:
        """Everything that training changes, by its name in checkpoints."""
        fine = {} if self.fine is None else {"fine": self.fine.mlp}
        variables = {"step": self.step, "seed": self.seed, "counts": self.counts}
        return {"coarse": self.coarse.mlp, "optimizer": self.optimizer, **variables, **fine}

    @property
    def _state(self) -> list[keras.Variable | tf.Variable]:
        return [*self._variables, *self.optimizer.variables, self.step, self.seed]

    @property
    def _variables(self) -> list[keras.Variable]:
        return [v for field in (self.coarse, self.fine) if field for v in field.mlp.trainable_variables]

    def _train_step(self, batch: RayBatch) -> StepResult:
        return self.apply(self.gradients(batch), batch.rgb)

    def gradients(self, batch: RayBatch) -> StepGradients:
        """Computes the next step's losses and gradients; changes nothing."""
        scale_loss, seed = self.optimizer.scale_loss, self.step_seed()
        return batch_gradients(self.coarse, self.fine, self.rendering, scale_loss, seed, batch)

    def apply(self, found: StepGradients, rgb: tf.Tensor) -> StepResult:
        """Moves the weights, unless the step is bad, and counts the step.

        Args:
            found: what `gradients` returned.
            rgb: [R, 3] the batch's colours.
        """
        loss, learning_rate = tf.add_n(found.losses), self._training.learning_rate(self.step)
        is_bad = self._is_bad(loss, found.gradients)
        tf.cond(is_bad, lambda: None, lambda: self._move_weights(found.gradients, learning_rate))
        counts = self._count_step(is_bad, found, rgb)
        psnr0 = mse_to_psnr(found.losses[0]) if len(found.losses) > 1 else None
        return StepResult(loss, mse_to_psnr(found.losses[-1]), psnr0, learning_rate, found.sigma, counts)

    def step_seed(self) -> tf.Tensor:
        """Returns the seed [2] of the next step's random draws."""
        return tf.random.fold_in(tf.stack([self.seed, 0]), self.step)

    def _is_bad(self, loss: tf.Tensor, gradients: list[tf.Tensor]) -> tf.Tensor:
        """Whether the weights must not move: loss, gradients or their squares are not finite."""
        finite = tf.math.is_finite(tf.linalg.global_norm(gradients))  # Adam squares gradients
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # It skips such steps itself and halves the scale: that is how it finds the largest scale that float16 can
            # hold. Only at scale 1 is the gradient itself too large.
            finite |= self.optimizer.dynamic_scale > 1.0
        return ~(tf.math.is_finite(loss) & finite)

    def _move_weights(self, gradients: list[tf.Tensor], learning_rate: tf.Tensor) -> None:
        self.optimizer.learning_rate.assign(learning_rate)
        self.optimizer.apply(gradients, self._variables)

    def _count_step(self, is_bad: tf.Tensor, found: StepGradients, rgb: tf.Tensor) -> tf.Tensor:
        """Advances the step and the counts; returns the counts [5]."""
        with tf.control_dependencies([is_bad]):  # not before memory can run out: then the step is taken again
            self.step.assign_add(1)
            self.counts.assign(update_counts(self.counts, is_bad, found.losses[-1], found.opacity, rgb))
        return tf.identity(self.counts)


def mse_to_psnr(error: tf.Tensor) -> tf.Tensor:
    """Converts the mean squared error of images in [0, 1] to the peak signal-to-noise ratio in dB."""
    return -10.0 * tf.math.log(error) / tf.math.log(tf.constant(10.0, error.dtype))
