"""Weighted box clustering: nnDetection's and MDT's own numbers, and the loop as it was published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float64, Int64
from torch import Tensor

from voxray.boxes import nms as nms_module
from voxray.boxes.clustering import Clustering, Evidence, Fused, fuse_groups, group
from voxray.boxes.nms import nms

BOXES = torch.tensor([[0.0, 0, 0, 10, 10, 10], [1, 1, 1, 11, 11, 11], [0, 0, 0, 10, 10, 9], [40, 40, 40, 50, 50, 50]])
SCORES = torch.tensor([0.9, 0.8, 0.95, 0.3])
CLASSES = torch.zeros(4, dtype=torch.int64)
WEIGHTS = torch.tensor([1, 0.5, 1, 1])

Array = Float64[np.ndarray, "..."]


def fuse(
    boxes: Tensor, scores: Tensor, classes: Tensor, *, how: Clustering, evidence: Evidence | None = None
) -> Fused:
    groups = group(boxes, scores, classes, iou=how.iou)
    return fuse_groups(boxes, scores, classes, groups=groups, how=how, evidence=evidence or Evidence())


def published(
    boxes: Array, scores: Array, classes: Int64[np.ndarray, " n"], how: Clustering, evidence: dict[str, Array]
) -> tuple[list[Array], list[float]]:
    """The rule as it was published: one cluster after another, each with all that overlaps its best box."""
    left = list(np.argsort(-scores, kind="stable"))
    fused_boxes, fused_scores = [], []
    while left:
        overlap = np.array([overlap_of(boxes[left[0]], boxes[other]) for other in left])
        same = classes[left] == classes[left[0]]
        inside = same & (overlap.astype(np.float32) > np.float32(how.iou))
        inside[0], overlap[0] = True, 1.0
        chosen = np.asarray(left)[inside]
        mass = overlap[inside] * evidence["weights"][chosen]
        if how.by_volume:
            mass = mass * np.prod(boxes[chosen, 3:] - boxes[chosen, :3], axis=1)
        found = len(np.unique(evidence["sources"][chosen]))
        missing = max(0.0, float(evidence["expected"][chosen].mean()) - found) * how.missing_weight
        weighted = mass * scores[chosen]
        fused_scores.append(float(weighted.sum() / (mass.sum() + missing * mass.mean())))
        fused_boxes.append((weighted[:, None] * boxes[chosen]).sum(axis=0) / weighted.sum())
        left = [box for box, taken in zip(left, inside, strict=True) if not taken]
    order = np.argsort(-np.asarray(fused_scores), kind="stable")
    return [fused_boxes[index] for index in order], [fused_scores[index] for index in order]


def overlap_of(first: Array, second: Array) -> float:
    shared = np.prod(np.clip(np.minimum(first[3:], second[3:]) - np.maximum(first[:3], second[:3]), 0, None))
    return float(shared / (np.prod(first[3:] - first[:3]) + np.prod(second[3:] - second[:3]) - shared))


def crowd(count: int, num_centres: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes that crowd around a few centres, with scores."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.rand((num_centres, 3), generator=rng) * 200
    which = torch.randint(num_centres, (count,), generator=rng)
    centre = centres[which] + torch.randn((count, 3), generator=rng) * 2
    half = 3 + torch.rand((count, 3), generator=rng) * 10
    return torch.cat([centre - half, centre + half], dim=1), 0.01 + 0.99 * torch.rand(count, generator=rng)


@pytest.mark.parametrize(("expected", "scores"), [(1, (0.911174, 0.3)), (3, (0.911174, 0.1)), (8, (0.34169, 0.0375))])
def test_golden_of_nndetection(expected: float, scores: tuple[float, float]) -> None:
    evidence = Evidence(weights=WEIGHTS, expected=torch.full((4,), float(expected)))
    found = fuse(BOXES, SCORES, CLASSES, how=Clustering(iou=0.1), evidence=evidence)
    assert found.scores.tolist() == pytest.approx(scores, abs=1e-6)
    assert found.leaders.tolist() == [2, 3]
    low, high = 0.105249, 10.105249
    assert found.boxes[0].tolist() == pytest.approx([low, low, low, high, high, 9.622287], abs=1e-6)


def test_golden_of_nndetection_by_volume() -> None:
    evidence = Evidence(weights=WEIGHTS, expected=torch.full((4,), 8.0))
    found = fuse(BOXES, SCORES, CLASSES, how=Clustering(iou=0.1, by_volume=True), evidence=evidence)
    assert found.scores.tolist() == pytest.approx([0.340983, 0.0375], abs=1e-6)
    assert found.boxes[0, [0, 5]].tolist() == pytest.approx([0.110591, 9.653867], abs=1e-6)


@pytest.mark.parametrize(("models", "scores"), [(1, (0.908618, 0.3)), (3, (0.908618, 0.1)), (8, (0.340732, 0.0375))])
def test_golden_of_mdt(models: float, scores: tuple[float, float]) -> None:
    """Its boxes run to their last voxel, so they end one earlier than half-open ones."""
    boxes = BOXES + torch.tensor([0.0, 0, 0, 1, 1, 1])
    evidence = Evidence(weights=WEIGHTS, expected=torch.full((4,), float(models)), sources=torch.arange(4))
    found = fuse(boxes, SCORES, CLASSES, how=Clustering(iou=0.1, by_volume=True), evidence=evidence)
    assert found.scores.tolist() == pytest.approx(scores, abs=1e-6)


@given(
    st.integers(1, 60),
    st.integers(1, 6),
    st.sampled_from([1e-5, 0.1, 0.3, 0.6]),
    st.booleans(),
    st.integers(1, 40),
    st.integers(0, 10_000),
)
def test_same_as_the_published_loop(
    count: int, num_centres: int, iou: float, by_volume: bool, block: int, seed: int
) -> None:
    boxes, scores = crowd(count, num_centres, seed)
    rng = torch.Generator().manual_seed(seed)
    classes = torch.randint(2, (count,), generator=rng)
    evidence = Evidence(
        weights=0.5 + torch.rand(count, generator=rng) / 2,
        expected=1 + 7 * torch.rand(count, generator=rng),
        sources=torch.randint(5, (count,), generator=rng),
    )
    how = Clustering(iou=iou, by_volume=by_volume, missing_weight=0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms_module, "BLOCK", block)
        found = fuse(boxes, scores, classes, how=how, evidence=evidence)
    arrays = {name: value.double().numpy() for name, value in evidence._asdict().items()}
    slow_boxes, slow_scores = published(boxes.double().numpy(), scores.double().numpy(), classes.numpy(), how, arrays)
    np.testing.assert_allclose(found.scores.numpy(), slow_scores, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found.boxes.numpy(), np.stack(slow_boxes), atol=1e-6, rtol=0)


def test_leaders_are_what_suppression_keeps() -> None:
    boxes, scores = crowd(4000, 50, 1)
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    found = fuse(boxes, scores, classes, how=Clustering(iou=0.2))
    assert sorted(found.leaders.tolist()) == sorted(nms(boxes, scores, classes, iou=0.2).tolist())
    assert (found.scores.diff() <= 0).all()


def test_without_evidence_nothing_is_missing() -> None:
    found = fuse(BOXES[3:], SCORES[3:], CLASSES[3:], how=Clustering(iou=0.5))
    torch.testing.assert_close(found.boxes, BOXES[3:].double())
    assert found.scores.tolist() == pytest.approx([0.3])


def test_boxes_without_a_score_keep_their_place() -> None:
    found = fuse(BOXES[:1], torch.zeros(1), CLASSES[:1], how=Clustering(iou=0.5))
    assert found.scores.tolist() == [0.0]
    torch.testing.assert_close(found.boxes, BOXES[:1].double())


def test_nothing_in_nothing_out() -> None:
    found = fuse(BOXES[:0], SCORES[:0], CLASSES[:0], how=Clustering(iou=0.5))
    assert found.boxes.shape == (0, 6)
    assert len(found.scores) == len(found.classes) == len(found.leaders) == 0


def test_weighted_suppression_trusts_the_middle_of_a_window() -> None:
    """At score x weight the second of two rivals wins; the scores themselves stay."""
    weights = torch.tensor([1.0, 1.0, 0.5, 1.0])
    assert nms(BOXES, SCORES, CLASSES, iou=0.1).tolist() == [2, 3]
    assert nms(BOXES, SCORES * weights, CLASSES, iou=0.1).tolist() == [0, 3]
    assert nms(BOXES, SCORES * weights, CLASSES, iou=0.1, max_kept=1).tolist() == [0]
