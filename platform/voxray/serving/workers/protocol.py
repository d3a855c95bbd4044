"""What the service and the scheduler ask of the processes that do the work, wherever these are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Concatenate, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

from voxray.serving.config import ServeConfig
from voxray.serving.job_states import JobStage
from voxray.serving.messages import ModelInfo
from voxray.serving.paths import ServicePaths

P = ParamSpec("P")
T = TypeVar("T")


class WorkerDiedError(Exception):
    """The process that worked is gone, or was not there: the same work may be asked for again."""


@dataclass(frozen=True)
class Step:
    """How far a job is; at the end with the seconds that its parts took."""

    stage: JobStage
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


@dataclass(frozen=True)
class ReaderContext:
    """What an operation finds in the process that it runs in."""

    config: ServeConfig
    places: ServicePaths
    models: Mapping[str, ModelInfo]


Operation = Callable[Concatenate[ReaderContext, P], Awaitable[T]]
"""A function of `workers.reader`: what is wrong with an upload or a result is a VoxrayError."""


class ServiceWorkers(Protocol):
    """The processes that read files and those that hold models."""

    async def call(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the operation returns in a process that reads.

        Raises WorkerDiedError where it may be tried again.
        """
        ...

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
