"""What a confined process may be made to do by a file that takes it over; called by name."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from voxray.core.errors import DataError


def hang() -> None:
    time.sleep(3600)


def nap(*, seconds: float) -> str:
    time.sleep(seconds)
    return "rested"


def hang_and_say(*, path: str) -> None:
    Path(f"{path}.new").write_text(str(os.getpid()))
    Path(f"{path}.new").rename(path)
    time.sleep(3600)


def spin() -> None:
    while True:
        pass


def eat(*, num_bytes: int) -> int:
    return sum(bytearray(num_bytes))


def crash() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def refuse() -> None:
    raise DataError("some.code", "A sentence.", remedy="A remedy.")


def run_out_of_disk() -> None:
    Path("/dev/full").write_bytes(b"x")


def fail(*, text: str) -> None:
    raise RuntimeError(text)


def write(*, path: str, num_bytes: int) -> None:
    Path(path).write_bytes(bytes(num_bytes))


def flood() -> str:
    return "x" * (64 << 20)


def echo(*, number: int) -> int:
    print("nobody hears this")
    print("nor this", file=sys.stderr)
    return number


def environment() -> list[str]:
    return sorted(os.environ)


def modules() -> list[str]:
    return sorted({name.partition(".")[0] for name in sys.modules})


def age() -> tuple[int, float]:
    """This process, and how many seconds ago it began."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return os.getpid(), float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
