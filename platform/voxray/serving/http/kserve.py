"""KServe: the Open Inference Protocol (v2) over REST, with Triton's binary data. ``/v2``.

A request is one scan and one answer: what it uploads is gone when it is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from voxray import __version__
from voxray.core.answer_json import FindingsFile
from voxray.core.errors import ConfigError, VoxrayError
from voxray.readers import read_label_map
from voxray.serving.errors import ProblemError, problem_of
from voxray.serving.http.auth import owner_of
from voxray.serving.http.document import BINARY, EVERY_METHOD, Replies
from voxray.serving.http.kserve_tensors import (
    OutputTensor,
    RequestedOutput,
    datatype_of,
    read_request,
    write_response,
)
from voxray.serving.http.kserve_volume import NAME, parts_of, volume_of
from voxray.serving.http.spool import spooled
from voxray.serving.jobs.service import Service
from voxray.serving.messages import Job, JobRequest, ModelInfo
from voxray.serving.workers.refused_forms import refusing

VERSION = "1"
_JSON_LENGTH = "Inference-Header-Content-Length"

_ERRORS: Replies = {
    status: {
        "description": "Refused",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
                    "required": ["error"],
                }
            }
        },
    }
    for status in (400, 401, 404, 413, 422, 429, 503)
}
_ANSWER: Replies = {
    200: {
        "description": "JSON, with binary tensors behind it where they were asked for",
        "content": {"application/json": {}, "application/octet-stream": BINARY},
    }
}
_ASKED: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {}, "application/octet-stream": BINARY}}
}

P = ParamSpec("P")
T = TypeVar("T", bound=Response)


def router(service: Service) -> APIRouter:
    """``/v2``: health, what is served, and answers."""
    api = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=_ERRORS)

    @api.get("")
    @api.get("/")
    async def server() -> dict[str, Any]:
        """What serves."""
        return {"name": "voxray", "version": __version__, "extensions": ["binary_tensor_data"]}

    @api.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the door is there."""
        return {"live": True}

    @api.get("/health/ready")
    async def ready() -> Response:
        """Whether every model answers."""
        is_ready = await service.refresh()
        return JSONResponse({"ready": is_ready, "live": True}, 200 if is_ready else 503)

    @api.get("/models/{name}")
    @api.get("/models/{name}/versions/{version}")
    @_said
    async def metadata(name: str, version: str = VERSION) -> Response:
        """What a model takes and answers."""
        return JSONResponse(metadata_of(_model(service, name, version)))

    @api.get("/models/{name}/ready")
    @api.get("/models/{name}/versions/{version}/ready")
    @_said
    async def model_ready(name: str, version: str = VERSION) -> Response:
        """Whether a model answers."""
        await service.refresh()
        is_ready = _model(service, name, version).ready
        return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)

    @api.post("/models/{name}/infer", responses=_ANSWER, openapi_extra=_ASKED)
    @api.post("/models/{name}/versions/{version}/infer", responses=_ANSWER, openapi_extra=_ASKED)
    @_said
    async def infer(request: Request, name: str, version: str = VERSION) -> Response:
        """A model's answer to the scan in the request."""
        return await _infer(service, owner_of(request), _model(service, name, version), request)

    @_said
    async def other(rest: str) -> Response:
        """What the protocol has besides is not offered."""
        del rest
        raise ProblemError(
            404, "route.unknown", "That part of the protocol is not offered.",
            remedy="Offered are health, metadata, ready and infer.",
        )  # fmt: skip

    for method in EVERY_METHOD:
        api.add_api_route("/{rest:path}", other, methods=[method], status_code=404)
    return api


def metadata_of(model: ModelInfo) -> dict[str, Any]:
    """What the protocol tells of a model; `parameters` is ours, and says what the numbers mean."""
    told: dict[str, Any] = {"task": model.task, "classes": list(model.classes), "frame": "LPS", "unit": "mm"}
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "voxray",
        "inputs": [{"name": NAME, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": shape}
            for name, (datatype, shape) in _outputs(model).items()
        ],
        "parameters": told | ({"labels": dict(model.labels)} if model.task == "segmentation" else {}),
    }


def _outputs(model: ModelInfo) -> dict[str, tuple[str, list[int]]]:
    """Name -> datatype and shape."""
    if model.task == "detection":
        return {"boxes": ("FP32", [-1, 6]), "scores": ("FP32", [-1]), "labels": ("INT64", [-1])}
    return {"mask": ("BYTES", [1]), "mask_voxels": (datatype_of(_mask_type(model)), [-1, -1, -1])}


def _mask_type(model: ModelInfo) -> np.dtype[Any]:
    return np.dtype(np.uint8 if max(model.labels.values(), default=0) < 256 else np.uint16)


