"""What `/openapi.json` says of the routes: their names, bodies and replies; every route that is served is in it."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from voxray.results.formats import FORMATS, SERVED
from voxray.serving.errors import TITLES, ProblemDetails
from voxray.serving.messages import DicomwebSource, Job

Replies = dict[int | str, dict[str, Any]]

PATH = "/openapi.json"
BINARY = {"schema": {"type": "string", "format": "binary"}}
_OWN = re.compile(r"/(v1/|livez$|readyz$|metrics$)")
EVERY_METHOD = ("GET", "POST", "PUT", "DELETE")

PROBLEMS: Replies = {
    status: {"model": ProblemDetails, "description": title, "content": {"application/problem+json": {}}}
    for status, title in TITLES.items()
    if status in (400, 401, 403, 404, 409, 413, 415, 422, 429, 502, 503, 504)
}


def files(*media_types: str, description: str = "The file") -> Replies:
    """A reply that is a file, of one of these kinds."""
    return {200: {"description": description, "content": dict.fromkeys(media_types, BINARY)}}


def refused(status: int) -> Replies:
    """The reply of a route that is there to say that something is not."""
    return {
        status: {"model": ProblemDetails, "description": TITLES[status], "content": {"application/problem+json": {}}}
    }


def form(**fields: str) -> dict[str, Any]:
    """A body that is a form of these fields, each ``binary`` or ``text``."""
    kinds = {"binary": {"type": "string", "format": "binary"}, "text": {"type": "string"}}
    schema = {"type": "object", "properties": {name: kinds[kind] for name, kind in fields.items()}}
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}}}


def _links(field: str, *operations: str) -> dict[str, Any]:
    """OpenAPI's links from an answer to the operations on what it names."""
    value = f"$response.body#/{field}"
    return {name: {"operationId": name, "parameters": {field: value}} for name in operations}


LINKED_STUDY: Replies = {
    201: {
        "description": "Read and found sound",
        "links": {
            **_links("study_id", "study", "volume", "delete_study"),
            "new_job": {"operationId": "new_job", "requestBody": {"study_id": "$response.body#/study_id"}},
        },
    }
}
LINKED_JOB: Replies = {
    200: {"model": Job, "description": "Ended in time"},
    202: {"description": "Accepted", "links": _links("job_id", "job", "cancel", "result", "delete_job")},
}
RESULT: Replies = files(
    *dict.fromkeys(FORMATS[name].media_type for name in SERVED),
    description="The result in the form that was asked for",
)
FETCH: dict[str, Any] = {
    "type": "object",
    "properties": {"dicomweb": DicomwebSource.model_json_schema()},
    "required": ["dicomweb"],
    "additionalProperties": False,
}
UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["file"],
                }
            },
            "application/octet-stream": BINARY,
            "application/json": {"schema": FETCH},
        },
    }
}


def operation_of(route: APIRoute) -> str:
    """A route's name in the document: that of its function in our own API, else its method and path."""
    if _OWN.match(route.path):
        return route.name
    method = "_".join(sorted(route.methods or ()))
    return f"{method.lower()}{re.sub(r'[^A-Za-z0-9]', '_', route.path)}"


def describe(app: FastAPI) -> None:
    """Lets `/openapi.json` hold every route, itself too."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            made["paths"][PATH] = {
                "get": {
                    "operationId": "openapi",
                    "summary": "This document",
                    "responses": {"200": {"description": "OpenAPI 3.1", "content": {"application/json": {}}}},
                }
            }
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
