"""Which anchors should answer which object (ATSS), and which of them a training step looks at (hard negatives).

Everything works on a whole padded batch at once with sizes that do not depend on the data, so that the device never
has to wait for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from voxray.boxes.anchors import AnchorLevel
from voxray.boxes.overlap import paired_iou, volumes
from voxray.core.batch import IGNORED
from voxray.core.recipe import DetectionLoss


class Assignment(NamedTuple):
    """For s = objects * candidates: the candidate anchors, their boxes and objects, and which of them are positive.

    An anchor is positive for one object at most. `is_negative` is neither true for a positive anchor nor for one that
    touches an ignored region.
    """

    anchors: Int64[Tensor, "b s"]
    anchor_boxes: Float[Tensor, "b s 6"]
    objects: Int64[Tensor, "b s"]
    is_positive: Bool[Tensor, "b s"]
    is_negative: Bool[Tensor, "b n"]


class Sample(NamedTuple):
    """The anchors that a step looks at: `positives` index the assignment's candidates, `negatives` are anchors.

    Both have a fixed length; where the mask is false the entry does not count.
    """

    positives: Int64[Tensor, "b p"]
    is_positive: Bool[Tensor, "b p"]
    negatives: Int64[Tensor, "b q"]
    is_negative: Bool[Tensor, "b q"]


def assign(
    boxes: Float[Tensor, "b m 6"],
    classes: Int64[Tensor, "b m"],
    levels: Sequence[AnchorLevel],
    *,
    num_candidates: int,
    center_in_box: bool = False,
) -> Assignment:
    """Adaptive training sample selection (Zhang 2020, algorithm 1).

    Candidates of an object are all anchors at the `num_candidates` nearest places of each level (at every place,
    where a level has fewer). Positive are those that touch it and whose IoU reaches the candidates' mean plus
    standard deviation (of a sample); an anchor that several objects claim goes to the one it overlaps most. Objects
    without volume and padding claim none. Regions of class `IGNORED` claim none either, but take the anchors that
    they touch out of the negatives.
    """
    boxes = boxes.float()
    numbers, anchor_boxes, overlap, claimed = _claims(boxes, levels, num_candidates, center_in_box)
    claimed = claimed & ((classes >= 0) & (volumes(boxes) > 0))[:, :, None]
    num_anchors = sum(level.num_anchors for level in levels)
    objects = torch.arange(boxes.shape[1], device=boxes.device)[None, :, None].expand_as(numbers)
    numbers, objects, overlap = numbers.flatten(1), objects.flatten(1), overlap.flatten(1)
    is_positive = _one_object_each(numbers, objects, overlap.where(claimed.flatten(1), -1.0), num_anchors)
    positive = torch.zeros((len(boxes), num_anchors), dtype=torch.int64, device=boxes.device)
    positive = positive.scatter_add(1, numbers, is_positive.long()) > 0
    touched = torch.cat([_touching(boxes, classes == IGNORED, level) for level in levels], dim=1)
    return Assignment(numbers, anchor_boxes.flatten(1, 2), objects, is_positive, ~positive & ~touched)


def best_overlaps(
    boxes: Float[Tensor, "m 6"], levels: Sequence[AnchorLevel], *, num_candidates: int, center_in_box: bool = False
) -> Float64[Tensor, " m"]:
    """The IoU of each box's best positive anchor, were it alone in its patch; 0 where no anchor is positive."""
    if not len(boxes):
        return torch.zeros(0, dtype=torch.float64)
    _, _, overlap, claimed = _claims(boxes[None].float(), levels, num_candidates, center_in_box)
    return overlap.where(claimed, 0.0).amax(dim=2)[0].double()


def num_draws(assignment: Assignment, loss: DetectionLoss) -> int:
    """How many random numbers in [0, 1) `sample` needs for each patch."""
    return assignment.anchors.shape[1] + _pool_size(assignment, loss)


def sample(
    assignment: Assignment, scores: Float[Tensor, "b n"], draws: Float[Tensor, "b d"], loss: DetectionLoss
) -> Sample:
    """At random some positives of each patch, and negatives out of those that look most like an object.

    Per patch at most ``anchors_per_patch * positive_fraction`` positives; for each of them
    ``1 / positive_fraction - 1`` negatives, but never fewer than `min_negatives`, drawn from `hard_pool` times as
    many of the highest-scored ones (`scores`: any measure that rises with the largest class probability).
    """
    num_candidates = assignment.anchors.shape[1]
    keys = draws[:, :num_candidates].masked_fill(~assignment.is_positive, -1.0)
    key, positives = keys.topk(min(_most_positives(loss), num_candidates), dim=1)
    is_positive = key >= 0
    wanted = _negatives_for(is_positive.sum(dim=1, keepdim=True), loss)

    pool = _pool_size(assignment, loss)
    score, hardest = scores.detach().float().masked_fill(~assignment.is_negative, -torch.inf).topk(pool, dim=1)
    rank = torch.arange(pool, device=scores.device)[None]
    in_pool = (rank < wanted * loss.hard_pool) & (score != -torch.inf)
    most = min(_most_negatives(loss), pool)
    key, place = draws[:, num_candidates:].masked_fill(~in_pool, -1.0).topk(most, dim=1)
    is_negative = (rank[:, :most] < wanted) & (key >= 0)
    return Sample(positives, is_positive, hardest.gather(1, place), is_negative)


