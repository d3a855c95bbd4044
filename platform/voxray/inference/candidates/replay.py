"""Merges tried on recorded cases: what does not change from one merge to the next is worked out once.

Every trial gives what `RecordedCase.detections` and `RecordedCase.labels` give, in a fraction of the time: candidates
are sorted once, their overlaps measured once, probabilities interpolated to the scan's grid and cropped once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from voxray.boxes.clustering import Groups
from voxray.boxes.neighbours import Neighbours
from voxray.core.detections import Detections
from voxray.core.errors import DataError
from voxray.core.recipe import DetectionMerge, Merge, SegmentationMerge
from voxray.core.volume import Grid
from voxray.inference.candidates.file import FLOOR, RecordedCase, labels_of_shares
from voxray.metrics import coco
from voxray.metrics.bootstrap import Weights, ones
from voxray.metrics.dice import confusion, dice
from voxray.metrics.pool import pool_of
from voxray.tasks.candidates import Placed, allowed, has_volume
from voxray.tasks.merging import MEASURED, BoxRows, merge_placed
from voxray.tasks.recorder import WHOLE

MOST_PAIRS = 1 << 20
"""Of overlapping candidates that are listed for a case; more are measured in every trial."""
_MARGIN = 2


@dataclass(frozen=True)
class MergeBounds:
    """What the trials stay within, so that what lies outside need not be held."""

    score_floor: float = 0.0
    tile_iou: float = 0.0
    """The lowest of each."""
    pooled: bool = True
    apart: bool = True
    """Whether views may be pooled, and whether they may be joined one by one first."""


@dataclass(frozen=True)
class DetectionReplay:
    """A case of a detection: candidates, best first, on the recipe's grid, and the truth there."""

    placed: Placed
    grid: Grid
    truth_boxes: Float64[np.ndarray, "n 6"]
    truth_classes: Int64[np.ndarray, " n"]
    pooled: Neighbours | None = None
    apart: Neighbours | None = None

    def merged(self, how: DetectionMerge) -> Detections:
        """What `how` makes of the candidates, in edge voxels of the recipe's grid."""
        best = self.placed.take(slice(0, self._num_above(how.score_floor)))
        index = torch.arange(len(best))
        if how.min_size_mm > 0:
            index = torch.nonzero(allowed(best.boxes, best.scores, self.grid.spacing_mm, how)).squeeze(1)
            best = best.take(index)
        known = self.pooled if how.ensemble_method == "pooled" else self.apart
        return merge_placed(best, how, joining=MEASURED if known is None else _Known(known, index))

    def _num_above(self, floor: float) -> int:
        falling = self.placed.scores.numpy()
        return len(falling) - int(np.searchsorted(falling[::-1], np.float32(floor), side="right"))


@dataclass(frozen=True)
class SegmentationReplay:
    """A case of a segmentation: probabilities and truth where either is, on the scan's own grid."""

    shares: UInt8[np.ndarray, "c x y z"]
    labels: UInt8[np.ndarray, "x y z"]
    grid: Grid

    def table(self, how: SegmentationMerge, classes: tuple[str, ...]) -> Int64[np.ndarray, "l l"]:
        """Voxels by found and true label within the crop; beyond it both are background."""
        found = labels_of_shares(self.shares, self.grid, classes, how)
        return confusion(found, self.labels, num_labels=len(classes) + 1)


@dataclass(frozen=True)
class ReplayCase:
    """A recorded case with its truth, made ready."""

    case: str
    patient: str
    data: DetectionReplay | SegmentationReplay


@dataclass(frozen=True)
class Replay:
    """Cases of one task; a setting is tried on all or some of them, by index."""

    cases: tuple[ReplayCase, ...]
    classes: tuple[str, ...]
    ious: tuple[float, ...] = coco.IOUS
    """A detection's mAP is the mean over these overlaps."""

    def score(self, how: Merge, chosen: Sequence[int]) -> float:
        """The task's primary metric over the chosen cases: mAP, or the mean over classes of mean Dice.

        It is nan where there is nothing to find.
        """
        trial = self.trial()
        for index in chosen:
            trial.add(self.cases[index], how)
        return trial.score()

    def replicates(self, how: Merge, chosen: Sequence[int], weights: Weights) -> Float64[np.ndarray, " b"]:
        """`score` in each replicate of a bootstrap, whose weights say how often it drew each chosen case."""
        trial = self.trial()
        for index in chosen:
            trial.add(self.cases[index], how)
        return trial.replicates(weights)

    def trial(self) -> Trial:
        """A trial without a case."""
        return Trial(self.classes, self.ious)

    @staticmethod
    def of(recorded: Sequence[RecordedCase], bounds: MergeBounds, *, ious: tuple[float, ...] = coco.IOUS) -> Replay:
        """The replay of these cases."""
        return Replay(tuple(replay_case(one, bounds) for one in recorded), recorded[0].head.classes, ious)


