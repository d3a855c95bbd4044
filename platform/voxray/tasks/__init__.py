"""What is asked of a network: a task turns its tensors into losses and answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from voxray.core.batch import Batch
from voxray.core.case import Case
from voxray.core.outputs import Head
from voxray.core.recipe import Recipe
from voxray.core.task_name import TaskName
from voxray.core.volume import Grid, Shape
from voxray.losses import Reduce
from voxray.tasks.detection import DetectionTask
from voxray.tasks.recorder import Recorder
from voxray.tasks.segmentation import SegmentationTask

_Out = TypeVar("_Out", contravariant=True)
_Decoded = TypeVar("_Decoded")
_Answer = TypeVar("_Answer")


class Task(Protocol[_Out, _Decoded, _Answer]):
    """Built from a recipe and class names; holds no weights, and nothing of it changes."""

    @property
    def primary_metric(self) -> str:
        """The key of `score` by which the best checkpoint is chosen; higher is better."""
        ...

    @property
    def head(self) -> Head | None:
        """The network's last layer, where windows are features that have still to go through it."""
        ...

    @property
    def is_recordable(self) -> bool:
        """Whether what is said of all classes may be recorded; else some are chosen (`recorded_labels`)."""
        ...

    def loss(self, output: _Out, batch: Batch, reduce: Reduce) -> dict[str, Tensor]:
        """The parts of the loss by name, globally normalised; their sum is minimised."""
        ...

    def decode(self, output: _Out) -> list[_Decoded]:
        """One answer for each window of the batch; nothing in it is tuned."""
        ...

    def mirror(self, decoded: _Decoded, axes: Sequence[int], window: Shape) -> _Decoded:
        """A mirrored window's answer, as it would have been had the window not been mirrored."""
        ...

    def combine(self, so_far: _Decoded, other: _Decoded, *, number: int) -> _Decoded:
        """One answer from `number` views of a window: that of all but the last view, and the last; may reuse both."""
        ...

    def merge(
        self,
        windows: Iterable[tuple[Shape, _Decoded]],
        grid: Grid,
        how: Any,
        *,
        scan_grid: Grid | None = None,
        recorder: Recorder | None = None,
    ) -> _Answer:
        """The scan's answer from its windows on `grid` (first voxel, decoded), consumed one by one in order.

        It lies on `scan_grid`, the scan's own, where that is given, else on `grid`. A `recorder` records what the
        network said before the merge.
        """
        ...

    def score(self, found: Sequence[_Answer], truth: Sequence[Case]) -> dict[str, float]:
        """Metrics over cases; answers and truth lie on the same grids, case by case."""
        ...


TASKS: Mapping[str, Any] = {"detection": DetectionTask, "segmentation": SegmentationTask}


def build_task(recipe: Recipe, classes: Sequence[str], *, head: Head | None = None) -> Task[Any, Any, Any]:
    """The recipe's task for these foreground classes; `head` where windows are a segmentation network's features."""
    if head is not None:
        return SegmentationTask(recipe, tuple(classes), head)
    task: Task[Any, Any, Any] = TASKS[recipe.task](recipe, tuple(classes))
    return task


def primary_metric(task: TaskName) -> str:
    """The primary metric of the task of that name."""
    return str(TASKS[task].primary_metric)


def recorded_labels(task: TaskName, classes: Sequence[str], wanted: Sequence[str] = ()) -> tuple[int, ...]:
    """The labels of the classes whose probabilities are recorded; none where all candidates are.

    A ConfigError where the classes are too many and none are `wanted`.
    """
    labels: tuple[int, ...] = TASKS[task].recorded_labels(classes, wanted)
    return labels
