"""The service as every protocol sees it: studies, jobs and results of an owner."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from voxray.core.answer_json import FindingsFile, LabelsFile
from voxray.core.errors import ConfigError, DataError
from voxray.results.formats import FormatName, served_formats
from voxray.serving.config import ServeConfig
from voxray.serving.errors import ProblemDetails, ProblemError
from voxray.serving.intake.dicomweb import peer
from voxray.serving.intake.receive import UploadPart, receive
from voxray.serving.intake.sender_names import as_sent, noting
from voxray.serving.intake.study import ScanFacts, StudyInfo
from voxray.serving.job_states import ENDED, JobState
from voxray.serving.jobs.store import JobRow, JobStore, NewJob, StudyRow, TooManyError, new_id
from voxray.serving.jobs.waiters import JobWaiters
from voxray.serving.messages import (
    DicomwebSource,
    Job,
    JobRequest,
    ModelInfo,
    Study,
    Timing,
)
from voxray.serving.paths import ServicePaths
from voxray.serving.workers import reader
from voxray.serving.workers.answered_by import answered_by, read_answer
from voxray.serving.workers.protocol import Centroids, LabelFormat, Operation, ServiceWorkers, WorkerDiedError
from voxray.serving.workers.refused_forms import refused_forms

P = ParamSpec("P")
T = TypeVar("T")

_READ_ATTEMPTS = 3
_REFRESH_S = 2.0
_REMEMBERED = 10_000
_LOOK_S = 5.0
"""How often it is looked whether a client still waits."""
RETRY_S = 5
"""What a client that comes too soon is told to wait."""


class Service:
    """What the HTTP routes ask for; `owner` is the name of the token that asked, and sees only what is its own."""

    def __init__(
        self,
        config: ServeConfig,
        store: JobStore,
        workers: ServiceWorkers,
        places: ServicePaths,
        cards: Sequence[ModelInfo],
    ) -> None:
        self.config, self.store, self.workers, self.places = config, store, workers, places
        self._models = {card.name: card for card in cards}
        self._refreshed = -_REFRESH_S
        self._tasks: dict[str, str] = {}  # by job
        self._are_dicom: dict[str, bool] = {}  # by study; what a study is never changes
        self._waiters = JobWaiters(store, workers.news)

    # Models

    def models(self) -> Mapping[str, ModelInfo]:
        """What is served, by name."""
        return self._models

    def model(self, name: str) -> ModelInfo:
        """One model."""
        if name not in self._models:
            known = ", ".join(self._models)
            raise ProblemError(404, "model.unknown", "There is no such model.", remedy=f"Served are: {known}.")
        return self._models[name]

    async def refresh(self) -> bool:
        """Asks which models are ready; whether all are."""
        now = time.monotonic()
        if now - self._refreshed > _REFRESH_S:
            self._refreshed = now
            ready = await self.workers.models()
            self._models = {
                name: ready.get(name, info.model_copy(update={"ready": False})) for name, info in self._models.items()
            }
        return all(info.ready for info in self._models.values())

    # Studies

    async def new_study(
        self, owner: str, parts: AsyncIterator[UploadPart], *, series_uid: str | None = None
    ) -> Study:
        """A study of what is uploaded; nothing is left of one that is refused."""

        names: list[str] = []  # in memory alone: they may hold a patient's

        async def read(study: str) -> StudyInfo:
            try:
                await receive(noting(parts, names), self.places.study(study), self.config.limits)
                return await self._tried(reader.read_upload, study, series_uid=series_uid)
            except DataError as error:
                raise as_sent(error, names) from None

        return await self._study_of(owner, read)

    async def fetch_study(self, owner: str, source: DicomwebSource) -> Study:
        """A study of a series on a DICOMweb server."""
        peer(source.url, self.config.dicomweb)

        async def read(study: str) -> StudyInfo:
            try:
                return await self.workers.call(reader.fetch_series, study, source)
            except DataError as error:
                raise as_sent(error, ()) from None

        return await self._study_of(owner, read)

    async def study(self, owner: str, study_id: str) -> Study:
        """What is known of a study."""
        return study_of(await self._study(owner, study_id))

    async def volume(self, owner: str, study_id: str) -> Path:
        """The scan as NIfTI."""
        await self._study(owner, study_id)
        try:
            return await self._tried(reader.scan_file, study_id)
        except Exception:
            await self._study(owner, study_id)  # deleted, or expired, while it was made
            raise

    async def delete_study(self, owner: str, study_id: str) -> None:
        """Ends its jobs, and removes them, the study and every file of theirs."""
        await self._study(owner, study_id)
        jobs = await asyncio.to_thread(self.store.jobs, study=study_id, limit=1_000_000)
        for row in jobs:
            await self._remove(row)
        await asyncio.to_thread(self.store.remove_study, study_id)
        await asyncio.to_thread(shutil.rmtree, self.places.study(study_id), ignore_errors=True)

    async def forget(self, owner: str, study: Study) -> None:
        """Deletes a study that came with a request, and its jobs, where it is not gone already."""
        with contextlib.suppress(ProblemError):
            await self.delete_study(owner, study.study_id)

    # Jobs

    async def new_job(self, owner: str, request: JobRequest, *, key: str | None = None, wait_s: float = 0.0) -> Job:
        """A study to be answered by a model; the same key gives the same job again. With `wait_s` as in `job`."""
        text = request.model_dump_json()
        hashed = None if key is None else hashlib.sha256(key.encode()).hexdigest()
        if hashed is not None and (known := await asyncio.to_thread(self.store.job_by_key, owner, hashed)):
            return await self._same(known, text, wait_s)
        info = self._info(await self._study(owner, request.study_id))
        self._check_outputs(request, self.model(request.model), info)
        hours = self.config.keep.job_hours
        row = await self._added(NewJob(owner, request.study_id, request.model, text, key=hashed, hours=hours))
        if row is None:  # the same key, at the same time
            assert hashed is not None
            known = await asyncio.to_thread(self.store.job_by_key, owner, hashed)
            assert known is not None
            return await self._same(known, text, wait_s)
        self.workers.poke()
        return await self._ended(row, wait_s)

    async def job(self, owner: str, job_id: str, *, wait_s: float = 0.0) -> Job:
        """How far a job is; with `wait_s` not before it has ended, or that time is over, and with its result."""
        return await self._ended(await self._job(owner, job_id), wait_s)

    async def jobs(self, owner: str) -> tuple[Job, ...]:
        """The owner's jobs, the newest first."""
        rows = await asyncio.to_thread(self.store.jobs, owner)
        return tuple([await self._job_of(row) for row in rows])

    async def cancel(self, owner: str, job_id: str) -> Job:
        """Ends a job that waits or is under way; one that has ended stays as it is."""
        await self._job(owner, job_id)
        if await asyncio.to_thread(self.store.cancel, job_id):
            self.workers.poke()
        return await self._job_of(await self._job(owner, job_id))

    async def delete_job(self, owner: str, job_id: str) -> None:
        """Ends a job, and removes it and its files."""
        await self._remove(await self._job(owner, job_id))

    async def answer(self, owner: str, request: JobRequest, *, is_gone: Callable[[], Awaitable[bool]]) -> Job:
        """The job when it is done; ended where the client is gone, and a ProblemError where it fails."""
        begun = asyncio.ensure_future(self.new_job(owner, request))
        try:
            job = await asyncio.shield(begun)
            while job.state not in ENDED:
                if await is_gone():
                    raise ProblemError(400, "request.left", "The client went away.", remedy="Wait for the answer.")
                job = await self.job(owner, job.job_id, wait_s=_LOOK_S)
        except BaseException:
            with contextlib.suppress(ProblemError):  # where it was refused, or is gone already
                await asyncio.shield(self.delete_job(owner, (await begun).job_id))
            raise
        if job.state == "done":
            return job
        if job.error is None:
            text = "The job was cancelled while it was waited for."
            raise ProblemError(409, "job.cancelled", text, remedy="Ask again.")
        raise ProblemError(job.error.status, job.error.code, job.error.detail, remedy=job.error.remedy)

    async def result(self, owner: str, job_id: str, form: FormatName) -> Path:
        """The file of a job's result in a form; made where it is not there yet."""
        row = await self._job(owner, job_id)
        if row.state is not JobState.DONE:
            raise ProblemError(409, "job.not_done", f"The job is {row.state}.", remedy="Ask again when it is done.")
        allowed = await self._forms(row)
        if not allowed:
            raise ProblemError(
                404, "result.gone", "The job's answer is not there any more.", remedy="Ask the model again."
            )
        if form not in allowed:
            raise ProblemError(
                404, "result.not_this_form", "The result has no such form.", remedy=f"It has: {', '.join(allowed)}."
            )
        job, study = row.id, row.study
        path = self.places.result(job, study, form)
        if await asyncio.to_thread(path.exists):
            return path
        return await self._made(owner, job, reader.make_form, job, study, form)

    async def viewer_labels(self, owner: str, job_id: str, label_format: LabelFormat) -> Path:
        """The label map of a segmentation as a viewer wants it."""
        await self.result(owner, job_id, "nifti")
        row = await self._job(owner, job_id)
        return await self._made(owner, job_id, reader.viewer_labels, row.id, row.study, label_format)

    async def centroids(self, owner: str, job_id: str) -> Centroids:
        """The voxel in the middle of each label of a segmentation."""
        await self.result(owner, job_id, "nifti")
        row = await self._job(owner, job_id)
        return await self._made(owner, job_id, reader.label_centroids, row.id, row.study)

    def findings(self, row: JobRow) -> FindingsFile | LabelsFile | None:
        """The answer itself."""
        try:
            return read_answer(self.places, row.id, row.study)
        except OSError:
            return None  # deleted at this moment

    # Within

    async def _study_of(self, owner: str, read: Callable[[str], Awaitable[StudyInfo]]) -> Study:
        if await asyncio.to_thread(self.store.count_studies, owner) >= self.config.quota.studies:
            raise ProblemError(
                429,
                "quota.studies",
                "The owner has as many studies as are allowed.",
                remedy="Delete some.",
                headers={"Retry-After": "60"},
            )
        study = new_id()
        folder = self.places.study(study)
        try:
            info = await read(study)
            row = await asyncio.to_thread(
                self.store.add_study, study, owner, info.model_dump_json(), hours=self.config.keep.study_hours
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return study_of(row)

    async def _tried(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Once more where the worker died; it may have been the upload that killed it, so not for ever."""
        for attempt in range(_READ_ATTEMPTS):
            try:
                return await self.workers.call(operation, *args, **kwargs)
            except WorkerDiedError:
                await asyncio.sleep(0.2 * (attempt + 1))
        raise ProblemError(
            503,
            "service.worker_died",
            "The process that read it died.",
            remedy="Try again.",
            headers={"Retry-After": str(RETRY_S)},
        )

    async def _made(
        self, owner: str, job_id: str, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a worker makes of a job's result; it may be deleted, or expire, meanwhile."""
        try:
            return await self._tried(operation, *args, **kwargs)
        except Exception:
            await self._job(owner, job_id)
            raise

    async def _study(self, owner: str, study_id: str) -> StudyRow:
        row = await asyncio.to_thread(self.store.study, study_id, owner)
        if row is None:
            raise ProblemError(
                404, "study.unknown", "There is no such study.", remedy="It may have expired; upload again."
            )
        return row

    async def _job(self, owner: str, job_id: str) -> JobRow:
        row = await asyncio.to_thread(self.store.job, job_id, owner)
        if row is None:
            raise ProblemError(
                404, "job.unknown", "There is no such job.", remedy="It may have expired; ask for it again."
            )
        return row

    async def _added(self, job: NewJob) -> JobRow | None:
        most_of_owner, headers = self.config.quota.open_jobs, {"Retry-After": str(RETRY_S)}
        try:
            return await asyncio.to_thread(
                self.store.add_job, job, most_of_owner=most_of_owner, most=self.config.max_queue
            )
        except TooManyError as error:
            if error.args == ("all",):
                raise ProblemError(
                    503, "service.full", "The queue is full.", remedy="Try again later.", headers=headers
                ) from None
            raise ProblemError(
                429,
                "quota.open_jobs",
                "The owner has as many open jobs as are allowed.",
                remedy="Wait until some have ended.",
                headers=headers,
            ) from None

    async def _remove(self, row: JobRow) -> None:
        if await asyncio.to_thread(self.store.cancel, row.id):
            self.workers.poke()
        await asyncio.to_thread(self.store.remove_job, row.id)
        await asyncio.to_thread(shutil.rmtree, self.places.job(row.id), ignore_errors=True)

    async def _ended(self, row: JobRow, wait_s: float) -> Job:
        if wait_s > 0 and row.state not in ENDED:
            await self._waiters.wait(row.id, wait_s)
            row = await self._job(row.owner, row.id)
        return await self._job_of(row, with_result=wait_s > 0)

    async def _same(self, known: JobRow, text: str, wait_s: float) -> Job:
        if known.request != text:
            raise ProblemError(
                409, "job.key_reused", "The idempotency key stands for another request.", remedy="Use a new key."
            )
        return await self._ended(known, wait_s)

    def _check_outputs(self, request: JobRequest, model: ModelInfo, info: StudyInfo) -> None:
        allowed = served_formats(model.task, is_dicom=info.is_dicom)
        for form in request.outputs:
            if form not in allowed:
                raise ProblemError(
                    422,
                    "job.not_this_form",
                    f"The result has no form {form}.",
                    remedy=f"It has: {', '.join(allowed)}.",
                )
        if request.store is not None:
            if not info.is_dicom:
                raise ProblemError(
                    422, "job.not_dicom", "Only the answers to DICOM series can be stored.", remedy="Leave store out."
                )
            peer(request.store.dicomweb, self.config.dicomweb)

    def _info(self, row: StudyRow) -> StudyInfo:
        info = StudyInfo.model_validate_json(row.info)
        if len(self._are_dicom) >= _REMEMBERED:
            self._are_dicom.clear()
        self._are_dicom[row.id] = info.is_dicom
        return info

    async def _forms(self, row: JobRow) -> tuple[FormatName, ...]:
        study = row.study
        if study not in self._are_dicom and (found := await asyncio.to_thread(self.store.study, study)):
            self._info(found)
        task = await asyncio.to_thread(self._task, row)
        return () if task is None else served_formats(task, is_dicom=self._are_dicom.get(study, False))

    def _task(self, row: JobRow) -> str | None:
        """What the result is; None where the answer is not there yet, or not any more."""
        job, model = row.id, self._models.get(row.model)
        if row.state is not JobState.DONE:  # while the model is served it is known what it will be
            return None if model is None else model.task
        if job not in self._tasks:
            if len(self._tasks) >= _REMEMBERED:
                self._tasks.clear()
            try:
                self._tasks[job] = answered_by(self.places, job, row.study).task
            except (ConfigError, OSError):
                return None
        return self._tasks[job]

    async def _job_of(self, row: JobRow, *, with_result: bool = False) -> Job:
        place = await asyncio.to_thread(self.store.place, row) if row.state is JobState.QUEUED else None
        result = None
        if with_result and row.state is JobState.DONE:
            with contextlib.suppress(ConfigError):
                result = await asyncio.to_thread(self.findings, row)
        forms, refused = await self._forms(row), await asyncio.to_thread(refused_forms, self.places.job(row.id))
        return Job(
            job_id=row.id,
            study_id=row.study,
            model=row.model,
            state=row.state.value,
            stage=row.stage,
            progress=row.progress,
            place=place,
            error=None if row.error is None else ProblemDetails.model_validate_json(row.error),
            is_served=row.model in self._models,
            outputs=tuple(form for form in forms if form not in refused),
            refused=refused,
            created=_date(row.created),
            started=None if row.started is None else _date(row.started),
            finished=None if row.finished is None else _date(row.finished),
            expires=_date(row.expires),
            timing_s=Timing() if row.timing is None else Timing.model_validate_json(row.timing),
            result=result,
        )


def study_of(row: StudyRow) -> Study:
    """A study as its owner sees it."""
    told = StudyInfo.model_validate_json(row.info).model_dump(include=set(ScanFacts.model_fields))
    return Study(**told, study_id=row.id, created=_date(row.created), expires=_date(row.expires))


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
