"""The native API over HTTP: ``/v1``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from voxray.results.formats import FORMATS, FormatName
from voxray.serving.errors import ProblemError
from voxray.serving.http.auth import COOKIE, owner_of
from voxray.serving.http.document import LINKED_JOB, LINKED_STUDY, PROBLEMS, RESULT, UPLOAD, files
from voxray.serving.http.errors import invalid_request
from voxray.serving.http.multipart import FormPart, is_multipart, parts_of, whole_body
from voxray.serving.http.replies import file_reply
from voxray.serving.intake.receive import UploadPart
from voxray.serving.job_states import ENDED
from voxray.serving.jobs.service import Service
from voxray.serving.jobs.tokens import Tokens
from voxray.serving.messages import (
    Job,
    JobRequest,
    Jobs,
    ModelInfo,
    Models,
    RequestedFormat,
    SignIn,
    Study,
    StudyRequest,
)

WAIT_MOST_S = 300.0

_Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
_Wait = Annotated[float, Query(ge=0, le=WAIT_MOST_S, description="Seconds to wait for the job's end.")]
_Name = Annotated[str, Query(max_length=255, description="Of a raw body: its file name.")]
_Series = Annotated[str | None, Query(pattern=r"^[0-9a-f.]{1,64}$", description="Of several: the one.")]
_Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


def router(service: Service) -> APIRouter:
    """The routes below ``/v1``."""
    api = APIRouter(prefix="/v1", responses=PROBLEMS)
    _add_session(api, service)
    _add_models(api, service)
    _add_studies(api, service)
    _add_jobs(api, service)
    _add_results(api, service)
    _add_answers(api, service)
    return api


def _add_session(api: APIRouter, service: Service) -> None:
    """Browsers sign in with a token, and have a cookie that no script reads and no other site's page sends."""

    @api.post("/session", status_code=204)
    async def sign_in(request: Request, wanted: SignIn) -> Response:
        """A session cookie for a token."""
        tokens = Tokens(service.store)
        if tokens.any() and await asyncio.to_thread(tokens.owner_of, wanted.token) is None:
            raise ProblemError(
                401, "token.wrong", "The token is not known.", remedy="Ask who runs the service for one."
            )
        response = Response(status_code=204)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, wanted.token, httponly=True, samesite="strict", secure=secure)
        return response

    @api.delete("/session", status_code=204)
    async def sign_out() -> Response:
        """Takes the cookie back."""
        response = Response(status_code=204)
        response.delete_cookie(COOKIE)
        return response


def _add_models(api: APIRouter, service: Service) -> None:
    """What is served."""

    @api.get("/models")
    async def models() -> Models:
        """What is served."""
        await service.refresh()
        return Models(models=tuple(service.models().values()))

    @api.get("/models/{name}")
    async def model(name: str) -> ModelInfo:
        """One model."""
        await service.refresh()
        return service.model(name)


def _add_studies(api: APIRouter, service: Service) -> None:
    """Scans in."""

    @api.post("/studies", status_code=201, openapi_extra=UPLOAD, responses=LINKED_STUDY)
    async def new_study(request: Request, response: Response, name: _Name = "scan", series: _Series = None) -> Study:
        """A study from an upload (NIfTI, MHD with raw, NRRD, a zip, DICOM files), or fetched with WADO-RS."""
        study = await _study_in(request, service, owner_of(request), name, series)
        response.headers["Location"] = f"/v1/studies/{study.study_id}"
        return study

    @api.get("/studies/{study_id}")
    async def study(request: Request, study_id: _Id) -> Study:
        """What is known of a study."""
        return await service.study(owner_of(request), study_id)

    @api.get("/studies/{study_id}/volume", response_class=StreamingResponse, responses=files("application/gzip"))
    async def volume(request: Request, study_id: _Id) -> StreamingResponse:
        """The scan as NIfTI in HU."""
        path = await service.volume(owner_of(request), study_id)
        return file_reply(path, media_type="application/gzip", name=f"{study_id}.nii.gz")

    @api.delete("/studies/{study_id}", status_code=204)
    async def delete_study(request: Request, study_id: _Id) -> None:
        """Removes a study and its jobs."""
        await service.delete_study(owner_of(request), study_id)


