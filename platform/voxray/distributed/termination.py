"""SIGTERM beside Ray, which puts its own answers there when it starts: one dumps every stack on the terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def own_termination() -> Iterator[Callable[[], None]]:
    """Yields what puts this process's answer to SIGTERM back after Ray's start; at the end it is as it was before."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)

    def keep() -> None:
        if before is not None:  # None: set by something that is not Python
            signal.signal(signal.SIGTERM, before)

    try:
        yield keep
    finally:
        keep()
