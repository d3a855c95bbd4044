"""What the service and the scheduler ask of the processes that do the work, wherever these are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from voxray.results.formats import FormatName
from voxray.serving.intake.study import StudyInfo
from voxray.serving.messages import DicomwebSource, ModelInfo, Stage


class WorkerDiedError(Exception):
    """The process that worked is gone, or was not there: the same work may be asked for again."""


@dataclass(frozen=True)
class Step:
    """How far a job is; at the end with the seconds that its parts took."""

    stage: Stage
    progress: float = 0.0
    prepare_s: float = 0.0
    answer_s: float = 0.0


Centroids = Mapping[int, tuple[int, int, int]]
"""Label -> the voxel at its centre of mass."""


Extension = Literal[".nrrd", ".nii.gz", ".nii"]
LabelType = Literal["uint8", "uint16"]


class LabelFormat(NamedTuple):
    """A label map as a viewer wants it."""

    extension: Extension
    dtype: LabelType | None
    """None keeps the type; one that is too narrow is widened."""
    compress: bool


class Readers(Protocol):
    """Uploads read, and results put into other forms. What is wrong with them is a VoxrayError."""

    async def read(self, study: str, *, series_uid: str | None) -> StudyInfo:
        """Reads and checks what lies in the study's folder, and leaves its voxels there."""
        ...

    async def fetch(self, study: str, source: DicomwebSource) -> StudyInfo:
        """The same of a series that is fetched first."""
        ...

    async def scan(self, study: str) -> Path:
        """The study's scan as NIfTI; made once."""
        ...

    async def make(self, job: str, study: str, form: FormatName) -> Path:
        """The file of a job's result in one form; made once."""
        ...

    async def viewer_labels(self, job: str, study: str, label_format: LabelFormat) -> Path:
        """The file of a segmentation's label map as a viewer wants it; made once."""
        ...

    async def centroids(self, job: str, study: str) -> Centroids:
        """The middles of the labels of a segmentation."""
        ...

    async def store(self, job: str, study: str, url: str) -> None:
        """Sends SEG and SR of a job's result to a DICOMweb server."""
        ...


class ServiceWorkers(Readers, Protocol):
    """All of them."""

    def answer(self, job: str, study: str, model: str) -> AsyncGenerator[Step, None]:
        """The model's answer to the study, left in the job's folder; ended by closing the iterator.

        Raises WorkerDiedError where it is to be tried again.
        """
        ...

    async def models(self) -> dict[str, ModelInfo]:
        """The models that are ready; others are missing."""
        ...

    def poke(self) -> None:
        """Tells the scheduler that there is something to do; without it the scheduler finds it a little later."""
        ...

    async def news(self, seen: int) -> int:
        """Returns when the scheduler has brought another number of jobs to an end than `seen`: that number.

        Or after a while, with the same number. Raises where there is no scheduler at the moment.
        """
        ...
