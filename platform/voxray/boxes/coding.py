"""Box deltas: a box as seen from its anchor (Girshick 2014, appendix C), always in float32.

A delta is ``dx dy dz`` in units of the anchor's sides, then ``log`` of the ratios of the sides.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)
"""A decoded side is at most 62.5 times the anchor's; the published weights were trained with this bound."""


def encode(boxes: Float[Tensor, "*n 6"], anchors: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 6"]:
    """The deltas that lead from each anchor to its box; both must have volume."""
    centre, sides = _centre_and_sides(boxes)
    anchor_centre, anchor_sides = _centre_and_sides(anchors)
    return torch.cat([(centre - anchor_centre) / anchor_sides, torch.log(sides / anchor_sides)], dim=-1)


def decode(deltas: Float[Tensor, "*n 6"], anchors: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 6"]:
    """The boxes that the deltas lead to: the inverse of `encode` up to the bound on sides."""
    anchor_centre, anchor_sides = _centre_and_sides(anchors)
    deltas = deltas.float()
    centre = anchor_centre + deltas[..., :3] * anchor_sides
    half = deltas[..., 3:].clamp(max=MAX_LOG_RATIO).exp() * anchor_sides / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _centre_and_sides(boxes: Float[Tensor, "*n 6"]) -> tuple[Float[Tensor, "*n 3"], Float[Tensor, "*n 3"]]:
    low, high = boxes[..., :3].float(), boxes[..., 3:].float()
    return (low + high) / 2, high - low
