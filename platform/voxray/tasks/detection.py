"""Detection: from a network's maps to a loss, to each window's candidates, to a scan's findings and their score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from voxray.boxes.anchors import AnchorLevel, anchor_levels
from voxray.boxes.coding import decode
from voxray.core.batch import Batch
from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.errors import ConfigError
from voxray.core.outputs import DetectionOutput
from voxray.core.recipe import DetectionLoss, DetectionMerge, Recipe
from voxray.core.volume import Grid, Shape
from voxray.losses import Reduce
from voxray.losses.detection import assign_batch, detection_loss, draw
from voxray.metrics import coco
from voxray.tasks.candidates import Candidates, Placed, clipped, has_volume, place
from voxray.tasks.finite import require_finite
from voxray.tasks.merging import merge_candidates, merge_placed
from voxray.tasks.mirror import swapped_sides
from voxray.tasks.recorder import Recorder
from voxray.tasks.restore import detections_on
from voxray.windows import windows_over


@dataclass(frozen=True, eq=False)
class DetectionTask:
    """Anchor-based detection of a recipe's classes; holds no weights and no state."""

    recipe: Recipe
    classes: Sequence[str]
    primary_metric: ClassVar[str] = "mAP"
    is_recordable: ClassVar[bool] = True
    head: ClassVar[None] = None

    def __post_init__(self) -> None:
        assert self.recipe.anchors is not None
        assert isinstance(self.recipe.loss, DetectionLoss)

    def loss(self, output: DetectionOutput, batch: Batch, reduce: Reduce) -> dict[str, Tensor]:
        """``class`` and ``box``, globally normalised; the sampling draws from torch's CPU generator."""
        loss = self.recipe.loss
        assert isinstance(loss, DetectionLoss)
        assignment = assign_batch(batch, self._levels(output), loss)
        draws = draw(assignment, loss)
        return detection_loss(output, batch, assignment, draws, loss=loss, reduce=reduce)

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

    def merge(
        self,
        windows: Iterable[tuple[Shape, Candidates]],
        grid: Grid,
        how: DetectionMerge,
        *,
        scan_grid: Grid | None = None,
        recorder: Recorder | None = None,
    ) -> Detections:
        """The scan's findings in edge voxels of `grid`, or of the scan's own, highest score first."""
        if recorder is None:
            found = merge_placed(self.place(windows, grid, how), how)
        else:
            placed = self.place(windows, grid)
            recorder.candidates(placed, grid)
            found = merge_candidates(placed, grid, how)
        return found if scan_grid is None else detections_on(found, grid, scan_grid)

    def place(
        self, windows: Iterable[tuple[Shape, Candidates]], grid: Grid, how: DetectionMerge | None = None
    ) -> Placed:
        """The scan's candidates on `grid`, all of them or those that `how` allows."""
        return place(windows, grid, windows_over(grid.shape, self.recipe).window, how=how)

    @staticmethod
    def recorded_labels(classes: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
        """None: the candidates of all classes are recorded."""
        del classes
        if wanted:
            raise ConfigError("--keep-classes: is for segmentation; a detection keeps the candidates of all classes.")
        return ()

    def score(self, found: Sequence[Detections], truth: Sequence[Case]) -> dict[str, float]:
        """COCO's mAP and mAR over IoU 0.10 to 0.50, and AP and AR at single thresholds, also for each class."""
        boxes, classes = [case.boxes for case in truth], [case.classes for case in truth]
        return coco.evaluate(found, boxes, classes, self.classes)

    def _levels(self, output: DetectionOutput) -> tuple[AnchorLevel, ...]:
        assert self.recipe.anchors is not None
        shapes = [m.shape[2:] for m in output.class_logits]
        return anchor_levels(self.recipe.anchors, shapes, self.recipe.network.level_strides_vox)

    def _candidates(
        self,
        levels: Sequence[AnchorLevel],
        logits: Sequence[Float[Tensor, "ac x y z"]],
        deltas: Sequence[Float[Tensor, "a6 x y z"]],
        window: Sequence[int],
    ) -> Candidates:
        """The candidates of one window, from its maps."""
        config = self.recipe.inference
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
    flat = logits.flatten().float()
    require_finite(flat)
    above = (flat > _logit(floor)).nonzero().squeeze(1)
    best, chosen = flat[above].topk(min(most, len(above)))
    channel, places = above[chosen] // level.num_places, above[chosen] % level.num_places
    num_classes = len(logits) // level.num_shapes
    shapes = channel // num_classes
    rows = deltas.reshape(level.num_shapes, 6, -1)[shapes, :, places].float()
    require_finite(rows)
    return Candidates(decode(rows, level.boxes_at(places, shapes)), best.sigmoid(), channel % num_classes)


def _logit(share: float) -> float:
    if share <= 0 or share >= 1:
        return -math.inf if share <= 0 else math.inf
    return math.log(share / (1 - share))
