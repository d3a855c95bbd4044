"""Moves between the states of a job: the store makes those of the table, and no other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxray.serving.job_states import ENDED, MOVES, OPEN, JobState, states_before
from voxray.serving.jobs.store import JobRow, JobStore, NewJob
from voxray.serving.messages import State

ACTIONS: dict[str, tuple[JobState, Callable[[JobStore, str], object]]] = {
    "claim": (JobState.RUNNING, lambda store, _: store.claim("s", "m", limit=1, lease_s=-1)),
    "requeue": (JobState.QUEUED, lambda store, job: store.requeue(job, "s")),
    "requeue_lapsed": (JobState.QUEUED, lambda store, _: store.requeue_lapsed()),
    "finish": (JobState.DONE, lambda store, job: store.finish(job, "s", timing={})),
    "fail": (JobState.FAILED, lambda store, job: store.fail(job, "s", error="{}")),
    "cancel": (JobState.CANCELLED, lambda store, job: store.cancel(job)),
}
"""Name -> the state that follows where it may, and what asks for it."""
WAYS = {
    JobState.QUEUED: (),
    JobState.RUNNING: ("claim",),
    JobState.DONE: ("claim", "finish"),
    JobState.FAILED: ("claim", "fail"),
    JobState.CANCELLED: ("cancel",),
}
"""State -> the actions that lead a new job there."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobStore]:
    folder: Path = tmp_path_factory.mktemp("store")
    made = JobStore(f"sqlite:///{folder / 'service.db'}")
    yield made
    made.close()


def new_job(store: JobStore) -> JobRow:
    """The only job."""
    for old in store.jobs():
        store.remove_job(old.id)
    row = store.add_job(NewJob("ann", "study", "m", "{}", key=None, hours=1), most_of_owner=9, most=9)
    assert row is not None
    assert row.state is JobState.QUEUED
    return row


def state_after(store: JobStore, action: str, job: str) -> tuple[JobState, bool]:
    """The job's state after an action, and whether the action said that it changed something."""
    changed = bool(ACTIONS[action][1](store, job))
    row = store.job(job)
    assert row is not None
    return row.state, changed


@pytest.mark.parametrize(("before", "action"), list(itertools.product(JobState, ACTIONS)))
def test_an_action_moves_a_job_where_the_table_says_so(store: JobStore, before: JobState, action: str) -> None:
    job = new_job(store).id
    for step in WAYS[before]:
        assert state_after(store, step, job)[1]
    wanted = ACTIONS[action][0]
    allowed = wanted in MOVES[before]
    assert state_after(store, action, job) == (wanted if allowed else before, allowed)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(st.sampled_from(sorted(ACTIONS)), max_size=8))
def test_no_way_leads_past_the_table(store: JobStore, actions: list[str]) -> None:
    row = new_job(store)
    state = row.state
    for action in actions:
        after, changed = state_after(store, action, row.id)
        assert changed == (after in MOVES[state])
        assert after == state or changed
        state = after


def test_the_table_is_whole() -> None:
    assert set(MOVES) == set(JobState) == {*OPEN, *ENDED}
    assert all(states_before(state) for state in JobState)
    assert tuple(state.value for state in JobState) == get_args(State)
