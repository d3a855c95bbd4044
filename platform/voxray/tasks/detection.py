"""Detection: from a network's maps to a loss, to each window's candidates, to a scan's findings and their score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from voxray.boxes.anchors import AnchorLevel, anchor_levels
from voxray.boxes.coding import decode
from voxray.core.batch import Batch
from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.errors import DataError
from voxray.core.outputs import DetectionOutput
from voxray.core.recipe import DetectionLoss, DetectionMerge, Recipe
from voxray.core.volume import Grid, Shape
from voxray.losses import Reduce
from voxray.losses.detection import assign_batch, detection_loss, draw
from voxray.metrics import coco
from voxray.tasks.candidates import Candidates, Placed, clipped, has_volume, place
from voxray.tasks.merging import merge_placed
from voxray.tasks.mirror import swapped_sides
from voxray.windows import windows_over


class DetectionTask:
    """Anchor-based detection of a recipe's classes; holds no weights and no state."""

    primary_metric = "mAP"

    def __init__(self, recipe: Recipe, classes: Sequence[str]) -> None:
        assert recipe.anchors is not None
        assert isinstance(recipe.loss, DetectionLoss)
        self.classes = tuple(classes)
        self.recipe = recipe
        self._anchors, self._loss, self._inference = recipe.anchors, recipe.loss, recipe.inference
        self._strides = recipe.network.level_strides_vox

    def loss(self, output: DetectionOutput, batch: Batch, reduce: Reduce) -> dict[str, Tensor]:
        """``class`` and ``box``, globally normalised; the sampling draws from torch's CPU generator."""
        assignment = assign_batch(batch, self._levels(output), self._loss)
        draws = draw(assignment, self._loss)
        return detection_loss(output, batch, assignment, draws, loss=self._loss, reduce=reduce)

    def decode(self, output: DetectionOutput) -> list[Candidates]:
        """Each window's candidates: per level the best-scored above the recipe's floor, clipped to the window."""
        levels = self._levels(output)
        window = [side * step for side, step in zip(levels[0].shape, levels[0].stride_vox, strict=True)]
        per_window = zip(zip(*output.class_logits, strict=True), zip(*output.box_deltas, strict=True), strict=True)
        return [self._candidates(levels, logits, deltas, window) for logits, deltas in per_window]

    def mirror(self, decoded: Candidates, axes: Sequence[int], window: Shape) -> Candidates:
        """The candidates of a window that the network saw mirrored, turned back; left and right change on x."""
        low, high = decoded.boxes[:, :3].clone(), decoded.boxes[:, 3:].clone()
        for axis in axes:
            low[:, axis], high[:, axis] = (
                window[axis] - decoded.boxes[:, axis + 3],
                window[axis] - decoded.boxes[:, axis],
            )
        sides = torch.tensor(swapped_sides(self.classes), device=decoded.classes.device)
        classes = sides[decoded.classes] if 0 in axes else decoded.classes
        return decoded._replace(boxes=torch.cat([low, high], dim=1), classes=classes)

    def combine(self, so_far: Candidates, other: Candidates, *, number: int) -> Candidates:
        """All candidates of both, each with its view: the merge joins them over views as it does over windows."""
        return Candidates(
            boxes=torch.cat([so_far.boxes, other.boxes]),
            scores=torch.cat([so_far.scores, other.scores]),
            classes=torch.cat([so_far.classes, other.classes]),
            views=torch.cat([so_far.view_of_each(), torch.full_like(other.classes, number - 1)]),
            num_views=number,
        )

    def merge(self, windows: Iterable[tuple[Shape, Candidates]], grid: Grid, how: DetectionMerge) -> Detections:
        """The scan's findings in edge voxels of `grid`, highest score first."""
        return merge_placed(self.place(windows, grid, how), how)

    def place(
        self, windows: Iterable[tuple[Shape, Candidates]], grid: Grid, how: DetectionMerge | None = None
    ) -> Placed:
        """The scan's candidates on `grid`, all of them or those that `how` allows."""
        return place(windows, grid, windows_over(grid.shape, self.recipe).window, how=how)

    def score(self, found: Sequence[Detections], truth: Sequence[Case]) -> dict[str, float]:
        """COCO's mAP and mAR over IoU 0.10 to 0.50, and AP and AR at single thresholds, also for each class."""
        boxes, classes = [case.boxes for case in truth], [case.classes for case in truth]
        return coco.evaluate(found, boxes, classes, self.classes)

    def _levels(self, output: DetectionOutput) -> tuple[AnchorLevel, ...]:
        return anchor_levels(self._anchors, [m.shape[2:] for m in output.class_logits], self._strides)

    def _candidates(
        self,
        levels: Sequence[AnchorLevel],
        logits: Sequence[Float[Tensor, "ac x y z"]],
        deltas: Sequence[Float[Tensor, "a6 x y z"]],
        window: Sequence[int],
    ) -> Candidates:
        """The candidates of one window, from its maps."""
        config = self._inference
        parts = [
            _level_candidates(*maps, floor=config.candidate_floor, most=config.candidates_per_level)
            for maps in zip(levels, logits, deltas, strict=True)
        ]
        columns = zip(*((part.boxes, part.scores, part.classes) for part in parts), strict=True)
        boxes, scores, classes = (torch.cat(column) for column in columns)
        boxes = clipped(boxes, window)
        solid = has_volume(boxes)
        return Candidates(boxes[solid], scores[solid], classes[solid])


def _level_candidates(
    level: AnchorLevel,
    logits: Float[Tensor, "ac x y z"],
    deltas: Float[Tensor, "a6 x y z"],
    *,
    floor: float,
    most: int,
) -> Candidates:
    """The best `most` pairs of anchor and class with a score above the floor; only their boxes are decoded."""
    flat = _finite(logits.flatten().float())
    above = (flat > _logit(floor)).nonzero().squeeze(1)
    best, chosen = flat[above].topk(min(most, len(above)))
    channel, places = above[chosen] // level.num_places, above[chosen] % level.num_places
    num_classes = len(logits) // level.num_shapes
    shapes = channel // num_classes
    rows = _finite(deltas.reshape(level.num_shapes, 6, -1)[shapes, :, places].float())
    return Candidates(decode(rows, level.boxes_at(places, shapes)), best.sigmoid(), channel % num_classes)


def _finite(values: Tensor) -> Tensor:
    """The values, or a DataError: a broken network must not look like a scan without findings."""
    if torch.isfinite(values.sum()):
        return values
    raise DataError(
        "model.not_finite",
        "The network's answer is not finite.",
        remedy="Predict in float32 or bf16; if that does not help, the weights are broken: use an earlier epoch.",
    )


def _logit(share: float) -> float:
    if share <= 0 or share >= 1:
        return -math.inf if share <= 0 else math.inf
    return math.log(share / (1 - share))
