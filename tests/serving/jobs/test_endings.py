"""Waiting for jobs: of a real ledger, whose looks are counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from voxray.serving.jobs.endings import Endings
from voxray.serving.jobs.store import Ledger, new_id
from voxray.serving.workers.protocol import WorkerDiedError


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty one."""
    made = Ledger(f"sqlite:///{tmp_path / 'service.db'}")
    yield made
    made.close()


def add(ledger: Ledger) -> str:
    """A job that is under way at desk ``d``."""
    now = time.time()
    fixed = {"owner": "me", "study": "s", "model": "m", "request": "{}", "stage": "queued", "state": "queued"}
    row = {"id": new_id(), "created": now, "expires": now + 3600, **fixed}
    assert ledger.add_job(row, most_of_owner=1000, most=1000)
    assert ledger.claim("d", "m", limit=1, lease_s=60)
    return str(row["id"])


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
def test_all_who_wait_are_told_by_one_look(ledger: Ledger, rings: bool) -> None:
    jobs = [add(ledger) for _ in range(20)]
    looks: list[str] = []
    bell = Bell(rings=rings)
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *said: looks.append(str(said[2])))

    async def run() -> list[float]:
        endings, begin = Endings(ledger, bell.news), time.monotonic()

        async def waited(job: str) -> float:
            await endings.wait(job, 20)
            return time.monotonic() - begin

        waits = [asyncio.create_task(waited(job)) for job in jobs for _ in range(2)]
        await asyncio.sleep(1)
        for job in jobs[1:]:
            ledger.finish(job, "d", timing={})
        bell.ended = 19
        await asyncio.wait(waits[2:], timeout=10)
        assert [wait.done() for wait in waits] == [False] * 2 + [True] * 38
        ledger.fail(jobs[0], "d", error="{}")
        bell.ended = 20
        return list(await asyncio.gather(*waits))

    times = asyncio.run(run())
    assert min(times[2:]) >= 1
    assert max(times) < 10
    assert sum(look.startswith("SELECT") for look in looks) < 30  # forty that look by themselves: thousands
    assert bell.asked <= 5


def test_wait_has_an_end(ledger: Ledger) -> None:
    job = add(ledger)

    async def run() -> float:
        endings, begin = Endings(ledger, Bell(rings=False).news), time.monotonic()
        await endings.wait(job, 0.2)
        await endings.wait("f" * 32, 30)  # nobody knows it
        return time.monotonic() - begin

    assert 0.2 <= asyncio.run(run()) < 10


def test_desk_that_is_gone_is_done_without(ledger: Ledger) -> None:
    async def gone(_seen: int) -> int:
        raise WorkerDiedError("desk")

    async def run() -> None:
        job = add(ledger)
        waiting = asyncio.create_task(Endings(ledger, gone).wait(job, 30))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        ledger.finish(job, "d", timing={})
        await asyncio.wait_for(waiting, 10)

    asyncio.run(run())