def _claims(
    boxes: Float[Tensor, "b m 6"], levels: Sequence[AnchorLevel], num_candidates: int, center_in_box: bool
) -> tuple[Int64[Tensor, "b m k"], Float[Tensor, "b m k 6"], Float[Tensor, "b m k"], Bool[Tensor, "b m k"]]:
    """Each box's candidate anchors: their numbers, their boxes, how they overlap it, and which of them it claims."""
    found = [_candidates(boxes, level, num_candidates) for level in levels]
    firsts = _firsts(levels)
    numbers = torch.cat([number + first for (number, _), first in zip(found, firsts, strict=True)], dim=2)
    anchor_boxes = torch.cat([anchors for _, anchors in found], dim=2)
    overlap = paired_iou(boxes[:, :, None], anchor_boxes)
    claimed = (overlap >= _threshold(overlap)) & (overlap > 0)
    if center_in_box:
        claimed &= _centre_inside(anchor_boxes, boxes)
    return numbers, anchor_boxes, overlap, claimed


def _candidates(
    boxes: Float[Tensor, "b m 6"], level: AnchorLevel, count: int
) -> tuple[Int64[Tensor, "b m k"], Float[Tensor, "b m k 6"]]:
    """Numbers and boxes of the level's anchors at the `count` places nearest to each box's centre.

    A place among the nearest is, along each axis, among the nearest coordinates; so only count**3 places compete.
    """
    centre = (boxes[..., :3] + boxes[..., 3:]) / 2
    distance, place = torch.zeros_like(centre[..., :1]), torch.zeros_like(centre[..., :1], dtype=torch.int64)
    for axis in range(3):
        away = (level.centres(axis, boxes.device) - centre[..., axis, None]).square()
        near, index = away.sort(dim=-1, stable=True)
        near, index = near[..., :count], index[..., :count]
        distance = (distance[..., :, None] + near[..., None, :]).flatten(-2)
        place = (place[..., :, None] * level.shape[axis] + index[..., None, :]).flatten(-2)
    nearest = distance.sort(dim=-1, stable=True).indices[..., :count]
    place = place.gather(-1, nearest)[..., None].expand(*nearest.shape, level.num_shapes)
    shape = torch.arange(level.num_shapes, device=boxes.device).expand_as(place)
    anchors = level.boxes_at(place.flatten(-2), shape.flatten(-2))
    return (place * level.num_shapes + shape).flatten(-2), anchors


def _threshold(overlap: Float[Tensor, "b m k"]) -> Float[Tensor, "b m 1"]:
    """Mean plus standard deviation (of a sample; 0 for a single candidate)."""
    mean = overlap.mean(dim=-1, keepdim=True)
    variance = (overlap - mean).square().sum(dim=-1, keepdim=True) / max(overlap.shape[-1] - 1, 1)
    return mean + variance.sqrt()


def _centre_inside(anchors: Float[Tensor, "b m k 6"], boxes: Float[Tensor, "b m 6"]) -> Bool[Tensor, "b m k"]:
    centre = (anchors[..., :3] + anchors[..., 3:]) / 2
    return ((centre > boxes[:, :, None, :3]) & (centre < boxes[:, :, None, 3:])).all(dim=-1)


def _one_object_each(
    numbers: Int64[Tensor, "b s"], objects: Int64[Tensor, "b s"], overlap: Float[Tensor, "b s"], num_anchors: int
) -> Bool[Tensor, "b s"]:
    """Which claims (overlap >= 0) win their anchor: the largest overlap, of equal ones the first object."""
    best = torch.full((len(numbers), num_anchors), -1.0, device=numbers.device)
    best = best.scatter_reduce(1, numbers, overlap, reduce="amax")
    wins = (overlap >= 0) & (overlap == best.gather(1, numbers))
    last = int(objects.shape[1])
    first = torch.full((len(numbers), num_anchors), last, device=numbers.device)
    first = first.scatter_reduce(1, numbers, objects.masked_fill(~wins, last), reduce="amin")
    return wins & (objects == first.gather(1, numbers))


def _touching(boxes: Float[Tensor, "b m 6"], chosen: Bool[Tensor, "b m"], level: AnchorLevel) -> Bool[Tensor, "b n"]:
    """The level's anchors that share volume with a chosen box: those that overlap it along every axis."""
    half = level.half_sides(boxes.device)
    along = []
    for axis in range(3):
        centre = level.centres(axis, boxes.device)[:, None]
        low, high = centre - half[:, axis], centre + half[:, axis]
        begin, end = boxes[..., axis, None, None], boxes[..., axis + 3, None, None]
        along.append(((low < end) & (high > begin)).float())
    along[0] = along[0] * chosen[..., None, None]
    return torch.einsum("bmxa,bmya,bmza->bxyza", *along).flatten(1) > 0


def _firsts(levels: Sequence[AnchorLevel]) -> list[int]:
    """The number of each level's first anchor."""
    return [sum(level.num_anchors for level in levels[:index]) for index in range(len(levels))]


def _most_positives(loss: DetectionLoss) -> int:
    return int(loss.anchors_per_patch * loss.positive_fraction)


def _negatives_for(num_positives: Int64[Tensor, "*b"], loss: DetectionLoss) -> Int64[Tensor, "*b"]:
    each = 1 / loss.positive_fraction - 1 if loss.positive_fraction > 0 else loss.anchors_per_patch
    return (num_positives.clamp_min(1) * each).long().clamp_min(loss.min_negatives)


def _most_negatives(loss: DetectionLoss) -> int:
    return int(_negatives_for(torch.tensor(_most_positives(loss)), loss))


def _pool_size(assignment: Assignment, loss: DetectionLoss) -> int:
    return min(_most_negatives(loss) * loss.hard_pool, assignment.is_negative.shape[1])
