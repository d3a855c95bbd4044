"""The answer to SIGTERM is this process's own again after Ray has put its own there."""

from __future__ import annotations

import signal

from voxray.distributed.termination import own_termination


def test_what_something_else_puts_there_is_replaced_and_forgotten() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with own_termination() as keep:
        signal.signal(signal.SIGTERM, lambda *_: None)
        keep()
        assert signal.getsignal(signal.SIGTERM) is before
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) is before
