"""Overlaps measured once give what measuring them again gives."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from voxray.boxes.clustering import group
from voxray.boxes.neighbours import Neighbours
from voxray.boxes.nms import nms


def crowd(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes with whole corners, many of which start in one place, scores with ties, and kinds."""
    rng = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 12, (count, 3), generator=rng)
    high = low + torch.randint(1, 8, (count, 3), generator=rng)
    scores = torch.randint(1, 9, (count,), generator=rng) / 10
    return torch.cat([low, high], dim=1).float(), scores, torch.randint(2, (count,), generator=rng)


@given(st.integers(1, 70), st.sampled_from([0.0, 0.1, 0.3, 0.5]), st.integers(0, 10_000), st.integers(1, 30))
def test_same_as_suppression_and_clustering(count: int, iou: float, seed: int, most: int) -> None:
    boxes, scores, kinds = crowd(count, seed)
    known = Neighbours.of(boxes, kinds, floor=min(iou, 0.1))
    assert known is not None
    order = scores.argsort(descending=True, stable=True).numpy()
    assert order[known.stay(order, iou=iou)].tolist() == nms(boxes, scores, kinds, iou=iou).tolist()
    kept, number = known.group(order, iou=iou)
    groups = group(boxes, scores, kinds, iou=iou)
    assert order[kept].tolist() == groups.leaders.tolist()
    assert np.array_equal(number, groups.cluster.numpy()[order])
    assert known.stay(order, iou=iou, most=most).tolist() == kept[:most].tolist()


@given(st.integers(1, 70), st.sampled_from([0.1, 0.3]), st.integers(0, 1000), st.integers(1, 30))
def test_boxes_that_come_sorted(count: int, iou: float, seed: int, most: int) -> None:
    boxes, scores, kinds = crowd(count, seed)
    order = scores.argsort(descending=True, stable=True)
    boxes, kinds = boxes[order], kinds[order]
    known = Neighbours.of(boxes, kinds, floor=0.1)
    assert known is not None
    found = known.stay(np.arange(count), iou=iou, most=most)
    assert found.tolist() == nms(boxes, scores[order], kinds, iou=iou, max_kept=most).tolist()
    some = np.arange(0, count, 2)
    assert known.stay(some, iou=iou).tolist() == nms(boxes[some], scores[order][some], kinds[some], iou=iou).tolist()


@given(st.integers(2, 60), st.integers(0, 1000))
def test_some_of_the_boxes(count: int, seed: int) -> None:
    boxes, scores, kinds = crowd(count, seed)
    known = Neighbours.of(boxes, kinds, floor=0.1)
    assert known is not None
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: count // 2]
    order = chosen[scores[chosen].argsort(descending=True, stable=True)]
    kept = known.stay(order.numpy(), iou=0.2)
    assert order[kept].tolist() == order[nms(boxes[order], scores[order], kinds[order], iou=0.2)].tolist()


def test_too_many_pairs_are_not_listed() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 5, 5, 5]] * 20)
    kinds = torch.zeros(20, dtype=torch.int64)
    assert Neighbours.of(boxes, kinds, floor=0.1, most=189) is None
    known = Neighbours.of(boxes, kinds, floor=0.1, most=190)
    assert known is not None
    assert len(known.other) == 380


def test_nothing_has_no_neighbours() -> None:
    known = Neighbours.of(torch.zeros((0, 6)), torch.zeros(0, dtype=torch.int64), floor=0.1)
    assert known is not None
    assert known.stay(np.zeros(0, np.int64), iou=0.2).tolist() == []
