"""Metrics: COCO, FROC with bootstraps, surface distances, each against a peer on the same cases in the same run.

The peer of COCO is MONAI's COCOMetric with its matching. That of bootstraps draws scans, copies what belongs to them
and scores again, as LUNA16's script does; of mAP it does so for a few draws, whose time is scaled to a thousand. That
of surfaces is MONAI's Dice, Hausdorff distance and surface Dice, class by class. The row of differences compares both
with a reference that follows pycocotools' loops in float64.
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scans import enlarged
from scipy import ndimage
from table import Row, options, show

from voxray.core.detections import Detections
from voxray.metrics import coco
from voxray.metrics.bootstrap import draw_weights
from voxray.metrics.luna16 import JudgedMarks, Marks, Nodules, bootstrap, froc, judge
from voxray.metrics.pool import pool_of
from voxray.metrics.segmentation import structure_table
from voxray.phantoms.kinds import draw_phantom

Scans = tuple[list[Detections], list[NDArray[np.float64]], list[NDArray[np.int64]]]

MONAI_COCO: Any = importlib.import_module("monai.apps.detection.metrics.coco")
MONAI_MATCHING: Any = importlib.import_module("monai.apps.detection.metrics.matching")
MONAI_BOXES: Any = importlib.import_module("monai.data.box_utils")
MONAI_METRICS: Any = importlib.import_module("monai.metrics")
SKLEARN_METRICS: Any = importlib.import_module("sklearn.metrics")

NUM_DRAWS = 1000
SIDE = 300.0


def main() -> None:
    """Prints the table."""
    given = options(__doc__ or "")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    num_scans = 100 if given.quick else 1000
    rows = coco_rows(num_scans, draws=5 if given.quick else 3)
    rows += luna16_rows(num_draws=NUM_DRAWS)
    rows += surface_rows(quick=given.quick)
    show(rows, title="metrics, one core", json_file=given.json)


def coco_rows(num_scans: int, *, draws: int) -> list[Row]:
    """COCO's metrics on scans of 100 boxes: time, equality with the reference, and a bootstrap of it."""
    rows = []
    for objects in (5, 100):
        scans = random_scans(num_scans, found=100, objects=objects)
        ours, seconds = _timed(partial(coco.evaluate, *scans, ["nodule"]), repeats=5)
        theirs, peer = _timed(partial(_monai, scans), repeats=1)
        name = f"COCO, {num_scans} scans x 100 boxes, {objects} objects each"
        rows.append(Row(name, peer * 1e3, seconds * 1e3, "ms", aim=20, less_is_better=True))
        if objects == 5:
            expected = reference(scans)
            rows.append(
                Row(
                    "its largest difference from the reference",
                    max(abs(theirs[key] - expected[key]) for key in expected),
                    max(abs(ours[key] - expected[key]) for key in expected),
                    "",
                    aim=1e-12,
                    less_is_better=True,
                    aim_of="voxray",
                )
            )
            rows.append(_bootstrap_row(scans, draws))
    return rows


def _bootstrap_row(scans: Scans, draws: int) -> Row:
    pool = pool_of(*scans, num_classes=1, ious=coco.IOUS)
    weights = draw_weights(len(scans[0]), rng=np.random.default_rng(0), num=NUM_DRAWS)
    values, seconds = _timed(lambda: coco.precision_and_recall(pool, weights, ["nodule"], coco.IOUS), repeats=1)

    def again() -> list[float]:
        drawn = [np.repeat(np.arange(len(scans[0])), weights[:, i].astype(int)) for i in range(draws)]
        return [
            coco.evaluate(
                [scans[0][i] for i in index], [scans[1][i] for i in index], [scans[2][i] for i in index], ["a"]
            )["mAP"]
            for index in drawn
        ]

    expected, peer = _timed(again, repeats=1)
    np.testing.assert_allclose(values["mAP"][:draws], expected, atol=1e-3)
    name = f"{NUM_DRAWS} bootstraps of all of it, {len(scans[0])} scans"
    return Row(name, peer * NUM_DRAWS / draws, seconds, "s", aim=5, less_is_better=True)


