"""Stopping on Ctrl-C or SIGTERM: ends training between two steps."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Item = TypeVar("Item")


class Stopped(Exception):
    """The program was asked to stop.

    Attributes:
        signal: SIGINT or SIGTERM.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """The exit code by which shells know that a signal ended a program."""
        return 128 + self.signal


class StopRequest:
    """Remembers a request to stop until the program checks it where stopping is safe.

    Attributes:
        number: the signal that asked to stop; 0: none did.
    """

    def __init__(self) -> None:
        self.number = 0

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Treats SIGINT and SIGTERM as requests to stop during a block.

        A second signal ends the process at once. Signals that the program ignores from its start, as under `nohup`,
        stay ignored. Outside the main thread, which alone can handle signals, this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Python runs signal handlers between bytecode instructions only, and a whole training step, or its compilation,
        # is one of these. A thread that reads from a socket learns of signals at once.
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        old_handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
        old_wakeup_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._receive_signals, args=(receiver,), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_wakeup_fd)
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            sender.close()  # ends the thread

    def _receive_signals(self, receiver: socket.socket) -> None:
        with receiver:
            while received := receiver.recv(1):
                number = received[0]
                if number not in SIGNALS:
                    continue
                if self.number:
                    os._exit(128 + number)
                self.number = number
                logger.warning("%s: stopping after this step; a second one stops at once", signal.Signals(number).name)

    def check(self) -> None:
        """Raises `Stopped` if a stop was requested."""
        if self.number:
            raise Stopped(self.number)

    def check_each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items; raises `Stopped` before the next one if a stop was requested."""
        for item in items:
            self.check()
            yield item
