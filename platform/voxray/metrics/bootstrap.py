"""Bootstrap over scans (Efron 1979): how often each scan is drawn, intervals of what follows, paired differences.

A replicate is a column of weights: how often it drew each scan. Every metric takes a matrix of them and answers all
replicates at once; a column of ones is the plain value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

CONFIDENCE = 0.95
NUM_REPLICATES = 1000
SEED = 20160101

Weights = Float64[np.ndarray, "s b"]
MetricValues = Mapping[str, NDArray[np.float64]]
"""A metric's value in each replicate, by name."""


class Difference(NamedTuple):
    """Second minus first on the same cases, with its interval and the share of replicates that are above 0."""

    value: float
    low: float
    high: float
    share_above: float


def ones(num_scans: int) -> Weights:
    """The one column that draws every scan once."""
    return np.ones((num_scans, 1))


def draw_weights(
    num_scans: int,
    *,
    rng: np.random.Generator,
    num: int = NUM_REPLICATES,
    units: Int64[np.ndarray, " s"] | None = None,
) -> Weights:
    """How often each replicate draws each scan, with replacement.

    With `units` (numbered from 0, such as the patient of each scan) units are drawn and bring all their scans.
    """
    count = num_scans if units is None else int(units.max(initial=-1)) + 1
    if count == 0:
        return np.zeros((0, num))
    drawn = rng.integers(count, size=(num, count)) + count * np.arange(num)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=num * count).reshape(num, count).T.astype(np.float64)
    return np.ascontiguousarray(weights if units is None else weights[units])


def band(values: Float64[np.ndarray, "b m"], *, confidence: float = CONFIDENCE) -> Float64[np.ndarray, "2 m"]:
    """Lower and upper end of the interval of each column, by the order statistics that LUNA16's script takes.

    Replicates without a value (nan: no object was drawn) do not count; a column without any gets nan.
    """
    ordered = np.sort(values, axis=0)
    tail = (1 - confidence) / 2
    with_value = np.count_nonzero(np.isfinite(values), axis=0)
    places = [np.floor(share * with_value).astype(np.int64) for share in (tail, 1 - tail)]
    columns = np.arange(values.shape[1])
    ends = [ordered[np.clip(place, 0, np.maximum(with_value - 1, 0)), columns] for place in places]
    return np.where(with_value > 0, np.stack(ends), np.nan)


def intervals(values: MetricValues, *, confidence: float = CONFIDENCE) -> dict[str, tuple[float, float]]:
    """The interval of each metric; one that no replicate has is left out."""
    result = {}
    for name, replicates in values.items():
        low, high = band(replicates[:, None], confidence=confidence)[:, 0].tolist()
        if math.isfinite(low) and math.isfinite(high):
            result[name] = (low, high)
    return result


def differences(
    first: tuple[MetricValues, MetricValues], second: tuple[MetricValues, MetricValues]
) -> dict[str, Difference]:
    """Second minus first of each metric that both have; each is (plain values, replicates).

    The replicates of both must come from the same weights: that is what pairs them, case by case.
    """
    result = {}
    for name in first[0]:
        if name not in second[0]:
            continue
        value = float(second[0][name][0] - first[0][name][0])
        replicates = second[1][name] - first[1][name]
        replicates = replicates[np.isfinite(replicates)]
        if math.isfinite(value) and len(replicates):
            low, high = band(replicates[:, None])[:, 0].tolist()
            above = float(np.mean(replicates > 0) + 0.5 * np.mean(replicates == 0))
            result[name] = Difference(value, low, high, above)
    return result


def in_blocks(statistic: Callable[[Weights], MetricValues], weights: Weights, *, columns: int) -> MetricValues:
    """The statistic of all replicates, so many at a time: its memory stays bounded."""
    parts = [statistic(weights[:, first : first + columns]) for first in range(0, weights.shape[1], columns)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
