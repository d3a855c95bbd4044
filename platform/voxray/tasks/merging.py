"""From a scan's candidates to its detections: the steps that a `DetectionMerge` describes, and nothing else.

With `method` weighted_nms and `ensemble_method` wbc this is nnDetection's merge; with `method` wbc over pooled views,
`tile_weight` gaussian and `wbc_by_volume` the Medical Detection Toolkit's.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voxray.boxes.clustering import Clustering, Evidence, Groups, fuse_groups, group
from voxray.boxes.nms import nms
from voxray.core.detections import Detections
from voxray.core.recipe import DetectionMerge
from voxray.core.volume import Grid
from voxray.tasks.candidates import Placed, allowed


class BoxRows(NamedTuple):
    """Boxes on their way through the merge."""

    boxes: Float[Tensor, "n 6"]
    scores: Float[Tensor, " n"]
    classes: Int64[Tensor, " n"]
    views: Int64[Tensor, " n"]
    weights: Float[Tensor, " n"]

    def take(self, index: Tensor) -> BoxRows:
        """The rows that an index picks."""
        return BoxRows(*(column[index] for column in self))


class Joining(Protocol):
    """Which boxes of a kind are of one object; `kinds` tells boxes apart that never are."""

    def take(self, index: Int64[Tensor, " k"]) -> Joining:
        """The same for the rows that an index picks."""
        ...

    def stay(
        self, rows: BoxRows, kinds: Int64[Tensor, " n"], *, order: Float[Tensor, " n"], iou: float, most: int | None
    ) -> Int64[Tensor, " k"]:
        """Suppression in falling `order`: `boxes.nms.nms`."""
        ...

    def group(self, rows: BoxRows, kinds: Int64[Tensor, " n"], *, iou: float) -> Groups:
        """The clusters: `boxes.clustering.group`."""
        ...


class MeasuredOverlaps:
    """Overlaps are measured when they are asked for."""

    def take(self, index: Int64[Tensor, " k"]) -> MeasuredOverlaps:
        """As `Joining` says."""
        del index
        return self

    def stay(
        self, rows: BoxRows, kinds: Int64[Tensor, " n"], *, order: Float[Tensor, " n"], iou: float, most: int | None
    ) -> Int64[Tensor, " k"]:
        """As `Joining` says."""
        return nms(rows.boxes, order, kinds, iou=iou, max_kept=most)

    def group(self, rows: BoxRows, kinds: Int64[Tensor, " n"], *, iou: float) -> Groups:
        """As `Joining` says."""
        return group(rows.boxes, rows.scores, kinds, iou=iou)


MEASURED = MeasuredOverlaps()


def merge_placed(found: Placed, how: DetectionMerge, *, joining: Joining = MEASURED) -> Detections:
    """A scan's detections in edge voxels of its grid, highest score first; `found` is what `how` allows of it.

    `joining` joins the windows of a view, or of all where they are pooled; views are always measured.
    """
    if how.view_candidates is not None:
        best = best_rows(found.scores, found.views, how.view_candidates)
        found, joining = found.take(best), joining.take(best)
    pooled = how.ensemble_method == "pooled"
    uses_weights = how.method != "nms" or how.ensemble_method not in ("pooled", "nms")
    weights = found.trusted(how.tile_weight) if uses_weights else torch.ones_like(found.scores)
    rows = BoxRows(found.boxes, found.scores, found.classes, found.views, weights)
    kinds = rows.classes if pooled else rows.classes * found.num_views + rows.views
    if how.method == "wbc":
        rows = _clustered_over_windows(rows, kinds, found, how, joining)
    else:
        most = how.max_detections if pooled else None
        rows = _suppressed(rows, kinds, how.method, iou=how.tile_iou, most=most, joining=joining)
    if not pooled:
        rows = _over_views(rows, found.num_views, how)
    return _answer(rows, how)


def merge_candidates(placed: Placed, grid: Grid, how: DetectionMerge) -> Detections:
    """The merge of candidates that nothing was yet left out of, in edge voxels of their grid."""
    return merge_placed(placed.take(allowed(placed.boxes, placed.scores, grid.spacing_mm, how)), how)


def best_rows(scores: Float[Tensor, " n"], views: Int64[Tensor, " n"], most: int | None) -> Int64[Tensor, " k"]:
    """The rows among the best so many of their view, in their order; of equal scores the earlier are better."""
    if most is None or len(scores) <= most:
        return torch.arange(len(scores), device=scores.device)
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score[views[by_score].argsort(stable=True)]
    number = torch.bincount(views)
    first = (number.cumsum(0) - number)[views[order]]
    rank = torch.arange(len(order), device=order.device) - first
    return order[rank < most].sort().values


def _suppressed(
    rows: BoxRows, kinds: Int64[Tensor, " n"], method: str, *, iou: float, most: int | None, joining: Joining
) -> BoxRows:
    """What suppression leaves; where it has gone by the weights, they have had their say."""
    if method == "nms":
        return rows.take(joining.stay(rows, kinds, order=rows.scores, iou=iou, most=most))
    kept = rows.take(joining.stay(rows, kinds, order=rows.scores * rows.weights, iou=iou, most=most))
    return kept._replace(weights=torch.ones_like(kept.weights))


def _clustered_over_windows(
    rows: BoxRows, kinds: Int64[Tensor, " n"], found: Placed, how: DetectionMerge, joining: Joining
) -> BoxRows:
    """One answer is expected from each window that sees a place, and from each view where they are pooled."""
    views = found.num_views if how.ensemble_method == "pooled" else 1
    sources = found.tiles * found.num_views + found.views
    evidence = Evidence(rows.weights, found.num_windows() * views, sources)
    return _fused(rows, joining.group(rows, kinds, iou=how.tile_iou), evidence, how, iou=how.tile_iou)


def _over_views(rows: BoxRows, num_views: int, how: DetectionMerge) -> BoxRows:
    """The views' boxes joined; each view is expected to answer once."""
    rows = rows.take(best_rows(rows.scores, rows.views, how.view_detections))
    rows = rows.take(best_rows(rows.scores, torch.zeros_like(rows.views), how.ensemble_candidates))
    if how.ensemble_method == "wbc":
        groups = MEASURED.group(rows, rows.classes, iou=how.ensemble_iou)
        evidence = Evidence(rows.weights, torch.full_like(rows.scores, num_views))
        return _fused(rows, groups, evidence, how, iou=how.ensemble_iou)
    return _suppressed(
        rows,
        rows.classes,
        how.ensemble_method,
        iou=how.ensemble_iou,
        most=how.max_detections,
        joining=MEASURED,
    )


def _fused(rows: BoxRows, groups: Groups, evidence: Evidence, how: DetectionMerge, *, iou: float) -> BoxRows:
    config = Clustering(iou, by_volume=how.wbc_by_volume, missing_weight=how.wbc_missing_weight)
    fused = fuse_groups(rows.boxes, rows.scores, rows.classes, groups=groups, how=config, evidence=evidence)
    return BoxRows(
        fused.boxes.float(),
        fused.scores.float(),
        fused.classes,
        rows.views[fused.leaders],
        torch.ones_like(fused.scores, dtype=torch.float32),
    )


def _answer(rows: BoxRows, how: DetectionMerge) -> Detections:
    order = rows.scores.argsort(descending=True, stable=True)
    rows = rows.take(order[rows.scores[order] >= how.final_floor][: how.max_detections])
    return Detections(rows.boxes.cpu().numpy(), rows.scores.cpu().numpy(), rows.classes.cpu().numpy())
