"""Asked to stop by SIGINT, SIGTERM or SIGUSR1: an exception (`cli`), or a flag the ranks agree on (`train.loop`)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While the block runs SIGTERM and SIGUSR1 raise KeyboardInterrupt, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignal:
    """While the block runs, the first SIGINT, SIGTERM or SIGUSR1 sets `asked`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}
        self._patience = 0.0
        self._timer: threading.Timer | None = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if self._patience:
            self._begin_timer(self._patience)

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """The block waits for what may never come: once asked to stop, it is interrupted after so many seconds."""
        self._patience = seconds
        if self.asked:
            self._begin_timer(seconds)
        try:
            yield
        finally:
            self._patience = 0.0
            if self._timer:
                self._timer.cancel()
                self._timer = None

    def _begin_timer(self, seconds: float) -> None:
        """A second SIGINT later, as from the keyboard: no thread but the main one can be interrupted."""
        if self._timer is None and threading.current_thread() is threading.main_thread():
            self._timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
            self._timer.daemon = True
            self._timer.start()

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
