"""One training step: the gradients of a batch, and applying them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.field.mlp import precision
from nerf_tf.field.query import Field, rays_at_once
from nerf_tf.render.passes import Pass, RenderSettings, coarse_pass, fine_pass
from nerf_tf.train.counts import Counts, opacities, update_counts


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
        sigma: [R, S] raw density of the final pass, of the batch's last chunk.
        counts: `Counts` after the step, as a tensor [5].
    """

    loss: tf.Tensor
    psnr: tf.Tensor
    psnr0: tf.Tensor | None
    learning_rate: tf.Tensor
    sigma: tf.Tensor
    counts: tf.Tensor


class Trainer:
    """All that training changes: both networks, the optimizer's moments, the step.

    Attributes:
        coarse, fine: the networks; `fine` is None when there is no fine pass.
        rendering: how rays become colours.
        optimizer: Adam with the original's constants; with float16 networks it scales the loss.
        step: int64 variable, the step that comes next.
        seed: int64 variable that decides, with the step, every random draw.
        counts: int64 variable [5], `Counts`.
        train_step: takes a `RayBatch`, moves the weights, and returns a `StepResult`.
    """

    def __init__(
        self, coarse: Field, fine: Field | None, rendering: RenderSettings, training: TrainSettings, seed: int
    ):
        self.coarse, self.fine = coarse, fine
        self.rendering, self._training = rendering, training
        self.step = tf.Variable(0, dtype=tf.int64, name="step")
        self.seed = tf.Variable(seed, dtype=tf.int64, name="seed")
        self.counts = tf.Variable(Counts(0, 0, 0, 0, 0), dtype=tf.int64, name="counts")
        self.optimizer = keras.optimizers.Adam(training.lrate, beta_1=0.9, beta_2=0.999, epsilon=1e-7)
        if precision(coarse.mlp) == "float16":  # its range is too small for gradients as they are
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self.optimizer.build(self._variables)
        # Its branches and loops are TensorFlow's own already: to have AutoGraph look for others would take seconds.
        self.train_step = tf.function(self._train_step, autograph=False)

    def resize(self, chunk: int, netchunk: int) -> None:
        """Takes less, or more, at once from the next step on. The results are the same."""
        self.rendering = dataclasses.replace(self.rendering, chunk=chunk)
        self.coarse = dataclasses.replace(self.coarse, netchunk=netchunk)
        self.fine = self.fine and dataclasses.replace(self.fine, netchunk=netchunk)
        self.train_step = tf.function(self._train_step, autograph=False)

    def become(self, other: Trainer, restarts: int) -> None:
        """Takes the weights, the optimizer's state, step and seed of a trainer of equal networks.

        Args:
            other: the trainer.
            restarts: how often training has started over by that.
        """
        for mine, its in zip(self._state, other._state, strict=True):
            mine.assign(its)
        self.counts.assign(Counts(0, 0, 0, 0, restarts))

    @property
    def state(self) -> dict[str, Any]:
        """Everything that training changes, by the names under which checkpoints keep it."""
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
        """Renders a batch, and moves the weights against the gradient of its error."""
        losses, gradients, opacity, sigma = self.gradients(batch)
        loss, learning_rate = tf.add_n(losses), self._training.learning_rate(self.step)
        bad = self._is_bad(loss, gradients)

        def apply() -> None:
            self.optimizer.learning_rate.assign(learning_rate)
            self.optimizer.apply(gradients, self._variables)

        tf.cond(bad, lambda: None, apply)
        with tf.control_dependencies([bad]):  # a step that runs out of memory is taken again, and counts once
            self.step.assign_add(1)
            self.counts.assign(update_counts(self.counts, bad, losses[-1], opacity, batch.rgb))
        psnr0 = mse_to_psnr(losses[0]) if len(losses) > 1 else None
        return StepResult(loss, mse_to_psnr(losses[-1]), psnr0, learning_rate, sigma, tf.identity(self.counts))

    def gradients(self, batch: RayBatch) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """What the step that comes next makes of a batch; moves nothing.

        The loss is the sum of both passes' mean squared errors (paper, equation 6). A batch of more rays than fit is
        taken in chunks: each has its backward pass before the next begins, and their gradients are added up.

        Returns:
            Each pass's loss; the gradients of their sum with respect to all weights, times the loss scale if there is
            one; `opacities` of the last pass; and raw density [R, S] of the last pass and chunk.
        """
        seed = self.step_seed()
        count = batch.rgb.shape[0]
        chunks = -(-count // self._rays_at_once(count))
        if chunks == 1:
            return self._gradients(batch, tf.fill([count], 1.0 / count), seed, 0)
        return self._accumulated_gradients(batch, chunks, seed)

    def step_seed(self) -> tf.Tensor:
        """[2] what decides the random draws of the step that comes next."""
        return tf.random.fold_in(tf.stack([self.seed, 0]), self.step)

    def _is_bad(self, loss: tf.Tensor, gradients: list[tf.Tensor]) -> tf.Tensor:
        """Whether a step must not move the weights; Adam squares gradients, so their squares must be finite too."""
        finite = tf.math.is_finite(tf.linalg.global_norm(gradients))
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # It skips such steps by itself and tries half the scale, which is how it finds the largest that float16
            # bears. Where there is no scale left the gradient itself is to blame.
            finite |= self.optimizer.dynamic_scale > 1.0
        return ~(tf.math.is_finite(loss) & finite)

    def _rays_at_once(self, count: int) -> int:
        field, settings = self.fine or self.coarse, self.rendering
        samples = settings.N_samples + settings.N_importance
        return rays_at_once(count, samples, settings.chunk, field.netchunk, training=True, compiled=field.compiled)

    def _accumulated_gradients(self, batch: RayBatch, chunks: int, seed: tf.Tensor):
        """What `_gradients` returns, added up over chunks of the batch."""
        count, samples = batch.rgb.shape[0], self.rendering.N_samples + self.rendering.N_importance
        size = -(-count // chunks)

        def add_chunk(i: tf.Tensor, *sums):
            """Adds the i-th chunk's losses, gradients and opacity to the sums; the density is the last chunk's."""
            rows = i * size + tf.range(size)
            # The last chunk repeats the last ray where it runs over the end, at no weight.
            chunk = tf.nest.map_structure(lambda x: tf.gather(x, tf.minimum(rows, count - 1)), batch)
            *found, sigma = self._gradients(chunk, tf.where(rows < count, 1.0 / count, 0.0), seed, i * size)
            sigma = tf.ensure_shape(sigma, [size, samples])
            return i + 1, *tf.nest.map_structure(tf.add, list(sums[:3]), found), sigma

        losses = [tf.zeros([])] * (1 if self.fine is None else 2)
        gradients = [tf.zeros_like(variable.value) for variable in self._variables]
        sums = losses, gradients, tf.zeros([2]), tf.zeros([size, samples])
        return tf.while_loop(lambda i, *_: i < chunks, add_chunk, (0, *sums), parallel_iterations=1)[1:]

    def _gradients(self, batch: RayBatch, shares: tf.Tensor, seed: tf.Tensor, first_ray: tf.Tensor | int):
        """The losses of each pass, the gradients of all weights, and of the last pass opacities and raw density.

        Args:
            batch: rays that fit in memory together.
            shares: [R] weight of each of them in the loss.
            seed: [2] decides the batch's random draws.
            first_ray: number of the first of them in the whole batch.
        """
        with tf.GradientTape() as tape:
            first = coarse_pass(self.coarse, batch.rays, self.rendering, seed, first_ray)
            loss, scaled_loss = self.losses(first, batch, shares)
        gradients = tape.gradient(scaled_loss, _values(self.coarse))
        if self.fine is None:
            return [loss], gradients, opacities(first.rendering.acc, shares), first.raw[..., 3]
        # No gradient flows from one pass to the other's network, so each has its own, and one after the other: at once
        # they would need the memory of two tiles.
        with tf.control_dependencies(gradients), tf.GradientTape() as tape:
            first = tf.nest.map_structure(tf.identity, first)
            final, _ = fine_pass(self.fine, batch.rays, first, self.rendering, seed, first_ray)
            fine_loss, scaled_loss = self.losses(final, batch, shares)
        gradients += tape.gradient(scaled_loss, _values(self.fine))
        opacity = opacities(final.rendering.acc, shares)
        return [loss, fine_loss], gradients, opacity, final.raw[..., 3]

    def losses(self, result: Pass, batch: RayBatch, shares: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The mean squared error, and what to take the gradient of."""
        errors = tf.reduce_mean(tf.square(result.rendering.rgb - batch.rgb), axis=-1)
        loss = tf.reduce_sum(shares * errors)
        return loss, self.optimizer.scale_loss(loss)


def mse_to_psnr(error: tf.Tensor) -> tf.Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1] with that mean squared error."""
    return -10.0 * tf.math.log(error) / tf.math.log(tf.constant(10.0, error.dtype))


def _values(field: Field) -> list[tf.Variable]:
    return [variable.value for variable in field.mlp.trainable_variables]