class Trial:
    """What one setting comes to, case by case; it may be scored after any of them."""

    def __init__(self, classes: tuple[str, ...], ious: tuple[float, ...] = coco.IOUS) -> None:
        self._classes, self._ious = classes, ious
        self._found: list[Detections] = []
        self._truth: list[tuple[Any, Any]] = []
        self._dice: list[Float64[np.ndarray, " c"]] = []

    def add(self, case: ReplayCase, how: Merge) -> None:
        """Merges one case more."""
        if isinstance(case.data, DetectionReplay):
            assert isinstance(how, DetectionMerge)
            self._found.append(case.data.merged(how))
            self._truth.append((case.data.truth_boxes, case.data.truth_classes))
        else:
            assert isinstance(how, SegmentationMerge)
            self._dice.append(dice(case.data.table(how, self._classes)))

    def score(self) -> float:
        """The primary metric over the cases so far."""
        number = len(self._dice) or len(self._found)
        return float(self.replicates(ones(number))[0]) if number else math.nan

    def replicates(self, weights: Weights) -> Float64[np.ndarray, " b"]:
        """The same in each replicate of a bootstrap."""
        if self._dice:
            return mean_dice(np.stack(self._dice), weights)
        boxes, classes = zip(*self._truth, strict=True)
        pool = pool_of(self._found, boxes, classes, num_classes=len(self._classes), ious=self._ious)
        return coco.precision_and_recall(pool, weights, self._classes, self._ious)["mAP"]


def mean_dice(rows: Float64[np.ndarray, "n c"], weights: Weights) -> Float64[np.ndarray, " b"]:
    """The mean over classes of each class's mean over the cases that have it, in each replicate; nan without any."""
    has = np.isfinite(rows)
    drawn = has.T.astype(np.float64) @ weights
    means = np.divide(np.where(has, rows, 0.0).T @ weights, drawn, out=np.zeros_like(drawn), where=drawn > 0)
    judged = (drawn > 0).sum(axis=0)
    found: Float64[np.ndarray, " b"] = np.divide(
        means.sum(axis=0), judged, out=np.full(len(judged), np.nan), where=judged > 0
    )
    return found


def replay_case(recorded: RecordedCase, bounds: MergeBounds) -> ReplayCase:
    """A recorded case, made ready for trials within the bounds; a DataError where its truth is not known."""
    if recorded.truth is None or (recorded.shares is not None and recorded.truth.labels is None):
        raise DataError(
            "candidates.no_truth",
            "what is to be found is not kept with its candidates.",
            remedy="Sweep the run with its dataset at hand, so that the truth can be read.",
            case_id=recorded.head.case,
        )
    data = _boxes(recorded, bounds) if recorded.shares is None else _shares(recorded)
    return ReplayCase(recorded.head.case, recorded.head.patient, data)


def _boxes(recorded: RecordedCase, bounds: MergeBounds) -> DetectionReplay:
    assert recorded.truth is not None
    placed = recorded.required
    placed = placed.take((placed.scores > bounds.score_floor) & has_volume(placed.boxes))
    placed = placed.take(placed.scores.argsort(descending=True, stable=True))

    def neighbours(kinds: Callable[[], Tensor], wanted: bool) -> Neighbours | None:
        return Neighbours.of(placed.boxes, kinds(), floor=bounds.tile_iou, most=MOST_PAIRS) if wanted else None

    return DetectionReplay(
        placed,
        grid=recorded.grid,
        truth_boxes=recorded.truth.boxes,
        truth_classes=recorded.truth.classes,
        pooled=neighbours(lambda: placed.classes, bounds.pooled),
        apart=neighbours(lambda: placed.classes * placed.num_views + placed.views, bounds.apart),
    )


def _shares(recorded: RecordedCase) -> SegmentationReplay:
    assert recorded.truth is not None
    assert recorded.truth.labels is not None
    shares, labels = recorded.shares_on_scan(), recorded.truth.labels
    seen = (shares[1:].max(axis=0) > FLOOR * WHOLE) | (labels > 0)
    region = []
    for axis in range(3):
        planes = np.flatnonzero(seen.any(axis=tuple(side for side in range(3) if side != axis)))
        low, high = (int(planes[0]), int(planes[-1]) + 1) if len(planes) else (0, 1)
        region.append(slice(max(0, low - _MARGIN), min(seen.shape[axis], high + _MARGIN)))
    x, y, z = region
    return SegmentationReplay(
        np.ascontiguousarray(shares[:, x, y, z]), np.ascontiguousarray(labels[x, y, z]), recorded.scan_grid
    )


@dataclass(frozen=True)
class _Known:
    """Overlaps that were measured before, of the candidates with these indices."""

    neighbours: Neighbours
    index: Int64[Tensor, " n"]

    def take(self, index: Int64[Tensor, " k"]) -> _Known:
        """The same for the rows that an index picks."""
        return replace(self, index=self.index[index])

    def stay(
        self, rows: BoxRows, kinds: Int64[Tensor, " n"], *, order: Tensor, iou: float, most: int | None
    ) -> Int64[Tensor, " k"]:
        """As `Joining` says."""
        del rows, kinds
        by_order = _falling(order)
        kept = self.neighbours.stay(self.index[by_order].numpy(), iou=iou, most=most)
        return by_order[torch.from_numpy(kept)]

    def group(self, rows: BoxRows, kinds: Int64[Tensor, " n"], *, iou: float) -> Groups:
        """As `Joining` says."""
        del kinds
        by_score = _falling(rows.scores)
        kept, number = self.neighbours.group(self.index[by_score].numpy(), iou=iou)
        cluster = torch.empty_like(by_score)
        cluster[by_score] = torch.from_numpy(number)
        return Groups(by_score[torch.from_numpy(kept)], cluster)


def _falling(values: Tensor) -> Int64[Tensor, " n"]:
    """The order from the highest down, which is mostly there already."""
    if bool((values[1:] <= values[:-1]).all()):
        return torch.arange(len(values))
    return values.argsort(descending=True, stable=True)
