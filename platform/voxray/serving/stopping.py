"""How a service that runs in the foreground is told to stop, and ends without a word from Ray."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """What Ctrl-C and SIGTERM mean: while the service starts, its end at once; once it serves, that it be stopped.

    A second signal ends it without waiting for what is under way; from then on signals change nothing.
    """

    def __init__(self) -> None:
        self._told = threading.Event()
        self._is_serving = self._is_over = False

    def serves(self) -> None:
        """From now on the first signal is only noted, for `wait` to find."""
        self._is_serving = True

    @property
    def is_told(self) -> bool:
        """Whether it was told to stop while it served."""
        return self._told.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether it was told to stop, at the latest after that time."""
        return self._told.wait(seconds)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Signals come here for the block."""
        before = {number: signal.signal(number, self._heed) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heed(self, number: int, _frame: FrameType | None) -> None:
        if self._is_serving and not self._told.is_set():
            self._told.set()
            return
        if self._is_over:
            return
        self._is_over = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


@contextmanager
def nothing_said() -> Iterator[None]:
    """Keeps the terminal free for the block: what Ray says of its own end, from threads and native code, is no fault.

    What Python raises is said after the block.
    """
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    kept, nowhere = (os.dup(1), os.dup(2)), os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, stream, before in zip((1, 2), streams, kept, strict=True):
            stream.flush()
            os.dup2(before, number)
            os.close(before)
        os.close(nowhere)
