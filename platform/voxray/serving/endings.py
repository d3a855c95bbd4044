"""Who waits for jobs is told when they end: by one look at the ledger for all who wait, however many they are."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from voxray.serving.ledger import Ledger

_LOOK_S, _LOOK_SHARE, _LOOK_MOST_S = 0.005, 0.02, 0.25
"""The next look is a fiftieth of the time away that the last comer has waited."""


@dataclass
class _Waited:
    since: float
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0


class Endings:
    """The jobs that are waited for in one process, whichever process brings them to an end."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waited: dict[str, _Waited] = {}
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, job: str, seconds: float) -> None:
        """Returns when the job has ended or is not known any more, or when the time is over."""
        one = self._waited.setdefault(job, _Waited(time.monotonic()))
        one.waiting += 1
        one.since = time.monotonic()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            async with asyncio.timeout(seconds):
                await one.ended.wait()
        except TimeoutError:
            return
        finally:
            one.waiting -= 1
            if not one.waiting and self._waited.get(job) is one:
                del self._waited[job]

    async def _look(self) -> None:
        try:
            while self._waited:
                youngest = time.monotonic() - max(one.since for one in self._waited.values())
                await asyncio.sleep(min(_LOOK_MOST_S, max(_LOOK_S, _LOOK_SHARE * youngest)))
                asked = list(self._waited)
                still = await asyncio.to_thread(self._ledger.still_open, asked)
                for job in asked:
                    if job not in still and job in self._waited:
                        self._waited.pop(job).ended.set()
        finally:
            for one in self._waited.values():  # where the ledger could not be read, who waits finds out
                one.ended.set()
            self._waited.clear()
