"""Signals while a service starts, while it serves, and while it ends; and what native code says meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from voxray.serving.stopping import Stop, nothing_said


def tell(number: signal.Signals) -> None:
    """Sends this process a signal and lets Python heed it: where other threads want the interpreter it comes late."""
    signal.raise_signal(number)
    time.sleep(0.02)


def test_while_it_starts_a_signal_ends_it_at_once() -> None:
    stop = Stop()
    with stop.heeded():
        with pytest.raises(KeyboardInterrupt):
            tell(signal.SIGINT)
        tell(signal.SIGINT)  # it is ending
        tell(signal.SIGTERM)
    assert not stop.is_told
    with Stop().heeded(), pytest.raises(SystemExit) as raised:
        tell(signal.SIGTERM)
    assert raised.value.code == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_it_serves_the_first_signal_is_noted_and_the_second_ends_it(number: signal.Signals) -> None:
    stop, before = Stop(), signal.getsignal(number)
    with stop.heeded():
        stop.serves()
        assert not stop.wait(0.0)
        tell(number)
        assert stop.wait(0.0)
        assert stop.is_told
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            tell(number)
        tell(number)
    assert signal.getsignal(number) is before


def test_native_lines_are_kept_from_the_terminal_and_pythons_come_after() -> None:
    program = """
        import os, sys
        from voxray.serving.stopping import nothing_said
        print("before", file=sys.stderr)
        try:
            with nothing_said():
                os.write(2, b"There are infinite retries\\n")
                print("(raylet) There are infinite retries")
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            print("after", file=sys.stderr)
        """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert ran.stderr == "before\nafter\n"
    assert not ran.stdout


def test_nothing_stays_open_afterwards() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with nothing_said():
        pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
