"""Waiting for jobs: of a real ledger, whose looks are counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from voxray.serving.jobs.store import JobStore, NewJob
from voxray.serving.jobs.waiters import JobWaiters
from voxray.serving.workers.protocol import WorkerDiedError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    """An empty one."""
    made = JobStore(f"sqlite:///{tmp_path / 'service.db'}")
    yield made
    made.close()


def add(store: JobStore) -> str:
    """A job that is under way at desk ``d``."""
    row = store.add_job(NewJob("me", "s", "m", "{}", key=None, hours=1), most_of_owner=1000, most=1000)
    assert row is not None
    assert store.claim("d", "m", limit=1, lease_s=60)
    return row.id


class Bell:
    """A desk's word that jobs have ended, where it comes, and how often it was asked for."""

    def __init__(self, *, rings: bool) -> None:
        self.rings, self.ended, self.asked = rings, 0, 0

    async def news(self, seen: int) -> int:
        self.asked += 1
        while self.ended == seen or not self.rings:
            await asyncio.sleep(0.005)
        return self.ended


@pytest.mark.parametrize("rings", [True, False])
def test_all_who_wait_are_told_by_one_look(store: JobStore, rings: bool) -> None:
    jobs = [add(store) for _ in range(20)]
    looks: list[str] = []
    bell = Bell(rings=rings)
    sa.event.listen(store.engine, "before_cursor_execute", lambda *said: looks.append(str(said[2])))

    async def run() -> list[float]:
        waiters, begin = JobWaiters(store, bell.news), time.monotonic()

        async def waited(job: str) -> float:
            await waiters.wait(job, 600)
            return time.monotonic() - begin

        waits = [asyncio.create_task(waited(job)) for job in jobs for _ in range(2)]
        await asyncio.sleep(1)
        for job in jobs[1:]:
            store.finish(job, "d", timing={})
        bell.ended = 19
        await asyncio.wait(waits[2:], timeout=300)
        assert [wait.done() for wait in waits] == [False] * 2 + [True] * 38
        store.fail(jobs[0], "d", error="{}")
        bell.ended = 20
        return list(await asyncio.gather(*waits))

    times = asyncio.run(run())
    assert min(times[2:]) >= 1
    assert max(times) < 300
    most = 30 + 5 * max(times)  # forty that look by themselves: thousands
    assert sum(look.startswith("SELECT") for look in looks) < most
    assert bell.asked <= 5


def test_wait_has_an_end(store: JobStore) -> None:
    job = add(store)

    async def run() -> float:
        waiters, begin = JobWaiters(store, Bell(rings=False).news), time.monotonic()
        await waiters.wait(job, 0.2)
        await waiters.wait("f" * 32, 600)  # nobody knows it
        return time.monotonic() - begin

    assert 0.2 <= asyncio.run(run()) < 300


def test_desk_that_is_gone_is_done_without(store: JobStore) -> None:
    async def gone(_seen: int) -> int:
        raise WorkerDiedError("desk")

    async def run() -> None:
        job = add(store)
        waiting = asyncio.create_task(JobWaiters(store, gone).wait(job, 600))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        store.finish(job, "d", timing={})
        await asyncio.wait_for(waiting, 300)

    asyncio.run(run())
