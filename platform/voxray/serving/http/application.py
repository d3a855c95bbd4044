"""The application behind HTTP: every protocol over one service, health, metrics, and `AuthMiddleware` before all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import PlainTextResponse
from starlette.middleware.cors import CORSMiddleware

from voxray import __version__
from voxray.serving.http import kserve, monai_label, native, page
from voxray.serving.http.auth import AuthMiddleware
from voxray.serving.http.document import describe, operation_of
from voxray.serving.http.errors import add_exception_handlers
from voxray.serving.jobs.metrics import Metrics
from voxray.serving.jobs.service import Service
from voxray.serving.jobs.tokens import Tokens

_FLUSH_S = 1.0

log = logging.getLogger("voxray.serving")


def make_app(service: Service) -> FastAPI:
    """The application of a service."""
    metrics = Metrics(service.store)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        flushing = asyncio.create_task(_flush_metrics(metrics))
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
    app.include_router(_health_and_metrics(service, metrics))
    for protocol in (native, monai_label, kserve, page):
        app.include_router(protocol.router(service))
    describe(app)
    add_exception_handlers(app)
    if service.config.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(service.config.cors), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(AuthMiddleware, config=service.config, tokens=Tokens(service.store), metrics=metrics)
    return app


def _health_and_metrics(service: Service, metrics: Metrics) -> APIRouter:
    """What orchestrators and monitors ask."""
    api = APIRouter()

    @api.get("/livez")
    async def livez() -> dict[str, bool]:
        """Whether the door is there."""
        return {"live": True}

    @api.get("/readyz", responses={503: {"description": "Some model does not answer yet"}})
    async def readyz(response: Response) -> dict[str, Any]:
        """Whether every model answers."""
        ready = await service.refresh()
        response.status_code = 200 if ready else 503
        return {"ready": ready, "models": {name: info.ready for name, info in service.models().items()}}

    @api.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """For Prometheus."""
        await service.refresh()
        ready = {name: info.ready for name, info in service.models().items()}
        text = await asyncio.to_thread(metrics.text, ready)
        return PlainTextResponse(text)

    return api


async def _flush_metrics(metrics: Metrics) -> None:
    """Keeps the job store's counts fresh."""
    while True:
        await asyncio.sleep(_FLUSH_S)
        try:
            await asyncio.to_thread(metrics.flush)
        except Exception:
            log.exception("counts could not be written")
