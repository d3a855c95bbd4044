"""Desks in processes of their own that compete for the jobs of one ledger; imports little, to start quickly."""

from __future__ import annotations

import time

from voxray.serving.jobs.store import JobStore


def compete(url: str, scheduler: str, until: float) -> list[str]:
    """What a desk ends that takes jobs, renews, and lets some fall, as fast as it can."""
    store, ended = JobStore(url), list[str]()
    while time.time() < until:
        rows = store.claim(scheduler, "m", limit=3, lease_s=30)
        kept = store.renew(scheduler, [row.id for row in rows], lease_s=30)
        assert kept == {row.id for row in rows}
        store.requeue_lapsed()
        store.count({(name, "x"): 1.0 for name in (["a", "b"] if scheduler < "c" else ["b", "a"])})
        for row in rows:
            if row.attempts == 1 and row.seq % 5 == 0:
                assert store.requeue(row.id, scheduler)
            elif store.finish(row.id, scheduler, timing={"by": 0.0}):
                ended.append(row.id)
        if not rows and not any(state in ("queued", "running") for _, state, _ in store.states()):
            break
    store.close()
    return ended
