"""The workers in one process, without Ray: for tests, and to measure what Ray costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

from voxray.results.formats import FormatName
from voxray.serving.config import ServeConfig
from voxray.serving.intake.study import StudyInfo, is_small, read_study
from voxray.serving.jobs.scheduler import Scheduler
from voxray.serving.jobs.store import JobStore
from voxray.serving.messages import DicomwebSource, ModelInfo
from voxray.serving.paths import Places
from voxray.serving.workers.model import WarmModel, answer_steps
from voxray.serving.workers.protocol import Centroids, LabelFormat, Step, WorkerDiedError
from voxray.serving.workers.reader import Reading


class LocalWorkers:
    """Every model and the reader, in threads."""

    def __init__(self, config: ServeConfig, places: Places) -> None:
        self._models = {name: WarmModel(name, model, places) for name, model in config.models.items()}
        self._config, self._places = config, places
        self._reading = Reading(config, places, [answering.info for answering in self._models.values()])
        self.scheduler: Scheduler | None = None

    async def read(self, study: str, *, series_uid: str | None) -> StudyInfo:
        """See `workers.Readers`."""
        return await self._reading.read(study, series_uid=series_uid)

    async def fetch(self, study: str, source: DicomwebSource) -> StudyInfo:
        """See `workers.Readers`."""
        return await self._reading.fetch(study, source)

    async def scan(self, study: str) -> Path:
        """See `workers.Readers`."""
        return await self._reading.scan(study)

    async def make(self, job: str, study: str, form: FormatName) -> Path:
        """See `workers.Readers`."""
        return await self._reading.make(job, study, form)

    async def viewer_labels(self, job: str, study: str, label_format: LabelFormat) -> Path:
        """See `workers.Readers`."""
        return await self._reading.viewer_labels(job, study, label_format)

    async def centroids(self, job: str, study: str) -> Centroids:
        """See `workers.Readers`."""
        return await self._reading.centroids(job, study)

    async def store(self, job: str, study: str, url: str) -> None:
        """See `workers.Readers`."""
        await self._reading.store(job, study, url)

    async def answer(self, job: str, study: str, model: str) -> AsyncGenerator[Step, None]:
        """See `workers.protocol.ServiceWorkers`."""
        begin, answering = time.monotonic(), self._models[model]
        info = await asyncio.to_thread(read_study, self._places.study(study))
        small = is_small(info, answering.info.grid.spacing_mm, self._config.models[model].prepared_here_vox)
        scan = None if small else await self._reading.prepare(study, model)
        prepare_s = time.monotonic() - begin
        async for step in answer_steps(answering, scan, job, study):
            yield step if small else replace(step, prepare_s=prepare_s)

    async def models(self) -> dict[str, ModelInfo]:
        """See `workers.protocol.ServiceWorkers`."""
        return {name: answering.info for name, answering in self._models.items()}

    def poke(self) -> None:
        """See `workers.protocol.ServiceWorkers`."""
        if self.scheduler is not None:
            self.scheduler.poke()

    async def news(self, seen: int) -> int:
        """See `workers.protocol.ServiceWorkers`."""
        if self.scheduler is None:
            raise WorkerDiedError("no scheduler")
        return await self.scheduler.news(seen)


def open_scheduler(
    config: ServeConfig, store: JobStore, workers: LocalWorkers, places: Places, **times: float
) -> Scheduler:
    """A scheduler for these workers; whoever opens it runs it."""
    widths = {name: model.at_once for name, model in config.models.items()}
    workers.scheduler = Scheduler(store, workers, places, widths, **times)
    return workers.scheduler
