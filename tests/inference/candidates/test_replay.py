"""A replay gives what the plain road gives, however a merge is set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from support.bright_scans import bright_recipe, bright_run
from support.crowds import CLASSES, crowded_case
from voxray.core.answer_json import stamp
from voxray.core.errors import DataError
from voxray.core.recipe import DetectionMerge, SegmentationMerge
from voxray.core.volume import Grid
from voxray.inference.candidates import replay as module
from voxray.inference.candidates.file import RecordedCase, RecordedHeader, RecordedTruth, with_truth
from voxray.inference.candidates.replay import MergeBounds, Replay, mean_dice, replay_case
from voxray.metrics import coco
from voxray.metrics.bootstrap import ones
from voxray.metrics.dice import confusion, dice
from voxray.tasks.merging import merge_candidates

HOWS: list[dict[str, Any]] = [
    {},
    {"tile_iou": 0.5, "max_detections": 20},
    {"score_floor": 0.3, "min_size_mm": 9.0},
    {"method": "weighted_nms", "tile_iou": 0.1},
    {"method": "weighted_nms", "ensemble_method": "wbc", "view_detections": 12, "ensemble_iou": 0.3},
    {"method": "nms", "ensemble_method": "nms", "view_candidates": 60},
    {"method": "wbc", "tile_weight": "gaussian", "wbc_by_volume": True},
    {
        "method": "wbc",
        "ensemble_method": "wbc",
        "view_candidates": 50,
        "wbc_missing_weight": 0.5,
        "final_floor": 0.05,
    },
]


@pytest.mark.parametrize("changes", HOWS)
@pytest.mark.parametrize("most_pairs", [0, 1 << 20])
def test_detections_are_those_of_the_plain_road(
    changes: dict[str, Any], most_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_PAIRS", most_pairs)
    how = DetectionMerge(**changes)
    recorded = [crowded_case(seed) for seed in range(4)]
    replay = Replay.of(recorded, MergeBounds(score_floor=0.02, tile_iou=0.1))
    plain = [merge_candidates(one.required, one.grid, how) for one in recorded]
    for case, expected in zip(replay.cases, plain, strict=True):
        assert isinstance(case.data, module.DetectionReplay)
        assert (case.data.pooled is None) == (most_pairs == 0)
        found = case.data.merged(how)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
        assert np.array_equal(found.classes, expected.classes)
    truths = [one.truth for one in recorded]
    boxes, classes = [t.boxes for t in truths if t], [t.classes for t in truths if t]
    score = coco.evaluate(plain, boxes, classes, CLASSES)["mAP"]
    assert replay.score(how, range(4)) == pytest.approx(score, abs=1e-9)
    assert 0.05 < score < 0.99


def segmented_case(seed: int) -> RecordedCase:
    """Two classes' probabilities as soft balls of different certainty, with noise, and the balls as truth."""
    rng = np.random.default_rng(seed)
    grid = Grid((40, 36, 30), (1.0, 1.0, 1.5), (0, 0, 0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    place = np.stack(np.meshgrid(*[np.arange(side) for side in grid.shape], indexing="ij"), axis=-1)
    soft, labels = [], np.zeros(grid.shape, np.uint8)
    for number, height in enumerate((0.55, 0.9), start=1):
        distance = np.linalg.norm(place - rng.uniform(12, 22, 3), axis=-1)
        labels[distance < 6] = number
        noise = (rng.random(grid.shape) < 0.001) & (place.max(axis=-1) < 26)
        soft.append(np.where(distance < 12, height / (1 + np.exp(distance - 7)), 0.0) + 0.4 * noise)
    shares = np.stack(soft)
    shares /= np.maximum(shares.sum(axis=0), 1)
    whole = np.concatenate([1 - shares.sum(axis=0, keepdims=True), shares])
    recipe = bright_recipe("segmentation")
    head = RecordedHeader(
        case=f"case_{seed}",
        patient=f"case_{seed}",
        classes=("spleen", "liver"),
        model=stamp(bright_run(recipe), recipe, sha256="0" * 64),
        grid=grid.to_dict(),
        scan_grid=grid.to_dict(),
        shape_vox=grid.shape,
    )
    return with_truth(RecordedCase(head, shares=(whole * 255).round().astype(np.uint8)), RecordedTruth(labels=labels))


@pytest.mark.parametrize(
    "how",
    [
        SegmentationMerge(),
        SegmentationMerge(threshold=0.3, min_component_mm3=20.0),
        SegmentationMerge(thresholds={"spleen": 0.2}, largest_only=True, fill_holes=("liver",)),
    ],
)
def test_labels_are_those_of_the_plain_road(how: SegmentationMerge) -> None:
    recorded = [segmented_case(seed) for seed in range(3)]
    replay = Replay.of(recorded, MergeBounds())
    rows = []
    for case, one in zip(replay.cases, recorded, strict=True):
        assert isinstance(case.data, module.SegmentationReplay)
        assert case.data.labels.size < np.prod(one.grid.shape)
        assert one.truth is not None
        assert one.truth.labels is not None
        rows.append(dice(confusion(one.labels(how).voxels, one.truth.labels, num_labels=3)))
    assert replay.score(how, range(3)) == pytest.approx(mean_dice(np.stack(rows), ones(3))[0], abs=1e-12)


def test_a_case_without_its_truth_is_refused() -> None:
    recorded = replace(crowded_case(3), truth=None)
    with pytest.raises(DataError, match=r"case case_3: \[candidates.no_truth\]"):
        replay_case(recorded, MergeBounds())


def test_mean_dice_leaves_out_what_has_no_truth() -> None:
    def plain(*rows: list[float]) -> float:
        return float(mean_dice(np.array(rows), ones(2))[0])

    assert plain([0.5, np.nan], [0.7, np.nan]) == pytest.approx(0.6)
    assert plain([0.4, 0.8], [np.nan, 0.6]) == pytest.approx((0.4 + 0.7) / 2)
    assert np.isnan(plain([np.nan, np.nan], [np.nan, np.nan]))


def test_replicates_are_scores_of_the_cases_that_they_drew() -> None:
    weights = np.array([[1.0, 0, 2], [1, 2, 0], [1, 1, 1]])
    for replay, how in (
        (Replay.of([crowded_case(seed) for seed in range(3)], MergeBounds(tile_iou=0.1)), DetectionMerge()),
        (Replay.of([segmented_case(seed) for seed in range(3)], MergeBounds()), SegmentationMerge(threshold=0.3)),
    ):
        drawn = [[case for case in range(3) for _ in range(int(column[case]))] for column in weights.T]
        expected = [replay.score(how, cases) for cases in drawn]
        np.testing.assert_allclose(replay.replicates(how, range(3), weights), expected, atol=1e-12)
