"""The processes that train together: TensorFlow's strategy for them, and what they exchange."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

logger = logging.getLogger(__name__)

# Most bytes of a text that workers exchange; the flags of a run take a tenth of it.
LONGEST_TEXT = 2**15
# Seconds that a worker waits before it ends: an exchange takes milliseconds, and more on a machine that is busy.
LINGER_SECONDS = 1.0
HELP = "describe the workers there, or start some on this machine with tools/launch_workers.py"


@dataclasses.dataclass(frozen=True, eq=False)
class Workers:
    """This process among those that train together; by default the only one, with one device.

    Attributes:
        strategy: how a step is split over devices; None: it is not split.
        index: this worker's number; 0 is the chief, which alone writes files.
        count: the number of workers.
    """

    strategy: tf.distribute.Strategy | None = None
    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the run's files."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """The number of devices of all workers together; each has equally many."""
        return 1 if self.strategy is None else self.strategy.num_replicas_in_sync

    @property
    def devices(self) -> Sequence[str | None]:
        """Names of this worker's devices; None is the one that TensorFlow chooses."""
        return [None] if self.strategy is None else self.strategy.extended.worker_devices

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Collects the values of all workers; waits until all have called this.

        Args:
            values: [L] float32, of equal length on all workers.

        Returns:
            [count, L] the values by worker.
        """
        return values[None] if self.count == 1 else self._gather(tf.constant(values, tf.float32)).numpy()

    def gather_pixels(self, values: np.ndarray) -> np.ndarray:
        """Does what `gather` does, for many values: they arrive bit for bit, and no zeros are sent."""
        return values[None] if self.count == 1 else self._gather_pixels(tf.constant(values, tf.float32)).numpy()

    @functools.cached_property
    def _gather_pixels(self) -> tf.types.experimental.PolymorphicFunction:
        def send(values: tf.Tensor) -> tf.Tensor:
            """Gathers one row from the first replica of each worker, and none from its others."""
            number = replica_number() % (self.replicas // self.count)
            return tf.distribute.get_replica_context().all_gather(values[None][: int(number == 0)], axis=0)

        return self._on_all_replicas(send)

    @functools.cached_property
    def _gather(self) -> tf.types.experimental.PolymorphicFunction:
        def send(values: tf.Tensor) -> tf.Tensor:
            """Adds up tables with a row for each worker, in which all rows but the worker's own are 0."""
            row, number = divmod(replica_number(), self.replicas // self.count)
            table = tf.pad(values[None] * float(number == 0), [[row, self.count - 1 - row], [0, 0]])
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, table)

        return self._on_all_replicas(send)

    def _on_all_replicas(self, send: Callable[[tf.Tensor], tf.Tensor]) -> tf.types.experimental.PolymorphicFunction:
        """Makes a function that runs `send` on each replica, and returns the first one's result."""

        @tf.function(autograph=False)
        def gather(values: tf.Tensor) -> tf.Tensor:
            return self.strategy.experimental_local_results(self.strategy.run(send, args=(values,)))[0]

        return gather

    def gather_texts(self, text: str) -> list[str]:
        """Returns the text of each worker; waits until all have called this.

        Raises:
            ValueError: the text is too long.
        """
        encoded = text.encode()
        if len(encoded) > LONGEST_TEXT:
            raise ValueError(
                f"the flags take {len(encoded)} bytes, and workers can exchange {LONGEST_TEXT}: shorten them"
            )
        padded = np.frombuffer(encoded.ljust(LONGEST_TEXT, b"\0"), np.uint8).astype(np.float32)
        return [row.astype(np.uint8).tobytes().rstrip(b"\0").decode() for row in self.gather(padded)]

    @contextlib.contextmanager
    def lingering(self) -> Iterator[None]:
        """Waits a second at the end of a block, so that the other workers receive what this one sent last."""
        try:
            yield
        finally:
            if self.count > 1:
                time.sleep(LINGER_SECONDS)

    def largest(self, number: int) -> int:
        """Returns the largest of all workers' numbers, from 0 to 2^24; waits until all have called this."""
        return int(self.gather(np.float32([number])).max())


