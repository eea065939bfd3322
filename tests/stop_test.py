"""Stop requests: noticed at once, carried out where nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nerf_tf.safety.stop import Stopped, StopRequest


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Gives signals back the handlers they had."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.2)  # until the thread has heard it


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_item_is_finished_before_the_program_stops(number, code, caplog):
    signal.signal(number, signal.SIG_DFL)
    stop, done = StopRequest(), []

    def work() -> None:
        for item in stop.check_each(range(5)):
            if item == 2:
                send(number)
            done.append(item)

    with stop.handle_signals(), pytest.raises(Stopped) as stopped:
        work()
    assert done == [0, 1, 2]
    assert stopped.value.exit_code == code
    assert f"{signal.Signals(number).name}: stopping after this step" in caplog.text
    assert signal.getsignal(number) is signal.SIG_DFL


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop = StopRequest()
    with stop.handle_signals():
        send(signal.SIGTERM)
        stop.check()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_thread_cannot_listen_but_can_train():
    done = []

    def work() -> None:
        stop = StopRequest()
        with stop.handle_signals():
            done.extend(stop.check_each(range(3)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [0, 1, 2]


def test_an_interrupt_while_tensorflow_loads_is_one_line():
    program = """
import sys
class Interruption:
    def find_spec(self, name, *_):
        if name == "tensorflow":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interruption())
from nerf_tf.__main__ import main
main()
"""
    root = Path(__file__).parent.parent
    words = [sys.executable, "-c", program, f"--config={root / 'configs' / 'lego.txt'}"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "nerf_tf: interrupted\n")