def luna16_rows(*, num_draws: int) -> list[Row]:
    """LUNA16's rules on 89 scans of 100 marks: the score, and its bootstraps against copying candidates."""
    marks, included, excluded = random_marks(89)

    def ours() -> Any:
        outcome = judge(marks, included, excluded, num_scans=89)
        return outcome, froc(outcome), bootstrap(outcome, rng=np.random.default_rng(0), num=num_draws)

    (outcome, _, bands), seconds = _timed(ours, repeats=1)
    (low, high), peer = _timed(lambda: _copied_bands(outcome, num_draws, bands.rates), repeats=1)
    np.testing.assert_allclose(bands.low, low, atol=1e-6)
    np.testing.assert_allclose(bands.high, high, atol=1e-6)
    name = f"LUNA16 FROC, 89 scans x 100 marks, {num_draws} bootstraps"
    return [Row(name, peer, seconds, "s", aim=1.0, less_is_better=True, aim_of="voxray")]


def surface_rows(*, quick: bool) -> list[Row]:
    """NSD and HD95 of a spleen at clinical size and of many organs, against MONAI's functions."""
    shape, spacing = ((224, 186, 100), (1.6, 1.6, 3.0)) if quick else ((448, 372, 200), (0.8, 0.8, 1.5))
    spleen = enlarged(shape, spacing)[1].voxels
    organs = draw_phantom("abdomen", 0)
    cases = [
        (f"spleen, {' x '.join(map(str, shape))}", spleen, spacing),
        (
            f"{int(organs.labels.max())} organs, {' x '.join(map(str, organs.labels.shape))}",
            organs.labels,
            organs.image.grid.spacing_mm,
        ),
    ]
    rows = []
    for name, truth, spacing_mm in cases:
        found = _spoilt(truth)
        num = int(truth.max())
        ours, seconds = _timed(partial(structure_table, found, truth, spacing_mm, num_classes=num), repeats=3)
        theirs, peer = _timed(partial(_monai_surfaces, found, truth, spacing_mm), repeats=1)
        rows.append(Row(f"Dice, NSD, HD95: {name}", peer * 1e3, seconds * 1e3, "ms", aim=2, less_is_better=True))
        there = np.isfinite(ours[:, 0])
        np.testing.assert_allclose(ours[there][:, [1, 3]], theirs, rtol=1e-4)
    return rows


