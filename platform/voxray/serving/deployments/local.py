"""The workers in one process, without Ray: for tests, and to measure what Ray costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from voxray.serving.config import ServeConfig
from voxray.serving.intake.study import is_small, read_study
from voxray.serving.jobs.scheduler import Scheduler
from voxray.serving.jobs.store import JobStore
from voxray.serving.messages import ModelInfo
from voxray.serving.paths import ServicePaths
from voxray.serving.workers import reader
from voxray.serving.workers.model import WarmModel, answer_steps
from voxray.serving.workers.protocol import Operation, ReaderContext, Step, WorkerDiedError

P = ParamSpec("P")
T = TypeVar("T")


class LocalWorkers:
    """Every model and the reader, in threads."""

    def __init__(self, config: ServeConfig, places: ServicePaths) -> None:
        self._models = {name: WarmModel(name, model, places) for name, model in config.models.items()}
        self._context = ReaderContext(config, places, {name: model.info for name, model in self._models.items()})
        self.scheduler: Scheduler | None = None

    async def call(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The operation in this process."""
        return await operation(self._context, *args, **kwargs)

    async def answer(self, job: str, study: str, model: str) -> AsyncGenerator[Step, None]:
        """Steps of the model, which has the scan prepared for it where that is large."""
        begin, answering = time.monotonic(), self._models[model]
        info = await asyncio.to_thread(read_study, self._context.places.study(study))
        small = is_small(info, answering.info.grid.spacing_mm, self._context.config.models[model].prepared_here_vox)
        scan = None if small else await self.call(reader.prepare, study, model)
        prepare_s = time.monotonic() - begin
        async for step in answer_steps(answering, scan, job, study):
            yield step if small else replace(step, prepare_s=prepare_s)

    async def models(self) -> dict[str, ModelInfo]:
        """All of them are ready."""
        return {name: answering.info for name, answering in self._models.items()}

    def poke(self) -> None:
        """The scheduler, where there is one, looks at once."""
        if self.scheduler is not None:
            self.scheduler.poke()

    async def news(self, seen: int) -> int:
        """Of the scheduler in this process."""
        if self.scheduler is None:
            raise WorkerDiedError("no scheduler")
        return await self.scheduler.news(seen)


def open_scheduler(
    config: ServeConfig, store: JobStore, workers: LocalWorkers, places: ServicePaths, **times: Any
) -> Scheduler:
    """A scheduler for these workers; whoever opens it runs it."""
    widths = {name: model.at_once for name, model in config.models.items()}
    workers.scheduler = Scheduler(store, workers, places, widths, **times)
    return workers.scheduler
