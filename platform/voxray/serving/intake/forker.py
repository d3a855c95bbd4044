"""The process that confined calls are forked from: it has the readers loaded, and holds nothing else.

It is given one end of a socket for every call, over its standard input, and forks a watcher for it. The watcher forks
the worker, which answers on the socket, and sees to it that the worker ends: when it is done, when its time is over,
or when the caller has gone. Both wait for the request, which may come much later; a worker is used once. A frame on
the socket is a length and JSON, so that nothing that a worker says, whatever took it over, runs in its caller.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from voxray.core.errors import DataError

LENGTH = struct.Struct("!I")
PRELOADED = ("voxray.readers", "voxray.serving.intake.upload_reading")
_IDLE_S = 0.05
"""A worker that has waited so long without a call practises for it."""
_LAST_RESORT = 1.2
"""A worker ends itself after this many times its seconds, were its watcher killed."""


def main() -> None:
    """Forks for every socket that comes, until there is no one left to send one."""
    for name in PRELOADED:
        importlib.import_module(name)
    # So that collecting garbage in a child does not copy what it shares with all others.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    # A child that held this end would make a forker that has died look alive.
    _silence((0,))
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        if os.fork() == 0:
            control.close()
            _ends(partial(_watch, descriptors[0]))
        os.close(descriptors[0])


def nothing() -> None:
    """The call that tells whether calls can be made."""


def _ends(work: Callable[[], None]) -> None:
    """Does a child's work and ends the child, whatever happens: it must never go on as its parent."""
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def _watch(descriptor: int) -> None:
    caller = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asked, asking = socket.socketpair()
    alive, held = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(alive)
        asking.close()
        _ends(partial(_work, asked, caller))
    os.close(held)
    asked.close()
    request = receive_frame(caller)
    if _readable(alive):  # the worker died while it waited: another may begin
        return
    send_frame(caller, {"begun": True})
    send_frame(asking, request)
    ready = _readable(caller.fileno(), alive, within_s=request["seconds"])
    if alive not in ready:
        os.kill(worker, signal.SIGKILL)
    _, status = os.waitpid(worker, 0)
    send_frame(caller, {"exit": os.waitstatus_to_exitcode(status), "out_of_time": not ready})


def _readable(*descriptors: int, within_s: float = 0.0) -> list[int]:
    """Those that have something to read, or whose other end is closed."""
    return select.select(descriptors, [], [], within_s)[0]


def _work(asked: socket.socket, caller: socket.socket) -> None:
    """One call, answered with what it returned, how it refused, or the kind of error that it ended in."""
    if not _readable(asked.fileno(), within_s=_IDLE_S):
        _practise()
    request = receive_frame(asked)
    _confine(request)
    try:
        module, _, name = request["target"].rpartition(".")
        answer = {"answer": getattr(importlib.import_module(module), name)(**request["arguments"])}
    except DataError as error:
        answer = {"refusal": [error.code, error.message, error.remedy, dict(error.facts)]}
    except MemoryError:
        answer = {"error": "MemoryError"}
    except OSError as error:
        answer = {"error": "DiskFull" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "OSError"}
    except Exception as error:
        # No more than its kind: its text may hold anything that the file holds.
        answer = {"error": type(error).__name__}
    send_frame(caller, answer)


def _practise() -> None:
    """Reads a scan of its own: what a forked process touches for the first time is copied, half of a small read."""
    with contextlib.suppress(Exception):
        importlib.import_module("voxray.serving.intake.upload_reading").practise()


def _confine(request: Mapping[str, Any]) -> None:
    """Bounds the memory and processor time of this process, and stops its mouth."""
    _silence((1, 2))
    seconds = int(request["seconds"] * _LAST_RESORT) + 1
    signal.alarm(seconds)
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, request["file_bytes"])
    _limit(resource.RLIMIT_AS, _mapped_bytes() + request["memory_bytes"])
    # Where the machine itself runs out of memory, this process is to go first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _silence(streams: Sequence[int]) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in streams:
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    bound = value if most == resource.RLIM_INFINITY else min(value, most)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (bound, bound))


def _mapped_bytes() -> int:
    """What the libraries take before any work is done."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def send_frame(to: socket.socket, content: Mapping[str, Any]) -> None:
    """Sends one frame; nothing where no one listens any more."""
    data = json.dumps(content).encode()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        to.sendall(LENGTH.pack(len(data)) + data)


def receive_frame(caller: socket.socket) -> dict[str, Any]:
    """The one frame that a caller sends; the process ends where the caller has gone."""
    data = _exactly(caller, LENGTH.unpack(_exactly(caller, LENGTH.size))[0])
    content: dict[str, Any] = json.loads(data)
    return content


def _exactly(caller: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = caller.recv(count - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return data
