"""Calibration of scores: does a finding that scores 0.8 hit an object eight times in ten (Guo 2017; Kueppers 2020).

Scores are meant as probabilities here; where any lies outside [0, 1] there is nothing to calibrate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from voxray.metrics.curves import share

NUM_BINS = 10
NUM_HISTOGRAM_BINS = 50


@dataclass(frozen=True)
class Reliability:
    """Findings by score, in bins of equal width over [0, 1]: weight, summed score and weight of hits in each."""

    count: Float64[np.ndarray, "k b"]
    score: Float64[np.ndarray, "k b"]
    hit: Float64[np.ndarray, "k b"]

    def expected_error(self) -> Float64[np.ndarray, " b"]:
        """ECE: the mean over findings of how far their bin's mean score is from its hits; nan without any."""
        return share(np.abs(self.score - self.hit).sum(axis=0), self.count.sum(axis=0))


@dataclass(frozen=True)
class Histogram:
    """How many findings hit and miss in each bin of score, and how many objects no finding hits."""

    edges: Float64[np.ndarray, " k_plus_1"]
    hits: Int64[np.ndarray, " k"]
    false_findings: Int64[np.ndarray, " k"]
    missed: int


def reliability(
    scores: Float64[np.ndarray, " n"],
    is_hit: Bool[np.ndarray, " n"],
    scans: Int64[np.ndarray, " n"],
    weights: Float64[np.ndarray, "s b"],
    *,
    num_bins: int = NUM_BINS,
) -> Reliability | None:
    """Scores against hits in each replicate; None where a score lies outside [0, 1]. 1 is in the last bin."""
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        return None
    place = scans * num_bins + np.minimum((scores * num_bins).astype(np.int64), num_bins - 1)
    shape = (len(weights), num_bins)
    sums = [
        np.bincount(place, weights=values, minlength=shape[0] * shape[1]).reshape(shape).T @ weights
        for values in (np.ones(len(scores)), scores, is_hit.astype(np.float64))
    ]
    return Reliability(*sums)


def histogram(scores: Float64[np.ndarray, " n"], is_hit: Bool[np.ndarray, " n"], *, num_objects: int) -> Histogram:
    """Scores of hits and of false findings in equal bins: over [0, 1], or over what there is where that is wider."""
    low, high = min(0.0, scores.min(initial=0.0)), max(1.0, scores.max(initial=1.0))
    edges = np.linspace(low, high, NUM_HISTOGRAM_BINS + 1)
    hits, others = (np.histogram(scores[part], edges)[0].astype(np.int64) for part in (is_hit, ~is_hit))
    return Histogram(edges, hits, others, num_objects - int(is_hit.sum()))
