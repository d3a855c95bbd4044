"""MONAI Label: the REST routes that 3D Slicer's plugin and OHIF speak, over the same studies, models and jobs.

A session is a study, by our id. What clients call their images is kept so that it cannot be read (`aliases`).
Training, scoring and batches are not offered.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.background import BackgroundTask
from starlette.responses import Response

from voxray import __version__
from voxray.serving.errors import ProblemError
from voxray.serving.http.aliases import Aliases
from voxray.serving.http.auth import needs_token, owner_of
from voxray.serving.http.document import EVERY_METHOD, PROBLEMS, files, form, refused
from voxray.serving.http.monai_answers import (
    STRATEGIES,
    AnswerFile,
    InferenceOptions,
    file_of,
    info_of,
    options_of,
    params_of,
    session_info,
)
from voxray.serving.http.monai_images import FINAL, Images
from voxray.serving.http.multipart import FormPart, is_multipart, parts_of
from voxray.serving.http.replies import file_reply, form_reply
from voxray.serving.intake.receive import UploadPart
from voxray.serving.jobs.service import Service
from voxray.serving.jobs.tokens import Tokens
from voxray.serving.messages import JobRequest, Study

_Output = Literal["image", "json", "all", "dicom_seg"]
_Removed = Literal["image", "label", "label_tag"]
_NOT_OFFERED = ("/train/{rest:path}", "/batch/{rest:path}", "/scoring/{rest:path}", "/model/{rest:path}")
_ALSO_NOT = ("/logs/{rest:path}", "/proxy/{rest:path}")


def router(service: Service) -> APIRouter:
    """All routes, which lie at the root, as the plugins want them."""
    api = APIRouter(tags=["MONAI Label"], responses=PROBLEMS)

    @cache
    def images() -> Images:
        return Images(service, Aliases(service.store.engine, service.places.root))

    _about(api, service, images)
    _signing_in(api, service)
    _sessions(api, service)
    _datastore(api, images)
    _labels(api, images)
    _inference(api, service, images)
    _not_offered(api)
    return api


def _about(api: APIRouter, service: Service, images: Callable[[], Images]) -> None:
    @api.get("/info")
    @api.get("/info/")
    async def info(request: Request) -> dict[str, Any]:
        await service.refresh()
        stats = stats_of(await images().all(owner_of(request)))
        return info_of(dict(service.models()), stats, version=__version__)

    @api.post("/activelearning/{strategy}")
    async def next_image(request: Request, strategy: str) -> dict[str, Any]:
        """The image that should be labelled next; nothing where all are."""
        if strategy not in STRATEGIES:
            raise ProblemError(
                404, "strategy.unknown", "There is no such strategy.", remedy=f"Try {', '.join(STRATEGIES)}."
            )
        left = [study for study, labels in (await images().all(owner_of(request))).items() if FINAL not in labels]
        if not left:
            return {}
        study = left[0] if strategy == "first" else random.choice(left)
        return {"id": study.study_id, "name": f"{study.study_id}.nii.gz", "ts": int(study.created.timestamp())}


def _signing_in(api: APIRouter, service: Service) -> None:
    """Open to all: the plugin asks whether it needs a token, and trades a password for one: that same token."""

    def is_wanted() -> bool:
        return needs_token(service.config, Tokens(service.store))

    @api.get("/auth")
    @api.get("/auth/")
    async def auth() -> dict[str, Any]:
        return {"enabled": await asyncio.to_thread(is_wanted), "client_id": "voxray", "realm": "voxray"}

    @api.post("/auth/token")
    @api.post("/auth/token/")
    async def token(
        password: Annotated[str, Form(max_length=256)] = "", username: Annotated[str, Form(max_length=256)] = ""
    ) -> dict[str, Any]:
        del username  # tokens have owners, whatever the user calls herself
        if not await asyncio.to_thread(is_wanted):
            return {"access_token": None, "token_type": None}
        if await asyncio.to_thread(Tokens(service.store).owner_of, password) is None:
            raise ProblemError(
                401, "token.wrong", "The password is no token that is known.", remedy="Give a token as the password."
            )
        return {"access_token": password, "token_type": "Bearer"}

    @api.get("/auth/token/valid")
    async def is_valid() -> dict[str, Any]:
        """The gate has seen to it."""
        return {"username": "", "email": "", "name": "", "roles": ["*"]}


def _sessions(api: APIRouter, service: Service) -> None:
    @api.put("/session", openapi_extra=form(files="binary"))
    @api.put("/session/", openapi_extra=form(files="binary"))
    async def new_session(request: Request) -> dict[str, Any]:
        async with aclosing(_form(request)) as parts:
            study = await service.new_study(owner_of(request), _files(parts, "files"))
        return {"session_id": study.study_id, "session_info": session_info(study)}

    @api.get("/session/{session}")
    async def session(request: Request, session: str, image: bool = False) -> Response:
        study = await _session(service, owner_of(request), session)
        if image:
            return _download(await service.volume(owner_of(request), study.study_id), study)
        return JSONResponse(session_info(study))

    @api.delete("/session/{session}")
    async def delete_session(request: Request, session: str) -> dict[str, Any]:
        study = await _session(service, owner_of(request), session)
        await service.delete_study(owner_of(request), study.study_id)
        return session_info(study)


def _datastore(api: APIRouter, images: Callable[[], Images]) -> None:
    @api.get("/datastore")
    @api.get("/datastore/")
    async def datastore(request: Request, output: Literal["all", "stats", "train"] = "stats") -> Response:
        known = await images().all(owner_of(request))
        if output == "all":
            return JSONResponse(await asyncio.to_thread(_listing, images(), known))
        if output == "train":
            drawn = [study.study_id for study, labels in known.items() if FINAL in labels]
            return JSONResponse([{"image": study, "label": study} for study in drawn])
        return JSONResponse(stats_of(known))

    @api.put("/datastore", openapi_extra=form(file="binary"))
    @api.put("/datastore/", openapi_extra=form(file="binary"))
    @api.put("/datastore/image", openapi_extra=form(file="binary"))
    async def put_image(request: Request, image: Annotated[str, Query(max_length=512)] = "") -> dict[str, Any]:
        async with aclosing(_form(request)) as parts:
            study = await images().service.new_study(owner_of(request), _files(parts, "file"))
        if image:
            await images().name(owner_of(request), image, study)
        return {"image": image or study.study_id}

    @api.get("/datastore/image", response_class=Response, responses=files("application/gzip"))
    @api.head("/datastore/image", response_class=Response, responses=files("application/gzip"))
    async def get_image(request: Request, image: str) -> Response:
        study = await images().find(owner_of(request), image)
        return _download(await images().service.volume(owner_of(request), study.study_id), study)

    @api.delete("/datastore")
    @api.delete("/datastore/")
    async def delete(request: Request, id: str, type: _Removed = "image", tag: str = FINAL) -> dict[str, Any]:
        study = await images().find(owner_of(request), id)
        if type == "image":
            await images().service.delete_study(owner_of(request), study.study_id)
        else:
            await images().forget(study, tag)
        return {}


def _labels(api: APIRouter, images: Callable[[], Images]) -> None:
    @api.put("/datastore/label", openapi_extra=form(label="binary", params="text"))
    async def put_label(request: Request, image: str, tag: str = "") -> dict[str, Any]:
        study, kept = await images().find(owner_of(request), image), False
        params: dict[str, Any] = {}
        tag = tag or FINAL
        async with aclosing(_form(request)) as parts:
            async for part in parts:
                if part.field == "params":
                    params = _object(await part.text())
                elif part.field == "label":
                    await images().save(study, tag, name=part.name, chunks=part.chunks, params={})
                    kept = True
        if not kept:
            raise ProblemError(422, "upload.empty", "The form has no part 'label'.", remedy="Send the label's file.")
        await images().describe(study, tag, params)
        return {"image": image, "label": image}

    @api.get("/datastore/label", response_class=Response, responses=files("application/octet-stream"))
    @api.head("/datastore/label", response_class=Response, responses=files("application/octet-stream"))
    async def get_label(request: Request, label: str, tag: str = "") -> Response:
        study = await images().find(owner_of(request), label)
        path = await images().label(study, tag or FINAL)
        suffix = path.name[path.name.index(".") :]
        return FileResponse(path, media_type="application/octet-stream", filename=f"{study.study_id}{suffix}")


def _inference(api: APIRouter, service: Service, images: Callable[[], Images]) -> None:
    @api.post(
        "/infer/{model}",
        response_class=Response,
        openapi_extra=form(params="text", file="binary"),
        responses=files("multipart/form-data", "application/json", "application/dicom", "application/octet-stream"),
    )
    async def infer(
        request: Request, model: str, image: str = "", session_id: str = "", output: _Output = "all"
    ) -> Response:
        """The answer to an image, a session's, or the file that comes with the request (which is kept no longer)."""
        who, served = owner_of(request), service.model(model)
        study: Study | None = None
        if session_id:
            study = await _session(service, who, session_id)
        elif image:
            study = await images().find_or_fetch(who, image)
        options, sent = await _asked(service, who, request, wants_file=study is None)
        after = None if sent is None else BackgroundTask(service.forget, who, sent)
        study = study or sent
        try:
            if study is None:
                raise ProblemError(
                    422, "infer.no_image", "The request names no image and holds none.",
                    remedy="Give ?image=, ?session_id= or a part named file.",
                )  # fmt: skip
            asked = JobRequest(study_id=study.study_id, model=model)
            job = await service.answer(who, asked, is_gone=request.is_disconnected)
            if output == "dicom_seg":
                path = await service.result(who, job.job_id, "seg")
                return FileResponse(
                    path, media_type="application/dicom", filename="segmentation.dcm", background=after
                )
            if output == "json":
                return JSONResponse(await params_of(service, who, job, served), background=after)
            file = await file_of(service, who, job, served, options)
            if output == "image" and not options.save_label:
                return FileResponse(file.path, media_type=file.content_type, filename=file.name, background=after)
            params = await params_of(service, who, job, served)
            if options.save_label and sent is None:
                await _save(images(), study, options, file, params)
            if output == "image":
                return FileResponse(file.path, media_type=file.content_type, filename=file.name, background=after)
            return form_reply(params, file.path, name=file.name, content_type=file.content_type, after=after)
        except BaseException:
            if sent is not None:
                await asyncio.shield(service.forget(who, sent))
            raise


