"""The training loop."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.train import loop as loop_module
from nerf_tf.train.loop import Event, Speedometer, train
from nerf_tf.train.step import StepResult


def test_when_events_are_due():
    assert [step for step in range(7) if Event(3, print).due(step)] == [0, 3, 6]
    assert [step for step in range(7) if Event(3, print, at_zero=False).due(step)] == [3, 6]
    assert not any(Event(0, print).due(step) for step in range(7))


class FakeTrainer:
    """Stands in for a `Trainer`: counts steps, and tells which batches it was given."""

    minutes = None

    def __init__(self, step: int = 0):
        self.step = tf.Variable(step, dtype=tf.int64)
        self.seen: list[int] = []

    def train_step(self, batch: SimpleNamespace) -> StepResult:
        self.seen.append(batch.number)
        self.step.assign_add(1)
        loss, psnr, rate = tf.constant(0.5), tf.constant(3.0), tf.constant(1e-3)
        return StepResult(loss, psnr, None, rate, tf.zeros([8, 2]), tf.zeros([5], tf.int64))

    def spend(self, seconds: float) -> bool:
        return False


class Batches:
    """An endless stream of batches of 8 rays, which remembers how many were taken."""

    def __init__(self):
        self.taken = 0

    def __iter__(self):
        while True:
            self.taken += 1
            yield SimpleNamespace(number=self.taken - 1, rgb=np.zeros([8, 3]))


def no_way(error):
    raise AssertionError("memory did not run out")


def run_loop(trainer, N_iters, i_print=0, events=(), report=lambda *_: None, on_out_of_memory=no_way):
    batches = Batches()
    train(trainer, batches, N_iters, "name", i_print, report, events, on_out_of_memory)
    return batches


def test_the_loop_ends_when_time_is_up():
    """The first step, which TensorFlow compiles, costs no time; the last has its events."""
    spent, seen = [], []

    class TimedTrainer(FakeTrainer):
        minutes = 1.0

        def spend(self, seconds: float) -> bool:
            spent.append(seconds)
            return len(spent) == 3

    trainer = TimedTrainer()
    run_loop(trainer, 10, events=[Event(1, seen.append)])
    assert seen == [0, 1, 2, 3]
    assert len(spent) == 3
    assert min(spent) > 0


def test_the_loop_stops_before_N_iters():
    trainer = FakeTrainer()
    assert run_loop(trainer, 7).taken == 7
    assert trainer.seen == list(range(7))


def test_the_loop_goes_on_from_the_trainers_step():
    trainer, steps = FakeTrainer(step=5), []
    batches = run_loop(trainer, 9, events=[Event(1, steps.append)])
    assert steps == [5, 6, 7, 8]
    assert batches.taken == 4


def test_a_finished_run_does_nothing():
    trainer = FakeTrainer(step=9)
    run_loop(trainer, 9)
    assert trainer.seen == []


def test_events_and_reports_come_at_their_steps_and_in_order():
    log = []

    def note(name):
        def action(step, *_):
            log.append((step, name))

        return action

    run_loop(FakeTrainer(), 7, 3, [Event(3, note("a")), Event(2, note("b"), at_zero=False)], note("report"))
    assert log == [
        (0, "report"),
        (0, "a"),
        (2, "b"),
        (3, "report"),
        (3, "a"),
        (4, "b"),
        (6, "report"),
        (6, "a"),
        (6, "b"),
    ]


class GreedyTrainer(FakeTrainer):
    """Needs less and less memory, until there is enough."""

    def __init__(self, needed: int):
        super().__init__()
        self.needed = needed

    def train_step(self, batch):
        if self.needed > 1:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        return super().train_step(batch)


def test_a_step_that_runs_out_of_memory_is_tried_again_with_less():
    trainer, steps, errors = GreedyTrainer(8), [], []

    def on_out_of_memory(error):
        errors.append(error)
        trainer.needed //= 2

    run_loop(trainer, 4, events=[Event(1, steps.append)], on_out_of_memory=on_out_of_memory)
    assert [type(error) for error in errors] == [tf.errors.ResourceExhaustedError] * 3
    assert trainer.seen == steps == [0, 1, 2, 3]


def test_the_loop_ends_when_nothing_smaller_is_left():
    trainer = GreedyTrainer(8)

    def on_out_of_memory(error):
        raise ValueError("nothing left to halve") from error

    with pytest.raises(ValueError, match="nothing left to halve"):
        run_loop(trainer, 4, on_out_of_memory=on_out_of_memory)
    assert trainer.seen == []


@pytest.mark.parametrize(
    ("i_print", "printed"), [(5, [*range(10), 10, 15, 20]), (0, list(range(10))), (8, [*range(10), 16])]
)
def test_first_steps_and_every_i_print_are_printed(caplog, i_print, printed):
    with caplog.at_level(logging.INFO):
        run_loop(FakeTrainer(), 21, i_print)
    first, *lines = [record.getMessage() for record in caplog.records]
    assert first == "name: TensorFlow compiles the first step"
    assert [line.split(" psnr")[0] for line in lines] == [f"name step {step}" for step in printed]
    assert all("psnr 3.000 loss 0.500000" in line and line.endswith("s/step") for line in lines)


def test_counts_are_watched_a_little_late_but_in_order_and_before_anything_is_written():
    watched, written, trainer = [], [], FakeTrainer()

    def watch(step: int, batch: SimpleNamespace, counts: object) -> None:
        assert batch.number == step
        watched.append(step)

    def write(step: int) -> None:
        assert watched == list(range(step + 1))
        written.append(step)

    train(trainer, Batches(), 12, "name", 0, lambda *_: None, [Event(7, write)], no_way, watch)
    assert watched == list(range(12))
    assert written == [0, 7]

    def end_at_step_3(step: int, *_: object) -> None:
        if step == 3:
            raise ValueError("enough")

    trainer = FakeTrainer()
    with pytest.raises(ValueError, match="enough"):
        train(trainer, Batches(), 12, "name", 0, lambda *_: None, [], no_way, end_at_step_3)
    assert trainer.seen == list(range(4 + loop_module.UNREAD_STEPS))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told otherwise."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: clock.now)
    return clock


def test_speedometer(clock):
    speed = Speedometer()
    speed.add(30)
    speed.add(30)
    clock.now += 3
    assert speed.read() == pytest.approx(20)
    speed.add(10)
    clock.now += 1
    with speed.pause():
        clock.now += 4
    assert speed.read() == pytest.approx(10)


def test_the_loop_does_not_count_time_spent_on_reports_and_events(clock):
    rates = []

    class SlowTrainer(FakeTrainer):
        def train_step(self, batch):
            clock.now += 0.5
            return super().train_step(batch)

    def pause(seconds):
        clock.now += seconds

    def report(step, result, rate):
        rates.append(rate)
        pause(1000)

    run_loop(SlowTrainer(), 41, 20, [Event(7, lambda step: pause(50))], report)
    assert rates == pytest.approx([16, 16, 16])
