"""How much boxes overlap: intersection over union, and its generalisation to boxes that do not touch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def volumes(boxes: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n"]:
    """The boxes' volumes; 0 where an end lies before its start."""
    sides = (boxes[..., 3:].float() - boxes[..., :3].float()).clamp_min(0)
    return sides[..., 0] * sides[..., 1] * sides[..., 2]


def paired_iou(first: Float[Tensor, "*n 6"], second: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n"]:
    """Intersection over union of boxes taken pair by pair (shapes broadcast); 0 where both are empty."""
    shared, union = _shared_and_union(first.float(), second.float())
    return shared / union.clamp_min(torch.finfo(torch.float32).tiny)


def paired_giou(first: Float[Tensor, "*n 6"], second: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n"]:
    """Generalised IoU (Rezatofighi 2019, algorithm 1) pair by pair: IoU less the empty share of the enclosing box."""
    first, second = first.float(), second.float()
    tiny = torch.finfo(torch.float32).tiny
    shared, union = _shared_and_union(first, second)
    low, high = torch.minimum(first[..., :3], second[..., :3]), torch.maximum(first[..., 3:], second[..., 3:])
    enclosing = volumes(torch.cat([low, high], dim=-1))
    return shared / union.clamp_min(tiny) - (enclosing - union) / enclosing.clamp_min(tiny)


def _shared_and_union(
    first: Float[Tensor, "*n 6"], second: Float[Tensor, "*n 6"]
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Axis by axis, so that no result is larger than one number for each pair."""
    shared = _shared_side(first, second, 0) * _shared_side(first, second, 1) * _shared_side(first, second, 2)
    return shared, volumes(first) + volumes(second) - shared


def _shared_side(first: Float[Tensor, "*n 6"], second: Float[Tensor, "*n 6"], axis: int) -> Float[Tensor, "*n"]:
    high = torch.minimum(first[..., axis + 3], second[..., axis + 3])
    return (high - torch.maximum(first[..., axis], second[..., axis])).clamp_min(0)
