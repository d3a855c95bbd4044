"""Desks in processes of their own that compete for the jobs of one ledger; imports little, to start quickly."""

from __future__ import annotations

import time

from voxray.serving.jobs.store import Ledger


def compete(url: str, desk: str, until: float) -> list[str]:
    """What a desk ends that takes jobs, renews, and lets some fall, as fast as it can."""
    ledger, ended = Ledger(url), list[str]()
    while time.time() < until:
        rows = ledger.claim(desk, "m", limit=3, lease_s=30)
        kept = ledger.renew(desk, [row["id"] for row in rows], lease_s=30)
        assert kept == {row["id"] for row in rows}
        ledger.requeue_lapsed()
        ledger.count({(name, "x"): 1.0 for name in (["a", "b"] if desk < "c" else ["b", "a"])})
        for row in rows:
            if row["attempts"] == 1 and row["seq"] % 5 == 0:
                assert ledger.requeue(row["id"], desk)
            elif ledger.finish(row["id"], desk, timing={"by": 0.0}):
                ended.append(row["id"])
        if not rows and not any(state in ("queued", "running") for _, state, _ in ledger.states()):
            break
    ledger.close()
    return ended
