"""Uploads read and prepared, and results put into other forms: the work on files, beside the networks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from voxray.core.errors import DataError
from voxray.inference.predictor import Prepared
from voxray.results.formats import FormatName, served_formats
from voxray.serving.config import ServeConfig
from voxray.serving.intake import dicomweb
from voxray.serving.intake.confined import warm_up
from voxray.serving.intake.disk import remove
from voxray.serving.intake.parse import parse
from voxray.serving.intake.study import StudyInfo
from voxray.serving.messages import DicomwebSource, ModelInfo
from voxray.serving.paths import Places
from voxray.serving.workers.answered_by import answered_by
from voxray.serving.workers.label_maps import centroids_of, label_file
from voxray.serving.workers.making import Answered
from voxray.serving.workers.protocol import Centroids, LabelFormat
from voxray.serving.workers.refused_forms import kept_if_refused, refusing
from voxray.serving.workers.scans import prepare_study, write_scan

_SENT = ("seg", "sr")
"""The formats that are sent to an archive."""


class Reading:
    """The work of one process."""

    def __init__(self, config: ServeConfig, places: Places, cards: Sequence[ModelInfo]) -> None:
        self._config, self._places = config, places
        self._cards = {card.name: card for card in cards}

    async def warm_up(self) -> None:
        """Starts what reads uploads."""
        await warm_up()

    async def read(self, study: str, *, series_uid: str | None) -> StudyInfo:
        """See `workers.Readers`."""
        return await parse(self._places.study(study), self._config.limits, series_uid=series_uid)

    async def fetch(self, study: str, source: DicomwebSource) -> StudyInfo:
        """See `workers.Readers`."""
        folder, config = self._places.study(study), self._config
        await remove(folder)  # what a fetch left that died
        await dicomweb.fetch(
            source.url,
            study_uid=source.study_uid,
            series_uid=source.series_uid,
            folder=folder,
            limits=config.limits,
            access=config.dicomweb,
        )
        return await parse(folder, config.limits, series_uid=source.series_uid)

    async def scan(self, study: str) -> Path:
        """See `workers.Readers`."""
        with refusing("scan", self._places.source(study)):
            return await asyncio.to_thread(write_scan, self._places, study)

    async def prepare(self, study: str, model: str) -> Prepared:
        """A study on a model's grid."""
        return await asyncio.to_thread(prepare_study, self._places, study, self._cards[model].grid)

    async def make(self, job: str, study: str, form: FormatName) -> Path:
        """See `workers.Readers`."""
        return await asyncio.to_thread(self._make, job, study, form)

    async def viewer_labels(self, job: str, study: str, label_format: LabelFormat) -> Path:
        """See `workers.Readers`."""
        with refusing(f"label map as {label_format.extension}", self._places.source(study)):
            return await asyncio.to_thread(label_file, self._places.labels(job, study), label_format)

    async def centroids(self, job: str, study: str) -> Centroids:
        """See `workers.Readers`."""
        with refusing("centroids", self._places.source(study)):
            return await asyncio.to_thread(centroids_of, self._places.labels(job, study))

    async def store(self, job: str, study: str, url: str) -> None:
        """See `workers.Readers`."""
        files, refused = [], []
        model = await asyncio.to_thread(answered_by, self._places, job, study)
        for form in served_formats(model.task, is_dicom=True):
            if form in _SENT:
                try:  # a Segmentation of nothing cannot be; the report says so
                    files.append(await self.make(job, study, form))
                except DataError as error:
                    refused.append(error)
        if not files:
            raise refused[0]
        await dicomweb.store(url, files, limits=self._config.limits, access=self._config.dicomweb)

    def _make(self, job: str, study: str, form: FormatName) -> Path:
        path = self._places.result(job, study, form)
        if not path.exists():
            with (
                kept_if_refused(self._places.job(job), form),
                refusing(f"form {form}", self._places.source(study)),
            ):
                Answered(self._places, job, study, answered_by(self._places, job, study)).make(form, path)
        return path
