"""Every anchor, and every pair of boxes: what the package never asks for as a whole, and tests compare it with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxray.boxes.anchors import AnchorLevel
from voxray.boxes.overlap import paired_iou


def all_boxes(levels: Sequence[AnchorLevel]) -> Tensor:
    """Every anchor of all levels, in order."""
    return torch.cat([level.boxes_at(*_numbers(level)) for level in levels])


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair."""
    return paired_iou(first[:, None], second[None])


def _numbers(level: AnchorLevel) -> tuple[Tensor, Tensor]:
    number = torch.arange(level.num_anchors)
    return number // level.num_shapes, number % level.num_shapes
