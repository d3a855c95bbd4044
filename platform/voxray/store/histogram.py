"""Histograms of Hounsfield units, one bin per HU from -1024 to 3071 with the rest in the end bins.

Added up over cases they give the exact percentiles of a dataset without its voxels.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int16, Int64
from numpy.typing import NDArray

from voxray.core.case import Case
from voxray.store.manifest import ForegroundHu

LOW_HU, HIGH_HU = -1024, 3071
_BINS = HIGH_HU - LOW_HU + 1
_SLAB = 16


def foreground_histogram(case: Case) -> Int64[np.ndarray, " 4096"]:
    """Voxels per HU within the case's labels, or where it has none within its boxes."""
    counts = np.zeros(_BINS, np.int64)
    image = case.image.hounsfield
    if case.labels is not None:
        for first in range(0, len(image), _SLAB):
            slab = slice(first, first + _SLAB)
            counts += _count(image[slab][case.labels[slab] > 0])
        return counts
    for box in case.boxes:
        low, high = np.floor(np.maximum(box[:3], 0)).astype(int), np.ceil(box[3:]).astype(int)
        counts += _count(image[low[0] : high[0], low[1] : high[1], low[2] : high[2]].ravel())
    return counts


def describe(histograms: Iterable[Int64[np.ndarray, " 4096"]]) -> ForegroundHu | None:
    """Mean, standard deviation and percentiles of the sum of histograms; None where that is empty."""
    counts = sum(histograms, start=np.zeros(_BINS, np.int64))
    total = int(counts.sum())
    if total == 0:
        return None
    values = np.arange(LOW_HU, HIGH_HU + 1, dtype=np.float64)
    mean = float((values * counts).sum() / total)
    reached = np.cumsum(counts) / total
    low, median, high = (float(values[np.searchsorted(reached, share)]) for share in (0.005, 0.5, 0.995))
    return ForegroundHu(
        mean=mean,
        std=float(np.sqrt(((values - mean) ** 2 * counts).sum() / total)),
        percentile_00_5=low,
        median=median,
        percentile_99_5=high,
    )


def to_text(counts: Int64[np.ndarray, " 4096"]) -> str:
    """The histogram as a short piece of text."""
    return base64.b64encode(zlib.compress(counts.astype("<i8").tobytes(), 6)).decode()


def from_text(text: str) -> Int64[np.ndarray, " 4096"]:
    """The inverse of `to_text`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").astype(np.int64)


def _count(values: Int16[np.ndarray, " n"]) -> NDArray[np.int64]:
    return np.bincount(np.clip(values, LOW_HU, HIGH_HU) - LOW_HU, minlength=_BINS)
