"""Curves over a falling threshold: hits and others above it, for every replicate of a bootstrap at once.

ROC, precision-recall and FROC are three ways to draw the same two counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True)
class Steps:
    """At k falling thresholds the weight of the marks with that score or a higher one, in each of b replicates.

    The first threshold is infinite, above all marks. Thresholds between which only others come are left out: the
    curve is straight there.
    """

    thresholds: Float64[np.ndarray, " k"]
    hits: Float64[np.ndarray, "k b"]
    others: Float64[np.ndarray, "k b"]


def steps(
    scores: Float64[np.ndarray, " n"],
    is_hit: Bool[np.ndarray, " n"],
    scans: Int64[np.ndarray, " n"],
    weights: Float64[np.ndarray, "s b"],
    *,
    every: bool = False,
) -> Steps:
    """The counts above each score, highest first and equal ones as one; with `every` no threshold is left out."""
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, np.int64)
    group = np.searchsorted(last, np.arange(len(scores)))
    with_hit = np.zeros(len(last), bool)
    with_hit[group[is_hit]] = True
    kept = with_hit | np.append(with_hit[1:], True)[: len(last)] | every
    column = np.searchsorted(np.flatnonzero(kept), group)
    found = [_with_zero(tally(column[part], scans[part], int(kept.sum()), weights)) for part in (is_hit, ~is_hit)]
    return Steps(np.append(np.inf, scores[last[kept]]), *found)


def corners(found: Steps) -> Steps:
    """The steps of one replicate without those at which both counts keep their pace, as scikit-learn has it."""
    bends = [np.diff(counts[1:, 0], 2) != 0 for counts in (found.hits, found.others)]
    inner = bends[0] | bends[1]
    kept = np.concatenate([[True, True], inner, [True]]) if len(found.hits) > 2 else np.ones(len(found.hits), bool)
    return Steps(found.thresholds[kept], found.hits[kept], found.others[kept])


def tally(
    column: Int64[np.ndarray, " n"], scans: Int64[np.ndarray, " n"], num_columns: int, weights: NDArray[np.float64]
) -> Float64[np.ndarray, "k b"]:
    """The weight of the marks up to each column, that included, in each replicate."""
    counts = sparse.csr_array((np.ones(len(column)), (column, scans)), shape=(num_columns, len(weights)))
    total: NDArray[np.float64] = np.cumsum(counts @ weights, axis=0)
    return total


def interpolate(
    x: Float64[np.ndarray, "k b"], y: Float64[np.ndarray, "k b"], at: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, "m b"]:
    """What `numpy.interp` gives, replicate by replicate; x rises from 0."""
    columns = zip(np.ascontiguousarray(x.T), np.ascontiguousarray(y.T), strict=True)
    return np.stack([np.interp(at, one, other) for one, other in columns], axis=1)


def area(found: Steps, *, num_hits: Float64[np.ndarray, " b"]) -> Float64[np.ndarray, " b"]:
    """Area under the ROC curve; what was not found of `num_hits` ranks below all. nan without hits or others."""
    total = num_hits * found.others[-1]
    summed = ((found.hits[1:] + found.hits[:-1]) / 2 * np.diff(found.others, axis=0)).sum(axis=0)
    return share(summed, total)


def average_precision_of_steps(found: Steps, *, num_hits: Float64[np.ndarray, " b"]) -> Float64[np.ndarray, " b"]:
    """Recall gained times precision, summed over thresholds; nan where there is nothing to find."""
    every = found.hits[1:] + found.others[1:]
    precision = np.divide(found.hits[1:], every, out=np.zeros_like(every), where=every > 0)
    summed = (np.diff(found.hits, axis=0) * precision).sum(axis=0)
    return share(summed, num_hits)


def roc(
    found: Steps, *, num_hits: Float64[np.ndarray, " b"], at: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, "m b"]:
    """Share of hits found at each share of others let through; nan without hits or others."""
    others = found.others[-1]
    values = interpolate(np.nan_to_num(share(found.others, others)), share(found.hits, num_hits), at)
    return np.where(others > 0, values, np.nan)


def precision_at(
    found: Steps, *, num_hits: Float64[np.ndarray, " b"], recalls: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, "m b"]:
    """The best precision at each recall or a higher one; 0 beyond what was found, nan with nothing to find."""
    every = found.hits + found.others
    precision = np.divide(found.hits, every, out=np.zeros_like(every), where=every > 0)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    envelope = np.concatenate([envelope, np.zeros((1, envelope.shape[1]))])
    recall = np.divide(found.hits, num_hits, out=np.zeros_like(every), where=num_hits > 0)
    columns = zip(np.ascontiguousarray(recall.T), np.ascontiguousarray(envelope.T), strict=True)
    best = [one[np.searchsorted(reached, recalls, side="left")] for reached, one in columns]
    return np.where(num_hits > 0, np.stack(best, axis=1), np.nan)


def share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """part / whole, and nan where the whole is 0."""
    result: NDArray[np.float64] = np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
    return result


def _with_zero(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros((1, counts.shape[1])), counts])
