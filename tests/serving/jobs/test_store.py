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
from voxray.serving.jobs.store import JOBS, JobRow, JobStore, NewJob, TooManyError, new_id

FOR_EVER = {"most": 10_000, "most_of_owner": 10_000}


@pytest.fixture
def store(database_url: str) -> Iterator[JobStore]:
    made = JobStore(database_url)
    yield made
    made.close()


def new_job(**fields: Any) -> NewJob:
    """A job that somebody asks for."""
    plain = {"owner": "ann", "study": "s", "model": "m", "request": "{}", "key": None, "hours": 0.1}
    return NewJob(**{**plain, **fields})


def add(store: JobStore, number: int, **fields: Any) -> list[str]:
    """The ids of so many new jobs, the oldest first."""
    rows = [store.add_job(new_job(**fields), **FOR_EVER) for _ in range(number)]
    return [row.id for row in rows if row is not None]


def found(store: JobStore, job: str) -> JobRow:
    """A job that is there."""
    row = store.job(job)
    assert row is not None
    return row


def test_job_goes_its_way(store: JobStore) -> None:
    first, second = add(store, 2)
    assert [store.place(found(store, one)) for one in (first, second)] == [0, 1]
    begin = time.time()
    (claimed,) = store.claim("desk", "m", limit=1, lease_s=60)
    assert (claimed.id, claimed.state, claimed.attempts, claimed.desk) == (first, "running", 1, "desk")
    assert begin + 55 <= claimed.leased_until <= time.time() + 65
    assert claimed == store.job(first)
    assert store.report(first, "desk", stage="answering", progress=0.25)
    assert not store.report(first, "other", stage="answering", progress=0.5)
    assert not store.finish(first, "other", timing={})
    assert store.finish(first, "desk", timing={"answer": 1.5})
    assert not store.finish(first, "desk", timing={})
    done = store.job(first)
    assert done is not None
    assert (done.state, done.progress, done.timing) == ("done", 1.0, '{"answer": 1.5}')
    assert store.cancel(second)
    assert not store.cancel(first)
    assert store.claim("desk", "m", limit=5, lease_s=60) == []
    assert sorted(store.states()) == [("m", "cancelled", 1), ("m", "done", 1)]


def test_oldest_jobs_are_claimed_first_and_keep_their_start(store: JobStore) -> None:
    jobs = add(store, 5)
    add(store, 1, model="other")
    assert [row.id for row in store.claim("desk", "m", limit=3, lease_s=60)] == jobs[:3]
    started = found(store, jobs[0]).started
    assert store.requeue(jobs[0], "desk")
    time.sleep(0.01)
    again = store.claim("desk", "m", limit=9, lease_s=60)
    assert [(row.id, row.attempts) for row in again] == [(jobs[0], 2), (jobs[3], 1), (jobs[4], 1)]
    assert again[0].started == started


def test_lease_that_lapses_is_taken_back(store: JobStore) -> None:
    jobs = add(store, 3)
    store.claim("dead", "m", limit=2, lease_s=60)
    store.claim("alive", "m", limit=1, lease_s=60)
    assert store.renew("dead", jobs, lease_s=60) == set(jobs[:2])
    assert store.renew("alive", jobs, lease_s=60) == {jobs[2]}
    assert store.requeue_lapsed() == 0
    assert store.renew("dead", jobs, lease_s=-1) == set(jobs[:2])
    assert store.requeue_lapsed() == 2
    assert store.renew("dead", jobs, lease_s=60) == set()
    assert not store.finish(jobs[0], "dead", timing={})
    assert {row.id: row.state for row in store.jobs("ann")} == dict.fromkeys(jobs[:2], "queued") | {
        jobs[2]: "running"
    }


def test_keys_and_quotas(store: JobStore) -> None:
    first = store.add_job(new_job(key="k"), **FOR_EVER)
    assert first is not None
    assert store.add_job(new_job(key="k"), **FOR_EVER) is None
    assert store.add_job(new_job(key="k", owner="bob"), **FOR_EVER) is not None
    assert store.job_by_key("ann", "k") == first
    with pytest.raises(TooManyError, match="owner"):
        store.add_job(new_job(), most=9, most_of_owner=1)
    with pytest.raises(TooManyError, match="all"):
        store.add_job(new_job(), most=2, most_of_owner=9)


def test_study_goes_with_its_jobs_and_names(store: JobStore, tmp_path: Path) -> None:
    study = new_id()
    store.add_study(study, "ann", '{"text": "\\u0000 µ"}', hours=1)
    stored = store.study(study, "ann")
    assert stored is not None
    assert stored.info == '{"text": "\\u0000 µ"}'
    assert store.study(study, "bob") is None
    aliases = Aliases(store.engine, tmp_path)
    for _ in range(2):
        aliases.give("ann", "x\0y", study)
    assert aliases.study("ann", "x\0y") == study
    add(store, 2, study=study)
    store.remove_study(study)
    assert (store.count_studies("ann"), store.jobs(), aliases.study("ann", "x\0y")) == (0, [], None)


