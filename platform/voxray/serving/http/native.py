"""The door: the native API over HTTP, and the other doors beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from voxray import __version__
from voxray.core.errors import VoxrayError
from voxray.results.formats import FORMATS, FormatName
from voxray.serving.errors import TITLES, ProblemError, problem_of
from voxray.serving.http.auth import COOKIE, AuthMiddleware, refusal_body
from voxray.serving.http.document import (
    LINKED_JOB,
    LINKED_STUDY,
    PROBLEMS,
    RESULT,
    UPLOAD,
    describe,
    files,
    operation_of,
)
from voxray.serving.http.file_reply import file_reply
from voxray.serving.http.multipart import FormPart, is_multipart, parts_of, whole_body
from voxray.serving.intake.receive import UploadPart
from voxray.serving.jobs.metrics import Metrics
from voxray.serving.jobs.service import Service
from voxray.serving.jobs.tokens import Tokens
from voxray.serving.jobs.waiting import answer, forget
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
_FLUSH_S = 1.0

log = logging.getLogger("voxray.serving")

GetService = Callable[[], Service]
GetOwner = Callable[[Request], str]
Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
Wait = Annotated[float, Query(ge=0, le=WAIT_MOST_S, description="Seconds to wait for the job's end.")]
Name = Annotated[str, Query(max_length=255, description="Of a raw body: its file name.")]
Series = Annotated[str | None, Query(pattern=r"^[0-9a-f.]{1,64}$", description="Of several: the one.")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


def owner_of(request: Request) -> str:
    """Whose request it is, as `AuthMiddleware` found."""
    return str(request.state.owner)


def models_router(service: GetService, _owner: GetOwner) -> APIRouter:
    """What is served."""
    api = APIRouter(prefix="/v1", responses=PROBLEMS)

    @api.get("/models")
    async def models() -> Models:
        """What is served."""
        await service().refresh()
        return Models(models=tuple(service().models().values()))

    @api.get("/models/{name}")
    async def model(name: str) -> ModelInfo:
        """One model."""
        await service().refresh()
        return service().model(name)

    return api


def studies_router(service: GetService, owner: GetOwner) -> APIRouter:
    """Scans in."""
    api = APIRouter(prefix="/v1", responses=PROBLEMS)

    @api.post("/studies", status_code=201, openapi_extra=UPLOAD, responses=LINKED_STUDY)
    async def new_study(request: Request, response: Response, name: Name = "scan", series: Series = None) -> Study:
        """A study from an upload (NIfTI, MHD with raw, NRRD, a zip, DICOM files), or fetched with WADO-RS."""
        study = await study_in(request, service(), owner(request), name, series)
        response.headers["Location"] = f"/v1/studies/{study.study_id}"
        return study

    @api.get("/studies/{study_id}")
    async def study(request: Request, study_id: Id) -> Study:
        """What is known of a study."""
        return await service().study(owner(request), study_id)

    @api.get("/studies/{study_id}/volume", response_class=StreamingResponse, responses=files("application/gzip"))
    async def volume(request: Request, study_id: Id) -> StreamingResponse:
        """The scan as NIfTI in HU."""
        path = await service().volume(owner(request), study_id)
        return file_reply(path, media_type="application/gzip", name=f"{study_id}.nii.gz")

    @api.delete("/studies/{study_id}", status_code=204)
    async def delete_study(request: Request, study_id: Id) -> None:
        """Removes a study and its jobs."""
        await service().delete_study(owner(request), study_id)

    return api


def jobs_router(service: GetService, owner: GetOwner) -> APIRouter:
    """Work asked for."""
    api = APIRouter(prefix="/v1", responses=PROBLEMS)

    @api.post("/jobs", status_code=202, responses=LINKED_JOB)
    async def new_job(
        request: Request, response: Response, wanted: JobRequest, wait: Wait = 0, idempotency_key: Key = None
    ) -> Job:
        """Asks a model to answer a study; with ``wait`` its result at once, if it is done in time."""
        job = await service().new_job(owner(request), wanted, key=idempotency_key, wait_s=wait)
        response.headers["Location"] = f"/v1/jobs/{job.job_id}"
        if wait > 0:
            response.status_code = 200 if job.state not in ("queued", "running") else 202
        return job

    @api.get("/jobs")
    async def jobs(request: Request) -> Jobs:
        """The client's jobs, the newest first."""
        return Jobs(jobs=await service().jobs(owner(request)))

    @api.get("/jobs/{job_id}")
    async def job(request: Request, job_id: Id, wait: Wait = 0) -> Job:
        """How far a job is."""
        return await service().job(owner(request), job_id, wait_s=wait)

    return api


