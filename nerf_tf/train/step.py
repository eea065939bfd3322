"""A training step: gradients of a batch, then applying them.

    batch -> gradients -> StepGradients -> apply -> StepResult

Whatever returns `StepGradients` can take the place of `Trainer.gradients`: another kind of field, the sum over several
replicas. `apply` moves the weights and counts the step. If the networks are `compiled`, XLA makes one program of static
shapes of each of the two; only the random draws are made before, because XLA would draw other numbers. They are two
programs because one that moves weights does so in place: if memory ran out in it, the weights would be lost.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.field.mlp import precision
from nerf_tf.field.query import Field
from nerf_tf.render.passes import Draws, RenderSettings, make_draws
from nerf_tf.train.counts import Counts, update_counts
from nerf_tf.train.gradients import StepGradients, batch_gradients

# One device adds up the gradients of so many parts of a batch, as two devices do, so that both come to the same bits:
# otherwise sums would be rounded differently, and training makes small differences larger.
HALVES = 2

LearningRate = keras.optimizers.schedules.ExponentialDecay


def falling_rate(lrate: float = 5e-4, lrate_decay: int = 250) -> LearningRate:
    """Makes a learning rate that falls to a tenth in `lrate_decay` thousand steps; 0: it never falls."""
    return LearningRate(float(lrate), 1000 * lrate_decay or 1, 0.1 if lrate_decay else 1.0)


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
        step: int64 variable, number of the next step, in the host's memory.
        seed: int64 variable, also in the host's memory; with the step it determines every random draw.
        counts: int64 variable [5], `Counts`.
        train_step: `RayBatch` -> `StepResult`: takes a step, as a `tf.function`.
    """

    minutes = None  # it stops by steps alone

    def __init__(
        self, coarse: Field, fine: Field | None, rendering: RenderSettings, learning_rate: LearningRate, seed: int
    ):
        self.coarse, self.fine = coarse, fine
        self.rendering, self._learning_rate = rendering, learning_rate
        with tf.device("CPU:0"):  # the host computes the seeds of draws while a GPU works
            self.step = tf.Variable(0, dtype=tf.int64, name="step")
            self.seed = tf.Variable(seed, dtype=tf.int64, name="seed")
        self.counts = tf.Variable(Counts(0, 0, 0, 0, 0), dtype=tf.int64, name="counts")
        rate = learning_rate.initial_learning_rate
        self.optimizer = keras.optimizers.Adam(rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7)
        if precision(coarse.mlp) == "float16":  # small gradients would underflow
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self.optimizer.build(self._variables)
        self._make_functions()

    def _make_functions(self) -> None:
        """Makes the functions of a step, whose graphs are traced anew when they are called next."""
        # Without AutoGraph, which has nothing to convert here and takes seconds to find out.
        self.train_step = tf.function(self._train_step, autograph=False)
        self._compiled_gradients = tf.function(self.gradients, jit_compile=True, autograph=False)
        self._compiled_apply = tf.function(self.apply, jit_compile=True, autograph=False)

    def resize(self, chunk: int, netchunk: int) -> None:
        """Changes chunk and netchunk from the next step on; memory changes, results do not."""
        self.rendering = dataclasses.replace(self.rendering, chunk=chunk)
        self.coarse = dataclasses.replace(self.coarse, netchunk=netchunk)
        self.fine = self.fine and dataclasses.replace(self.fine, netchunk=netchunk)
        self._make_functions()

    def copy_state_from(self, other: Trainer, restarts: int) -> None:
        """Copies weights, optimizer state, step and seed from a trainer with equal networks; counts only `restarts`."""
        for variable, source in zip(self.variables, other.variables, strict=True):
            variable.assign(source)
        self.counts.assign(Counts(0, 0, 0, 0, restarts))

    @property
    def parts(self) -> int:
        """How many parts of a batch are added up in a step: one on a GPU, which would be slower with small ones."""
        return 1 if self.coarse.compiled and tf.config.list_physical_devices("GPU") else HALVES

    def spend(self, seconds: float) -> bool:
        """Returns whether the time is up: never, as it has no limit. See `PackedTrainer.spend`."""
        del seconds
        return False

    @property
    def state(self) -> dict[str, Any]:
        """Everything that training changes, by its name in checkpoints."""
        fine = {} if self.fine is None else {"fine": self.fine.mlp}
        variables = {"step": self.step, "seed": self.seed, "counts": self.counts}
        return {"coarse": self.coarse.mlp, "optimizer": self.optimizer, **variables, **fine}

    @property
    def variables(self) -> list[keras.Variable | tf.Variable]:
        """What a step changes, without the counts."""
        return [*self._variables, *self.optimizer.variables, self.step, self.seed]

    @property
    def _variables(self) -> list[keras.Variable]:
        return [v for field in (self.coarse, self.fine) if field for v in field.mlp.trainable_variables]

    def _train_step(self, batch: RayBatch) -> StepResult:
        step = self.step.read_value()
        taken = self.part_arguments(self.parts, 0, self.parts)
        if self.coarse.compiled:
            found = self._compiled_gradients(batch, self.draw(batch.rgb.shape[0]), *taken)
            result = self._compiled_apply(found, batch.rgb, step)
        else:
            result = self.apply(self.gradients(batch, None, *taken), batch.rgb, step)
        with tf.control_dependencies([result.counts]):  # last, as a step that runs out of memory is taken again
            self.step.assign_add(1)
        return result

    def draw(self, rays: int, first_ray: tf.Tensor | int = 0) -> Draws:
        """Makes the random draws of the next step for this many rays, from number `first_ray` on."""
        return make_draws(self.rendering, self.step_seed(), rays, first_ray)

    def part_arguments(self, parts: int, first: int, end: int) -> tuple[int, tf.Tensor | int, tf.Tensor | int]:
        """Returns the arguments that make `gradients` add up parts `first` to `end` - 1 of a batch of so many parts.

        Where parts are added up in a loop, XLA must not know how many: it would make other programs, which round
        differently, for one device and for two.
        """
        return (parts, first, end) if self.parts == 1 else (parts, tf.constant(first), tf.constant(end))

    def gradients(
        self,
        batch: RayBatch,
        draws: Draws | None = None,
        parts: int = 1,
        first: tf.Tensor | int = 0,
        end: tf.Tensor | int = 1,
    ) -> StepGradients:
        """Computes the next step's losses and gradients; changes nothing.

        Args:
            batch: R rays.
            draws: what `draw` returned; None: the draws are made here, when they are needed.
            parts, first, end: which parts of the batch to add up, see `part_arguments`.
        """

        def draw_chunk(first_row: tf.Tensor | int, rays: int) -> Draws:
            """Returns the random draws of some rays of the batch; past its end those of the last ray."""
            if draws is None:
                return self.draw(rays, first_row)
            rows = tf.minimum(first_row + tf.range(rays), batch.rgb.shape[0] - 1)
            return tf.nest.map_structure(lambda x: None if x is None else tf.gather(x, rows), draws)

        scale_loss = self.optimizer.scale_loss
        return batch_gradients(self.coarse, self.fine, self.rendering, scale_loss, draw_chunk, batch, parts, first, end)

    def apply(self, found: StepGradients, rgb: tf.Tensor, step: tf.Tensor) -> StepResult:
        """Moves the weights, unless the step is bad, and updates the counts.

        Args:
            found: what `gradients` returned.
            rgb: [R, 3] the batch's colours.
            step: scalar, the step's number.
        """
        loss, learning_rate = tf.add_n(found.losses), self._learning_rate(step)
        is_bad = self._is_bad(loss, found.gradients)
        self._move_weights(found.gradients, learning_rate, is_bad)
        with tf.control_dependencies([is_bad]):  # after the gradients, which may run out of memory
            self.counts.assign(update_counts(self.counts, is_bad, found.losses[-1], found.opacity, rgb))
        psnr0 = mse_to_psnr(found.losses[0]) if len(found.losses) > 1 else None
        psnr = mse_to_psnr(found.losses[-1])
        return StepResult(loss, psnr, psnr0, learning_rate, found.sigma, tf.identity(self.counts))

    def step_seed(self) -> tf.Tensor:
        """Returns the seed [2] of the next step's random draws."""
        with tf.device("CPU:0"):
            return tf.random.fold_in(tf.stack([self.seed, 0]), self.step)

    def _is_bad(self, loss: tf.Tensor, gradients: list[tf.Tensor]) -> tf.Tensor:
        """Whether the weights must not move: loss, gradients or their squares are not finite."""
        finite = tf.math.is_finite(tf.linalg.global_norm(gradients))  # Adam squares gradients
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # It skips such steps itself and halves the scale, to find the largest scale that float16 can hold. Only at
            # scale 1 is the gradient itself too large.
            finite |= self.optimizer.dynamic_scale > 1.0
        return ~(tf.math.is_finite(loss) & finite)

    def _move_weights(self, gradients: list[tf.Tensor], learning_rate: tf.Tensor, is_bad: tf.Tensor) -> None:
        """Moves the weights by the optimizer's rule, unless the step is bad."""

        def move() -> None:
            self.optimizer.learning_rate.assign(learning_rate)
            self.optimizer.apply(gradients, self._variables)

        if not self.coarse.compiled:
            tf.cond(is_bad, lambda: None, move)
            return
        # A GPU would have to wait until the host has chosen a branch.
        variables = [*self._variables, *self.optimizer.variables]
        before = [tf.identity(variable.value) for variable in variables]
        move()
        for variable, value in zip(variables, before, strict=True):
            variable.assign(tf.where(is_bad, value, variable.value))


def mse_to_psnr(error: tf.Tensor) -> tf.Tensor:
    """Converts the mean squared error of images in [0, 1] to the peak signal-to-noise ratio in dB."""
    return -10.0 * tf.math.log(error) / tf.math.log(tf.constant(10.0, error.dtype))
