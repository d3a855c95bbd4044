"""LUNA16's official rules (Setio 2017; van Ginneken 2010): marks against nodules, FROC and CPM.

A mark hits a nodule where its centre lies nearer than the nodule's radius. The highest score on a nodule counts; more
marks on it are doubles, which are neither hits nor false. Marks on excluded findings are left out, scans without
marks count, and of a scan with more than 100 marks only those that score higher than the 101st are taken.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

from voxray.metrics.bootstrap import Weights, band, draw_weights, ones
from voxray.metrics.curves import Steps, corners, interpolate, share, steps
from voxray.metrics.froc import RATES

MAX_MARKS = 100
UNKNOWN_DIAMETER_MM = 10.0
"""What a negative diameter of an excluded finding stands for."""

BAND_RATES = np.linspace(0.125, 8.0, 10_000)
"""False marks a scan at which the official script gives its bands."""


class Marks(NamedTuple):
    """Marks of all scans, in any order: number of the scan, centre in mm, score."""

    scans: Int64[np.ndarray, " n"]
    centres_mm: Float64[np.ndarray, "n 3"]
    scores: Float64[np.ndarray, " n"]


class Nodules(NamedTuple):
    """Nodules of all scans: number of the scan, centre in mm, diameter (negative where unknown)."""

    scans: Int64[np.ndarray, " m"]
    centres_mm: Float64[np.ndarray, "m 3"]
    diameters_mm: Float64[np.ndarray, " m"]


class JudgedMarks(NamedTuple):
    """What became of the marks: one sample a found nodule (its best score) and one a false mark; and the counts."""

    scans: Int64[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"]
    is_hit: Bool[np.ndarray, " n"]
    best: Float64[np.ndarray, " m"]
    """Of each nodule the best score of its marks; nan where it was missed."""
    nodules: Int64[np.ndarray, " s"]
    """Nodules in each scan."""
    num_marks: int
    num_ignored: int
    """Marks on excluded findings."""
    num_doubles: int

    @property
    def num_found(self) -> int:
        """Nodules that were found."""
        return int(self.is_hit.sum())

    @property
    def num_false(self) -> int:
        """False marks."""
        return int(len(self.is_hit) - self.is_hit.sum())


def judge(
    marks: Marks, included: Nodules, excluded: Nodules, *, num_scans: int, max_marks: int = MAX_MARKS
) -> JudgedMarks:
    """Every mark judged, scan by scan."""
    scans, scores, is_hit = [], [], []
    best = np.full(len(included.scans), np.nan)
    num_marks = num_ignored = num_doubles = 0
    rows_of = [_by_scan(table.scans, num_scans) for table in (marks, included, excluded)]
    for scan, (mine, real, other) in enumerate(zip(*rows_of, strict=True)):
        mine = mine[_taken(marks.scores[mine], max_marks)]
        on_real = _inside(marks.centres_mm[mine], included, real)
        on_other = _inside(marks.centres_mm[mine], excluded, other).any(axis=1)
        hits = on_real.any(axis=1)
        false = marks.scores[mine[~hits & ~on_other]]
        found = on_real.any(axis=0)
        best[real[found]] = np.where(on_real, marks.scores[mine][:, None], -np.inf).max(axis=0, initial=-np.inf)[
            found
        ]
        scores += [best[real[found]], false]
        is_hit += [np.ones(int(found.sum()), bool), np.zeros(len(false), bool)]
        scans.append(np.full(len(false) + int(found.sum()), scan))
        num_marks += len(mine)
        num_ignored += int((on_other & ~hits).sum())
        num_doubles += int(np.maximum(on_real.sum(axis=0) - 1, 0).sum())
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return JudgedMarks(
        scans=np.concatenate(scans)[order],
        scores=np.concatenate(scores)[order],
        is_hit=np.concatenate(is_hit)[order],
        best=best,
        nodules=np.bincount(included.scans, minlength=num_scans),
        num_marks=num_marks,
        num_ignored=num_ignored,
        num_doubles=num_doubles,
    )


class Froc(NamedTuple):
    """The curve: at each threshold false marks a scan and sensitivity; and sensitivity at the seven rates."""

    thresholds: Float64[np.ndarray, " k"]
    false_per_scan: Float64[np.ndarray, " k"]
    sensitivity: Float64[np.ndarray, " k"]
    at_rates: Float64[np.ndarray, " r"]

    @property
    def cpm(self) -> float:
        """The mean sensitivity at the seven rates: the competition's score."""
        return float(self.at_rates.mean())


