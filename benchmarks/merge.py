"""Merging candidates and sweeping how they are merged, against the loops and libraries that do it elsewhere.

Weighted box clustering is timed against the loop as the Medical Detection Toolkit and nnDetection publish it: numpy,
one cluster after another, each measured against all boxes that are left. Both must give the same scores.

A sweep's evaluation is one setting (suppression, at most a hundred boxes a scan, mAP over IoU 0.10 to 0.50) on kept
candidates of all scans; the peer is MONAI's suppression, matching and COCOMetric on the same candidates. Both must
give the same mAP. Trials are those of `search_spaces/detection.toml` on the same scans, with Ray tasks on two cores;
they have no peer, so its column shows the aim.
"""

from __future__ import annotations

import importlib
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import Row, options, show

from voxray.boxes.clustering import Clustering, Evidence, Fused, fuse_groups, group
from voxray.boxes.neighbours import Neighbours
from voxray.boxes.nms import nms
from voxray.core.config import Setting
from voxray.core.recipe import DetectionMerge
from voxray.core.volume import Grid
from voxray.distributed.cluster import connect
from voxray.inference.candidates.replay import DetectionReplay, Replay, ReplayCase
from voxray.recipes import read_recipe
from voxray.sweeping.journal import Journal
from voxray.sweeping.optuna_study import Plan, SweepStudy, TrialResult
from voxray.sweeping.search_space import read_space
from voxray.sweeping.trials import MergeTrial, open_runner
from voxray.tasks.candidates import Placed

MONAI_COCO: Any = importlib.import_module("monai.apps.detection.metrics.coco")
MONAI_MATCHING: Any = importlib.import_module("monai.apps.detection.metrics.matching")
MONAI_BOXES: Any = importlib.import_module("monai.data.box_utils")

