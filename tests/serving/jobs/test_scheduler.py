"""The scheduler tells whoever wants to know how many jobs are in which state."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxray.serving.jobs.scheduler import Scheduler
from voxray.serving.jobs.store import JobStore
from voxray.serving.paths import ServicePaths


def test_states_are_told_at_every_look(tmp_path: Path) -> None:
    assert asyncio.run(_told(tmp_path))[0] == []


async def _told(tmp_path: Path) -> list[Sequence[tuple[str, str, int]]]:
    store, told = JobStore(f"sqlite:///{tmp_path / 'jobs.db'}"), list[Sequence[tuple[str, str, int]]]()
    nobody: Any = None
    scheduler = Scheduler(store, nobody, ServicePaths(tmp_path).prepared(), {}, tell_states=told.append)
    working = asyncio.create_task(scheduler.run())
    async with asyncio.timeout(60):
        while not told:
            scheduler.poke()
            await asyncio.sleep(0.01)
    await scheduler.stop()
    await working
    store.close()
    return told
