"""The ledger in both databases: what it keeps, and what happens when several ask at once."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from support.competing import compete
from voxray.serving.http.aliases import Aliases
from voxray.serving.jobs.store import JOBS, Ledger, TooManyError, new_id

FOR_EVER = {"most": 10_000, "most_of_owner": 10_000}


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    made = Ledger(database_url)
    yield made
    made.close()


def job_row(**fields: Any) -> dict[str, Any]:
    """A job that somebody asks for."""
    now = time.time()
    plain = {"id": new_id(), "owner": "ann", "study": "s", "model": "m", "request": "{}", "key": None}
    return {**plain, "state": "queued", "stage": "queued", "created": now, "expires": now + 60, **fields}


def add(ledger: Ledger, number: int, **fields: Any) -> list[str]:
    """The ids of so many new jobs, the oldest first."""
    rows = [ledger.add_job(job_row(**fields), **FOR_EVER) for _ in range(number)]
    return [row["id"] for row in rows if row is not None]


def test_job_goes_its_way(ledger: Ledger) -> None:
    first, second = add(ledger, 2)
    assert [ledger.place(ledger.job(one) or {}) for one in (first, second)] == [0, 1]
    (claimed,) = ledger.claim("desk", "m", limit=1, lease_s=60)
    assert (claimed["id"], claimed["state"], claimed["attempts"], claimed["desk"]) == (first, "running", 1, "desk")
    assert claimed["leased_until"] == pytest.approx(time.time() + 60, abs=5)
    assert claimed == ledger.job(first)
    assert ledger.report(first, "desk", stage="answering", progress=0.25)
    assert not ledger.report(first, "other", stage="answering", progress=0.5)
    assert not ledger.finish(first, "other", timing={})
    assert ledger.finish(first, "desk", timing={"answer": 1.5})
    assert not ledger.finish(first, "desk", timing={})
    done = ledger.job(first)
    assert done is not None
    assert (done["state"], done["progress"], done["timing"]) == ("done", 1.0, '{"answer": 1.5}')
    assert ledger.cancel(second)
    assert not ledger.cancel(first)
    assert ledger.claim("desk", "m", limit=5, lease_s=60) == []
    assert sorted(ledger.states()) == [("m", "cancelled", 1), ("m", "done", 1)]


def test_oldest_jobs_are_claimed_first_and_keep_their_start(ledger: Ledger) -> None:
    jobs = add(ledger, 5)
    add(ledger, 1, model="other")
    assert [row["id"] for row in ledger.claim("desk", "m", limit=3, lease_s=60)] == jobs[:3]
    started = (ledger.job(jobs[0]) or {})["started"]
    assert ledger.requeue(jobs[0], "desk")
    time.sleep(0.01)
    again = ledger.claim("desk", "m", limit=9, lease_s=60)
    assert [(row["id"], row["attempts"]) for row in again] == [(jobs[0], 2), (jobs[3], 1), (jobs[4], 1)]
    assert again[0]["started"] == started


def test_lease_that_lapses_is_taken_back(ledger: Ledger) -> None:
    jobs = add(ledger, 3)
    ledger.claim("dead", "m", limit=2, lease_s=0.2)
    ledger.claim("alive", "m", limit=1, lease_s=60)
    assert ledger.renew("dead", jobs, lease_s=0.2) == set(jobs[:2])
    assert ledger.renew("alive", jobs, lease_s=60) == {jobs[2]}
    assert ledger.requeue_lapsed() == 0
    time.sleep(0.4)
    assert ledger.requeue_lapsed() == 2
    assert ledger.renew("dead", jobs, lease_s=60) == set()
    assert not ledger.finish(jobs[0], "dead", timing={})
    assert {row["id"]: row["state"] for row in ledger.jobs("ann")} == dict.fromkeys(jobs[:2], "queued") | {
        jobs[2]: "running"
    }


def test_keys_and_quotas(ledger: Ledger) -> None:
    first = ledger.add_job(job_row(key="k"), **FOR_EVER)
    assert first is not None
    assert ledger.add_job(job_row(key="k"), **FOR_EVER) is None
    assert ledger.add_job(job_row(key="k", owner="bob"), **FOR_EVER) is not None
    assert ledger.job_by_key("ann", "k") == first
    with pytest.raises(TooManyError, match="owner"):
        ledger.add_job(job_row(), most=9, most_of_owner=1)
    with pytest.raises(TooManyError, match="all"):
        ledger.add_job(job_row(), most=2, most_of_owner=9)


def test_study_goes_with_its_jobs_and_names(ledger: Ledger, tmp_path: Path) -> None:
    study = new_id()
    ledger.add_study(study, "ann", '{"text": "\\u0000 µ"}', hours=1)
    assert (ledger.study(study, "ann") or {})["info"] == '{"text": "\\u0000 µ"}'
    assert ledger.study(study, "bob") is None
    aliases = Aliases(ledger.engine, tmp_path)
    for _ in range(2):
        aliases.give("ann", "x\0y", study)
    assert aliases.study("ann", "x\0y") == study
    add(ledger, 2, study=study)
    ledger.remove_study(study)
    assert (ledger.count_studies("ann"), ledger.jobs(), aliases.study("ann", "x\0y")) == (0, [], None)


def test_what_has_expired(ledger: Ledger) -> None:
    for study, hours in (("old", -1), ("busy", -1), ("new", 1)):
        ledger.add_study(study, "ann", "{}", hours=hours)
    (busy,) = add(ledger, 1, study="busy", expires=0.0)
    ledger.add_job(job_row(state="done", id="j", expires=0.0), **FOR_EVER)
    assert ledger.expired() == (["old"], ["j"])
    assert ledger.cancel(busy)
    assert [sorted(one) for one in ledger.expired()] == [["busy", "old"], sorted(["j", busy])]


def test_tokens(ledger: Ledger) -> None:
    assert ledger.add_token("ann", "digest")
    assert not ledger.add_token("ann", "another")
    assert [(row["name"], row["digest"]) for row in ledger.tokens()] == [("ann", "digest")]
    assert ledger.remove_token("ann")
    assert not ledger.remove_token("ann")


# Several at once


def test_each_job_ends_once_though_desks_in_processes_compete(ledger: Ledger, database_url: str) -> None:
    jobs = add(ledger, 60)
    desks = ["a", "b", "d"]
    with ProcessPoolExecutor(len(desks), mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = [pool.submit(compete, database_url, desk, time.time() + 60) for desk in desks]
        ended = Counter(job for run in runs for job in run.result())
    assert ended == Counter(jobs)
    assert ledger.states() == [("m", "done", 60)]
    rows = ledger.jobs(limit=100)
    assert {row["attempts"] for row in rows if row["seq"] % 5 == 0} == {2}
    assert {row["attempts"] for row in rows if row["seq"] % 5} == {1}
    counted = {row["name"]: row["value"] for row in ledger.counts()}
    assert counted["a"] == counted["b"] > 0


def together(number: int, action: Callable[[int], Any]) -> list[Any]:
    """What an action returns to so many threads at once."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(action, range(number)))


