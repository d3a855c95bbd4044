"""Suppression: the greedy rule's exact result, and much faster than a step for each box."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.box_utils import non_max_suppression
from torch import Tensor

from support.box_references import iou
from voxray.boxes import nms as module
from voxray.boxes.nms import nms


def greedy(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> list[int]:
    """The rule as it is told: down the scores, keep what no kept box of its class overlaps by more."""
    overlap = iou(boxes, boxes)
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if all(classes[index] != classes[other] or overlap[index, other] <= threshold for other in kept):
            kept.append(index)
    return kept


def crowd(count: int, num_centres: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes that crowd around a few centres, with scores."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.rand((num_centres, 3), generator=rng) * torch.tensor([500.0, 500.0, 180.0])
    which = torch.randint(num_centres, (count,), generator=rng)
    centre = centres[which] + torch.randn((count, 3), generator=rng) * 2
    half = 3 + torch.rand((count, 3), generator=rng) * 10
    return torch.cat([centre - half, centre + half], dim=1), torch.rand(count, generator=rng)


def test_golden() -> None:
    """nnDetection's own code gives [2, 3] at thresholds 0.5 and 0.1."""
    boxes = torch.tensor(
        [[0.0, 0, 0, 10, 10, 10], [1, 1, 1, 11, 11, 11], [0, 0, 0, 10, 10, 9], [40, 40, 40, 50, 50, 50]]
    )
    scores, classes = torch.tensor([0.9, 0.8, 0.95, 0.3]), torch.zeros(4, dtype=torch.int64)
    for threshold in (0.5, 0.1):
        assert nms(boxes, scores, classes, iou=threshold).tolist() == [2, 3]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 60),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.1, 0.22, 0.5, 0.9]),
    st.integers(1, 40),
    st.integers(0, 10_000),
)
def test_same_as_greedy(
    count: int, num_centres: int, num_classes: int, threshold: float, block: int, seed: int
) -> None:
    boxes, scores = crowd(count, num_centres, seed)
    boxes, scores = boxes.round(), (scores * 10).round() / 10
    classes = torch.randint(num_classes, (count,), generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "PAIRS_AT_ONCE", 7)
        kept = nms(boxes, scores, classes, iou=threshold).tolist()
        assert kept == greedy(boxes, scores, classes, threshold)
        assert nms(boxes, scores, classes, iou=threshold, max_kept=3).tolist() == kept[:3]


def test_classes_do_not_suppress_each_other() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 0, 5, 5, 5]] * 3), torch.tensor([0.5, 0.7, 0.6])
    assert nms(boxes, scores, torch.tensor([0, 1, 0]), iou=0.1).tolist() == [1, 2]


def test_nothing_in_nothing_out() -> None:
    empty = torch.zeros(0)
    assert nms(torch.zeros((0, 6)), empty, empty.long(), iou=0.2).shape == (0,)


def test_one_large_box_among_small_ones() -> None:
    boxes, scores = crowd(3000, 60, 5)
    boxes[17] = torch.tensor([-10.0, -10, -10, 600, 600, 300])
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    assert nms(boxes, scores, classes, iou=0.22).tolist() == non_max_suppression(boxes, scores, 0.22).tolist()


def test_ten_thousand_crowded_boxes_as_monai() -> None:
    boxes, scores = crowd(10_000, 300, 3)
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    expected = torch.as_tensor(non_max_suppression(boxes, scores, 0.22))
    assert torch.equal(nms(boxes, scores, classes, iou=0.22), expected)
