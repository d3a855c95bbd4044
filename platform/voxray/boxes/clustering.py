"""Weighted box clustering: boxes of one class that overlap become one, the weighted mean of all of them.

The greedy rule of the Medical Detection Toolkit (Jaeger 2018, section 2.2.3) and nnDetection (Baumgartner 2021): the
best-scored box leads a cluster of all that overlap it by more than a threshold, they are set aside, and the next best
of what remains leads the next. The leaders are exactly what suppression keeps, and every other box belongs to the
best leader that overlaps it; so one suppression and a few sums over clusters take the place of the loop.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from voxray.boxes import nms


class Clustering(NamedTuple):
    """How boxes are clustered."""

    iou: float
    """Boxes that overlap a cluster's leader by more belong to it."""
    by_volume: bool = False
    """Whether larger boxes count more, by their volume (the Medical Detection Toolkit's area factor)."""
    missing_weight: float = 1.0
    """How much a prediction that was expected and is missing lowers the score; 1 as published."""


class Evidence(NamedTuple):
    """What is known of each box besides its score; what is None is 1 for every box, and a source of its own."""

    weights: Float[Tensor, " n"] | None = None
    """How much it counts, as by the place of its centre in its window."""
    expected: Float[Tensor, " n"] | None = None
    """How many predictions are expected of an object at its place; a cluster expects the mean of its boxes'."""
    sources: Int64[Tensor, " n"] | None = None
    """Where it comes from: boxes of one source in a cluster are one prediction."""


class Fused(NamedTuple):
    """One box for each cluster, highest score first; `leaders` are the clusters' best boxes, by index."""

    boxes: Float64[Tensor, "k 6"]
    scores: Float64[Tensor, " k"]
    classes: Int64[Tensor, " k"]
    leaders: Int64[Tensor, " k"]


class Groups(NamedTuple):
    """Clusters: their leaders by index, highest score first, and the number of each box's cluster."""

    leaders: Int64[Tensor, " k"]
    cluster: Int64[Tensor, " n"]


def group(
    boxes: Float[Tensor, "n 6"], scores: Float[Tensor, " n"], classes: Int64[Tensor, " n"], *, iou: float
) -> Groups:
    """Each box's cluster: that of the best-scored box of its class which stays and overlaps it by more than `iou`."""
    rest, boxes = scores.argsort(descending=True, stable=True), boxes.float()
    unowned = len(rest)
    cluster = torch.full_like(rest, unowned)
    leaders: list[Tensor] = []
    size = nms.BLOCK
    while len(rest) > 0:
        block, rest = rest[:size], rest[size:]
        stays, (better, worse) = nms.settled(boxes[block], classes[block], iou)
        number = sum(map(len, leaders)) + stays.cumsum(0) - 1
        leaders.append(block[stays])
        cluster[leaders[-1]] = number[stays]
        of_leader = stays[better]
        cluster.scatter_reduce_(0, block[worse[of_leader]], number[better[of_leader]], "amin")
        if len(rest) > 0:
            for box, leader in _followers(boxes, classes, rest, leaders[-1], iou):
                cluster.scatter_reduce_(0, box, number[stays][leader], "amin")
            rest = rest[cluster[rest] == unowned]
        size = nms.next_size(size, len(leaders[-1]))
    return Groups(torch.cat(leaders) if leaders else rest, cluster)


def fuse_groups(
    boxes: Float[Tensor, "n 6"],
    scores: Float[Tensor, " n"],
    classes: Int64[Tensor, " n"],
    *,
    groups: Groups,
    how: Clustering,
    evidence: Evidence,
) -> Fused:
    """The weighted mean box and score of each cluster, in float64.

    With m = IoU to the leader x weight (x volume) and f expected but missing predictions, a cluster's score is
    sum(m s) / (sum(m) + f mean(m)), and its box the mean of its boxes by m s.
    """
    exact, exact_scores = boxes.double(), scores.double()
    mass = _overlap_with(exact[groups.leaders][groups.cluster], exact)
    mass[groups.leaders] = 1.0  # of a leader with itself, even where it is empty
    if evidence.weights is not None:
        mass = mass * evidence.weights.double()
    if how.by_volume:
        mass = mass * (exact[:, 3:] - exact[:, :3]).prod(dim=1)
    summed = _Sums(groups)
    members = summed(torch.ones_like(mass))
    total, weighted = summed(mass), summed(mass * exact_scores)
    expected = torch.ones_like(members) if evidence.expected is None else summed(evidence.expected) / members
    found = members if evidence.sources is None else _num_sources(groups, evidence.sources)
    missing = (expected - found).clamp_min(0) * how.missing_weight
    fused_scores = weighted / (total + missing * total / members)
    sides = torch.stack([summed(mass * exact_scores * side) for side in exact.T], dim=1) / weighted[:, None]
    sides = torch.where((weighted > 0)[:, None], sides, exact[groups.leaders])
    order = fused_scores.argsort(descending=True, stable=True)
    leaders = groups.leaders[order]
    return Fused(sides[order], fused_scores[order], classes[leaders], leaders)


def _followers(
    boxes: Tensor, classes: Tensor, rest: Tensor, stays: Tensor, iou: float
) -> list[tuple[Int64[Tensor, " p"], Int64[Tensor, " p"]]]:
    """Pairs of one of the remaining boxes and the place of a leader that overlaps it by more."""
    some, best = (boxes[rest], classes[rest]), (boxes[stays], classes[stays])
    pairs = [(rest[box], leader) for leader, box in nms.overlapping(*best, *some, iou)]
    return pairs + [(rest[box], leader) for box, leader in nms.overlapping(*some, *best, iou)]


def _overlap_with(leaders: Float64[Tensor, "n 6"], boxes: Float64[Tensor, "n 6"]) -> Float64[Tensor, " n"]:
    """Intersection over union pair by pair, in float64; 0 where both are empty."""
    shared = (torch.minimum(leaders, boxes)[:, 3:] - torch.maximum(leaders, boxes)[:, :3]).clamp_min(0).prod(dim=1)
    union = sum((each[:, 3:] - each[:, :3]).clamp_min(0).prod(dim=1) for each in (leaders, boxes)) - shared
    return shared / union.clamp_min(torch.finfo(torch.float64).tiny)


class _Sums:
    """Adds up values over clusters."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def __call__(self, values: Float[Tensor, " n"]) -> Float64[Tensor, " k"]:
        empty = torch.zeros(len(self._groups.leaders), dtype=torch.float64, device=values.device)
        return empty.index_add_(0, self._groups.cluster, values.double())


def _num_sources(groups: Groups, sources: Int64[Tensor, " n"]) -> Float64[Tensor, " k"]:
    """How many different sources each cluster has."""
    span = int(sources.max()) + 1 if len(sources) else 1
    pairs = torch.unique(groups.cluster * span + sources)
    return torch.bincount(pairs.div(span, rounding_mode="floor"), minlength=len(groups.leaders)).double()
