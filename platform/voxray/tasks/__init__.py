"""What is asked of a network: a task turns its tensors into losses and answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from voxray.core.batch import Batch
from voxray.core.case import Case
from voxray.core.recipe import Recipe
from voxray.core.volume import Grid, Shape
from voxray.losses import Reduce
from voxray.tasks.detection import DetectionTask
from voxray.tasks.segmentation import SegmentationTask

_Out = TypeVar("_Out", contravariant=True)
_Decoded = TypeVar("_Decoded")
_Answer = TypeVar("_Answer")


class Task(Protocol[_Out, _Decoded, _Answer]):
    """Built from a recipe and class names; holds no weights and no state."""

    primary_metric: str
    """The key of `score` by which the best checkpoint is chosen; higher is better."""

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

    def merge(self, windows: Iterable[tuple[Shape, _Decoded]], grid: Grid, how: Any) -> _Answer:
        """The scan's answer on `grid` from its windows (first voxel, decoded), consumed one by one in order."""
        ...

    def score(self, found: Sequence[_Answer], truth: Sequence[Case]) -> dict[str, float]:
        """Metrics over cases; answers and truth lie on the same grids, case by case."""
        ...


TASKS: Mapping[str, Any] = {"detection": DetectionTask, "segmentation": SegmentationTask}


def build_task(recipe: Recipe, classes: Sequence[str]) -> Task[Any, Any, Any]:
    """The recipe's task for these foreground classes."""
    task: Task[Any, Any, Any] = TASKS[recipe.task](recipe, tuple(classes))
    return task