def results_router(service: GetService, owner: GetOwner) -> APIRouter:
    """Work followed, ended and fetched."""
    api = APIRouter(prefix="/v1", responses=PROBLEMS)

    @api.post("/jobs/{job_id}/cancel")
    async def cancel(request: Request, job_id: Id) -> Job:
        """Ends a job; one that has ended stays as it is."""
        return await service().cancel(owner(request), job_id)

    @api.delete("/jobs/{job_id}", status_code=204)
    async def delete_job(request: Request, job_id: Id) -> None:
        """Ends and removes a job."""
        await service().delete_job(owner(request), job_id)

    @api.get("/jobs/{job_id}/results/{form}", response_class=StreamingResponse, responses=RESULT)
    async def result(request: Request, job_id: Id, form: RequestedFormat) -> StreamingResponse:
        """A job's result in a form."""
        return _download(await service().result(owner(request), job_id, form), form, job_id)

    return api


def answers_router(service: GetService, owner: GetOwner) -> APIRouter:
    """A scan in and its answer out, in one request."""
    api = APIRouter(prefix="/v1", responses=PROBLEMS)

    @api.post("/answers", openapi_extra=UPLOAD, response_class=StreamingResponse, responses=RESULT)
    async def new_answer(
        request: Request,
        model: Annotated[str, Query(max_length=64)],
        form: RequestedFormat = "json",
        name: Name = "scan",
        series: Series = None,
    ) -> StreamingResponse:
        """A model's answer to the scan that comes with the request, in a form; neither is kept any longer."""
        who = owner(request)
        service().model(model)  # before anything is read
        study = await study_in(request, service(), who, name, series)
        try:
            wanted = JobRequest(study_id=study.study_id, model=model, outputs=(form,))
            job = await answer(service(), who, wanted, request)
            return _download(await service().result(who, job.job_id, form), form, job.job_id)
        finally:
            await asyncio.shield(forget(service(), who, study))

    return api


NATIVE: tuple[Callable[[GetService, GetOwner], APIRouter], ...] = (
    models_router,
    studies_router,
    jobs_router,
    results_router,
    answers_router,
)
"""``/v1``."""


def operating(service: GetService, metrics: Metrics) -> APIRouter:
    """What orchestrators and monitors ask."""
    api = APIRouter()

    @api.get("/livez")
    async def livez() -> dict[str, bool]:
        """Whether the door is there."""
        return {"live": True}

    @api.get("/readyz", responses={503: {"description": "Some model does not answer yet"}})
    async def readyz(response: Response) -> dict[str, Any]:
        """Whether every model answers."""
        ready = await service().refresh()
        response.status_code = 200 if ready else 503
        return {"ready": ready, "models": {name: info.ready for name, info in service().models().items()}}

    @api.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """For Prometheus."""
        await service().refresh()
        ready = {name: info.ready for name, info in service().models().items()}
        text = await asyncio.to_thread(metrics.text, ready)
        return PlainTextResponse(text)

    return api


def session(service: GetService) -> APIRouter:
    """Browsers sign in with a token, and have a cookie that no script reads and no other site's page sends."""
    api = APIRouter(prefix="/v1", responses=PROBLEMS)

    @api.post("/session", status_code=204)
    async def sign_in(request: Request, wanted: SignIn) -> Response:
        """A session cookie for a token."""
        tokens = Tokens(service().store)
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

    return api


