"""Refusals as HTTP replies: problem details (RFC 9457), whatever raised them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from voxray.core.errors import VoxrayError
from voxray.serving.errors import MEDIA_TYPE, TITLES, ProblemError, problem_of


def refusal_body(problem: ProblemError, request_id: str | None, **more: str) -> tuple[bytes, dict[str, str]]:
    """A problem's body and headers."""
    told = problem.details(request_id).model_dump(mode="json")
    if not told["series"]:
        del told["series"]
    body = json.dumps({**told, **more}).encode()
    return body, {"Content-Type": MEDIA_TYPE, **problem.headers}


def refusal_app(problem: ProblemError) -> ASGIApp:
    """The answer to a request that `AuthMiddleware` refuses."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # Where clients of the Open Inference Protocol look.
        more = {"error": f"{problem.detail} {problem.remedy}"} if scope["path"].startswith("/v2") else {}
        body, headers = refusal_body(problem, scope["state"]["request_id"], **more)
        await Response(body, problem.status, headers)(scope, receive, send)

    return answer


def add_exception_handlers(app: FastAPI) -> None:
    """Lets the application answer what its routes raise with problem details."""
    app.add_exception_handler(ProblemError, _refuse_problem)
    app.add_exception_handler(VoxrayError, _refuse_error)
    app.add_exception_handler(RequestValidationError, _refuse_request)
    app.add_exception_handler(HTTPException, _refuse_http)


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
    return _reply(request, invalid_request(error.errors()))


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's, of a body that is not even text
        return _reply(request, _no_json())
    remedy = "See /openapi.json for what there is." if error.status_code in (404, 405) else "Mend the request."
    code = {404: "route.unknown", 405: "route.method"}.get(error.status_code, "request.refused")
    title = TITLES.get(error.status_code, "Refused")
    headers = dict(error.headers or {})
    return _reply(request, ProblemError(error.status_code, code, f"{title}.", remedy=remedy, headers=headers))


def invalid_request(errors: Sequence[Any]) -> ProblemError:
    """What pydantic found wrong, without the values that came."""
    if errors[0]["type"] == "json_invalid":
        return _no_json()
    fields = dict.fromkeys(".".join(map(str, one["loc"])) for one in errors)
    named, why = ", ".join(list(fields)[:5]) or "body", errors[0]["msg"]
    return ProblemError(422, "request.invalid", f"{named}: {why}.", remedy="See /openapi.json for what is allowed.")


def _no_json() -> ProblemError:
    text = "The body is not JSON, or nested too deeply."
    return ProblemError(400, "request.malformed", text, remedy="Send a JSON object in UTF-8; see /openapi.json.")
