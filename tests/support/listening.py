"""The real service behind a real socket, in one process: for clients that bring their own HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from voxray.serving.app import check
from voxray.serving.config import ServeConfig
from voxray.serving.deployments.local import LocalWorkers, open_scheduler
from voxray.serving.http.application import make_app
from voxray.serving.jobs.service import Service
from voxray.serving.jobs.store import JobStore
from voxray.serving.paths import ServicePaths


@dataclass(frozen=True)
class Listening:
    """A service that answers at an address."""

    host: str
    """With the port."""
    service: Service

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}"


@contextmanager
def listening(folder: Path, models: dict[str, Any], **fields: Any) -> Iterator[Listening]:
    """A service with these models for the block; `fields` go into its configuration."""
    config = ServeConfig.model_validate({"models": models, "folder": str(folder / "service"), **fields})
    places = ServicePaths(config.root).prepared()
    store = JobStore(config.database_url)
    workers = LocalWorkers(config, places)
    service = Service(config, store, workers, places, check(config))
    app = make_app(service)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))

    async def serve() -> None:
        scheduler = open_scheduler(config, store, workers, places)
        working = asyncio.create_task(scheduler.run())
        await server.serve()
        await scheduler.stop()
        await working

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.02)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield Listening(f"{host}:{port}", service)
    finally:
        server.should_exit = True
        thread.join()
        store.close()
