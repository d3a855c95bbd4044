"""Who waits for jobs is told when they end: by one look at the job store for all, however many they are.

The scheduler's word that some job has ended is the sign to look; the store alone says which. Where no word comes, as
from a scheduler that has died, it is looked from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from voxray.serving.jobs.store import JobStore

_LOOK_S = 0.25
"""As often it is looked without a sign."""

_News = Callable[[int], Awaitable[int]]
"""See `workers.protocol.ServiceWorkers.news`."""


@dataclass
class _Waited:
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0


class JobWaiters:
    """The jobs that are waited for in one process, whichever process brings them to an end."""

    def __init__(self, store: JobStore, news: _News) -> None:
        self._store, self._news = store, news
        self._waited: dict[str, _Waited] = {}
        self._looking: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._sign, self._seen = asyncio.Event(), 0

    async def wait(self, job: str, seconds: float) -> None:
        """Returns when the job has ended or is not known any more, or when the time is over."""
        one = self._waited.setdefault(job, _Waited())
        one.waiting += 1
        self._sign.set()  # it may have ended already
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen())
        try:
            async with asyncio.timeout(seconds):
                await one.ended.wait()
        except TimeoutError:
            return
        finally:
            one.waiting -= 1
            if not one.waiting and self._waited.get(job) is one:
                del self._waited[job]

    async def _listen(self) -> None:
        while self._waited:
            try:
                seen = await self._news(self._seen)
            except Exception:
                await asyncio.sleep(_LOOK_S)
                continue
            if seen != self._seen:
                self._seen = seen
                self._sign.set()

    async def _look(self) -> None:
        try:
            while self._waited:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._sign.wait(), _LOOK_S)
                self._sign.clear()
                asked = list(self._waited)
                still = await asyncio.to_thread(self._store.still_open, asked)
                for job in asked:
                    if job not in still and job in self._waited:
                        self._waited.pop(job).ended.set()
        finally:
            for one in self._waited.values():  # where the store could not be read, who waits finds out
                one.ended.set()
            self._waited.clear()
