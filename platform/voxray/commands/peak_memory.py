"""How much memory a process and all that it started take, shared pages counted once (Linux's PSS)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Peak:
    """The highest reading so far, in bytes; 0 where the system gives none."""

    bytes: int = 0


@contextmanager
def peak_memory(*, every_s: float = 0.5) -> Iterator[Peak]:
    """Watches this process and its descendants while the block runs; a look takes the kernel 10 ms a gigabyte."""
    peak, stop = Peak(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            peak.bytes = max(peak.bytes, tree_memory(os.getpid()))
            stop.wait(every_s)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.bytes = max(peak.bytes, tree_memory(os.getpid()))


def tree_memory(root: int) -> int:
    """The proportional set size of a process and its descendants, in bytes."""
    return sum(_pss(pid) for pid in _descendants(root))


def _descendants(root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    found, waiting = set[int](), [root]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting.extend(child for child in children.get(pid, []) if child not in found)
    return found


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))