def replica_number() -> int:
    """Returns the number, among those of all workers, of the replica whose function is being traced."""
    return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))


def first_of_all(strategy: tf.distribute.Strategy, values: list[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the values of the chief's first replica; all workers call this, in a `tf.function`."""

    def send() -> list[tf.Tensor]:
        """Adds up the first replica's values and the others' zeros."""
        context, is_first = tf.distribute.get_replica_context(), replica_number() == 0
        # Whole numbers as float64, which GPUs can add up too and which holds steps and seeds exactly.
        kinds = [tf.float64 if value.dtype.is_integer else value.dtype for value in values]
        # New tensors, on the replica's device.
        own = tf.identity if is_first else tf.zeros_like
        sent = [own(tf.cast(value, kind)) for value, kind in zip(values, kinds, strict=True)]
        # One by one, as the values of a list would have to be of one type.
        return [context.all_reduce(tf.distribute.ReduceOp.SUM, value) for value in sent]

    found = [strategy.experimental_local_results(value)[0] for value in strategy.run(send)]
    return [tf.cast(value, old.dtype) for value, old in zip(found, values, strict=True)]


def find_cluster(environment: Mapping[str, str]) -> tf.distribute.cluster_resolver.ClusterResolver:
    """Finds the workers and this one's place among them, from `TF_CONFIG` or from Slurm's variables.

    Raises:
        ValueError: neither is set, or what is set cannot be used.
    """
    if "TF_CONFIG" in environment:
        _check_tf_config(environment["TF_CONFIG"])
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_STEP_NUM_TASKS" not in environment:
        raise ValueError(f"--distribute=multi_worker: TF_CONFIG is not set; {HELP}")
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
        resolver.cluster_spec()  # this also chooses the GPUs of the process
        return resolver
    except (ValueError, RuntimeError, OSError, ZeroDivisionError) as error:
        raise ValueError(
            f"--distribute=multi_worker: TensorFlow cannot make out the Slurm job's workers and GPUs ({error}); set "
            "TF_CONFIG instead"
        ) from error


def _check_tf_config(text: str) -> None:
    """Raises ValueError unless `TF_CONFIG` describes workers and which of them this is."""
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        addresses = jobs[task["type"]]
        right = isinstance(task["index"], int) and 0 <= task["index"] < len(addresses)
        every = [address for job in jobs.values() for address in job]
        right &= all(isinstance(address, str) and ":" in address for address in every)
    except (ValueError, KeyError, TypeError, AttributeError):
        right, jobs = False, {}
    if not right:
        raise ValueError(
            'TF_CONFIG: not of the form {"cluster": {"worker": ["host:port", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}; {HELP}'
        )
    if set(jobs) - {"chief", "worker"}:
        raise ValueError(f"TF_CONFIG: has {', '.join(sorted(jobs))}; only chief and worker can train together")
    if len(set(every)) < len(every):
        raise ValueError("TF_CONFIG: two workers have one address; give each a port of its own")


def place_in(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> tuple[int, int]:
    """Returns this worker's number and the number of workers, of which a chief is the first."""
    jobs = resolver.cluster_spec().as_dict()
    first = len(jobs.get("chief", [])) if resolver.task_type == "worker" else 0
    return first + resolver.task_id, sum(map(len, jobs.values()))


def multi_worker(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> Workers:
    """Joins the other workers; waits for them.

    Raises:
        ValueError: the program has used TensorFlow before, or this worker's port is taken.
    """
    index, count = place_in(resolver)
    logger.info("worker %d of %d, waiting for the others", index, count)
    try:
        with _ended_by_interrupts():
            return Workers(tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver), index, count)
    except (RuntimeError, tf.errors.OpError) as error:
        raise ValueError(f"worker {index} cannot join the others: {error}") from error


@contextlib.contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Lets Ctrl-C end the process during a block, where TensorFlow may hold up Python for an hour."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGINT)
    if former is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def mirrored() -> Workers:
    """Makes one worker of all GPUs of this machine, or else of all logical devices of its CPU."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = [device.name.removeprefix("/device:") for device in devices]
    logger.info("each training step is split over %d devices: %s", len(names), ", ".join(names))
    return Workers(tf.distribute.MirroredStrategy(names))
