"""All metrics of detection from one pool of findings, in every replicate of a bootstrap, and their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from voxray.core.evaluation import ClassCurves, Line, ReliabilityBins, ScoreHistogram
from voxray.metrics.bootstrap import Weights, band, in_blocks, ones
from voxray.metrics.calibration import histogram, reliability
from voxray.metrics.coco import RECALL_POINTS, precision_and_recall, with_means
from voxray.metrics.curves import area, average_precision_of_steps, precision_at, roc, share
from voxray.metrics.froc import RATES, froc_steps, sensitivity
from voxray.metrics.patients import patient_scores, patient_steps, patient_weights
from voxray.metrics.pool import Pool

CURVE_RATES = 2.0 ** np.linspace(-4, 4, 65)
"""False findings a scan at which FROC curves are drawn; the seven of the score are among them."""

_CELLS = 4_000_000
"""Numbers in one table of a block of replicates."""


@dataclass(frozen=True)
class Findings:
    """A pool with what else its metrics need: the patient of each scan, and names."""

    pool: Pool
    patients: Int64[np.ndarray, " s"]
    """Numbered from 0."""
    classes: tuple[str, ...]
    ious: tuple[float, ...]

    @property
    def judged(self) -> list[int]:
        """The classes with truth."""
        return [int(index) for index in np.flatnonzero(self.pool.objects.any(axis=0))]


def detection_values(found: Findings, weights: Weights) -> dict[str, NDArray[np.float64]]:
    """Every metric in each replicate: COCO's, FROC, patient level, object level, calibration.

    ``FROC@0.10`` is the mean of ``sensitivity@...`` (at the first IoU) over `RATES`; ``patient_`` and ``object_`` are
    the areas under ROC and precision-recall; ``ECE`` is the calibration error of scores. Means over classes stand
    without a class's name. nan is where a replicate has nothing to judge.
    """
    return dict(in_blocks(lambda block: _values(found, block), weights, columns=_columns(found.pool)))


def _values(found: Findings, weights: Weights) -> dict[str, NDArray[np.float64]]:
    per_class = {found.classes[index]: _of_class(found, index, weights) for index in found.judged}
    nothing = np.full(weights.shape[1], np.nan)
    names = next(iter(per_class.values()), dict.fromkeys(_names(found.ious), nothing))
    ours = with_means(per_class, empty=dict.fromkeys(names, nothing))
    return precision_and_recall(found.pool, weights, found.classes, found.ious) | ours


def _names(ious: Sequence[float]) -> list[str]:
    frocs = [f"FROC@{ious[level]:.2f}" for level in (0, -1)]
    return [*frocs, *map(_rate_name, RATES), "patient_AUC", "patient_AP", "object_AUC", "object_AP", "ECE"]


def _rate_name(rate: float) -> str:
    return f"sensitivity@{rate:g}"


def _of_class(found: Findings, index: int, weights: Weights) -> dict[str, NDArray[np.float64]]:
    pool = found.pool.of_class(index)
    num_objects = pool.objects[:, 0] @ weights
    num_scans = weights.sum(axis=0)
    result = {}
    levels = {f"FROC@{found.ious[level]:.2f}": level for level in (len(found.ious) - 1, 0)}
    for name, level in levels.items():
        above = froc_steps(pool, level, weights)
        at_rates = sensitivity(above, num_objects=num_objects, num_scans=num_scans)
        result[name] = at_rates.mean(axis=0)
    result |= {_rate_name(rate): row for rate, row in zip(RATES, at_rates, strict=True)}
    result |= _patient_values(pool, found.patients, weights)
    result["object_AUC"] = area(above, num_hits=num_objects)
    result["object_AP"] = average_precision_of_steps(above, num_hits=num_objects)
    bins = reliability(pool.scores, pool.hits[0], pool.scans, weights)
    result["ECE"] = np.full(weights.shape[1], np.nan) if bins is None else bins.expected_error()
    return {name: result[name] for name in _names(found.ious)}


def _patient_values(pool: Pool, patients: NDArray[np.int64], weights: Weights) -> dict[str, NDArray[np.float64]]:
    scores, has_object = patient_scores(pool, patients)
    drawn = patient_weights(weights, patients)
    above, with_object = patient_steps(scores, has_object, drawn), has_object @ drawn
    return {
        "patient_AUC": area(above, num_hits=with_object),
        "patient_AP": average_precision_of_steps(above, num_hits=with_object),
    }


def detection_curves(found: Findings, weights: Weights) -> dict[str, ClassCurves]:
    """The curves of each class with truth; the bands come from the replicates in `weights`."""
    return {found.classes[index]: _curves(found, index, weights) for index in found.judged}


def _curves(found: Findings, index: int, weights: Weights) -> ClassCurves:
    pool = found.pool.of_class(index)
    ends = {f"{found.ious[level]:.2f}": level for level in (0, len(found.ious) - 1)}

    def draw(drawn: Weights) -> dict[str, NDArray[np.float64]]:
        return _object_curves(pool, ends, drawn) | _patient_curves(pool, found.patients, drawn)

    plain = draw(ones(pool.num_scans))
    values = in_blocks(draw, weights, columns=_columns(pool))

    def line(name: str) -> Line:
        low, high = band(values[name])
        x = CURVE_RATES if name.startswith("froc") else RECALL_POINTS
        return Line(x=_numbers(x), y=_numbers(plain[name][0]), low=_numbers(low), high=_numbers(high))

    return ClassCurves(
        froc={name: line(f"froc {name}") for name in ends},
        precision_recall={name: line(f"precision {name}") for name in ends},
        object_roc=line("object roc"),
        patient_roc=line("patient roc"),
        patient_precision_recall=line("patient precision"),
        histogram=_histogram(pool),
        reliability=_reliability(pool),
    )


def _object_curves(pool: Pool, ends: Mapping[str, int], weights: Weights) -> dict[str, NDArray[np.float64]]:
    """FROC and precision over recall at each threshold, and ROC at the first; a row for each replicate."""
    num_objects, num_scans = pool.objects[:, 0] @ weights, weights.sum(axis=0)
    result = {}
    for name, level in ends.items():
        above = froc_steps(pool, level, weights)
        froc = sensitivity(above, num_objects=num_objects, num_scans=num_scans, rates=CURVE_RATES)
        result[f"froc {name}"] = froc.T
        result[f"precision {name}"] = precision_at(above, num_hits=num_objects, recalls=RECALL_POINTS).T
        if level == 0:
            result["object roc"] = roc(above, num_hits=num_objects, at=RECALL_POINTS).T
    return result


def _patient_curves(pool: Pool, patients: NDArray[np.int64], weights: Weights) -> dict[str, NDArray[np.float64]]:
    scores, has_object = patient_scores(pool, patients)
    drawn = patient_weights(weights, patients)
    above, with_object = patient_steps(scores, has_object, drawn), has_object @ drawn
    return {
        "patient roc": roc(above, num_hits=with_object, at=RECALL_POINTS).T,
        "patient precision": precision_at(above, num_hits=with_object, recalls=RECALL_POINTS).T,
    }


def _histogram(pool: Pool) -> ScoreHistogram:
    counted = histogram(pool.scores, pool.hits[0], num_objects=int(pool.objects.sum()))
    return ScoreHistogram(
        edges=_numbers(counted.edges),
        hits=tuple(counted.hits.tolist()),
        false_findings=tuple(counted.false_findings.tolist()),
        missed=counted.missed,
    )


def _reliability(pool: Pool) -> ReliabilityBins | None:
    bins = reliability(pool.scores, pool.hits[0], pool.scans, ones(pool.num_scans))
    if bins is None:
        return None
    count, score, hit = (part[:, 0] for part in (bins.count, bins.score, bins.hit))
    return ReliabilityBins(
        count=_numbers(count), score=_numbers(share(score, count)), hit=_numbers(share(hit, count))
    )


def _columns(pool: Pool) -> int:
    """How many replicates are looked at together."""
    rows = 2 * int(np.count_nonzero(pool.hits.any(axis=0))) + 2 * pool.num_scans + len(RECALL_POINTS)
    return max(1, _CELLS // rows)


def _numbers(values: Float64[np.ndarray, " n"]) -> tuple[float, ...]:
    return tuple(float(f"{value:.9g}") for value in values.tolist())
