"""Overlap: golden values, bounds and symmetry, and agreement with MONAI."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.box_utils import box_giou, box_iou
from torch import Tensor

from support.box_references import iou
from voxray.boxes.overlap import paired_giou, paired_iou, volumes


def random_boxes(count: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand((count, 3), generator=rng) * 40
    return torch.cat([low, low + 1 + torch.rand((count, 3), generator=rng) * 30], dim=1)


BOXES = st.builds(random_boxes, st.integers(1, 12), st.integers(0, 10_000))


def test_golden_pair() -> None:
    """From nnDetection's own code, whose order is x1 y1 x2 y2 z1 z2: .344086 and .205197."""
    first = torch.tensor([[2.0, 2, 2, 12, 12, 12]])
    second = torch.tensor([[0.0, 0, 0, 10, 10, 10]])
    assert iou(first, second).item() == pytest.approx(0.344086, abs=1e-6)
    assert paired_giou(first, second).item() == pytest.approx(0.205197, abs=1e-6)


def test_agrees_with_monai() -> None:
    first, second = random_boxes(40, 1), random_boxes(30, 2)
    torch.testing.assert_close(iou(first, second), box_iou(first, second))
    torch.testing.assert_close(paired_giou(first[:, None], second[None]), box_giou(first, second))


@settings(deadline=None, max_examples=50)
@given(BOXES, BOXES)
def test_symmetric_and_bounded(first: Tensor, second: Tensor) -> None:
    forth, back = iou(first, second), iou(second, first)
    assert torch.equal(forth, back.T)
    assert ((forth >= 0) & (forth <= 1 + 1e-6)).all()
    generalised = paired_giou(first[:, None], second[None])
    assert (generalised <= forth + 1e-6).all()
    assert (generalised >= -1 - 1e-6).all()
    torch.testing.assert_close(iou(first, first).diagonal(), torch.ones(len(first)))


@settings(deadline=None, max_examples=50)
@given(BOXES, st.floats(-20, 20), st.floats(0.5, 3))
def test_same_after_moving_and_scaling(boxes: Tensor, offset: float, factor: float) -> None:
    moved = boxes * factor + offset
    torch.testing.assert_close(iou(moved, moved), iou(boxes, boxes), atol=1e-4, rtol=1e-4)


def test_boxes_without_volume() -> None:
    boxes = torch.tensor([[1.0, 1, 1, 1, 1, 1], [0, 0, 0, 2, 2, 2], [5, 5, 5, 3, 3, 3]])
    assert torch.equal(iou(boxes, boxes), torch.diag(torch.tensor([0.0, 1, 0])))
    assert torch.isfinite(paired_giou(boxes[:, None], boxes[None])).all()
    assert volumes(boxes).tolist() == [0, 8, 0]


def test_half_precision_is_computed_in_float32() -> None:
    boxes = torch.tensor([[300.0, 300, 300, 301, 301, 301]], dtype=torch.float16)
    assert iou(boxes, boxes + 0.5).dtype == torch.float32
    assert iou(boxes, boxes + 0.5).item() == pytest.approx(0.125 / 1.875)


def test_gradient_of_boxes_apart_points_together() -> None:
    first = torch.tensor([[0.0, 0, 0, 1, 1, 1]], requires_grad=True)
    (gradient,) = torch.autograd.grad(paired_giou(first, torch.tensor([[4.0, 0, 0, 5, 1, 1]])).sum(), first)
    assert gradient[0, 3] > 0
    assert paired_iou(first, torch.tensor([[4.0, 0, 0, 5, 1, 1]])).item() == 0
