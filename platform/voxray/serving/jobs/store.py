"""The job store: studies, jobs and tokens in a database, which outlive every process of the service.

Ray Serve spreads the work; the job store only remembers what was asked for, who works on it and how it ended, so that
a job that was accepted ends once, whichever process dies. A scheduler that works on a job holds a lease on it and
renews it; when a lease lapses, the job is queued again. Every change of a job's state is a compare-and-set, from a
state out of which `job_states.MOVES` lets it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from voxray.serving.job_states import OPEN, JobStage, JobState, states_before
from voxray.serving.jobs.database import JOBS_LOCK, lock, now, open_database, put

TABLES = sa.MetaData()
STUDIES = sa.Table(
    "studies",
    TABLES,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("info", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False, index=True),
)
JOBS = sa.Table(
    "jobs",
    TABLES,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("study", sa.String(32), nullable=False, index=True),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("key", sa.String(64)),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("progress", sa.Double, nullable=False, default=0.0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("desk", sa.String(32)),
    sa.Column("leased_until", sa.Double, nullable=False, default=0.0),
    sa.Column("error", sa.Text),
    sa.Column("timing", sa.Text),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("finished", sa.Double),
    sa.Column("expires", sa.Double, nullable=False, index=True),
    sa.UniqueConstraint("owner", "key"),
)
TOKENS = sa.Table(
    "tokens",
    TABLES,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("created", sa.Double, nullable=False),
)
COUNTS = sa.Table(
    "counts",
    TABLES,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("labels", sa.String(256), primary_key=True),
    sa.Column("value", sa.Double, nullable=False),
)


@dataclass(frozen=True)
class StudyRow:
    """A study as it is stored."""

    id: str
    owner: str
    info: str
    """A `StudyInfo` as JSON."""
    created: float
    """Seconds since 1970, as all times here."""
    expires: float


@dataclass(frozen=True)
class NewJob:
    """A job that is asked for."""

    owner: str
    study: str
    model: str
    request: str
    """A `JobRequest` as JSON."""
    key: str | None
    """The digest of its owner's idempotency key."""
    hours: float
    """How long it is kept."""


@dataclass(frozen=True)
class JobRow:
    """A job as it is stored."""

    seq: int
    """In the order in which jobs came."""
    id: str
    owner: str
    study: str
    model: str
    request: str
    """A `JobRequest` as JSON."""
    key: str | None
    """The digest of its owner's idempotency key."""
    state: JobState
    stage: JobStage
    progress: float
    attempts: int
    desk: str | None
    """The name of the scheduler that works on it."""
    leased_until: float
    error: str | None
    """A `ProblemDetails` as JSON."""
    timing: str | None
    """A `Timing` as JSON."""
    created: float
    started: float | None
    finished: float | None
    expires: float


@dataclass(frozen=True)
class TokenRow:
    """A token as it is stored: its digest alone."""

    name: str
    digest: str
    created: float


@dataclass(frozen=True)
class CountRow:
    """A count of the metrics as it is stored."""

    name: str
    labels: str
    value: float


def new_id() -> str:
    """An identifier that cannot be guessed: 128 random bits."""
    return secrets.token_hex(16)


class TooManyError(Exception):
    """As many jobs are open as are allowed: of an ``owner``, or of ``all``."""