REPOSITORY = Path(__file__).resolve().parents[1]
IOU = 0.1
TURNS = 3
NUM_CANDIDATES = 5000
GRID = Grid((400, 400, 400), (1.0, 1.0, 1.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def main() -> None:
    """Measures and prints the table."""
    asked = options(__doc__ or "")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [clustering(10_000, num_places=places) for places in ((6000,) if asked.quick else (300, 1500, 6000))]
    replay = replay_of(20 if asked.quick else 100)
    rows.append(evaluation(replay))
    rows += trials(replay, 100 if asked.quick else 1000)
    show(rows, title="merge and sweep", json_file=asked.json)


def clustering(count: int, *, num_places: int) -> Row:
    """Seconds for one clustering of so many boxes that crowd around so many places."""
    boxes, scores, weights = crowd(count, num_places, seed=0)
    classes, expected = torch.zeros(count, dtype=torch.int64), torch.full((count,), 8.0)
    how, evidence = Clustering(iou=IOU), Evidence(weights=weights, expected=expected)
    arrays = [each.double().numpy() for each in (boxes, scores, weights)]
    slow, expected_scores = timed(lambda: published(*arrays, num_expected=8.0), turns=1)

    def ours() -> Fused:
        groups = group(boxes, scores, classes, iou=how.iou)
        return fuse_groups(boxes, scores, classes, groups=groups, how=how, evidence=evidence)

    fast, found = timed(ours, turns=TURNS)
    np.testing.assert_allclose(found.scores.numpy(), expected_scores, atol=1e-6)
    name = f"weighted box clustering, {count} boxes, {len(expected_scores)} clusters"
    return Row(name, slow, fast, "s", 20, less_is_better=True)


def replay_of(num_scans: int) -> Replay:
    """Scans with 5,000 candidates of one class around 60 places, five of which are true."""
    classes = torch.zeros(NUM_CANDIDATES, dtype=torch.int64)
    cases = []
    for seed in range(num_scans):
        boxes, scores, _ = crowd(NUM_CANDIDATES, 60, seed=seed)
        order = scores.argsort(descending=True, stable=True)
        chosen = boxes[nms(boxes, scores, classes, iou=0.1, max_kept=60)].double().numpy()
        placed = Placed(
            boxes[order],
            scores[order],
            classes,
            views=classes,
            tiles=classes,
            starts=torch.zeros((1, 3), dtype=torch.int64),
            window=GRID.shape,
            num_views=1,
        )
        known = Neighbours.of(placed.boxes, classes, floor=1e-5)
        data = DetectionReplay(placed, GRID, chosen[::12], np.zeros(5, np.int64), pooled=known, apart=known)
        cases.append(ReplayCase(f"scan {seed}", f"patient {seed}", data))
    return Replay(tuple(cases), ("nodule",))


def evaluation(replay: Replay) -> Row:
    """Seconds for one setting on all scans."""
    how, every = DetectionMerge(score_floor=0.0, max_detections=100), range(len(replay.cases))
    peer, theirs = timed(lambda: monai_score(replay, how), turns=1)
    ours, score = timed(lambda: replay.score(how, every), turns=TURNS)
    # MONAI's recall is float32, which moves AP by up to a hundredth at single points.
    np.testing.assert_allclose(score, theirs, atol=0.011)
    name = f"one sweep evaluation, {len(replay.cases)} scans x {NUM_CANDIDATES} candidates, 1 core"
    return Row(name, peer, ours, "s", 30, less_is_better=True)


def monai_score(replay: Replay, how: DetectionMerge) -> float:
    """The same by MONAI's suppression, matching and metric."""
    boxes, scores, truth = [], [], []
    for case in replay.cases:
        assert isinstance(case.data, DetectionReplay)
        placed = case.data.placed
        kept = MONAI_BOXES.non_max_suppression(
            placed.boxes, placed.scores, how.tile_iou, max_proposals=how.max_detections
        )
        boxes.append(placed.boxes[kept].numpy().astype(np.float64))
        scores.append(placed.scores[kept].numpy())
        truth.append(case.data.truth_boxes)
    metric = MONAI_COCO.COCOMetric(
        classes=["nodule"], iou_list=[0.1], iou_range=(0.1, 0.5, 0.05), max_detection=[100], verbose=False
    )
    kinds = [np.zeros(len(one), np.int64) for one in boxes]
    true_kinds = [np.zeros(len(one), np.int64) for one in truth]
    matched = MONAI_MATCHING.matching_batch(
        MONAI_BOXES.box_iou, metric.iou_thresholds, boxes, kinds, scores, truth, true_kinds
    )
    return float(metric(matched)[0]["mAP_IoU_0.10_0.50_0.05_MaxDet_100"])


def trials(replay: Replay, number: int) -> list[Row]:
    """Minutes of so many trials, and what each costs besides its evaluation, with the study on disk."""
    space = read_space(REPOSITORY / "search_spaces" / "detection.toml", read_recipe("lung_nodule"))
    every = tuple(range(len(replay.cases)))
    waited_s = 0.0
    with tempfile.TemporaryDirectory() as folder, connect(num_cpus=2):
        study = SweepStudy(Journal(Path(folder) / "journal"), "all", space, Plan(number), about="benchmark")
        with open_runner({"{}": replay}, workers=2, on_ray=True) as runner:

            def evaluate(settings: Sequence[Setting], bar: float | None) -> Sequence[TrialResult]:
                nonlocal waited_s
                called = time.perf_counter()
                first = len(every) // 5
                outcomes = runner([MergeTrial("{}", space.merge_of(one), every, first, bar) for one in settings])
                waited_s += time.perf_counter() - called
                return outcomes

            begin = time.perf_counter()
            study.run(evaluate)
            took_s = time.perf_counter() - begin
    name = f"{number} sweep trials, {len(every)} scans, 2 cores"
    minutes = 5 * number / 1000
    overhead = 1000 * (took_s - waited_s) / number
    return [
        Row(name, minutes, took_s / 60, "min", minutes, less_is_better=True, aim_of="voxray"),
        Row("the search itself, a trial", 20, overhead, "ms", 20, less_is_better=True, aim_of="voxray"),
    ]


def crowd(count: int, num_places: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes that crowd around places in a scan of 400 voxels a side, with scores and weights."""
    rng = np.random.default_rng(seed)
    places, sides = rng.uniform(20, 380, (num_places, 3)), rng.uniform(4, 12, (num_places, 1))
    which = rng.integers(0, num_places, count)
    centre = places[which] + rng.normal(0, 3, (count, 3))
    half = sides[which] * np.exp(rng.normal(0, 0.15, (count, 3)))
    columns = (
        np.concatenate([centre - half, centre + half], axis=1),
        rng.beta(0.6, 3, count),
        rng.uniform(0.5, 1, count),
    )
    boxes, scores, weights = (torch.from_numpy(column).float() for column in columns)
    return boxes, scores, weights


def published(boxes: Any, scores: Any, weights: Any, *, num_expected: float) -> Any:
    """The clusters' scores, highest first, by a step for each cluster."""
    volumes = np.prod(boxes[:, 3:] - boxes[:, :3], axis=1)
    order, found = np.argsort(-scores, kind="stable"), []
    while order.size:
        best = order[0]
        low, high = np.maximum(boxes[best, :3], boxes[order, :3]), np.minimum(boxes[best, 3:], boxes[order, 3:])
        shared = np.prod(np.maximum(high - low, 0.0), axis=1)
        overlap = shared / (volumes[best] + volumes[order] - shared)
        inside = np.flatnonzero(overlap > IOU)
        members = order[inside]
        mass = overlap[inside] * weights[members]
        weighted = mass * scores[members]
        missing = max(0.0, num_expected - len(members))
        found.append(weighted.sum() / (mass.sum() + missing * mass.mean()))
        [np.sum(boxes[members, side] * weighted) / weighted.sum() for side in range(6)]
        order = order[overlap <= IOU]
    return np.sort(found)[::-1]


def timed(action: Callable[[], Any], *, turns: int) -> tuple[float, Any]:
    """Seconds of the best turn, and what the action gives."""
    found, best = None, float("inf")
    for _ in range(turns):
        begin = time.perf_counter()
        found = action()
        best = min(best, time.perf_counter() - begin)
    return best, found


if __name__ == "__main__":
    main()
