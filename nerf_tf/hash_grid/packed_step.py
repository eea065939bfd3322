"""A hash grid's training step: a compiled program marches rays, computes gradients, moves weights.

The step is a pure function of (seed, step, weights, occupancy grid, learning rate), so that a resumed run continues bit
for bit on a CPU. Random numbers are the same on all devices; they are drawn outside of the compiled program, as XLA
would draw others.

Shapes: R rays, K slots; see `marching.packing`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from nerf_tf.data.pipeline import AlphaRayBatch, RayBatch
from nerf_tf.geometry.rays import Rays
from nerf_tf.hash_grid.field import HashGridField
from nerf_tf.marching import importance
from nerf_tf.marching.compositing import distortion, packed_weights, sum_by_ray
from nerf_tf.marching.march import TURNS, March, cells_in_turn, occupied_cells, update_densities
from nerf_tf.marching.packing import Packed, Samples, keep_visible, pack, samples_in
from nerf_tf.render.passes import PHILOX, UNIFORM
from nerf_tf.train.counts import Counts, opacities, update_counts
from nerf_tf.train.step import StepResult, mse_to_psnr

# Purposes of random draws. Each has its own stream.
JITTER, BACKGROUND, CELLS = range(3)
# Steps in which the learning rate rises to its highest value, as Adam's second moments are means of few gradients then.
WARMUP = 50
# The learning rate falls in a straight line to this part of its highest value. After 2,500 steps lego had 28.6 dB, and
# 28.4 where it fell exponentially to a twentieth, or as a cosine.
FINAL_RATE = 0.02
# Adam's constants (Mueller et al. 2022, section 4). EPSILON is so small because features that few samples touch have
# tiny gradients.
BETA_1, BETA_2, EPSILON = 0.9, 0.99, 1e-15
# Steps between updates of the occupancy grid, which begin at step EARLY_FROM: fewer until step EARLY_UNTIL, while fog
# fills the slots.
UPDATE_EVERY, UPDATE_EVERY_EARLY = 16, 4
EARLY_FROM, EARLY_UNTIL = 64, 256


@dataclasses.dataclass(frozen=True)
class PackedTrainSettings:
    """What a training run of a hash grid does.

    Attributes:
        slots: largest number of samples that a step trains on.
        ray_samples: number of samples on each ray, drawn by importance; None: those in occupied cells.
        lrate: highest learning rate.
        steps: number of steps over which the learning rate falls.
        minutes: limit of the time spent on steps. The learning rate falls with the part of the steps or of this time
            that is over, whichever is larger. None: no limit.
        perturb: whether samples are jittered.
        random_background: whether each ray has a new random background colour in each step, so that the loss is lowest
            if rays are opaque where photos show something; otherwise it is white or black, as `white_bkgd` says.
        white_bkgd: whether the photos are composited on white.
        distortion: weight in the loss of each ray's `compositing.distortion` divided by its number of samples; 0: none.
    """

    slots: int = 2**13
    ray_samples: int | None = None
    lrate: float = 2e-2
    steps: int = 1000
    minutes: float | None = None
    perturb: bool = True
    random_background: bool = False
    white_bkgd: bool = False
    distortion: float = 0.0


class Draws(NamedTuple):
    """The random numbers of a step: jitter [R, 1] of samples, and colours [R, 3] of the background."""

    jitter: tf.Tensor
    background: tf.Tensor


class PackedGradients(NamedTuple):
    """What a training step computes from a batch before it moves the weights.

    Attributes:
        loss: scalar, mean squared error plus weighted distortion.
        error: scalar, mean squared error of the rays that fit into the slots.
        gradients: those of the loss, in the order of the trainable weights.
        opacity: [2] see `counts.opacities`.
        density: [K] of the samples.
        rays: scalar, how many rays fit.
    """

    loss: tf.Tensor
    error: tf.Tensor
    gradients: list[tf.Tensor]
    opacity: tf.Tensor
    density: tf.Tensor
    rays: tf.Tensor


class Moments(tf.Module):
    """Adam's running means of the gradients (`first`) and of their squares (`second`), for each weight."""

    def __init__(self, variables):
        super().__init__()
        self.first = [tf.Variable(tf.zeros_like(variable.value), trainable=False) for variable in variables]
        self.second = [tf.Variable(tf.zeros_like(variable.value), trainable=False) for variable in variables]


