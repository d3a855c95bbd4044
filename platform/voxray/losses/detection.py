"""The loss of an anchor-based detector: cross-entropy over mined anchors, box regression over positive ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from voxray.boxes.anchors import AnchorLevel, per_anchor
from voxray.boxes.assign import Assignment, Sample, assign, num_draws, sample
from voxray.boxes.coding import decode, encode
from voxray.boxes.overlap import paired_giou
from voxray.core.batch import Batch
from voxray.core.outputs import DetectionOutput
from voxray.core.recipe import DetectionLoss
from voxray.losses import Reduce


class _ByAnchor(NamedTuple):
    """A network's answer with one row for each anchor, in float32."""

    logits: Float[Tensor, "b n c"]
    deltas: Float[Tensor, "b n 6"]


def assign_batch(batch: Batch, levels: Sequence[AnchorLevel], loss: DetectionLoss) -> Assignment:
    """The anchors of the batch's objects by the recipe's rule."""
    return assign(
        batch.boxes,
        batch.classes,
        levels,
        num_candidates=loss.atss_candidates,
        center_in_box=loss.atss_center_in_box,
    )


def draw(assignment: Assignment, loss: DetectionLoss, rng: torch.Generator | None = None) -> Float[Tensor, "b d"]:
    """The random numbers that a step's sampling needs, on the CPU so that every device draws the same.

    Without a generator they come from torch's own, whose state is part of a checkpoint.
    """
    return torch.rand((len(assignment.anchors), num_draws(assignment, loss)), generator=rng)


def detection_loss(
    output: DetectionOutput,
    batch: Batch,
    assignment: Assignment,
    draws: Float[Tensor, "b d"],
    *,
    loss: DetectionLoss,
    reduce: Reduce,
) -> dict[str, Tensor]:
    """``class`` (mean over sampled anchors and classes) and ``box`` (mean over sampled positives), weighted.

    Means are over the batches of all workers. Every parameter gets a gradient, zero where a batch holds no object.
    Both are computed in float32, whatever precision the network ran in.
    """
    with torch.autocast(output.class_logits[0].device.type, enabled=False):
        prediction = _by_anchor(output, batch)
        chosen = sample(assignment, prediction.logits.amax(dim=2), draws.to(batch.boxes.device), loss)
        class_sum, class_count = _class_terms(prediction, batch, assignment, chosen)
        box_sum = _box_terms(prediction, batch, assignment, chosen, loss)
        box_count = chosen.is_positive.sum().float()
        sums = reduce(torch.stack([class_sum, class_count, box_sum, box_count]))
        num_classes = prediction.logits.shape[2]
        return {
            "class": loss.class_weight * sums[0] / (sums[1] * num_classes).clamp_min(1),
            "box": loss.box_weight * sums[2] / sums[3].clamp_min(1),
        }


def _by_anchor(output: DetectionOutput, batch: Batch) -> _ByAnchor:
    num_shapes = output.box_deltas[0].shape[1] // 6
    assert len(batch.boxes) == len(output.class_logits[0])
    return _ByAnchor(
        logits=per_anchor(output.class_logits, num_shapes).float(),
        deltas=per_anchor(output.box_deltas, num_shapes).float(),
    )


def _class_terms(
    prediction: _ByAnchor, batch: Batch, assignment: Assignment, chosen: Sample
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum of the cross-entropy over the chosen anchors, and how many they are."""
    objects = assignment.objects.gather(1, chosen.positives)
    every_class = torch.arange(prediction.logits.shape[2], device=objects.device)
    target = (batch.classes.gather(1, objects)[..., None] == every_class).float()
    positive = _rows(prediction.logits, assignment.anchors.gather(1, chosen.positives))
    negative = _rows(prediction.logits, chosen.negatives)
    entropy = functional.binary_cross_entropy_with_logits
    total = _masked_sum(entropy(positive, target, reduction="none"), chosen.is_positive) + _masked_sum(
        entropy(negative, torch.zeros_like(negative), reduction="none"), chosen.is_negative
    )
    return total, (chosen.is_positive.sum() + chosen.is_negative.sum()).float()


def _box_terms(
    prediction: _ByAnchor, batch: Batch, assignment: Assignment, chosen: Sample, loss: DetectionLoss
) -> Float[Tensor, ""]:
    """Sum over the chosen positives of smooth L1 (Girshick 2015, equation 3; mean of six) or 1 - GIoU."""
    anchors = _rows(assignment.anchor_boxes, chosen.positives)
    deltas = _rows(prediction.deltas, assignment.anchors.gather(1, chosen.positives))
    truth = _rows(batch.boxes.float(), assignment.objects.gather(1, chosen.positives))
    truth = torch.where(chosen.is_positive[..., None], truth, anchors)
    if loss.box_loss == "giou":
        return _masked_sum(1 - paired_giou(decode(deltas, anchors), truth)[..., None], chosen.is_positive)
    terms = functional.smooth_l1_loss(deltas, encode(truth, anchors), reduction="none", beta=loss.smooth_l1_beta)
    return _masked_sum(terms / 6, chosen.is_positive)


def _rows(values: Float[Tensor, "b n c"], index: Tensor) -> Float[Tensor, "b k c"]:
    return values.gather(1, index[..., None].expand(*index.shape, values.shape[2]))


def _masked_sum(terms: Float[Tensor, "b k c"], mask: Bool[Tensor, "b k"]) -> Float[Tensor, ""]:
    """The sum where the mask is true; elsewhere neither value nor gradient counts, were it infinite."""
    return torch.where(mask[..., None], terms, 0.0).sum()