def _not_offered(api: APIRouter) -> None:
    @api.get("/train", status_code=404)
    @api.get("/train/", status_code=404)
    async def train() -> None:
        """Nothing is trained here."""
        raise ProblemError(404, "train.none", "No training is under way.", remedy="Train with voxray train.")

    async def other(rest: str) -> None:
        """A part of MONAI Label that is not offered."""
        del rest
        raise ProblemError(
            501, "route.not_offered", "That part of MONAI Label is not offered.",
            remedy="Offered are info, session, datastore, infer and activelearning.",
        )  # fmt: skip

    for path in (*_NOT_OFFERED, *_ALSO_NOT):
        for method in EVERY_METHOD:
            api.add_api_route(path, other, methods=[method], status_code=501, responses=refused(501))


async def _asked(
    service: Service, owner: str, request: Request, *, wants_file: bool
) -> tuple[InferenceOptions, Study | None]:
    """What the form of an inference holds: options, and the study of its file where one is wanted."""
    if not is_multipart(request):
        form = await request.form(max_files=0, max_fields=20)
        return options_of(str(form.get("params", "{}"))), None
    options, study = InferenceOptions(), None
    try:
        async with aclosing(parts_of(request)) as parts:
            async for part in parts:
                if part.field == "params":
                    options = options_of(await part.text())
                elif part.field == "file" and wants_file and study is None:
                    study = await service.new_study(owner, _one(part))
                elif part.field == "label":
                    raise ProblemError(
                        422, "infer.label", "The models take no label or scribbles.", remedy="Leave the label out."
                    )
    except BaseException:
        if study is not None:
            await asyncio.shield(service.forget(owner, study))
        raise
    return options, study