def test_no_one_gets_over_a_quota_or_a_second_job_by_asking_at_once(ledger: Ledger) -> None:
    def ask(_: int) -> bool:
        try:
            return ledger.add_job(job_row(), most=100, most_of_owner=5) is not None
        except TooManyError:
            return False

    assert sum(together(12, ask)) == 5
    keyed = together(8, lambda _: ledger.add_job(job_row(key="k", owner="bob"), **FOR_EVER))
    assert sum(row is not None for row in keyed) == 1


def test_one_of_many_claims_cancels_or_ends(ledger: Ledger) -> None:
    (job,) = add(ledger, 1)
    assert sum(len(rows) for rows in together(8, lambda n: ledger.claim(f"d{n}", "m", limit=1, lease_s=9))) == 1
    desk = str((ledger.job(job) or {})["desk"])
    ends = [lambda: ledger.cancel(job), lambda: ledger.finish(job, desk, timing={})] * 4
    assert sum(together(8, lambda n: ends[n]())) == 1


def test_tables_are_made_once_by_many(database_url: str, tmp_path: Path) -> None:
    def open_and_count(_: int) -> float:
        one = Ledger(database_url)
        Aliases(one.engine, tmp_path)
        one.count({("a", ""): 1.0, ("b", ""): 2.0})
        one.close()
        return 1.0

    number = sum(together(6, open_and_count))
    ledger = Ledger(database_url)
    assert {row["name"]: row["value"] for row in ledger.counts()} == {"a": number, "b": 2 * number}
    ledger.close()


def test_leases_go_by_the_clock_of_the_database(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose clock is an hour ahead takes no one's work."""
    if ledger.engine.dialect.name == "sqlite":
        pytest.skip("one machine, one clock")
    add(ledger, 1)
    ledger.claim("desk", "m", limit=1, lease_s=30)
    ahead = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    assert ledger.requeue_lapsed() == 0


def test_times_and_numbers_are_whole(ledger: Ledger) -> None:
    assert isinstance(JOBS.c.created.type, sa.Double)
    (job,) = add(ledger, 1, created=1_795_316_659.191234, expires=1e12)
    row = ledger.job(job)
    assert row is not None
    assert (row["created"], row["expires"]) == (1_795_316_659.191234, 1e12)


def test_only_what_was_promised_waits_for_the_disk(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'service.db'}")
    said: list[str] = []
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *told: said.append(str(told[2])))

    def waits(action: Callable[[], object]) -> bool:
        said.clear()
        action()
        (level,) = [one for one in said if one.startswith("PRAGMA synchronous")]
        return level.endswith("FULL")

    row = job_row()
    assert waits(lambda: ledger.add_job(row, **FOR_EVER))
    assert not waits(lambda: ledger.claim("desk", "m", limit=1, lease_s=60))
    assert not waits(lambda: ledger.report(row["id"], "desk", stage="answering", progress=0.5))
    assert not waits(lambda: ledger.count({("a", ""): 1.0}))
    assert waits(lambda: ledger.finish(row["id"], "desk", timing={}))
    ledger.close()
