"""Starts several workers of one training run on this machine, each a process of its own.

    python tools/launch_workers.py 2 -- --config configs/lego.txt --expname lego --random_seed 0

Each gets `TF_CONFIG` with a free port for each worker, and `--distribute=multi_worker`. Their lines are shown with the
worker's number before them. Ctrl-C and SIGTERM are passed on, and the run can continue later. When a worker fails the
others end, too: within a minute by themselves, or they are killed. Exit code: that of the first worker that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from support import commandline

# Seconds in which workers end by themselves after one has failed: TensorFlow finds out, and each says so.
GRACE = 60.0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    usage = "launch_workers.py [-h] [--grace SECONDS] N -- FLAGS"
    parser = commandline.Parser("launch_workers", __doc__, usage)
    parser.add_argument("workers", type=int, metavar="N", help="number of workers")
    parser.add_argument("flags", nargs="+", metavar="FLAGS", help="flags of python -m nerf_tf, after --")
    parser.add_argument("--grace", type=float, default=GRACE, help="seconds until workers are killed after one failed")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f"N: expected a whole number >= 1 (found {args.workers})")
    return args


def free_addresses(count: int) -> list[str]:
    """So many addresses of this machine with ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:  # all at once, so that no port comes twice
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start(command: Sequence[str], addresses: Sequence[str], index: int) -> subprocess.Popen[str]:
    """Starts a worker; it leads a process group, so that Ctrl-C reaches it only through this program."""
    config = {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
    return subprocess.Popen(
        command,
        env=os.environ | {"TF_CONFIG": json.dumps(config)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def show_lines(stream: IO[str], index: int) -> None:
    """Prints a worker's lines, also those of a progress bar, with its number before them."""
    for line in stream:
        if line.strip():
            print(f"[{index}] {line}", end="", flush=True)


def wait(workers: Sequence[subprocess.Popen[str]], grace: float) -> int:
    """Waits until all have ended; returns the exit code of the first that failed, or 0.

    Workers that still run `grace` seconds after it are killed.
    """
    code, deadline = 0, None
    while True:
        codes = [worker.poll() for worker in workers]
        if deadline is None and any(codes):
            code, deadline = next(filter(None, codes)), time.monotonic() + grace
        if None not in codes:
            return 128 - code if code < 0 else code
        if deadline is not None and time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.1)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    command = [sys.executable, "-m", "nerf_tf", *args.flags, "--distribute=multi_worker"]
    addresses = free_addresses(args.workers)
    workers: list[subprocess.Popen[str]] = []
    received: list[int] = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    try:
        for index in range(args.workers):
            workers.append(start(command, addresses, index))
            if received:  # before this worker was there to get it
                return 128 + received[0]
        readers = [threading.Thread(target=show_lines, args=(w.stdout, i)) for i, w in enumerate(workers)]
        for reader in readers:
            reader.start()
        code = wait(workers, args.grace)
        for reader in readers:
            reader.join()
        return code
    finally:
        for worker in workers:
            worker.kill()


if __name__ == "__main__":
    sys.exit(main())