class JobStore:
    """The tables and every question that is asked of them; each method is one transaction."""

    def __init__(self, url: str) -> None:
        self._engine = open_database(url, TABLES)
        self._reader = self._engine.execution_options(reading=True)
        # How far jobs are: what a power cut takes of it is done again, so that nobody waits for the disk.
        self._passing = self._engine.execution_options(passing=True)

    @property
    def engine(self) -> sa.Engine:
        """The database, for further tables."""
        return self._engine

    def close(self) -> None:
        """Lets go of the connections."""
        self._engine.dispose()

    # Studies

    def add_study(self, study: str, owner: str, info: str, *, hours: float) -> StudyRow:
        """A study that was read."""
        now = time.time()
        row = StudyRow(study, owner, info, created=now, expires=now + 3600 * hours)
        with self._engine.begin() as db:
            db.execute(STUDIES.insert().values(asdict(row)))
        return row

    def study(self, study: str, owner: str | None = None) -> StudyRow | None:
        """The study, where it is the owner's."""
        return next(iter(self._studies(_of(STUDIES, STUDIES.c.id == study, owner))), None)

    def studies(self, owner: str) -> list[StudyRow]:
        """An owner's studies, the oldest first."""
        return self._studies(sa.select(STUDIES).where(STUDIES.c.owner == owner).order_by(STUDIES.c.created))

    def count_studies(self, owner: str) -> int:
        """How many studies an owner has."""
        with self._reader.connect() as db:
            return int(db.scalar(sa.select(sa.func.count()).where(STUDIES.c.owner == owner)) or 0)

    def remove_study(self, study: str) -> None:
        """Forgets a study and its jobs."""
        with self._engine.begin() as db:
            db.execute(JOBS.delete().where(_held(JOBS.c.study == study)))
            db.execute(STUDIES.delete().where(STUDIES.c.id == study))

    # Jobs

    def add_job(self, job: NewJob, *, most_of_owner: int, most: int) -> JobRow | None:
        """A new job; None where the owner has one with this key already. A TooManyError where too many are open."""
        open_jobs = sa.select(sa.func.count()).where(_is_in(OPEN))
        asked, now = asdict(job), time.time()
        expires = now + 3600 * asked.pop("hours")
        row = {**asked, **_QUEUED, "id": new_id(), "created": now, "expires": expires}
        try:
            with self._engine.begin() as db:
                lock(db, JOBS_LOCK)
                if int(db.scalar(open_jobs.where(JOBS.c.owner == job.owner)) or 0) >= most_of_owner:
                    raise TooManyError("owner")
                if int(db.scalar(open_jobs) or 0) >= most:
                    raise TooManyError("all")
                return _job(db.execute(JOBS.insert().values(row).returning(JOBS)).mappings().one())
        except sa.exc.IntegrityError:
            return None

    def job(self, job: str, owner: str | None = None) -> JobRow | None:
        """The job, where it is the owner's."""
        return next(iter(self._jobs(_of(JOBS, JOBS.c.id == job, owner))), None)

    def job_by_key(self, owner: str, key: str) -> JobRow | None:
        """The job that an owner's idempotency key stands for."""
        return next(iter(self._jobs(_of(JOBS, JOBS.c.key == key, owner))), None)

    def jobs(self, owner: str | None = None, *, study: str | None = None, limit: int = 200) -> list[JobRow]:
        """The newest jobs of an owner, or of a study."""
        query = sa.select(JOBS).order_by(JOBS.c.seq.desc()).limit(limit)
        if owner is not None:
            query = query.where(JOBS.c.owner == owner)
        if study is not None:
            query = query.where(JOBS.c.study == study)
        return self._jobs(query)

    def still_open(self, jobs: Sequence[str]) -> set[str]:
        """Those of the jobs that have not ended."""
        with self._reader.connect() as db:
            return set(db.scalars(sa.select(JOBS.c.id).where(JOBS.c.id.in_(jobs), _is_in(OPEN))))

    def place(self, row: JobRow) -> int:
        """How many queued jobs of the model are before this one."""
        query = sa.select(sa.func.count()).where(
            JOBS.c.model == row.model, _is_in([JobState.QUEUED]), JOBS.c.seq < row.seq
        )
        with self._reader.connect() as db:
            return int(db.scalar(query) or 0)

    def claim(self, scheduler: str, model: str, *, limit: int, lease_s: float) -> list[JobRow]:
        """Up to so many of a model's queued jobs, the oldest first, now leased to the scheduler."""
        queued = sa.and_(_may_become(JobState.RUNNING), JOBS.c.model == model)
        with self._reader.connect() as db:
            if db.scalar(sa.select(JOBS.c.seq).where(queued).limit(1)) is None:
                return []
        fresh = {
            "state": JobState.RUNNING.value,
            "stage": "preparing",
            "progress": 0.0,
            "desk": scheduler,
            "leased_until": now(self._engine) + lease_s,
            "attempts": JOBS.c.attempts + 1,
            "started": sa.func.coalesce(JOBS.c.started, time.time()),
        }
        mine = JOBS.update().where(_held(queued, limit=limit, skip=True)).values(fresh).returning(JOBS)
        with self._passing.begin() as db:
            return sorted(map(_job, db.execute(mine).mappings()), key=lambda row: row.seq)

    def renew(self, scheduler: str, jobs: Sequence[str], *, lease_s: float) -> set[str]:
        """Lengthens the leases; the jobs among these that are still the scheduler's and under way."""
        if not jobs:
            return set()
        mine = _held(sa.and_(JOBS.c.id.in_(jobs), JOBS.c.desk == scheduler, _is_in([JobState.RUNNING])))
        longer = JOBS.update().where(mine).values(leased_until=now(self._engine) + lease_s).returning(JOBS.c.id)
        with self._passing.begin() as db:
            return set(db.scalars(longer))

    def requeue_lapsed(self) -> int:
        """Queues jobs again whose scheduler is gone; how many."""
        lapsed = sa.and_(_may_become(JobState.QUEUED), JOBS.c.leased_until < now(self._engine))
        with self._passing.begin() as db:
            again = JOBS.update().where(_held(lapsed, skip=True)).values(**_QUEUED).returning(JOBS.c.id)
            return len(db.scalars(again).all())

    def requeue(self, job: str, scheduler: str) -> bool:
        """Queues a job again that the scheduler could not bring to an end."""
        return self._move(job, JobState.QUEUED, _QUEUED, scheduler=scheduler)

    def report(self, job: str, scheduler: str, *, stage: JobStage, progress: float) -> bool:
        """How far a job is."""
        under_way = sa.and_(JOBS.c.id == job, _is_in([JobState.RUNNING]), JOBS.c.desk == scheduler)
        with self._passing.begin() as db:
            told = JOBS.update().where(under_way).values(stage=stage, progress=progress)
            return bool(db.execute(told).rowcount)

    def finish(self, job: str, scheduler: str, *, timing: Mapping[str, float]) -> bool:
        """The job is done: its answer lies in its folder. False where it is not the scheduler's any more."""
        values = {"stage": "done", "progress": 1.0, "timing": json.dumps(timing), "finished": time.time()}
        return self._move(job, JobState.DONE, values, scheduler=scheduler)

    def fail(self, job: str, scheduler: str, *, error: str) -> bool:
        """The job ended with an error, a `ProblemDetails` as JSON."""
        return self._move(job, JobState.FAILED, {"error": error, "finished": time.time()}, scheduler=scheduler)

    def cancel(self, job: str) -> bool:
        """Ends a job that waits or is under way."""
        return self._move(job, JobState.CANCELLED, {"finished": time.time()})

    def remove_job(self, job: str) -> None:
        """Forgets a job."""
        with self._engine.begin() as db:
            db.execute(JOBS.delete().where(JOBS.c.id == job))

    def expired(self) -> tuple[list[str], list[str]]:
        """Studies and jobs whose time is over; none that is under way, and no study with an open job."""
        now = time.time()
        busy = sa.select(JOBS.c.study).where(_is_in(OPEN))
        studies = sa.select(STUDIES.c.id).where(STUDIES.c.expires < now, STUDIES.c.id.not_in(busy))
        jobs = sa.select(JOBS.c.id).where(JOBS.c.expires < now, sa.not_(_is_in(OPEN)))
        with self._reader.connect() as db:
            return list(db.scalars(studies)), list(db.scalars(jobs))

    # Tokens: only digests are kept

    def add_token(self, name: str, digest: str) -> bool:
        """Lets a token in; False where the name is taken."""
        try:
            with self._engine.begin() as db:
                db.execute(TOKENS.insert().values(name=name, digest=digest, created=time.time()))
        except sa.exc.IntegrityError:
            return False
        return True

    def remove_token(self, name: str) -> bool:
        """Shuts a token out; False where there is none of that name."""
        with self._engine.begin() as db:
            return bool(db.execute(TOKENS.delete().where(TOKENS.c.name == name)).rowcount)

    def tokens(self) -> list[TokenRow]:
        """All tokens, by name."""
        return [TokenRow(**row) for row in self._rows(sa.select(TOKENS).order_by(TOKENS.c.name))]

    # Counts, for the metrics

    def count(self, amounts: Mapping[tuple[str, str], float]) -> None:
        """Adds to counts, by name and labels."""
        rows = [{"name": name, "labels": labels, "value": amount} for (name, labels), amount in amounts.items()]
        with self._passing.begin() as db:
            put(db, COUNTS, rows, add="value")

    def counts(self) -> list[CountRow]:
        """All counts."""
        return [CountRow(**row) for row in self._rows(sa.select(COUNTS).order_by(COUNTS.c.name, COUNTS.c.labels))]

    def states(self) -> list[tuple[str, str, int]]:
        """(model, state, how many jobs)."""
        query = sa.select(JOBS.c.model, JOBS.c.state, sa.func.count()).group_by(JOBS.c.model, JOBS.c.state)
        with self._reader.connect() as db:
            return [(str(model), str(state), int(number)) for model, state, number in db.execute(query)]

    def _move(self, job: str, state: JobState, values: Mapping[str, Any], *, scheduler: str | None = None) -> bool:
        """Moves a job to a state; False where it may not from its present one, or is not the scheduler's."""
        which = sa.and_(JOBS.c.id == job, _may_become(state))
        which = which if scheduler is None else sa.and_(which, JOBS.c.desk == scheduler)
        with self._engine.begin() as db:
            return bool(db.execute(JOBS.update().where(which).values({**values, "state": state.value})).rowcount)

    def _studies(self, query: sa.Select[Any]) -> list[StudyRow]:
        return [StudyRow(**row) for row in self._rows(query)]

    def _jobs(self, query: sa.Select[Any]) -> list[JobRow]:
        return [_job(row) for row in self._rows(query)]

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
        with self._reader.connect() as db:
            return db.execute(query).mappings().all()


_QUEUED = {"state": JobState.QUEUED.value, "stage": "queued", "progress": 0.0, "desk": None}


def _job(row: Mapping[Any, Any]) -> JobRow:
    return JobRow(**{**row, "state": JobState(row["state"])})


def _of(table: sa.Table, which: sa.ColumnElement[bool], owner: str | None) -> sa.Select[Any]:
    query = sa.select(table).where(which)
    return query if owner is None else query.where(table.c.owner == owner)


def _is_in(states: Sequence[JobState]) -> sa.ColumnElement[bool]:
    return JOBS.c.state.in_([state.value for state in states])


def _may_become(state: JobState) -> sa.ColumnElement[bool]:
    return _is_in(states_before(state))


def _held(which: sa.ColumnElement[bool], *, limit: int | None = None, skip: bool = False) -> sa.ColumnElement[bool]:
    """These jobs, the oldest first and each held against other changes, or left out where another holds it.

    All who change several jobs take them in this order, so that no two wait for each other.
    """
    held = sa.select(JOBS.c.seq).where(which).order_by(JOBS.c.seq).limit(limit).with_for_update(skip_locked=skip)
    return JOBS.c.seq.in_(sa.select(held.cte("held").c.seq))