class PackedTrainer:
    """A hash grid's training step and all that it changes: weights, occupancy grid, moments, step.

    The training loop, checkpoints and guards use it as they use `train.step.Trainer`.

    Attributes:
        coarse: the hash grid, the only field.
        fine: None.
        march: how rays march through its occupancy grid.
        optimizer: Adam's moments.
        step, seed, counts: as in `Trainer`.
        seconds: float64 variable, time spent on steps so far.
        train_step: `RayBatch` -> `StepResult`: takes a step, as a `tf.function`.
    """

    fine = None

    def __init__(self, field: HashGridField, march: March, training: PackedTrainSettings, seed: int):
        self.coarse, self.march, self._training = field, march, training
        with tf.device("CPU:0"):  # what the host reads and counts while a GPU works
            self.step = tf.Variable(0, dtype=tf.int64, name="step")
            self.seed = tf.Variable(seed, dtype=tf.int64, name="seed")
            self.seconds = tf.Variable(0.0, dtype=tf.float64, name="seconds")
        self.counts = tf.Variable(Counts(0, 0, 0, 0, 0), dtype=tf.int64, name="counts")
        self.optimizer = Moments(field.mlp.trainable_variables)
        self.train_step = tf.function(self._train_step, autograph=False)
        self._step = tf.function(self.gradients_and_apply, jit_compile=True, autograph=False)
        self._update = tf.function(self.update_occupancy, jit_compile=True, autograph=False)

    @property
    def state(self) -> dict[str, Any]:
        """Everything that training changes, by its name in checkpoints."""
        variables = {"step": self.step, "seed": self.seed, "counts": self.counts, "seconds": self.seconds}
        return {"hash_grid": self.coarse.mlp, "optimizer": self.optimizer, **variables}

    @property
    def minutes(self) -> float | None:
        """Limit of the time spent on steps, in minutes; None: no limit."""
        return self._training.minutes

    def spend(self, seconds: float) -> bool:
        """Counts the time that a step took; returns whether the limit is reached."""
        self.seconds.assign_add(seconds)
        return self.minutes is not None and float(self.seconds.numpy()) >= 60.0 * self.minutes

    def copy_state_from(self, other: PackedTrainer, restarts: int) -> None:
        """Copies weights, moments, step, seed and time spent from a trainer of equal shape; resets counts.

        Args:
            other: the trainer to copy from.
            restarts: the new count of restarts.
        """
        for mine, its in zip(self.variables, other.variables, strict=True):
            mine.assign(its)
        self.counts.assign(Counts(0, 0, 0, 0, restarts))

    @property
    def variables(self) -> list:
        """What a step changes, without the counts."""
        return [*self.coarse.mlp.weights, *self.optimizer.variables, self.step, self.seed, self.seconds]

    def _train_step(self, batch: RayBatch) -> StepResult:
        # The step is read here: what XLA compiles for one device cannot read variables of another.
        rate, step = self.learning_rate(), self.step.read_value()
        with tf.control_dependencies([rate]):
            taken, bad = self._step(batch, self.draw(batch.rgb.shape[0]), rate, step)
        return self.finish_step(batch.rgb, taken, bad, rate, tf.range(batch.rgb.shape[0]) < taken.rays)

    def finish_step(
        self, rgb: tf.Tensor, taken: PackedGradients, bad: tf.Tensor, rate: tf.Tensor, fits: tf.Tensor
    ) -> StepResult:
        """Updates the occupancy grid if its turn has come, and counts the step, after the weights have moved.

        Args:
            rgb: [R, 3] the batch's colours.
            taken: what `gradients` returned.
            bad: whether the step was skipped.
            rate: its learning rate.
            fits: [R] whether each ray fitted into the slots.
        """
        cells = self.coarse.mlp.settings.cells
        every = tf.where(self.step < EARLY_UNTIL, UPDATE_EVERY_EARLY, UPDATE_EVERY)
        every = tf.cast(every, tf.int64)
        # Also in the first step, so that the update is compiled then: the loop does not count that step's time.
        due = (self.step % every == every - 1) & (self.step >= EARLY_FROM) | (self.step == 0)

        def update() -> tf.Tensor:
            """Updates the cells of the next turn; returns a value to wait for."""
            u = _uniform(self.step_seed(), CELLS, [cells**3 // TURNS, 3])
            self._update(tf.cast(self.step // every % TURNS, tf.int32), u)
            return tf.constant(True)

        with tf.control_dependencies([taken.loss]):
            updated = tf.cond(due, update, lambda: tf.constant(False))
        with tf.control_dependencies([updated]):
            self.step.assign_add(1)
            # Rays that did not fit were not learnt from: they count with the first ray's colour, not with their own.
            shown = tf.where(fits[:, None], rgb, rgb[:1])
            counts = self.counts.assign(update_counts(self.counts, bad, taken.error, taken.opacity, shown))
        return StepResult(taken.loss, mse_to_psnr(taken.error), None, rate, taken.density[None], tf.identity(counts))

    def learning_rate(self) -> tf.Tensor:
        """Computes the learning rate of the next step, a scalar."""
        step, training = tf.cast(self.step, tf.float32), self._training
        over = step / training.steps
        if training.minutes is not None:
            over = tf.maximum(over, tf.cast(self.seconds, tf.float32) / (60.0 * training.minutes))
        left = 1.0 - (1.0 - FINAL_RATE) * tf.minimum(over, 1.0)
        return training.lrate * tf.minimum((step + 1.0) / WARMUP, 1.0) * left

    def step_seed(self) -> tf.Tensor:
        """Returns the seed [2] of the next step's random draws."""
        return tf.random.fold_in(tf.stack([self.seed, 0]), self.step)

    def draw(self, rays: int) -> Draws:
        """Draws the random numbers of the next step for this many rays."""
        seed, training = self.step_seed(), self._training
        jitter = _uniform(seed, JITTER, [rays, 1]) if training.perturb else tf.fill([rays, 1], 0.5)
        if training.random_background:
            return Draws(jitter, _uniform(seed, BACKGROUND, [rays, 3]))
        return Draws(jitter, tf.fill([rays, 3], float(training.white_bkgd)))

    def gradients_and_apply(
        self, batch: RayBatch, draws: Draws, rate: tf.Tensor, step: tf.Tensor
    ) -> tuple[PackedGradients, tf.Tensor]:
        """Computes gradients and moves the weights unless the step is bad: the part that is compiled.

        Returns:
            As `apply_unless_bad`.
        """
        return self.apply_unless_bad(self.gradients(batch, draws), rate, step)

    def apply_unless_bad(
        self, taken: PackedGradients, rate: tf.Tensor, step: tf.Tensor
    ) -> tuple[PackedGradients, tf.Tensor]:
        """Moves the weights unless the step is bad.

        Returns:
            What `gradients` returned, without the gradients, and whether the step is bad: its loss or a gradient is not
            finite.
        """
        bad = ~(tf.math.is_finite(taken.loss) & tf.math.is_finite(tf.linalg.global_norm(taken.gradients)))
        self.apply(taken.gradients, rate, step, bad)
        return taken._replace(gradients=[]), bad

    def gradients(self, batch: RayBatch, draws: Draws) -> PackedGradients:
        """Computes the next step's loss and gradients; changes nothing."""
        grid, march, rays = self.coarse.mlp, self.march, batch.rays
        count = batch.rgb.shape[0]
        packed, samples = self._samples(rays, draws.jitter)
        viewdirs = tf.gather(rays.viewdirs, packed.ray)
        target = batch.rgb
        if isinstance(batch, AlphaRayBatch):  # the photo on this step's background instead of white
            target += (1.0 - batch.alpha) * (draws.background - 1.0)
        weights_of = [variable.value for variable in grid.trainable_variables]
        shares = tf.where(tf.range(count) < packed.rays, 1.0 / tf.cast(packed.rays, tf.float32), 0.0)  # [R]
        with tf.GradientTape() as tape:
            density, raw_rgb = grid(samples.points, viewdirs)
            weights, _ = packed_weights(march, density, samples, packed)
            values = tf.concat([tf.sigmoid(raw_rgb), tf.ones_like(weights)[:, None]], axis=-1)
            sums = sum_by_ray(weights[:, None] * values, packed, count)
            acc = sums[:, 3]
            rgb = sums[:, :3] + (1.0 - acc[:, None]) * draws.background
            error = tf.reduce_sum(shares * tf.reduce_mean(tf.square(rgb - target), axis=-1))
            loss = error
            if self._training.distortion > 0:
                spread = distortion(weights, samples, packed, count)
                each = sum_by_ray(tf.cast(packed.in_use, tf.float32)[:, None], packed, count)[:, 0]
                loss += self._training.distortion * tf.reduce_sum(shares * tf.math.divide_no_nan(spread, each))
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, weights_of)]
        return PackedGradients(loss, error, gradients, opacities(acc, shares), density, packed.rays)

    def _samples(self, rays: Rays, jitter: tf.Tensor) -> tuple[Packed, Samples]:
        """Chooses the samples that take part in the step.

        Where rays march, samples are packed twice: first all of those in occupied cells; then only those that light
        reaches, as the densities of the first tell.
        """
        grid, march, training = self.coarse.mlp, self.march, self._training
        if training.ray_samples is not None:
            return importance.draw_samples(march, grid.occupancy.value, rays, jitter, training.ray_samples)
        packed = pack(march, occupied_cells(grid.occupancy.value, march), rays, jitter)
        samples = samples_in(march, rays, jitter, packed)
        density, _ = grid.density(samples.points)
        _, transmittance = packed_weights(march, density, samples, packed)
        packed = keep_visible(march, packed, transmittance, rays.origins.shape[0], training.slots)
        return packed, samples_in(march, rays, jitter, packed)

    def apply(self, gradients: list[tf.Tensor], rate: tf.Tensor, step: tf.Tensor, bad: tf.Tensor) -> None:
        """Moves weights and moments by Adam's rule (Kingma and Ba 2015), unless the step is bad.

        Bias correction is part of the step size, as in their section 2.
        """
        count = tf.cast(step + 1, tf.float32)
        size = rate * tf.sqrt(1.0 - BETA_2**count) / (1.0 - BETA_1**count)
        for variable, first, second, gradient in zip(
            self.coarse.mlp.trainable_variables, self.optimizer.first, self.optimizer.second, gradients, strict=True
        ):
            mean = tf.where(bad, first, BETA_1 * first + (1.0 - BETA_1) * gradient)
            square = tf.where(bad, second, BETA_2 * second + (1.0 - BETA_2) * tf.square(gradient))
            moved = variable.value - size * mean / (tf.sqrt(square) + EPSILON)
            variable.value.assign(tf.where(bad, variable.value, moved))
            first.assign(mean)
            second.assign(square)

    def update_occupancy(self, turn: tf.Tensor, u: tf.Tensor) -> None:
        """Updates the occupancy grid's cells of a turn; `u` [cells ** 3 // TURNS, 3] as in `cells_in_turn`."""
        grid = self.coarse.mlp
        found, _ = grid.density(cells_in_turn(grid.settings.cells, turn, u))
        grid.occupancy.value.assign(update_densities(grid.occupancy.value, turn, found))


def _uniform(seed: tf.Tensor, purpose: int, shape: list[int]) -> tf.Tensor:
    """Draws random numbers in [0, 1), the same ones on every device; not for code that XLA compiles."""
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=tf.random.fold_in(seed, purpose))
    return UNIFORM(shape=shape, key=key, counter=counter, alg=PHILOX)
