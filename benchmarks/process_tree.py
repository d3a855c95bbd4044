"""Memory of a process and of all that it started, Ray's own processes included."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def watched_memory(pid: int) -> Iterator[list[float]]:
    """One number that grows meanwhile: the peak of the proportional set size of the tree of processes, in MiB."""
    peak, ended = [0.0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(pid, peak, ended))
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _watch(pid: int, peak: list[float], ended: threading.Event) -> None:
    while not ended.wait(0.5):
        peak[0] = max(peak[0], sum(_proportional_mib(one) for one in _tree(pid)))


def _tree(pid: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _proportional_mib(pid: int) -> float:
    """Private pages, and of shared ones this process's part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
