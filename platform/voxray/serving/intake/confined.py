"""Confined calls: a function in a child process with bounds on its memory and time, which dies with its caller.

The function is named, its arguments and its answer are JSON. A child is forked from a process that has the readers
loaded (`forker`), which takes milliseconds, and the next one waits already when it is wanted; each is used once. The
first call of a process starts the one that is forked from, and takes a second.
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
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from voxray.core.errors import DataError, ResourceError
from voxray.serving.intake.disk import disk_full, in_thread
from voxray.serving.intake.forker import LENGTH

Reason = Literal["died", "too_slow", "too_large"]

_LONGEST_FRAME = 1 << 22
_ENDINGS = {"answer", "refusal", "error", "exit"}
_LINGER_S = 5.0
_ATTEMPTS = 4
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SYSTEMROOT")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


class CallBounds(NamedTuple):
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


async def call(target: str, arguments: Mapping[str, Any], bounds: CallBounds) -> Any:
    """What the function of that dotted name returns; raises its DataError, or `CallEndedError` without an answer.

    When the caller is cancelled the child is killed, and is gone before the cancellation goes on.
    """
    request = json.dumps({"target": target, "arguments": dict(arguments), **bounds._asdict()}).encode()
    for _ in range(_ATTEMPTS):  # one of them may meet a child that died while it waited
        frames = await _called(LENGTH.pack(len(request)) + request)
        # None where what calls are forked from died before this one was begun: another is started then.
        if frames:
            # Beside the loop, and when this call is over: a fork is not to take the time of the reading.
            asyncio.get_running_loop().run_in_executor(None, _FORKER.make_ready)
            return _outcome(frames[1:])
    raise ResourceError("The process that reads uploads could not be started; ask who runs the service.")


async def _called(request: bytes) -> list[dict[str, Any]]:
    """All that a child says to a request, up to how it ended."""
    loop, ready = asyncio.get_running_loop(), _FORKER.ready()
    mine, theirs = (ready, None) if ready else socket.socketpair()
    mine.setblocking(False)
    try:
        if theirs is not None:
            with theirs:
                await in_thread(_FORKER.hand_over, theirs)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await loop.sock_sendall(mine, request)
        return await _frames(mine, to_the_end=False)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            # The watcher sees that no one waits any longer, kills the worker, and closes its end.
            mine.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(_frames(mine, to_the_end=True), _LINGER_S)
        raise
    finally:
        mine.close()


async def warm_up() -> None:
    """Starts the process that calls are forked from, so that the first call need not wait for it."""
    await call(
        "voxray.serving.intake.forker.nothing", {}, CallBounds(memory_bytes=1 << 30, seconds=60.0, file_bytes=1)
    )


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


async def _frames(source: socket.socket, *, to_the_end: bool) -> list[dict[str, Any]]:
    """All frames until the other end is closed, or until one that tells how the call ended."""
    loop, data, total = asyncio.get_running_loop(), bytearray(), 0
    frames: list[dict[str, Any]] = []
    with contextlib.suppress(ConnectionResetError):
        while to_the_end or not (frames and _ENDINGS & frames[-1].keys()):
            piece = await loop.sock_recv(source, 1 << 16)
            if not piece:
                break
            data += piece
            total += len(piece)
            if total > _LONGEST_FRAME:
                raise CallEndedError("died")
            frames += _whole_frames(data)
    return frames


def _whole_frames(data: bytearray) -> list[dict[str, Any]]:
    """Takes the frames that have come whole off the data."""
    frames = []
    while len(data) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack(data[: LENGTH.size])[0]
        if len(data) < end:
            break
        frames.append(json.loads(data[LENGTH.size : end]))
        del data[:end]
    return frames


class _Forker:
    """The one process of this one that calls are forked from, and the child that waits for the next call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready: deque[socket.socket] = deque()
        self._owner = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def ready(self) -> socket.socket | None:
        """Our end of the socket of a child that waits; None where there is none."""
        if self._owner != os.getpid():
            return None
        try:
            return self._ready.popleft()
        except IndexError:
            return None

    def make_ready(self) -> None:
        """Has a child wait for the next call, where none does."""
        # Where there can be none, the next call says so.
        with self._lock, contextlib.suppress(OSError):
            if not self._ready:
                mine, theirs = socket.socketpair()
                with theirs:
                    self._hand_over(theirs)
                self._ready.append(mine)

    def hand_over(self, theirs: socket.socket) -> None:
        """Gives it one end of a call's socket."""
        with self._lock:
            self._hand_over(theirs)

    def stop(self) -> None:
        """Ends it; its calls under way end on their own."""
        with self._lock:
            self._end()

    def _hand_over(self, theirs: socket.socket) -> None:
        try:
            socket.send_fds(self._ensure(), [b"."], [theirs.fileno()])
        except OSError:
            # It died since it was last looked at.
            self._end()
            socket.send_fds(self._ensure(), [b"."], [theirs.fileno()])

    def _ensure(self) -> socket.socket:
        # A process that was forked from one with a forker must not share it.
        if self._owner == os.getpid() and self._control and self._process and self._process.poll() is None:
            return self._control
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
        while self._ready:
            self._ready.popleft().close()
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
