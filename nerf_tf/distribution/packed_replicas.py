"""A hash grid's training step on several devices, of one process or of several: see `replicas`.

Each replica has slots of its own, and takes from its part of the batch as many rays as fit into them. A step's loss is
the mean over all rays that fit, of all replicas: sums over rays and numbers of rays are added up, not means. If all
rays fit, the step is that of one device.
"""

from __future__ import annotations

import tensorflow as tf

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.distribution.replicas import ReplicaTrainer
from nerf_tf.distribution.workers import first_of_all, replica_number
from nerf_tf.hash_grid.packed_step import PackedGradients
from nerf_tf.train.step import StepResult


class PackedReplicaTrainer(ReplicaTrainer):
    """The training step of `PackedTrainer` on all replicas of a strategy.

    All replicas make the same random draws and update equal occupancy grids with them, so that these stay equal.
    """

    @property
    def minutes(self) -> float | None:
        """As in `PackedTrainer`."""
        return self.first.minutes

    def spend(self, seconds: float) -> bool:
        """As in `PackedTrainer`, but with several workers the chief's clock counts.

        Each step begins by giving its time to all workers, so the step that has just ended does not count yet.
        """
        if not self._has_other_workers:
            return self.first.spend(seconds)
        is_over = self.first.spend(0.0)  # the last step gave all workers the chief's time
        self.first.spend(seconds)
        return is_over

    @property
    def _has_other_workers(self) -> bool:
        return self.replicas > len(self._trainers)

    def _part(self, rays: int, number: int) -> tuple[int, int]:
        """Returns the first of a batch's rays that a replica takes, and the one after its last."""
        return number * rays // self.replicas, (number + 1) * rays // self.replicas

    def _make_functions(self) -> None:
        self._gradients = [tf.function(each.gradients, jit_compile=True, autograph=False) for each in self._trainers]
        self._apply = [tf.function(each.apply_unless_bad, jit_compile=True, autograph=False) for each in self._trainers]
        self.train_step = tf.function(self._train_step, autograph=False)

    def _train_step(self, batch: RayBatch) -> StepResult:
        count = batch.rgb.shape[0]
        if self.minutes is not None and self._has_other_workers:
            self.first.seconds.assign(*first_of_all(self._strategy, [tf.convert_to_tensor(self.first.seconds)]))
        rate, step = self.first.learning_rate(), self.first.step.read_value()
        with tf.control_dependencies([rate, step]):
            found = self._strategy.run(self._replica_gradients, args=(batch,))
        results = []
        for i, (device, trainer) in enumerate(self.by_device):
            taken, rays = tf.nest.map_structure(lambda x, i=i: self._strategy.experimental_local_results(x)[i], found)
            parts = (self._part(count, number) for number in range(self.replicas))
            fits = tf.concat([tf.range(end - first) < rays[n] for n, (first, end) in enumerate(parts)], axis=0)
            with tf.device(device):
                taken, bad = self._apply[i](taken, rate, step)
                results.append(trainer.finish_step(batch.rgb, taken, bad, rate, fits))
        return tf.nest.map_structure(lambda x: None if x is None else tf.identity(x), results[0])

    def _replica_gradients(self, batch: RayBatch) -> tuple[PackedGradients, tf.Tensor]:
        """Computes the step's means over the rays of all replicas; `density` is that of this one.

        Returns:
            The means, and how many rays fit on each replica, [replicas].
        """
        number = replica_number()
        local = number % len(self._trainers)
        first, end = self._part(batch.rgb.shape[0], number)
        # Drawn for the whole batch: a ray's numbers do not depend on how many replicas there are.
        draws = self._trainers[local].draw(batch.rgb.shape[0])
        found = self._gradients[local](*tf.nest.map_structure(lambda x: x[first:end], (batch, draws)))
        rays = tf.cast(found.rays, tf.float32)
        means = [found.loss, found.error, found.gradients, found.opacity]
        sums = [tf.one_hot(number, self.replicas) * rays, *(rays * mean for mean in tf.nest.flatten(means))]
        rays, *sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
        total = tf.reduce_sum(rays)
        loss, error, gradients, opacity = tf.nest.pack_sequence_as(means, [each / total for each in sums])
        rays = tf.cast(rays, tf.int32)
        return PackedGradients(loss, error, gradients, opacity, found.density, tf.reduce_sum(rays)), rays