def _add_jobs(api: APIRouter, service: Service) -> None:
    """Work asked for."""

    @api.post("/jobs", status_code=202, responses=LINKED_JOB)
    async def new_job(
        request: Request, response: Response, wanted: JobRequest, wait: _Wait = 0, idempotency_key: _Key = None
    ) -> Job:
        """Asks a model to answer a study; with ``wait`` its result at once, if it is done in time."""
        job = await service.new_job(owner_of(request), wanted, key=idempotency_key, wait_s=wait)
        response.headers["Location"] = f"/v1/jobs/{job.job_id}"
        if wait > 0:
            response.status_code = 200 if job.state in ENDED else 202
        return job

    @api.get("/jobs")
    async def jobs(request: Request) -> Jobs:
        """The client's jobs, the newest first."""
        return Jobs(jobs=await service.jobs(owner_of(request)))

    @api.get("/jobs/{job_id}")
    async def job(request: Request, job_id: _Id, wait: _Wait = 0) -> Job:
        """How far a job is."""
        return await service.job(owner_of(request), job_id, wait_s=wait)


def _add_results(api: APIRouter, service: Service) -> None:
    """Work followed, ended and fetched."""

    @api.post("/jobs/{job_id}/cancel")
    async def cancel(request: Request, job_id: _Id) -> Job:
        """Ends a job; one that has ended stays as it is."""
        return await service.cancel(owner_of(request), job_id)

    @api.delete("/jobs/{job_id}", status_code=204)
    async def delete_job(request: Request, job_id: _Id) -> None:
        """Ends and removes a job."""
        await service.delete_job(owner_of(request), job_id)

    @api.get("/jobs/{job_id}/results/{form}", response_class=StreamingResponse, responses=RESULT)
    async def result(request: Request, job_id: _Id, form: RequestedFormat) -> StreamingResponse:
        """A job's result in a form."""
        return _download(await service.result(owner_of(request), job_id, form), form, job_id)


def _add_answers(api: APIRouter, service: Service) -> None:
    """A scan in and its answer out, in one request."""

    @api.post("/answers", openapi_extra=UPLOAD, response_class=StreamingResponse, responses=RESULT)
    async def new_answer(
        request: Request,
        model: Annotated[str, Query(max_length=64)],
        form: RequestedFormat = "json",
        name: _Name = "scan",
        series: _Series = None,
    ) -> StreamingResponse:
        """A model's answer to the scan that comes with the request, in a form; neither is kept any longer."""
        who = owner_of(request)
        service.model(model)  # before anything is read
        study = await _study_in(request, service, who, name, series)
        try:
            wanted = JobRequest(study_id=study.study_id, model=model, outputs=(form,))
            job = await service.answer(who, wanted, is_gone=request.is_disconnected)
            return _download(await service.result(who, job.job_id, form), form, job.job_id)
        finally:
            await asyncio.shield(service.forget(who, study))


async def _study_in(request: Request, service: Service, owner: str, name: str, series: str | None) -> Study:
    """The study that a request's body is, or names."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        wanted = await _json(request, StudyRequest)
        return await service.fetch_study(owner, wanted.dicomweb)
    parts = parts_of(request) if is_multipart(request) else whole_body(request, name)
    return await service.new_study(owner, _files_of(parts), series_uid=series)


async def _files_of(parts: AsyncIterator[FormPart]) -> AsyncIterator[UploadPart]:
    """The parts of a form that are files."""
    async for part in parts:
        if part.name or part.field == "file":
            yield UploadPart(part.name, part.chunks)


def _download(path: FilePath, form: FormatName, job_id: str) -> StreamingResponse:
    """A result's file, named after its job."""
    suffix = path.name[path.name.index(".") :]
    return file_reply(path, media_type=FORMATS[form].media_type, name=f"{job_id}{suffix}")


async def _json(request: Request, kind: Any) -> Any:
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid_request(error.errors()) from None