def test_what_has_expired(store: JobStore) -> None:
    for study, hours in (("old", -1), ("busy", -1), ("new", 1)):
        store.add_study(study, "ann", "{}", hours=hours)
    (busy,) = add(store, 1, study="busy", hours=-1)
    (done,) = add(store, 1, model="other", hours=-1)
    store.claim("desk", "other", limit=1, lease_s=60)
    store.finish(done, "desk", timing={})
    assert store.expired() == (["old"], [done])
    assert store.cancel(busy)
    assert [sorted(one) for one in store.expired()] == [["busy", "old"], sorted([done, busy])]


def test_tokens(store: JobStore) -> None:
    assert store.add_token("ann", "digest")
    assert not store.add_token("ann", "another")
    assert [(row.name, row.digest) for row in store.tokens()] == [("ann", "digest")]
    assert store.remove_token("ann")
    assert not store.remove_token("ann")


# Several at once


def test_each_job_ends_once_though_desks_in_processes_compete(store: JobStore, database_url: str) -> None:
    jobs = add(store, 60)
    desks = ["a", "b", "d"]
    with ProcessPoolExecutor(len(desks), mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = [pool.submit(compete, database_url, scheduler, time.time() + 60) for scheduler in desks]
        ended = Counter(job for run in runs for job in run.result())
    assert ended == Counter(jobs)
    assert store.states() == [("m", "done", 60)]
    rows = store.jobs(limit=100)
    assert {row.attempts for row in rows if row.seq % 5 == 0} == {2}
    assert {row.attempts for row in rows if row.seq % 5} == {1}
    counted = {row.name: row.value for row in store.counts()}
    assert counted["a"] == counted["b"] > 0


def together(number: int, action: Callable[[int], Any]) -> list[Any]:
    """What an action returns to so many threads at once."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(action, range(number)))


def test_no_one_gets_over_a_quota_or_a_second_job_by_asking_at_once(store: JobStore) -> None:
    def ask(_: int) -> bool:
        try:
            return store.add_job(new_job(), most=100, most_of_owner=5) is not None
        except TooManyError:
            return False

    assert sum(together(12, ask)) == 5
    keyed = together(8, lambda _: store.add_job(new_job(key="k", owner="bob"), **FOR_EVER))
    assert sum(row is not None for row in keyed) == 1


def test_one_of_many_claims_cancels_or_ends(store: JobStore) -> None:
    (job,) = add(store, 1)
    assert sum(len(rows) for rows in together(8, lambda n: store.claim(f"d{n}", "m", limit=1, lease_s=9))) == 1
    scheduler = str(found(store, job).desk)
    ends = [lambda: store.cancel(job), lambda: store.finish(job, scheduler, timing={})] * 4
    assert sum(together(8, lambda n: ends[n]())) == 1


def test_tables_are_made_once_by_many(database_url: str, tmp_path: Path) -> None:
    def open_and_count(_: int) -> float:
        one = JobStore(database_url)
        Aliases(one.engine, tmp_path)
        one.count({("a", ""): 1.0, ("b", ""): 2.0})
        one.close()
        return 1.0

    number = sum(together(6, open_and_count))
    store = JobStore(database_url)
    assert {row.name: row.value for row in store.counts()} == {"a": number, "b": 2 * number}
    store.close()


def test_leases_go_by_the_clock_of_the_database(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose clock is an hour ahead takes no one's work."""
    if store.engine.dialect.name == "sqlite":
        pytest.skip("one machine, one clock")
    add(store, 1)
    store.claim("desk", "m", limit=1, lease_s=30)
    ahead = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    assert store.requeue_lapsed() == 0


def test_times_and_numbers_are_whole(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(JOBS.c.created.type, sa.Double)
    created, hours = 1_795_316_659.191234, 2.5e8
    monkeypatch.setattr(time, "time", lambda: created)
    (job,) = add(store, 1, hours=hours)
    row = found(store, job)
    assert (row.created, row.expires) == (created, created + 3600 * hours)


def test_only_what_was_promised_waits_for_the_disk(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path / 'service.db'}")
    said: list[str] = []
    sa.event.listen(store.engine, "before_cursor_execute", lambda *told: said.append(str(told[2])))

    def waits(action: Callable[[], object]) -> bool:
        said.clear()
        action()
        (level,) = [one for one in said if one.startswith("PRAGMA synchronous")]
        return level.endswith("FULL")

    rows: list[JobRow | None] = []
    assert waits(lambda: rows.append(store.add_job(new_job(), **FOR_EVER)))
    row = rows[0]
    assert row is not None
    assert not waits(lambda: store.claim("desk", "m", limit=1, lease_s=60))
    assert not waits(lambda: store.report(row.id, "desk", stage="answering", progress=0.5))
    assert not waits(lambda: store.count({("a", ""): 1.0}))
    assert waits(lambda: store.finish(row.id, "desk", timing={}))
    store.close()