async def _save(
    images: Images, study: Study, options: InferenceOptions, sent: AnswerFile, params: dict[str, Any]
) -> None:
    """Keeps an answer as a label of the image, which Slicer shows when the image is opened again."""

    async def chunks() -> AsyncIterator[bytes]:
        with sent.path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, 1 << 20):
                yield chunk

    await images.save(study, options.label_tag, name=sent.name, chunks=chunks(), params=params)


def stats_of(known: dict[Study, dict[str, Any]]) -> dict[str, Any]:
    """How many images there are, and how many have a final label."""
    tags = [tag for labels in known.values() for tag in labels]
    return {
        "total": len(known),
        "completed": sum(FINAL in labels for labels in known.values()),
        "label_tags": {tag: tags.count(tag) for tag in sorted(set(tags))},
        "train": [],
    }


def _listing(images: Images, known: dict[Study, dict[str, Any]]) -> dict[str, Any]:
    """``/datastore/?output=all``, under our own ids: what clients called their images is not kept."""
    return {
        "name": "voxray",
        "description": "",
        "objects": {
            study.study_id: {
                "image": {"ext": ".nii.gz", "info": {"ts": int(study.created.timestamp()), "name": study.study_id}},
                "labels": {
                    tag: {"ext": path.name[path.name.index(".") :], "info": {"params": images.params(path)}}
                    for tag, path in labels.items()
                },
            }
            for study, labels in known.items()
        },
    }


async def _session(service: Service, owner: str, session: str) -> Study:
    try:
        return await service.study(owner, session)
    except ProblemError as problem:
        raise ProblemError(
            problem.status,
            "session.unknown",
            "There is no such session.",
            remedy="It may have expired; start another.",
        ) from None


def _form(request: Request) -> Any:
    if not is_multipart(request):
        raise ProblemError(415, "form.wanted", "The body is no form.", remedy="Send multipart/form-data.")
    return parts_of(request)


async def _files(parts: AsyncIterator[FormPart], field: str) -> AsyncIterator[UploadPart]:
    async for part in parts:
        if part.field == field:
            yield UploadPart(part.name, part.chunks)


async def _one(part: FormPart) -> AsyncIterator[UploadPart]:
    yield UploadPart(part.name, part.chunks)


def _download(path: Path, study: Study) -> StreamingResponse:
    return file_reply(path, media_type="application/gzip", name=f"{study.study_id}.nii.gz")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _object(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text or "{}", parse_constant=_no_number)
        json.dumps(told, ensure_ascii=False).encode()  # halves of characters can be read, and not sent again
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ProblemError(400, "label.params", "The parameters are no object of JSON.", remedy="Send params as one.")
    return told
