"""Ctrl-C and SIGTERM: end training between two steps rather than within one."""

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
    """Somebody asked the program to stop.

    Attributes:
        signal: how.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended."""
        return 128 + self.signal


class StopRequest:
    """Whether somebody asked the program to stop, to be looked at where stopping does no harm."""

    def __init__(self) -> None:
        self._number: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGINT and SIGTERM for requests while a block runs; a second one ends the process at once.

        A signal that the program was started to ignore, as `nohup` and scripts do, stays ignored. Only a program's main
        thread can listen; elsewhere this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Python runs handlers between two of its own instructions, and a step, or its compilation, is a single one. So
        # a thread hears of signals through a socket, as soon as they come.
        ear, mouth = socket.socketpair()
        mouth.setblocking(False)
        numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        wakeup = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(ear,), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            mouth.close()  # which ends the thread

    def _listen(self, ear: socket.socket) -> None:
        with ear:
            while heard := ear.recv(1):
                number = heard[0]
                if number not in SIGNALS:
                    continue
                if self._number is not None:
                    os._exit(128 + number)
                self._number = number
                logger.warning("%s: stopping after this step; once more stops at once", signal.Signals(number).name)

    def check(self) -> None:
        """Raises `Stopped` if somebody asked for it."""
        if self._number is not None:
            raise Stopped(self._number)

    def guarded(self, items: Iterable[Item]) -> Iterator[Item]:
        """Gives the items on; raises `Stopped` before the next one if somebody asked for it."""
        for item in items:
            self.check()
            yield item
