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

Out = TypeVar("Out", contravariant=True)
Decoded = TypeVar("Decoded")
Answer = TypeVar("Answer")


class Task(Protocol[Out, Decoded, Answer]):
    """Built from a recipe and class names; holds no weights and no state."""

    primary_metric: str
    """The key of `score` by which the best checkpoint is chosen; higher is better."""

    def loss(self, output: Out, batch: Batch, reduce: Reduce) -> dict[str, Tensor]:
        """The parts of the loss by name, globally normalised; their sum is minimised."""
        ...

    def decode(self, output: Out) -> list[Decoded]:
        """One answer for each window of the batch; nothing in it is tuned."""
        ...

    def mirror(self, decoded: Decoded, axes: Sequence[int], window: Shape) -> Decoded:
        """A mirrored window's answer, as it would have been had the window not been mirrored."""
        ...

    def combine(self, so_far: Decoded, other: Decoded, *, number: int) -> Decoded:
        """One answer from `number` views of a window: that of all but the last view, and the last; may reuse both."""
        ...

    def merge(self, windows: Iterable[tuple[Shape, Decoded]], grid: Grid, how: Any) -> Answer:
        """The scan's answer on `grid` from its windows (first voxel, decoded), consumed one by one in order."""
        ...

    def score(self, found: Sequence[Answer], truth: Sequence[Case]) -> dict[str, float]:
        """Metrics over cases; answers and truth lie on the same grids, case by case."""
        ...


TASKS: Mapping[str, Any] = {"detection": DetectionTask, "segmentation": SegmentationTask}


def build_task(recipe: Recipe, classes: Sequence[str]) -> Task[Any, Any, Any]:
    """The recipe's task for these foreground classes."""
    task: Task[Any, Any, Any] = TASKS[recipe.task](recipe, tuple(classes))
    return task
