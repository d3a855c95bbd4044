"""FROC (Bunch 1978): the share of objects found at a number of false findings a scan, by overlap.

A finding is a hit where it is COCO's match of an object, so the second on one object is a false one. Sensitivity
between two thresholds is interpolated along the curve, as in LUNA16's script; `metrics.luna16` has its own rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64

from voxray.metrics.curves import Steps, interpolate, share, steps
from voxray.metrics.pool import Pool

RATES = np.array([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8])
"""False findings a scan at which sensitivity is reported; its mean over them is the score."""


def froc_steps(pool: Pool, level: int, weights: Float64[np.ndarray, "s b"]) -> Steps:
    """The hits and false findings of a pool of one class above each score, at the threshold ``ious[level]``."""
    return steps(pool.scores, pool.hits[level], pool.scans, weights)


def sensitivity(
    found: Steps,
    *,
    num_objects: Float64[np.ndarray, " b"],
    num_scans: Float64[np.ndarray, " b"],
    rates: Float64[np.ndarray, " r"] = RATES,
) -> Float64[np.ndarray, "r b"]:
    """Sensitivity at each number of false findings a scan; nan where there is no object.

    Beyond the last finding the curve stays where it is.
    """
    values: np.ndarray[Any, np.dtype[np.float64]] = interpolate(
        found.others / num_scans, share(found.hits, np.broadcast_to(num_objects, found.hits.shape)), rates
    )
    return values
