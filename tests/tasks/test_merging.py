"""Merging a scan's candidates: the defaults, the published forms against slow twins, and every limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from support.box_references import iou
from voxray.boxes.nms import nms
from voxray.core.detections import Detections
from voxray.core.recipe import DetectionMerge
from voxray.tasks.candidates import Placed
from voxray.tasks.merging import best_rows, merge_placed
from voxray.windows import lattice

SHAPE, WINDOW = (160, 160, 96), (64, 64, 64)
PLACES = lattice(SHAPE, window=WINDOW, overlap=0.5, stride=(4, 4, 4)).places


def scan(*, num_views: int = 3, count: int = 400, seed: int = 0) -> Placed:
    """Candidates of two classes that crowd around a dozen places, each from a view and a window that sees it."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(10, np.array(SHAPE) - 10, (12, 3))
    centre = centres[rng.integers(0, 12, count)] + rng.normal(0, 2, (count, 3))
    half = rng.uniform(3, 9, (count, 3))
    boxes = np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, [*SHAPE, *SHAPE])
    seen = [
        [tile for tile, first in enumerate(PLACES) if all(a <= c < a + 64 for a, c in zip(first, place, strict=True))]
        for place in centre
    ]
    return Placed(
        torch.from_numpy(boxes).float(),
        scores=torch.from_numpy(rng.uniform(0.03, 1, count)).float(),
        classes=torch.from_numpy(rng.integers(0, 2, count)),
        views=torch.from_numpy(rng.integers(0, num_views, count)),
        tiles=torch.tensor([rng.choice(tiles) if tiles else 0 for tiles in seen]),
        starts=torch.tensor(PLACES),
        window=WINDOW,
        num_views=num_views,
    )


def same(found: Detections, boxes: Any, scores: Any) -> None:
    """Boxes and scores of both are the same, highest score first."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    np.testing.assert_allclose(found.scores, np.asarray(scores)[order], atol=1e-6)
    np.testing.assert_allclose(found.boxes, np.asarray(boxes).reshape(-1, 6)[order], atol=1e-4)


def test_by_default_one_suppression_over_all_views_and_windows() -> None:
    placed, how = scan(), DetectionMerge(max_detections=40)
    kept = nms(placed.boxes, placed.scores, placed.classes, iou=how.tile_iou, max_kept=40)
    found = merge_placed(placed, how)
    assert np.array_equal(found.boxes, placed.boxes[kept].numpy())
    assert np.array_equal(found.scores, placed.scores[kept].numpy())
    assert np.array_equal(found.classes, placed.classes[kept].numpy())


def test_nndetections_form_against_its_steps_one_by_one() -> None:
    """Weighted suppression in each view's classes, at most ten each, then clustering over views class by class."""
    placed = scan()
    how = DetectionMerge(
        method="weighted_nms", tile_iou=0.1, view_candidates=100, view_detections=10, ensemble_method="wbc"
    )
    priority = placed.scores * placed.trusted("linear")
    per_view = []
    for view in range(3):
        rows = torch.nonzero(placed.views == view).squeeze(1)
        rows = rows[placed.scores[rows].argsort(descending=True, stable=True)[:100]]
        kept = [
            row
            for kind in (0, 1)
            for row in greedy(placed, [int(r) for r in rows if placed.classes[r] == kind], priority, 0.1)
        ]
        kept.sort(key=lambda row: -float(placed.scores[row]))
        per_view += kept[:10]
    boxes, scores = [], []
    for kind in (0, 1):
        left = sorted(
            (row for row in per_view if placed.classes[row] == kind), key=lambda row: -float(placed.scores[row])
        )
        while left:
            overlap = iou(placed.boxes[left[:1]], placed.boxes[left])[0]
            members = [row for row, share in zip(left, overlap, strict=True) if share > how.ensemble_iou]
            mass = overlap[overlap > how.ensemble_iou].double()
            weighted = mass * placed.scores[members].double()
            missing = max(0, 3 - len(members))
            scores.append(float(weighted.sum() / (mass.sum() + missing * mass.mean())))
            boxes.append((weighted[:, None] * placed.boxes[members]).sum(dim=0) / weighted.sum())
            left = [row for row in left if row not in members]
    found = merge_placed(placed, how)
    same(found, torch.stack(boxes), scores)
    assert len(found) > 10


