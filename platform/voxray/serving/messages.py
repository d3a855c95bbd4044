"""What travels through the native API: studies, jobs and models, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from voxray.core.answer_json import FindingsFile, LabelsFile
from voxray.core.config import Config
from voxray.core.recipe import GridConfig
from voxray.core.task_name import TaskName
from voxray.results.formats import FormatName, format_named
from voxray.serving.errors import ProblemDetails
from voxray.serving.intake.study import ScanFacts
from voxray.serving.job_states import JobStage

State = Literal["queued", "running", "done", "failed", "cancelled"]
"""A `JobState`, as the API's document names it."""
Identifier = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


def _as_served(value: Any) -> Any:
    """The service's own spelling of a format that is asked for as the command line calls it."""
    known = format_named(value) if isinstance(value, str) else None
    return value if known is None else known.name


RequestedFormat = Annotated[FormatName, BeforeValidator(_as_served)]


class Study(ScanFacts):
    """An uploaded scan that was read and can be answered."""

    study_id: Identifier
    created: datetime
    expires: datetime


class DicomwebSource(Config):
    """A series on a DICOMweb server, to be fetched with WADO-RS."""

    url: str
    study_uid: Annotated[str, Field(pattern=r"^[0-9.]{0,64}$")] = ""
    """Empty: the server is asked which it is (QIDO-RS)."""
    series_uid: Annotated[str, Field(pattern=r"^[0-9.]{1,64}$")]


class StudyRequest(Config):
    """A study that the service fetches itself."""

    dicomweb: DicomwebSource


class StoreTarget(Config):
    """Where SEG and SR are sent when a job is done, with STOW-RS."""

    dicomweb: str


class JobRequest(Config):
    """A study to be answered by a model."""

    study_id: Identifier
    model: Annotated[str, Field(max_length=64)]
    outputs: tuple[RequestedFormat, ...] = ()
    """Forms to make at once; any other is made when it is first asked for."""
    store: StoreTarget | None = None


class Timing(Config):
    """Where the time went, in seconds."""

    queued: float = 0.0
    prepare: float = 0.0
    answer: float = 0.0
    total: float = 0.0


class Job(Config):
    """A job and how far it is."""

    job_id: Identifier
    study_id: Identifier
    model: str
    is_served: bool
    """Whether the service still has a model of that name; results stay where it has not, and open jobs wait."""
    state: State
    stage: JobStage
    progress: Annotated[float, Field(ge=0, le=1)]
    place: int | None
    """How many jobs of the model are before it in the queue; null once it is under way."""
    error: ProblemDetails | None
    outputs: tuple[FormatName, ...]
    """The forms in which its result can be had."""
    refused: Mapping[FormatName, ProblemDetails] = {}
    """Forms that were asked for and cannot be made of this answer, and why; they are none of `outputs`."""
    created: datetime
    started: datetime | None
    finished: datetime | None
    expires: datetime
    timing_s: Timing
    result: FindingsFile | LabelsFile | None = None
    """Where the request waited for it."""


class Jobs(Config):
    """A client's jobs, the newest first."""

    jobs: tuple[Job, ...]


class ModelInfo(Config):
    """A model that is served."""

    name: str
    task: TaskName
    classes: tuple[str, ...]
    labels: Mapping[str, int]
    """Class -> its value in label maps."""
    description: str
    dataset: str
    licence: str
    grid: GridConfig
    """What scans are turned and resampled to."""
    sha256: str = ""
    """Of the weights; empty until the model is ready."""
    engine: str = ""
    ready: bool = False


class Models(Config):
    """What is served."""

    models: tuple[ModelInfo, ...]


class SignIn(Config):
    """A token, in exchange for a session cookie."""

    token: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.~-]{1,256}$")]
