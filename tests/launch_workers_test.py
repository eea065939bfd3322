"""tools/launch_workers.py starts workers, shows what they say, and ends them together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest

# What stands in for the program; `index` is the worker's number.
WORKER = "import json, os, sys, time; config = json.loads(os.environ['TF_CONFIG']); index = config['task']['index']; "


@pytest.fixture
def launch(tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Launches workers that run a piece of Python; restores the handlers of signals."""
    program = tool("launch_workers")

    def launch(code: str, *arguments: str) -> int:
        def start(command: Sequence[str], addresses: Sequence[str], index: int) -> subprocess.Popen[str]:
            assert command == [sys.executable, "-m", "nerf_tf", "--expname=x", "--distribute=multi_worker"]
            return original([sys.executable, "-c", WORKER + code], addresses, index)

        original = program.start
        monkeypatch.setattr(program, "start", start)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return program.main([*arguments, "--", "--expname=x"])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return launch


def test_each_worker_knows_its_place_and_its_lines_have_its_number(launch, capfd: pytest.CaptureFixture):
    assert launch("print(json.dumps(config))", "3") == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
    configs = [json.loads(line[4:]) for line in lines]
    assert [config["task"] for config in configs] == [{"type": "worker", "index": i} for i in range(3)]
    addresses = configs[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    assert all(config["cluster"]["worker"] == addresses for config in configs)


def test_when_one_fails_the_others_end(launch, capfd: pytest.CaptureFixture):
    start = time.monotonic()
    assert launch("time.sleep(0 if index else 600); sys.exit('gone' if index else 0)", "2", "--grace=0.2") == 1
    assert time.monotonic() - start < 60
    assert "[1] gone" in capfd.readouterr().out


def test_signals_are_passed_on(launch):
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()
    assert launch("time.sleep(600)", "2") == 128 + signal.SIGTERM


def test_mistakes_are_named(launch, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        launch("", "0")
    assert capsys.readouterr().err == "launch_workers: N: expected a whole number >= 1 (found 0)\n"