def froc(outcome: JudgedMarks) -> Froc:
    """The official curve; without any nodule the sensitivities are nan."""
    found, fps, sens = _curve(outcome, ones(len(outcome.nodules)), only_corners=True)
    return Froc(found.thresholds, fps[:, 0], sens[:, 0], interpolate(fps, sens, RATES)[:, 0])


class Bands(NamedTuple):
    """Over scan-level bootstraps: mean, lower and upper sensitivity at `rates`, and the CPM of each replicate."""

    rates: Float64[np.ndarray, " r"]
    mean: Float64[np.ndarray, " r"]
    low: Float64[np.ndarray, " r"]
    high: Float64[np.ndarray, " r"]
    cpm: Float64[np.ndarray, " b"]
    at_rates: Float64[np.ndarray, "seven b"]


def bootstrap(
    outcome: JudgedMarks, *, rng: np.random.Generator, num: int = 1000, rates: NDArray[np.float64] = BAND_RATES
) -> Bands:
    """The official bands (95 %). A replicate without a nodule has no sensitivity and does not count."""
    weights = draw_weights(len(outcome.nodules), rng=rng, num=num)
    _, fps, sens = _curve(outcome, weights)
    at = np.ascontiguousarray(interpolate(fps, sens, rates).T)
    seven = interpolate(fps, sens, RATES)
    low, high = band(at)
    count = np.isfinite(at).sum(axis=0)
    return Bands(rates, share(np.nansum(at, axis=0), count.astype(np.float64)), low, high, seven.mean(axis=0), seven)


def _curve(
    outcome: JudgedMarks, weights: Weights, *, only_corners: bool = False
) -> tuple[Steps, NDArray[np.float64], NDArray[np.float64]]:
    found = steps(outcome.scores, outcome.is_hit, outcome.scans, weights, every=only_corners)
    found = corners(found) if only_corners else found
    total = np.broadcast_to(outcome.nodules @ weights, found.hits.shape)
    return found, found.others / weights.sum(axis=0), share(found.hits, total)


def _by_scan(scans: NDArray[np.int64], num_scans: int) -> list[NDArray[np.int64]]:
    """The rows of each scan, in their order."""
    order = np.argsort(scans, kind="stable")
    return np.split(order, np.cumsum(np.bincount(scans, minlength=num_scans))[:-1])


def _taken(scores: NDArray[np.float64], max_marks: int) -> NDArray[np.bool_]:
    if len(scores) <= max_marks:
        return np.ones(len(scores), bool)
    return np.asarray(scores > np.sort(scores)[::-1][max_marks])


def _inside(
    centres: Float64[np.ndarray, "n 3"], nodules: Nodules, rows: Int64[np.ndarray, " m"]
) -> Bool[np.ndarray, "n m"]:
    """Which marks lie nearer to which nodule's centre than its radius."""
    diameters = nodules.diameters_mm[rows]
    radii = np.where(diameters < 0, UNKNOWN_DIAMETER_MM, diameters) / 2
    shifts = centres[:, None] - nodules.centres_mm[rows][None]
    squared = shifts[..., 0] ** 2 + shifts[..., 1] ** 2 + shifts[..., 2] ** 2
    return np.asarray(squared < radii**2)
