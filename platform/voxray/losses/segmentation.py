"""Soft Dice (Milletari 2016) plus cross-entropy over label maps, normalised over all ranks.

Both need only sums over voxels, so probabilities and their gradient are worked out slab by slab and never kept: with
105 classes autograd would hold several copies of the logits in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from voxray.core.recipe import SegmentationLoss
from voxray.losses import Reduce

SLAB_ELEMENTS = 2**23
"""Logits worked on at once: 32 MiB in float32."""


class Sums(NamedTuple):
    """Sums over the voxels of each patch."""

    overlap: Float[Tensor, "b c"]
    """Probability of the true class, per class."""
    predicted: Float[Tensor, "b c"]
    """Probability (or its square) per class."""
    true: Float[Tensor, "b c"]
    """Voxels per class."""
    surprise: Float[Tensor, ""]
    """Minus the log-probability of the true class, over all patches."""


def segmentation_loss(
    logits: Float[Tensor, "b c x y z"], labels: UInt8[Tensor, "b x y z"], config: SegmentationLoss, reduce: Reduce
) -> dict[str, Tensor]:
    """The weighted ``dice`` and ``ce`` losses in float32; class 0 is background."""
    sums = Sums(*_Sums.apply(logits, labels, config.squared))  # type: ignore[no-untyped-call]
    first = 0 if config.background or logits.shape[1] == 1 else 1
    overlap, total = sums.overlap[:, first:], (sums.predicted + sums.true)[:, first:]
    voxels = torch.full_like(sums.surprise, labels.numel())
    if config.batch_dice:
        packed = reduce(torch.cat([overlap.sum(0), total.sum(0), sums.surprise[None], voxels[None]]))
        overlap, total = packed[:-2].chunk(2)
        dice = _dice_loss(overlap, total, config.smooth).mean()
    else:
        each = _dice_loss(overlap, total, config.smooth)
        packed = reduce(torch.stack([each.sum(), torch.full_like(each.sum(), each.numel()), sums.surprise, voxels]))
        dice = packed[0] / packed[1]
    return {"dice": config.dice_weight * dice, "ce": config.ce_weight * packed[-2] / packed[-1]}


def _dice_loss(overlap: Tensor, total: Tensor, smooth: float) -> Tensor:
    return 1 - (2 * overlap + smooth) / (total + smooth)


class _Sums(torch.autograd.Function):
    """The `Sums` of a batch as a tuple; backward works the probabilities out again instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(logits, labels)
        ctx.squared = squared
        overlap, predicted, true = (logits.new_zeros(logits.shape[:2], dtype=torch.float32) for _ in range(3))
        surprise = logits.new_zeros((), dtype=torch.float32)
        nothing = logits.new_zeros((), dtype=torch.float32)
        for patch, slab in _slabs(logits):
            log_p = logits[patch, :, slab].flatten(1).float().log_softmax(0)
            is_true = _is_true(labels[patch, slab], len(log_p))
            p = log_p.exp()
            overlap[patch] += torch.where(is_true, p, nothing).sum(1)
            predicted[patch] += (p * p if squared else p).sum(1)
            true[patch] += is_true.float().sum(1)
            surprise -= torch.where(is_true, log_p, nothing).sum()
        ctx.mark_non_differentiable(true)
        return overlap, predicted, true, surprise

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        by_overlap, by_predicted, _, by_surprise = gradients
        result = torch.empty_like(logits)
        nothing = logits.new_zeros((), dtype=torch.float32)
        for patch, slab in _slabs(logits):
            p = logits[patch, :, slab].flatten(1).float().softmax(0)
            is_true = _is_true(labels[patch, slab], len(p))
            of_p = torch.where(is_true, by_overlap[patch, :, None], nothing)
            of_p += by_predicted[patch, :, None] * (2 * p if ctx.squared else 1)
            of_logit = of_p.mul_(p)
            of_logit -= p * of_logit.sum(0)
            of_logit += by_surprise * (p - is_true.float())
            result[patch, :, slab] = of_logit.view_as(result[patch, :, slab])
        return result, None, None


def _slabs(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Patch and stretch of x such that the logits there are at most `SLAB_ELEMENTS`, or one voxel thick."""
    patches, classes, length, *others = logits.shape
    thickness = max(1, SLAB_ELEMENTS // (classes * others[0] * others[1]))
    for patch in range(patches):
        for start in range(0, length, thickness):
            yield patch, slice(start, start + thickness)


def _is_true(labels: Tensor, num_classes: int) -> Tensor:
    """A flat mask per class. Sums over it always add in one order, unlike those scattered with atomics on a GPU."""
    return labels.flatten() == torch.arange(num_classes, device=labels.device, dtype=labels.dtype)[:, None]
