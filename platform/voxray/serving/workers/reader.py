"""The operations of the processes that read: uploads read and prepared, results put into other forms.

Each is a function of a `ReaderContext`, which `ServiceWorkers.call` runs there. A new one is written here alone.
What knows networks is imported by the operation that needs it: who only asks for one starts without torch.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from voxray.core.errors import DataError
from voxray.results.formats import FormatName, served_formats
from voxray.serving.intake import dicomweb
from voxray.serving.intake.disk import remove
from voxray.serving.intake.parse import parse
from voxray.serving.intake.study import StudyInfo
from voxray.serving.messages import DicomwebSource
from voxray.serving.paths import ServicePaths
from voxray.serving.workers.answered_by import answered_by
from voxray.serving.workers.label_maps import centroids_of, label_file
from voxray.serving.workers.protocol import Centroids, LabelFormat, ReaderContext
from voxray.serving.workers.refused_forms import recording_refusal, refusing

if TYPE_CHECKING:
    from voxray.inference.predictor import Prepared

_SENT = ("seg", "sr")
"""The formats that are sent to an archive."""


async def read_upload(here: ReaderContext, study: str, *, series_uid: str | None) -> StudyInfo:
    """Reads and checks what lies in the study's folder, and leaves its voxels there."""
    return await parse(here.places.study(study), here.config.limits, series_uid=series_uid)


async def fetch_series(here: ReaderContext, study: str, source: DicomwebSource) -> StudyInfo:
    """Fetches a series into the study's folder, and reads it."""
    folder, config = here.places.study(study), here.config
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


async def scan_file(here: ReaderContext, study: str) -> Path:
    """The study's scan as NIfTI; made once."""
    from voxray.serving.workers.study_scans import write_scan

    with refusing("scan", here.places.source(study)):
        return await asyncio.to_thread(write_scan, here.places, study)


async def prepare(here: ReaderContext, study: str, model: str) -> Prepared:
    """The study on a model's grid."""
    from voxray.serving.workers.study_scans import prepare_study

    return await asyncio.to_thread(prepare_study, here.places, study, here.models[model].grid)


async def make_form(here: ReaderContext, job: str, study: str, form: FormatName) -> Path:
    """The file of a job's result in one form; made once."""
    return await asyncio.to_thread(_make_form, here.places, job, study, form)


async def viewer_labels(here: ReaderContext, job: str, study: str, label_format: LabelFormat) -> Path:
    """The file of a segmentation's label map as a viewer wants it; made once."""
    with refusing(f"label map as {label_format.extension}", here.places.source(study)):
        return await asyncio.to_thread(label_file, here.places.labels(job, study), label_format)


async def label_centroids(here: ReaderContext, job: str, study: str) -> Centroids:
    """The middles of the labels of a segmentation."""
    with refusing("centroids", here.places.source(study)):
        return await asyncio.to_thread(centroids_of, here.places.labels(job, study))


async def store_result(here: ReaderContext, job: str, study: str, url: str) -> None:
    """Sends SEG and SR of a job's result to a DICOMweb server."""
    files, refused = [], []
    model = await asyncio.to_thread(answered_by, here.places, job, study)
    for form in served_formats(model.task, is_dicom=True):
        if form in _SENT:
            try:  # a Segmentation of nothing cannot be; the report says so
                files.append(await make_form(here, job, study, form))
            except DataError as error:
                refused.append(error)
    if not files:
        raise refused[0]
    await dicomweb.store(url, files, limits=here.config.limits, access=here.config.dicomweb)


def _make_form(places: ServicePaths, job: str, study: str, form: FormatName) -> Path:
    from voxray.serving.workers.result_formats import write_result

    path = places.result(job, study, form)
    if not path.exists():
        with recording_refusal(places.job(job), form), refusing(f"form {form}", places.source(study)):
            write_result(places, job, study, answered_by(places, job, study), form, path)
    return path
