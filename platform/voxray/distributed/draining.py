"""Nodes that are about to be taken away, as by a spot notice: Ray drains them, and says until when.

`ray.train.get_preemption_info` tells the same, but as a barrier that every worker must reach equally often: messages
at each step. Rank 0 alone needs to know, so it looks where Ray Train's own watcher looks. When the time has come,
Ray Train starts the workers again elsewhere, and they go on from the checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

LOOK_EVERY_S = 2.0


def draining_nodes() -> Mapping[str, int]:
    """The nodes that Ray drains, by id, with the UNIX time in ms when they go (0: not known)."""
    from ray._private.state import state

    return dict(state.get_draining_nodes())


class DrainWatch:
    """Looks every few seconds, in a thread, whether one of the training's nodes is drained."""

    def __init__(
        self,
        nodes: Collection[str],
        *,
        look: Callable[[], Mapping[str, int]] = draining_nodes,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._nodes, self._look, self._every_s = frozenset(nodes), look, every_s
        self._over, self._news, self._told = threading.Event(), "", set[str]()
        self._thread = threading.Thread(target=self._run, name="draining", daemon=True)
        self._thread.start()

    def __call__(self) -> str:
        """What is new, as the beginning of a sentence; an empty text where nothing is."""
        if not self._news:
            return ""
        news, self._news = self._news, ""
        return news

    def close(self) -> None:
        """Looks no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            with suppress(Exception):  # a head that restarts is asked again
                self._note(self._look())

    def _note(self, found: Mapping[str, int]) -> None:
        new = {node: when for node, when in found.items() if node in self._nodes - self._told}
        if new:
            self._told |= new.keys()
            known = [when for when in new.values() if when > 0]
            left = f" in {max(0.0, min(known) / 1000 - time.time()):.0f} s" if known else ""
            self._news = f"{len(new)} of the training's nodes will be taken away{left}"
