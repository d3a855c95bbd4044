"""The states of a job, and every move between them: whatever is not in the table does not happen."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal


class JobState(StrEnum):
    """Where a job is in its life, as the database and the API name it."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


JobStage = Literal["queued", "preparing", "answering", "writing", "done"]
"""What is being done for a job; finer than its state, and for people alone."""

MOVES: Mapping[JobState, tuple[JobState, ...]] = {
    JobState.QUEUED: (JobState.RUNNING, JobState.CANCELLED),
    JobState.RUNNING: (JobState.QUEUED, JobState.DONE, JobState.FAILED, JobState.CANCELLED),
    JobState.DONE: (),
    JobState.FAILED: (),
    JobState.CANCELLED: (),
}
"""State -> the states that may follow; a running job is queued again where its scheduler or its worker dies."""

OPEN = tuple(state for state, following in MOVES.items() if following)
ENDED = tuple(state for state, following in MOVES.items() if not following)


def states_before(state: JobState) -> tuple[JobState, ...]:
    """The states that `state` may follow."""
    return tuple(before for before, following in MOVES.items() if state in following)
