"""Nodes that will be taken away: told once each, and only those of the training."""

from __future__ import annotations

import threading
import time

from voxray.distributed.draining import DrainWatch


def test_each_node_of_the_training_is_told_once() -> None:
    looked, found = threading.Semaphore(0), {"other": 0}

    def look() -> dict[str, int]:
        looked.release()
        return dict(found)

    watch = DrainWatch(["a", "b"], look=look, every_s=0.001)
    try:
        _looks(looked)
        assert watch() == ""
        found["a"] = int((time.time() + 100) * 1000)
        _looks(looked)
        assert watch().startswith("1 of the training's nodes will be taken away in ")
        found["b"] = 0
        _looks(looked)
        assert watch() == "1 of the training's nodes will be taken away"
        _looks(looked)
        assert watch() == ""
    finally:
        watch.close()


def _looks(looked: threading.Semaphore) -> None:
    """Waits until what is there now has been seen, and noted."""
    while looked.acquire(blocking=False):
        pass
    for _ in range(3):
        assert looked.acquire(timeout=60)
