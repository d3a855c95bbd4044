"""The scheduler: takes jobs from the job store to the workers, and writes down there how they ended.

It keeps nothing that matters: a scheduler that dies lets its leases lapse, and the jobs are queued again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from voxray.core.bulkhead import causes, lacks_memory
from voxray.core.errors import ResourceError, VoxrayError
from voxray.results.formats import FormatName
from voxray.serving.errors import ProblemError, fault, problem_of
from voxray.serving.intake.disk import disk_full
from voxray.serving.jobs.database import UnreachableError
from voxray.serving.jobs.metrics import Metrics
from voxray.serving.jobs.store import JobRow, JobStore, new_id
from voxray.serving.messages import JobRequest
from voxray.serving.paths import IDENTIFIER, ServicePaths
from voxray.serving.workers import reader
from voxray.serving.workers.protocol import ServiceWorkers, Step, WorkerDiedError

LEASE_S = 10.0
MAX_ATTEMPTS = 25
"""Kills of whole machines count, too: a job is given up only when nothing else is left to believe."""

TIDY_S = 60.0
"""How often what has expired is removed."""
_TICK_S = 0.5
_RENEW_S = 2.0
_REPORT_S = 0.25
_PAUSE_S = 0.5
_NEWS_S = 3.0
"""A scheduler that is stopped, or replaced, waits for who listens to it."""
_ORPHAN_S = 6 * 3600

log = logging.getLogger("voxray.serving")


class Scheduler:
    """Drives jobs, at most `widths` of each model at a time."""

    def __init__(
        self,
        store: JobStore,
        workers: ServiceWorkers,
        places: ServicePaths,
        widths: Mapping[str, int],
        *,
        lease_s: float = LEASE_S,
        tidy_s: float = TIDY_S,
        tell_states: Callable[[Sequence[tuple[str, str, int]]], None] = lambda _: None,
    ) -> None:
        """`tell_states` hears every few seconds how many jobs of each model are in each state."""
        self._store, self._workers, self._places = store, workers, places
        self._widths, self._lease_s, self._tidy_s, self._name = dict(widths), lease_s, tidy_s, new_id()
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._poked, self._stopping = asyncio.Event(), False
        self._ended, self._told = 0, asyncio.Event()
        self._metrics, self._tell_states = Metrics(store), tell_states

    def poke(self) -> None:
        """There is something new: a job, or one that was cancelled."""
        self._poked.set()

    async def news(self, seen: int) -> int:
        """Waits until another number of jobs has ended here than `seen`, at most `_NEWS_S`; that number."""
        if self._ended == seen:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), _NEWS_S)
        return self._ended

    def _tell(self) -> None:
        self._ended += 1
        self._told.set()
        self._told = asyncio.Event()

    async def run(self) -> None:
        """Works until it is stopped."""
        renewed = tidied = 0.0
        while not self._stopping or self._running:
            now = time.monotonic()
            try:
                due = now - renewed > _RENEW_S
                await self._look(renew=due or self._poked.is_set(), sweep=due)
                if now - tidied > self._tidy_s:
                    tidied = now
                    await asyncio.to_thread(self._tidy)
                await asyncio.to_thread(self._metrics.flush)
            except Exception:
                log.exception("the scheduler could not look at its jobs; it will again")
            renewed = now if now - renewed > _RENEW_S else renewed
            self._poked.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poked.wait(), _TICK_S)

    async def stop(self) -> None:
        """Takes no more jobs, and returns when those under way have ended."""
        self._stopping = True
        self.poke()
        await asyncio.gather(*(task for _, task in self._running.values()), return_exceptions=True)

    async def _look(self, *, renew: bool, sweep: bool) -> None:
        """Drops what was cancelled, takes back what others let fall, and claims what there is room for."""
        self._running = {job: one for job, one in self._running.items() if not one[1].done()}
        under_way = list(self._running)
        if not self._stopping:
            for row in await asyncio.to_thread(self._claim):
                self._running[row.id] = row.model, asyncio.create_task(self._drive(row))
        if renew and under_way:
            kept = await asyncio.to_thread(self._store.renew, self._name, under_way, lease_s=self._lease_s)
            for job in under_way:
                if job not in kept:
                    self._running[job][1].cancel()
        if sweep:
            await asyncio.to_thread(self._store.requeue_lapsed)
            self._tell_states(await asyncio.to_thread(self._store.states))

    def _claim(self) -> list[JobRow]:
        busy = [model for model, _ in self._running.values()]
        room = {model: width - busy.count(model) for model, width in self._widths.items()}
        return [
            row
            for model, free in room.items()
            if free > 0
            for row in self._store.claim(self._name, model, limit=free, lease_s=self._lease_s)
        ]

    async def _drive(self, row: JobRow) -> None:
        """One job, to its end or back into the queue."""
        job, begin = row.id, time.time()
        assert row.started is not None, "it was claimed"
        try:
            last = await self._answer(row)
            timing = {
                "queued": round(row.started - row.created, 4),
                "prepare": round(last.prepare_s, 4),
                "answer": round(last.answer_s, 4),
                "total": round(time.time() - row.created, 4),
            }
            await asyncio.to_thread(self._store.finish, job, self._name, timing=timing)
            self._metrics.add("voxray_jobs_total", model=row.model, outcome="done")
            for stage, seconds in timing.items():
                self._metrics.observe("voxray_stage_seconds", seconds, model=row.model, stage=stage)
            log.info("job done", extra={"fields": {"job": job, "model": row.model, **timing}})
        except WorkerDiedError as died:
            await self._again(row, str(died))
        except (VoxrayError, ProblemError) as error:
            await self._fail(row, error if isinstance(error, ProblemError) else problem_of(error))
        except UnreachableError:  # the lease lapses, and the job is queued again
            log.exception("the database did not answer", extra={"fields": {"job": job}})
        except asyncio.CancelledError:
            log.info("job let go", extra={"fields": {"job": job, "after_s": round(time.time() - begin, 3)}})
        except Exception as error:
            log.exception("job failed", extra={"fields": {"job": job, "kind": type(error).__name__}})
            await self._fail(row, _unforeseen(error))
        finally:
            self._tell()
            self.poke()

    async def _answer(self, row: JobRow) -> Step:
        job, request = row.id, JobRequest.model_validate_json(row.request)
        last = Step("preparing")
        async with (
            self._reporting(job) as news,
            aclosing(self._workers.answer(job, row.study, row.model)) as steps,
        ):
            async for step in steps:
                news.append(step)
                last = step
        if request.outputs or request.store:
            await self._report(job, Step("writing", 1.0))
        for form in request.outputs:
            await self._make(row, form)
        if request.store is not None:
            await self._workers.call(reader.store_result, job, row.study, request.store.dicomweb)
        return last

    async def _make(self, row: JobRow, form: FormatName) -> None:
        """A form of an answer that is there; why it cannot be made is said to whoever asks for it."""
        try:
            await self._workers.call(reader.make_form, row.id, row.study, form)
        except (VoxrayError, ProblemError) as error:
            code = getattr(error, "code", type(error).__name__)
            log.info("form not made", extra={"fields": {"job": row.id, "form": form, "code": code}})
        except UnreachableError:
            raise
        except Exception:
            log.exception("form failed", extra={"fields": {"job": row.id, "form": form}})

    @contextlib.asynccontextmanager
    async def _reporting(self, job: str) -> AsyncIterator[deque[Step]]:
        """Writes the newest step now and then. A job that ends sooner does not wait for what nobody would read."""
        news: deque[Step] = deque(maxlen=1)

        async def write() -> None:
            while True:
                await asyncio.sleep(_REPORT_S)
                if news:
                    with contextlib.suppress(*UnreachableError):  # there will be newer news
                        await self._report(job, news.pop())

        writing = asyncio.create_task(write())
        try:
            yield news
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing

    async def _report(self, job: str, step: Step) -> None:
        await asyncio.to_thread(
            self._store.report, job, self._name, stage=step.stage, progress=min(1.0, step.progress)
        )

    async def _again(self, row: JobRow, why: str) -> None:
        """Back into the queue, unless it has been tried often enough to be the cause itself."""
        fields: dict[str, Any] = {"job": row.id, "attempt": row.attempts, "why": why[:200]}
        log.warning("a worker was lost", extra={"fields": fields})
        if row.attempts >= MAX_ATTEMPTS:
            await self._fail(row, gave_up(row.attempts))
            return
        await asyncio.sleep(_PAUSE_S)
        await asyncio.to_thread(self._store.requeue, row.id, self._name)

    async def _fail(self, row: JobRow, problem: ProblemError) -> None:
        error = problem.details().model_dump_json()
        await asyncio.to_thread(self._store.fail, row.id, self._name, error=error)
        self._metrics.add("voxray_jobs_total", model=row.model, outcome=problem.code)
        log.info("job failed", extra={"fields": {"job": row.id, "code": problem.code}})

    def _tidy(self) -> None:
        """Removes what has expired, and folders that nobody knows of."""
        studies, jobs = self._store.expired()
        for study in studies:
            jobs += [row.id for row in self._store.jobs(study=study)]
            self._store.remove_study(study)
            shutil.rmtree(self._places.study(study), ignore_errors=True)
        for job in jobs:
            self._store.remove_job(job)
            shutil.rmtree(self._places.job(job), ignore_errors=True)
        for folder, known in ((self._places.studies, self._store.study), (self._places.jobs, self._store.job)):
            for path in (one for one in folder.iterdir() if IDENTIFIER.fullmatch(one.name)):
                if time.time() - path.stat().st_mtime > _ORPHAN_S and known(path.name) is None:
                    shutil.rmtree(path, ignore_errors=True)


def gave_up(attempts: int) -> ProblemError:
    """What a client is told of a scan that no worker survives."""
    return ProblemError(
        500,
        "job.given_up",
        f"The process that answered it died {attempts} times.",
        remedy="Give a smaller scan; whoever runs the service finds the reason in its log.",
    )


def _unforeseen(error: Exception) -> ProblemError:
    """What a client is told of a job that failed from no refusal: that the machine lacks something, or our fault."""
    for cause in causes(error):
        if lacks_memory(cause):
            return problem_of(ResourceError("There is not enough memory to answer the scan."))
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return problem_of(disk_full())
    return fault()