def greedy(placed: Placed, rows: list[int], priority: torch.Tensor, threshold: float) -> list[int]:
    """Suppression as it is told."""
    kept: list[int] = []
    for row in sorted(rows, key=lambda row: -float(priority[row])):
        if all(iou(placed.boxes[[row]], placed.boxes[[other]]).item() <= threshold for other in kept):
            kept.append(row)
    return kept


def test_mdts_form_against_its_loop() -> None:
    """Clusters over everything: expected are views x windows there, found the different (view, window) pairs."""
    placed = scan(seed=3)
    how = DetectionMerge(method="wbc", tile_iou=0.15, tile_weight="gaussian", wbc_by_volume=True, max_detections=500)
    weights, windows = placed.trusted("gaussian").double(), placed.num_windows().double()
    volume = (placed.boxes[:, 3:] - placed.boxes[:, :3]).double().prod(dim=1)
    boxes, scores = [], []
    left = placed.scores.argsort(descending=True, stable=True).tolist()
    while left:
        overlap = iou(placed.boxes[left[:1]], placed.boxes[left])[0]
        inside = (overlap > 0.15) & (placed.classes[left] == placed.classes[left[0]])
        members = [row for row, is_in in zip(left, inside, strict=True) if is_in]
        mass = overlap[inside].double() * weights[members] * volume[members]
        weighted = mass * placed.scores[members].double()
        sources = {(int(placed.views[row]), int(placed.tiles[row])) for row in members}
        missing = max(0.0, float(windows[members].mean()) * 3 - len(sources))
        scores.append(float(weighted.sum() / (mass.sum() + missing * mass.mean())))
        boxes.append((weighted[:, None] * placed.boxes[members]).sum(dim=0) / weighted.sum())
        left = [row for row in left if row not in members]
    same(merge_placed(placed, how), torch.stack(boxes), scores)


def test_views_do_not_suppress_each_other_until_they_are_joined() -> None:
    placed = scan(num_views=2)
    apart = merge_placed(placed, DetectionMerge(ensemble_method="nms", ensemble_iou=1.0, max_detections=1000))
    alone = [merge_placed(placed.take(placed.views == v), DetectionMerge(max_detections=1000)) for v in (0, 1)]
    assert len(apart) == sum(map(len, alone))


def test_a_finding_of_one_view_alone_scores_less_for_every_view_that_is_silent() -> None:
    placed = scan(num_views=4).take(torch.tensor([0]))
    found = merge_placed(placed, DetectionMerge(ensemble_method="wbc"))
    assert found.scores[0] == pytest.approx(float(placed.scores[0]) / 4)
    kind = merge_placed(placed, DetectionMerge(ensemble_method="wbc", wbc_missing_weight=0.0))
    assert kind.scores[0] == pytest.approx(float(placed.scores[0]))


def test_limits() -> None:
    placed = scan()
    assert len(merge_placed(placed, DetectionMerge(max_detections=7))) == 7
    floored = merge_placed(placed, DetectionMerge(method="wbc", final_floor=0.4))
    assert floored.scores.min() >= 0.4
    few = merge_placed(placed, DetectionMerge(view_candidates=2, tile_iou=1.0))
    assert len(few) == 6
    joined = DetectionMerge(
        ensemble_method="weighted_nms", ensemble_iou=1.0, view_detections=4, ensemble_candidates=9
    )
    assert len(merge_placed(placed, joined)) == 9


def test_the_best_rows_of_each_view_keep_their_order() -> None:
    scores, views = torch.tensor([0.1, 0.9, 0.9, 0.3, 0.8]), torch.tensor([0, 1, 1, 0, 1])
    assert best_rows(scores, views, 1).tolist() == [1, 3]
    assert best_rows(scores, views, 2).tolist() == [0, 1, 2, 3]
    assert best_rows(scores, views, None).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", ["nms", "weighted_nms", "wbc"])
@pytest.mark.parametrize("ensemble", ["pooled", "nms", "weighted_nms", "wbc"])
def test_no_candidates_no_detections(method: Any, ensemble: Any) -> None:
    nothing = scan().take(torch.zeros(400, dtype=torch.bool))
    assert len(merge_placed(nothing, DetectionMerge(method=method, ensemble_method=ensemble))) == 0