def random_scans(count: int, *, found: int, objects: int) -> Scans:
    """Scans with boxes of 5 to 25 mm; a quarter of the findings lie near an object."""
    rng = np.random.default_rng(1)
    result: Scans = ([], [], [])
    for _ in range(count):
        truth, boxes = _boxes(rng, objects), _boxes(rng, found)
        near = rng.integers(0, objects, found // 4)
        boxes[: found // 4] = truth[near] + rng.normal(0, 1.0, (found // 4, 6))
        scores = np.sort(rng.random(found).astype(np.float32))[::-1].copy()
        order = rng.permutation(found)
        result[0].append(Detections(boxes[order].astype(np.float32), scores, np.zeros(found, np.int64)))
        result[1].append(truth)
        result[2].append(np.zeros(objects, np.int64))
    return result


def random_marks(num_scans: int) -> tuple[Marks, Nodules, Nodules]:
    """100 marks, about one nodule and 37 excluded findings a scan, as LUNA16 has them."""
    rng = np.random.default_rng(2)
    scans = np.repeat(np.arange(num_scans), 100)
    included = np.sort(rng.integers(0, num_scans, num_scans * 5 // 4))
    excluded = np.repeat(np.arange(num_scans), 37)
    places = [rng.uniform(0, SIDE, (len(rows), 3)) for rows in (scans, included, excluded)]
    first = np.searchsorted(scans, included)
    places[0][first] = places[1] + rng.normal(0, 1.5, places[1].shape)
    scores = rng.random(len(scans))
    scores[first] = 1 - scores[first] ** 3
    return (
        Marks(scans, places[0], scores),
        Nodules(included, places[1], rng.uniform(4, 20, len(included))),
        Nodules(excluded, places[2], np.full(len(excluded), -1.0)),
    )


def reference(scans: Scans) -> dict[str, float]:
    """mAP, mAR and AP at the ends as pycocotools' loops compute them, in float64."""
    total = sum(len(classes) for classes in scans[2])
    precisions, recalls = [], []
    for threshold in coco.IOUS:
        scored: list[tuple[float, bool]] = []
        for found, truth, _ in zip(*scans, strict=True):
            overlap = _overlaps(found.boxes.astype(np.float64), truth)
            taken: set[int] = set()
            for row, score in zip(overlap, found.scores.tolist(), strict=True):
                best, chosen = threshold, -1
                for index, value in enumerate(row.tolist()):
                    if index not in taken and value >= best:
                        best, chosen = value, index
                taken |= {chosen} - {-1}
                scored.append((score, chosen >= 0))
        scored.sort(key=lambda pair: -pair[0])
        hits = np.cumsum([hit for _, hit in scored])
        recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
        for index in range(len(precision) - 1, 0, -1):
            precision[index - 1] = max(precision[index - 1], precision[index])
        at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
        precisions.append(float(np.mean([precision[i] if i < len(precision) else 0.0 for i in at.tolist()])))
        recalls.append(float(recall[-1]))
    ends = {"AP@0.10": precisions[0], "AP@0.50": precisions[-1]}
    return {"mAP": float(np.mean(precisions)), "mAR": float(np.mean(recalls))} | ends


def _overlaps(boxes: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    sides = np.minimum(boxes[:, None, 3:], truth[None, :, 3:]) - np.maximum(boxes[:, None, :3], truth[None, :, :3])
    shared = np.clip(sides[..., 0], 0, None) * np.clip(sides[..., 1], 0, None) * np.clip(sides[..., 2], 0, None)
    volumes = [
        (part[:, 3] - part[:, 0]) * (part[:, 4] - part[:, 1]) * (part[:, 5] - part[:, 2]) for part in (boxes, truth)
    ]
    overlap: NDArray[np.float64] = shared / (volumes[0][:, None] + volumes[1][None] - shared)
    return overlap


def _monai(scans: Scans) -> dict[str, float]:
    metric = MONAI_COCO.COCOMetric(classes=["nodule"], iou_list=[0.1, 0.5], max_detection=[100], verbose=False)
    boxes, scores = [one.boxes.astype(np.float64) for one in scans[0]], [one.scores for one in scans[0]]
    kinds = [one.classes for one in scans[0]]
    matched = MONAI_MATCHING.matching_batch(
        MONAI_BOXES.box_iou, metric.iou_thresholds, boxes, kinds, scores, scans[1], scans[2]
    )
    found = metric(matched)[0]
    over = "IoU_0.10_0.50_0.05_MaxDet_100"
    ends = {f"AP@{iou}": float(found[f"AP_IoU_{iou}_MaxDet_100"]) for iou in ("0.10", "0.50")}
    return {"mAP": float(found[f"mAP_{over}"]), "mAR": float(found[f"mAR_{over}"])} | ends


def _copied_bands(
    outcome: JudgedMarks, num: int, rates: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The script's way: each draw copies its scans' samples, sorts them and makes a ROC curve."""
    num_scans = len(outcome.nodules)
    drawn = np.random.default_rng(0).integers(num_scans, size=(num, num_scans))
    of_scan = [np.flatnonzero(outcome.scans == scan) for scan in range(num_scans)]
    curves = np.zeros((num, len(rates)))
    for row, scans in zip(curves, drawn.tolist(), strict=True):
        samples = np.concatenate([of_scan[scan] for scan in scans])
        is_hit, total = outcome.is_hit[samples], outcome.nodules[scans].sum()
        fpr, tpr, _ = SKLEARN_METRICS.roc_curve(is_hit, outcome.scores[samples])
        row[:] = np.interp(rates, fpr * (~is_hit).sum() / num_scans, tpr * is_hit.sum() / total)
    ordered = np.sort(curves, axis=0)
    return ordered[int(0.025 * num)], ordered[int(0.975 * num)]


def _monai_surfaces(
    found: NDArray[np.uint8], truth: NDArray[np.uint8], spacing_mm: Sequence[float]
) -> NDArray[np.float64]:
    rows = []
    for label in range(1, int(truth.max()) + 1):
        if not (truth == label).any():
            continue
        pair = [torch.from_numpy(volume == label)[None, None].float() for volume in (found, truth)]
        how: dict[str, Any] = {"include_background": True, "spacing": tuple(spacing_mm)}
        MONAI_METRICS.compute_dice(*pair, include_background=True)
        nsd = MONAI_METRICS.compute_surface_dice(*pair, class_thresholds=[1.0], **how)
        rows.append([float(nsd), float(MONAI_METRICS.compute_hausdorff_distance(*pair, percentile=95, **how))])
    return np.array(rows)


def _spoilt(truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels as a network would have them: two voxels off, and a little too large."""
    moved = np.roll(truth, 2, axis=0)
    grown = ndimage.grey_dilation(moved, size=(3, 3, 3))
    found: NDArray[np.uint8] = np.where(moved > 0, moved, grown).astype(np.uint8)
    return found


def _boxes(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    centres, sizes = rng.uniform(0, SIDE, (count, 3)), rng.uniform(5, 25, (count, 3))
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)


def _timed(function: Callable[[], Any], *, repeats: int) -> tuple[Any, float]:
    """What the function gives, and its shortest time in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - begin)
    return result, min(times)


if __name__ == "__main__":
    main()
