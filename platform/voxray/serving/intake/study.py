"""StudyInfo: what is known of a scan that was taken in, and where its files lie."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from voxray.core.config import Config
from voxray.core.storage import whole
from voxray.core.volume import Grid, Shape, Vector

RECEIVED, SOURCE, VOLUME, STUDY = "received", "source", "volume.npy", "study.json"
"""In a study's folder: what was sent until it is read, what was sent once it was read, the voxels, what is known."""
WORK = "unfinished"
"""The folder, in a study's, that a reading works in."""


class SeriesChoice(Config):
    """A series of an upload that holds several."""

    handle: str
    """Names it when the upload is sent again (``?series=``); see `series_handle`."""
    num_files: int
    number: str
    """The series' number as its scanner gave it, or ``?``."""


class ScanFacts(Config):
    """What is told of a scan that was read whole and found sound; nothing in it tells of the patient."""

    format: str
    """Such as ``NIfTI-1`` or ``DICOM series``."""
    shape: Shape
    """Voxels along x, y and z as the scan stores them."""
    spacing_mm: Vector
    origin_mm: Vector
    """The centre of the first voxel, LPS."""
    direction: tuple[float, ...]
    """Row-major cosines; the columns are the LPS directions of the voxel axes."""
    orientation: str
    """The side that each axis points to, such as ``LPS``."""
    num_files: int
    modality: str | None
    """None where the format does not tell."""
    is_dicom: bool
    warnings: tuple[str, ...]


class StudyInfo(ScanFacts):
    """What the service knows of a scan."""

    series: str | None
    """Stands for the series' UID; see `series_handle`."""

    @property
    def grid(self) -> Grid:
        """Where the voxels of `volume.npy` lie."""
        return Grid(self.shape, self.spacing_mm, self.origin_mm, self.direction)


def is_small(info: StudyInfo, spacing_mm: Vector, most_vox: int) -> bool:
    """Whether a scan has about so many voxels at most, both as it is stored and at another spacing."""
    stored = math.prod(info.shape)
    return max(stored, stored * math.prod(info.spacing_mm) / math.prod(spacing_mm)) <= most_vox


def series_handle(series_uid: str) -> str:
    """Twelve hex digits that stand for a series where its UID must not be shown: in answers, errors and logs."""
    return hashlib.sha256(series_uid.encode()).hexdigest()[:12]


def write_study(folder: Path, info: StudyInfo, *, series_uid: str | None) -> None:
    """Writes `study.json`: the info, and the real UID, which objects made from the study have to name."""
    with whole(folder / STUDY) as path:
        path.write_text(json.dumps(info.model_dump(mode="json") | {"series_uid": series_uid}, indent=1))


def read_study(folder: Path) -> StudyInfo:
    """What is known of the study in a folder."""
    known = _read(folder)
    known.pop("series_uid", None)
    return StudyInfo.model_validate(known)


def series_uid_of(folder: Path) -> str | None:
    """The UID of the series that the volume was read from; None where it was not DICOM."""
    uid: str | None = _read(folder).get("series_uid")
    return uid


def _read(folder: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((folder / STUDY).read_text())
    return known
