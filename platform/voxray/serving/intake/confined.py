"""Confined calls: a function in a child process with bounds on its memory and time, which dies with its caller.

The function is named, its arguments and its answer are JSON. A call starts in milliseconds, because it is forked from
a process that has the readers loaded (`forker`); the first call of a process starts that one and takes a second.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from voxray.errors import DataError, ResourceError
from voxray.serving.intake.disk import disk_full, in_thread
from voxray.serving.intake.forker import LENGTH

Reason = Literal["died", "too_slow", "too_large"]

_LONGEST_FRAME = 1 << 22
_LINGER_S = 5.0
_ATTEMPTS = 3
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SYSTEMROOT")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


class Bounds(NamedTuple):
    """What a call may use."""

    memory_bytes: int
    seconds: float
    file_bytes: int
    """The largest file that it may write."""


class CallEndedError(Exception):
    """A call ended without an answer."""

    def __init__(self, reason: Reason) -> None:
        self.reason: Reason = reason
        super().__init__(reason)


async def call(target: str, arguments: Mapping[str, Any], bounds: Bounds) -> Any:
    """What the function of that dotted name returns; raises its DataError, or `CallEndedError` without an answer.

    When the caller is cancelled the child is killed, and is gone before the cancellation goes on.
    """
    request = json.dumps({"target": target, "arguments": dict(arguments), **bounds._asdict()}).encode()
    for _ in range(_ATTEMPTS):
        frames = await _called(LENGTH.pack(len(request)) + request)
        # None where what calls are forked from died before this one was begun: another is started then.
        if frames:
            return _outcome(frames[1:])
    raise ResourceError("The process that reads uploads could not be started; ask who runs the service.")


async def _called(request: bytes) -> list[dict[str, Any]]:
    """All that a child says to a request."""
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    try:
        with theirs:
            await in_thread(_FORKER.hand_over, theirs)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await asyncio.get_running_loop().sock_sendall(mine, request)
        return await _frames(mine)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            # The watcher sees that no one waits any longer, kills the worker, and closes its end.
            mine.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(_frames(mine), _LINGER_S)
        raise
    finally:
        mine.close()


async def warm_up() -> None:
    """Starts the process that calls are forked from, so that the first call need not wait for it."""
    await call("voxray.serving.intake.forker.nothing", {}, Bounds(memory_bytes=1 << 30, seconds=60.0, file_bytes=1))


def _outcome(frames: list[dict[str, Any]]) -> Any:
    first, last = (frames[0], frames[-1]) if frames else ({}, {})
    if "answer" in first:
        return first["answer"]
    if "refusal" in first:
        code, message, remedy, facts = first["refusal"]
        raise DataError(str(code), str(message), remedy=str(remedy), facts=dict(facts))
    if first.get("error") == "DiskFull":
        raise disk_full()
    if "error" in first:
        raise CallEndedError("too_large" if first["error"] == "MemoryError" else "died")
    # A watcher that is killed has no last word.
    raise CallEndedError(_reason(int(last.get("exit", 1)), out_of_time=bool(last.get("out_of_time"))))


def _reason(exit_code: int, *, out_of_time: bool) -> Reason:
    if out_of_time or exit_code in (-signal.SIGXCPU, -signal.SIGALRM):
        return "too_slow"
    # Nobody else kills a worker than the system that runs out of memory.
    return "too_large" if exit_code == -signal.SIGKILL else "died"


async def _frames(source: socket.socket) -> list[dict[str, Any]]:
    """All frames until the other end is closed."""
    loop, data = asyncio.get_running_loop(), bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := await loop.sock_recv(source, 1 << 16):
            data += piece
            if len(data) > _LONGEST_FRAME:
                raise CallEndedError("died")
    frames = []
    while len(data) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack(data[: LENGTH.size])[0]
        if len(data) < end:
            break
        frames.append(json.loads(data[LENGTH.size : end]))
        del data[:end]
    return frames


class _Forker:
    """The one process of this one that calls are forked from."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def hand_over(self, theirs: socket.socket) -> None:
        """Gives it one end of a call's socket."""
        with self._lock:
            try:
                socket.send_fds(self._ensure(), [b"."], [theirs.fileno()])
            except OSError:
                # It died since it was last looked at.
                self._end()
                socket.send_fds(self._ensure(), [b"."], [theirs.fileno()])

    def stop(self) -> None:
        """Ends it; its calls under way end on their own."""
        with self._lock:
            self._end()

    def _ensure(self) -> socket.socket:
        # A process that was forked from one with a forker must not share it.
        mine = self._owner == os.getpid()
        if mine and self._control and self._process and self._process.poll() is None:
            return self._control
        if mine:
            self._end()
        control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from voxray.serving.intake.forker import main; main()"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
                cwd="/",
            )
        self._control, self._owner = control, os.getpid()
        return control

    def _end(self) -> None:
        if self._control and self._process and self._owner == os.getpid():
            self._control.close()
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


def _environment() -> dict[str, str]:
    """Little more than where modules are: what a parser might give away is not there to begin with."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    paths = [str(Path(path).absolute()) for path in sys.path]
    return kept | dict.fromkeys(_ONE_THREAD, "1") | {"PYTHONPATH": os.pathsep.join(paths)}


_FORKER = _Forker()
atexit.register(_FORKER.stop)
