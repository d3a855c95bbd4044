"""Signals while a service starts, while it serves, and while it ends; and what native code says meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from voxray.serving.stopping import nothing_said


def answers(program: str) -> list[str]:
    """The lines that a program prints; its signals come at once, as no other thread runs in its process."""
    start = """
        import signal

        from voxray.serving.stopping import Stop

        def outcome(number):
            try:
                signal.raise_signal(number)
            except (KeyboardInterrupt, SystemExit) as raised:
                return repr(raised)
            return "goes on"
        """
    code = textwrap.dedent(start) + textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_while_it_starts_a_signal_ends_it_at_once() -> None:
    program = """
        stop = Stop()
        with stop.heeded():
            print(outcome(signal.SIGINT))
            print(outcome(signal.SIGINT))
            print(outcome(signal.SIGTERM))
        print(stop.is_told)
        with Stop().heeded():
            print(outcome(signal.SIGTERM))
        """
    assert answers(program) == ["KeyboardInterrupt()", "goes on", "goes on", "False", "SystemExit(143)"]


@pytest.mark.parametrize(("name", "end"), [("SIGINT", "KeyboardInterrupt()"), ("SIGTERM", "SystemExit(143)")])
def test_while_it_serves_the_first_signal_is_noted_and_the_second_ends_it(name: str, end: str) -> None:
    program = f"""
        number = signal.{name}
        stop, before = Stop(), signal.getsignal(number)
        with stop.heeded():
            stop.serves()
            print(stop.wait(0.0))
            print(outcome(number), stop.wait(0.0), stop.is_told)
            print(outcome(number))
            print(outcome(number))
        print(signal.getsignal(number) is before)
        """
    assert answers(program) == ["False", "goes on True True", end, "goes on", "True"]


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
