"""The job store: studies, jobs and tokens in a database, which outlive every process of the service.

Ray Serve spreads the work; the job store only remembers what was asked for, who works on it and how it ended, so that
a job that was accepted ends once, whichever process dies. A scheduler that works on a job holds a lease on it and
renews it; when a lease lapses, the job is queued again. Every change of a job's state is a compare-and-set.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

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
OPEN = ("queued", "running")

Row = Mapping[str, Any]


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

    def add_study(self, study: str, owner: str, info: str, *, hours: float) -> Row:
        """A study that was read."""
        now = time.time()
        row = {"id": study, "owner": owner, "info": info, "created": now, "expires": now + 3600 * hours}
        with self._engine.begin() as db:
            db.execute(STUDIES.insert().values(row))
        return row

    def study(self, study: str, owner: str | None = None) -> Row | None:
        """The study, where it is the owner's."""
        return self._one(STUDIES, STUDIES.c.id == study, owner)

    def studies(self, owner: str) -> list[Row]:
        """An owner's studies, the oldest first."""
        return self._rows(sa.select(STUDIES).where(STUDIES.c.owner == owner).order_by(STUDIES.c.created))

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

    def add_job(self, row: Row, *, most_of_owner: int, most: int) -> Row | None:
        """A new job; None where the owner has one with this key already. A TooManyError where too many are open."""
        open_jobs = sa.select(sa.func.count()).where(JOBS.c.state.in_(OPEN))
        try:
            with self._engine.begin() as db:
                lock(db, JOBS_LOCK)
                if int(db.scalar(open_jobs.where(JOBS.c.owner == row["owner"])) or 0) >= most_of_owner:
                    raise TooManyError("owner")
                if int(db.scalar(open_jobs) or 0) >= most:
                    raise TooManyError("all")
                return dict(db.execute(JOBS.insert().values(dict(row)).returning(JOBS)).mappings().one())
        except sa.exc.IntegrityError:
            return None

    def job(self, job: str, owner: str | None = None) -> Row | None:
        """The job, where it is the owner's."""
        return self._one(JOBS, JOBS.c.id == job, owner)

    def job_by_key(self, owner: str, key: str) -> Row | None:
        """The job that an owner's idempotency key stands for."""
        return self._one(JOBS, JOBS.c.key == key, owner)

    def jobs(self, owner: str | None = None, *, study: str | None = None, limit: int = 200) -> list[Row]:
        """The newest jobs of an owner, or of a study."""
        query = sa.select(JOBS).order_by(JOBS.c.seq.desc()).limit(limit)
        if owner is not None:
            query = query.where(JOBS.c.owner == owner)
        if study is not None:
            query = query.where(JOBS.c.study == study)
        return self._rows(query)

    def still_open(self, jobs: Sequence[str]) -> set[str]:
        """Those of the jobs that have not ended."""
        with self._reader.connect() as db:
            return set(db.scalars(sa.select(JOBS.c.id).where(JOBS.c.id.in_(jobs), JOBS.c.state.in_(OPEN))))

    def place(self, row: Row) -> int:
        """How many queued jobs of the model are before this one."""
        query = sa.select(sa.func.count()).where(
            JOBS.c.model == row["model"], JOBS.c.state == "queued", JOBS.c.seq < row["seq"]
        )
        with self._reader.connect() as db:
            return int(db.scalar(query) or 0)

    def claim(self, scheduler: str, model: str, *, limit: int, lease_s: float) -> list[Row]:
        """Up to so many of a model's queued jobs, the oldest first, now leased to the scheduler."""
        queued = sa.and_(JOBS.c.state == "queued", JOBS.c.model == model)
        with self._reader.connect() as db:
            if db.scalar(sa.select(JOBS.c.seq).where(queued).limit(1)) is None:
                return []
        fresh = {
            "state": "running",
            "stage": "preparing",
            "progress": 0.0,
            "desk": scheduler,
            "leased_until": now(self._engine) + lease_s,
            "attempts": JOBS.c.attempts + 1,
            "started": sa.func.coalesce(JOBS.c.started, time.time()),
        }
        mine = JOBS.update().where(_held(queued, limit=limit, skip=True)).values(fresh).returning(JOBS)
        with self._passing.begin() as db:
            return sorted((dict(row) for row in db.execute(mine).mappings()), key=lambda row: int(row["seq"]))

    def renew(self, scheduler: str, jobs: Sequence[str], *, lease_s: float) -> set[str]:
        """Lengthens the leases; the jobs among these that are still the scheduler's and under way."""
        if not jobs:
            return set()
        mine = _held(sa.and_(JOBS.c.id.in_(jobs), JOBS.c.desk == scheduler, JOBS.c.state == "running"))
        longer = JOBS.update().where(mine).values(leased_until=now(self._engine) + lease_s).returning(JOBS.c.id)
        with self._passing.begin() as db:
            return set(db.scalars(longer))

    def requeue_lapsed(self) -> int:
        """Queues jobs again whose scheduler is gone; how many."""
        lapsed = sa.and_(JOBS.c.state == "running", JOBS.c.leased_until < now(self._engine))
        with self._passing.begin() as db:
            again = JOBS.update().where(_held(lapsed, skip=True)).values(**_QUEUED).returning(JOBS.c.id)
            return len(db.scalars(again).all())

    def requeue(self, job: str, scheduler: str) -> bool:
        """Queues a job again that the scheduler could not bring to an end."""
        return self._change(job, _QUEUED, state=("running",), scheduler=scheduler)

    def report(self, job: str, scheduler: str, *, stage: str, progress: float) -> bool:
        """How far a job is."""
        fresh = {"stage": stage, "progress": progress}
        return self._change(job, fresh, state=("running",), scheduler=scheduler, engine=self._passing)

    def finish(self, job: str, scheduler: str, *, timing: Mapping[str, float]) -> bool:
        """The job is done: its answer lies in its folder. False where it is not the scheduler's any more."""
        values = {"state": "done", "stage": "done", "progress": 1.0, "timing": json.dumps(timing)}
        return self._change(job, {**values, "finished": time.time()}, state=("running",), scheduler=scheduler)

    def fail(self, job: str, scheduler: str, *, error: str) -> bool:
        """The job ended with an error, a `ProblemDetails` as JSON."""
        values = {"state": "failed", "error": error, "finished": time.time()}
        return self._change(job, values, state=("running",), scheduler=scheduler)

    def cancel(self, job: str) -> bool:
        """Ends a job that waits or is under way."""
        return self._change(job, {"state": "cancelled", "finished": time.time()}, state=OPEN)

    def remove_job(self, job: str) -> None:
        """Forgets a job."""
        with self._engine.begin() as db:
            db.execute(JOBS.delete().where(JOBS.c.id == job))

    def expired(self) -> tuple[list[str], list[str]]:
        """Studies and jobs whose time is over; none that is under way, and no study with an open job."""
        now = time.time()
        busy = sa.select(JOBS.c.study).where(JOBS.c.state.in_(OPEN))
        studies = sa.select(STUDIES.c.id).where(STUDIES.c.expires < now, STUDIES.c.id.not_in(busy))
        jobs = sa.select(JOBS.c.id).where(JOBS.c.expires < now, JOBS.c.state.not_in(OPEN))
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

    def tokens(self) -> list[Row]:
        """Names and digests."""
        return self._rows(sa.select(TOKENS).order_by(TOKENS.c.name))

    # Counts, for the metrics

    def count(self, amounts: Mapping[tuple[str, str], float]) -> None:
        """Adds to counts, by name and labels."""
        rows = [{"name": name, "labels": labels, "value": amount} for (name, labels), amount in amounts.items()]
        with self._passing.begin() as db:
            put(db, COUNTS, rows, add="value")

    def counts(self) -> list[Row]:
        """All counts."""
        return self._rows(sa.select(COUNTS).order_by(COUNTS.c.name, COUNTS.c.labels))

    def states(self) -> list[tuple[str, str, int]]:
        """(model, state, how many jobs)."""
        query = sa.select(JOBS.c.model, JOBS.c.state, sa.func.count()).group_by(JOBS.c.model, JOBS.c.state)
        with self._reader.connect() as db:
            return [(str(model), str(state), int(number)) for model, state, number in db.execute(query)]

    def _change(
        self,
        job: str,
        values: Row,
        *,
        state: Sequence[str],
        scheduler: str | None = None,
        engine: sa.Engine | None = None,
    ) -> bool:
        same = sa.and_(JOBS.c.id == job, JOBS.c.state.in_(state))
        same = same if scheduler is None else sa.and_(same, JOBS.c.desk == scheduler)
        with (engine or self._engine).begin() as db:
            return bool(db.execute(JOBS.update().where(same).values(dict(values))).rowcount)

    def _one(self, table: sa.Table, which: sa.ColumnElement[bool], owner: str | None) -> Row | None:
        query = sa.select(table).where(which)
        found = self._rows(query if owner is None else query.where(table.c.owner == owner))
        return found[0] if found else None

    def _rows(self, query: sa.Select[Any]) -> list[Row]:
        with self._reader.connect() as db:
            return [dict(row) for row in db.execute(query).mappings()]


_QUEUED = {"state": "queued", "stage": "queued", "progress": 0.0, "desk": None}


def _held(which: sa.ColumnElement[bool], *, limit: int | None = None, skip: bool = False) -> sa.ColumnElement[bool]:
    """These jobs, the oldest first and each held against other changes, or left out where another holds it.

    All who change several jobs take them in this order, so that no two wait for each other.
    """
    held = sa.select(JOBS.c.seq).where(which).order_by(JOBS.c.seq).limit(limit).with_for_update(skip_locked=skip)
    return JOBS.c.seq.in_(sa.select(held.cte("held").c.seq))