_BY_ITSELF = ("boxes", "scores", "labels", "mask")
"""What is answered where no outputs are named: the voxels of a mask are its file again."""


async def _infer(service: Service, owner: str, model: ModelInfo, request: Request) -> Response:
    root = service.places.root
    limits = service.config.limits
    body = await spooled(request, root, limit=limits.upload_bytes, idle_s=limits.idle_s)
    asked = await asyncio.to_thread(read_request, body, _json_length(request))
    volume = volume_of(asked)
    wanted = _wanted(asked.outputs, model, binary=asked.binary)
    study = await service.new_study(owner, parts_of(volume, asked.parameters, root))
    asked = replace(asked, inputs=())
    del body, volume  # and with the last view of it the body's place on the disk
    try:
        job = await service.answer(
            owner, JobRequest(study_id=study.study_id, model=model.name), is_gone=request.is_disconnected
        )
        made = await _made(service, owner, job, model, [one.name for one in wanted])
    finally:
        await asyncio.shield(service.forget(owner, study))
    named = [(output, one.binary) for output, one in zip(made, wanted, strict=True)]
    pieces, length = await asyncio.to_thread(
        write_response, named, model=model.name, version=VERSION, id=asked.id, parameters=_warned(job)
    )
    headers = {} if length is None else {_JSON_LENGTH: str(length)}
    kind = "application/json" if length is None else "application/octet-stream"
    return Response(b"".join(pieces), headers=headers, media_type=kind)


def _warned(job: Job) -> dict[str, str] | None:
    """What is worth knowing of the scan: the protocol's parameters are text and numbers, so one line of text."""
    assert job.result is not None
    return {"warnings": "; ".join(job.result.warnings)} if job.result.warnings else None


def _wanted(asked: tuple[RequestedOutput, ...], model: ModelInfo, *, binary: bool) -> tuple[RequestedOutput, ...]:
    known = _outputs(model)
    for one in asked:
        if one.name not in known:
            raise ConfigError(f"outputs: {one.name!r:.80} is none of the model's, which are {', '.join(known)}.")
    return asked or tuple(RequestedOutput(name, binary) for name in known if name in _BY_ITSELF)


async def _made(service: Service, owner: str, job: Job, model: ModelInfo, names: list[str]) -> list[OutputTensor]:
    """The outputs of a job that is done."""
    if model.task == "detection":
        assert isinstance(job.result, FindingsFile)
        found = detections(job.result, model.classes)
        return [OutputTensor(name, found[name]) for name in names]
    path = await service.result(owner, job.job_id, "nifti")
    made: list[OutputTensor] = []
    with refusing("outputs", service.places.source(job.study_id)):
        for name in names:
            if name == "mask":
                made.append(OutputTensor(name, await asyncio.to_thread(path.read_bytes)))
            else:
                labels = await asyncio.to_thread(read_label_map, path)
                made.append(OutputTensor(name, labels.voxels.astype(_mask_type(model), copy=False)))
    return made


def detections(file: FindingsFile, classes: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Boxes ``x1 y1 z1 x2 y2 z2`` in LPS mm, scores, and the places of their classes in `classes`."""
    found = file.findings
    return {
        "boxes": np.asarray([one.box_mm for one in found], np.float32).reshape(-1, 6),
        "scores": np.asarray([one.score for one in found], np.float32),
        "labels": np.asarray([classes.index(one.class_name) for one in found], np.int64),
    }


def _model(service: Service, name: str, version: str) -> ModelInfo:
    if version != VERSION:
        raise ProblemError(404, "model.unknown", "There is no such version.", remedy=f"The version is {VERSION}.")
    return service.model(name)


def _json_length(request: Request) -> int | None:
    told = request.headers.get(_JSON_LENGTH)
    if told is None:
        return None
    if not (told.isascii() and told.isdigit() and len(told) < 16):
        raise ConfigError(f"{_JSON_LENGTH}: must be a number of bytes.")
    return int(told)


def _said(handle: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[Response]]:
    """The handler, its refusals in the protocol's form; what a client wrote wrongly is a 400 here."""

    @wraps(handle)
    async def handled(*args: P.args, **kwargs: P.kwargs) -> Response:
        try:
            return await handle(*args, **kwargs)
        except ConfigError as error:
            return JSONResponse({"error": str(error), "code": "request.refused"}, 400)
        except (ProblemError, VoxrayError) as error:
            problem = error if isinstance(error, ProblemError) else problem_of(error)
            told = {"error": f"{problem.detail} {problem.remedy}", "code": problem.code}
            return JSONResponse(told, problem.status, problem.headers)

    return handled