def make_app(
    service: Service,
    *,
    routers: Sequence[Callable[[GetService, GetOwner], APIRouter]] = (),
) -> FastAPI:
    """The application: the native API, the other protocols, and `AuthMiddleware` before them."""
    metrics = Metrics(service.store)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        flushing = asyncio.create_task(flush_metrics(metrics))
        yield
        flushing.cancel()
        await asyncio.to_thread(metrics.flush)

    app = FastAPI(
        title="voxray",
        generate_unique_id_function=operation_of,
        version=__version__,
        description="CT scans in, findings out.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(operating(lambda: service, metrics))
    app.include_router(session(lambda: service))
    for router in (*NATIVE, *routers):
        app.include_router(router(lambda: service, owner_of))
    describe(app)
    app.add_exception_handler(ProblemError, _refuse_problem)
    app.add_exception_handler(VoxrayError, _refuse_error)
    app.add_exception_handler(RequestValidationError, _refuse_request)
    app.add_exception_handler(HTTPException, _refuse_http)
    if service.config.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(service.config.cors), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(
        AuthMiddleware, config=service.config, tokens=Tokens(service.store), metrics=metrics, refuse=refusal_app
    )
    return app


async def flush_metrics(metrics: Metrics) -> None:
    """Keeps the job store's counts fresh."""
    while True:
        await asyncio.sleep(_FLUSH_S)
        try:
            await asyncio.to_thread(metrics.flush)
        except Exception:
            log.exception("counts could not be written")


def refusal_app(problem: ProblemError) -> ASGIApp:
    """The answer to a request that `AuthMiddleware` refuses."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # Where clients of the Open Inference Protocol look.
        more = {"error": f"{problem.detail} {problem.remedy}"} if scope["path"].startswith("/v2") else {}
        body, headers = refusal_body(problem, scope["state"]["request_id"], **more)
        await Response(body, problem.status, headers)(scope, receive, send)

    return answer


async def study_in(request: Request, service: Service, owner: str, name: str, series: str | None) -> Study:
    """The study that a request's body is, or names."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        wanted = await _json(request, StudyRequest)
        return await service.fetch_study(owner, wanted.dicomweb)
    parts = parts_of(request) if is_multipart(request) else whole_body(request, name)
    return await service.new_study(owner, files_of(parts), series_uid=series)


async def files_of(parts: AsyncIterator[FormPart]) -> AsyncIterator[UploadPart]:
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
        raise _unfit(error.errors()) from None


def _reply(request: Request, problem: ProblemError) -> Response:
    body, headers = refusal_body(problem, getattr(request.state, "request_id", None))
    return Response(body, problem.status, headers)


async def _refuse_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return _reply(request, error)


async def _refuse_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, VoxrayError)
    return _reply(request, problem_of(error))


async def _refuse_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _reply(request, _unfit(error.errors()))


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's, of a body that is not even text
        return _reply(request, _no_json())
    remedy = "See /openapi.json for what there is." if error.status_code in (404, 405) else "Mend the request."
    code = {404: "route.unknown", 405: "route.method"}.get(error.status_code, "request.refused")
    title = TITLES.get(error.status_code, "Refused")
    headers = dict(error.headers or {})
    return _reply(request, ProblemError(error.status_code, code, f"{title}.", remedy=remedy, headers=headers))


def _unfit(errors: Sequence[Any]) -> ProblemError:
    """What pydantic found wrong, without the values that came."""
    if errors[0]["type"] == "json_invalid":
        return _no_json()
    fields = dict.fromkeys(".".join(map(str, one["loc"])) for one in errors)
    named, why = ", ".join(list(fields)[:5]) or "body", errors[0]["msg"]
    return ProblemError(422, "request.invalid", f"{named}: {why}.", remedy="See /openapi.json for what is allowed.")


def _no_json() -> ProblemError:
    text = "The body is not JSON, or nested too deeply."
    return ProblemError(400, "request.malformed", text, remedy="Send a JSON object in UTF-8; see /openapi.json.")
