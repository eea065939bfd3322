"""A training step on several devices, of one process or of several, by a `tf.distribute` strategy.

    batch -> (each replica: its rays -> gradients) -> all-reduce -> (each replica: apply) -> StepResult

Every process has the whole batch, since a batch is a pure function of seed and step; a replica takes its rays by its
number. A step computes sums over rays, so the sums of all replicas are added up. Then all replicas move equal weights
by equal sums and the same rule: weights stay equal, and need not be sent.

Each replica has a `Trainer` with plain variables on its device. With the strategy's own variables Keras' optimizer
would add up the gradients itself: a bad step could not be seen before weights move, nor could XLA compile the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.distribution.workers import first_of_all, replica_number
from nerf_tf.hash_grid.packed_step import PackedTrainer
from nerf_tf.train.gradients import StepGradients
from nerf_tf.train.step import StepResult, Trainer


class ReplicaTrainer:
    """The training step of `Trainer` on all replicas of a strategy, for use in place of a `Trainer`.

    Attributes:
        first: the trainer of this process's first replica; the others' have equal state.
        train_step: as in `Trainer`.
    """

    minutes = None  # as in `Trainer`

    def __init__(self, strategy: tf.distribute.Strategy, make_trainer: Callable[[], Trainer | PackedTrainer]):
        """Makes a trainer on each device of this process.

        Args:
            strategy: gives the devices; a `MirroredStrategy` or a `MultiWorkerMirroredStrategy`.
            make_trainer: makes a trainer, an equal one each time and in each process.
        """
        self._strategy = strategy
        self._trainers = []
        for device in strategy.extended.worker_devices:
            with tf.device(device):
                self._trainers.append(make_trainer())
        self.first = self._trainers[0]
        self._make_functions()

    def __getattr__(self, name: str) -> Any:
        """Returns any other attribute of a `Trainer` from the first one."""
        return getattr(self.first, name)

    @property
    def by_device(self) -> list[tuple[str, Trainer | PackedTrainer]]:
        """The devices of this process, each with its trainer."""
        return list(zip(self._strategy.extended.worker_devices, self._trainers, strict=True))

    @property
    def replicas(self) -> int:
        """The number of replicas in all processes."""
        return self._strategy.num_replicas_in_sync

    @property
    def parts(self) -> int:
        """How many parts of a replica's rays are added up in a step."""
        return self.first.parts if self.replicas == 1 else 1

    def rays_of_replica(self, rays: int) -> int:
        """Returns how many of a batch's rays a replica takes; the last replicas may have fewer of their own."""
        return -(-rays // self.replicas)

    def _make_functions(self) -> None:
        compiled = self.first.coarse.compiled

        def function(method: Callable) -> Callable:
            return tf.function(method, jit_compile=True, autograph=False) if compiled else method

        self._gradients = [function(trainer.gradients) for trainer in self._trainers]
        self._apply = [function(trainer.apply) for trainer in self._trainers]
        self.train_step = tf.function(self._train_step, autograph=False)

    def resize(self, chunk: int, netchunk: int) -> None:
        """As `Trainer.resize`, on all replicas of this process."""
        for trainer in self._trainers:
            trainer.resize(chunk, netchunk)
        self._make_functions()

    def copy_state_from(self, other: Trainer | PackedTrainer, restarts: int) -> None:
        """As `Trainer.copy_state_from`, on all replicas of this process."""
        for trainer in self._trainers:
            trainer.copy_state_from(other, restarts)

    def share_state(self) -> None:
        """Gives every replica the state of the first replica of the first process."""

        @tf.function(autograph=False)
        def send() -> list[tf.Tensor]:
            values = [tf.convert_to_tensor(variable) for variable in (*self.first.variables, self.first.counts)]
            return first_of_all(self._strategy, values)

        values = send()
        for trainer in self._trainers:
            for variable, value in zip((*trainer.variables, trainer.counts), values, strict=True):
                variable.assign(value)

    def _train_step(self, batch: RayBatch) -> StepResult:
        step = self.first.step.read_value()
        found = self._strategy.run(self._replica_gradients, args=(batch,))
        results = []
        for i, (device, _) in enumerate(self.by_device):
            its = tf.nest.map_structure(lambda x, i=i: self._strategy.experimental_local_results(x)[i], found)
            with tf.device(device):
                results.append(self._apply[i](its, batch.rgb, step))
        with tf.control_dependencies([result.counts for result in results]):
            for trainer in self._trainers:
                trainer.step.assign_add(1)
        return tf.nest.map_structure(lambda x: None if x is None else tf.identity(x), results[0])

    def _replica_gradients(self, batch: RayBatch) -> StepGradients:
        """Computes the batch's sums over all replicas; `sigma` is that of this one's rays."""
        number = replica_number()
        local = number % len(self._trainers)
        trainer = self._trainers[local]
        draws = trainer.draw(batch.rgb.shape[0]) if trainer.coarse.compiled else None
        taken = trainer.part_arguments(self.replicas * self.parts, number * self.parts, (number + 1) * self.parts)
        found = self._gradients[local](batch, draws, *taken)
        sums = tf.nest.flatten(found[:3])  # all but sigma
        sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
        return StepGradients(*tf.nest.pack_sequence_as(found[:3], sums), found.sigma)
