"""All metrics of segmentation, class by class on a case's own grid, and their means over cases.

A class that the truth of a case does not have is not judged there: Dice, NSD, HD95 and volume error are nan, and what
was found of it counts in ``false_ml``. A class that was not found at all has Dice and NSD 0, and for HD95 the scan's
diagonal, the largest distance there can be: a failure must not make the mean better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from numpy.typing import NDArray
from scipy import ndimage

from voxray.core.volume import Vector
from voxray.metrics.bootstrap import Weights
from voxray.metrics.coco import with_means
from voxray.metrics.curves import share
from voxray.metrics.dice import confusion, dice
from voxray.metrics.surface import surface_distances

TOLERANCES_MM = (1.0, 3.0)
FOUND_ML, TRUTH_ML = -2, -1
"""The last columns of a case's table."""

StructureTable = Float64[np.ndarray, "c k"]
"""A row for each class: Dice, NSD at each tolerance, HD95 in mm, found and true millilitres."""


def structure_table(
    found: UInt8[np.ndarray, "x y z"],
    truth: UInt8[np.ndarray, "x y z"],
    spacing_mm: Vector,
    *,
    num_classes: int,
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
) -> StructureTable:
    """The scores of every class of a case."""
    counts = confusion(found, truth, num_labels=num_classes + 1)
    table = np.full((num_classes, len(tolerances_mm) + 4), np.nan)
    table[:, 0] = dice(counts)
    table[:, [FOUND_ML, TRUTH_ML]] = _volumes_ml(counts, spacing_mm)
    diagonal_mm = math.hypot(*np.multiply(found.shape, spacing_mm))
    boxes = [ndimage.find_objects(labels, max_label=num_classes) for labels in (found, truth)]
    for label, (found_box, truth_box) in enumerate(zip(*boxes, strict=True), start=1):
        if truth_box is None:
            continue
        if found_box is None:
            table[label - 1, 1 : len(tolerances_mm) + 2] = [0.0] * len(tolerances_mm) + [diagonal_mm]
            continue
        both = tuple(
            slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(found_box, truth_box, strict=True)
        )
        distances = surface_distances(found[both] == label, truth[both] == label, spacing_mm)
        nsd = [distances.nsd(tolerance) for tolerance in tolerances_mm]
        table[label - 1, 1 : len(tolerances_mm) + 2] = [*nsd, distances.hd95_mm()]
    return table


def table_of_unread(num_classes: int, *, tolerances_mm: Sequence[float] = TOLERANCES_MM) -> StructureTable:
    """The table of a case whose truth could not be read: every class is missed, by unknown volumes."""
    table = np.full((num_classes, len(tolerances_mm) + 4), np.nan)
    table[:, : len(tolerances_mm) + 1] = 0.0
    return table


def segmentation_values(
    tables: Float64[np.ndarray, "s c k"],
    weights: Weights,
    classes: Sequence[str],
    *,
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
) -> dict[str, NDArray[np.float64]]:
    """Every metric in each replicate: the mean over cases that have the class, and the mean of those over classes.

    ``volume_error_ml`` and ``volume_error_percent`` are means of the absolute error, ``volume_bias_ml`` of the signed
    one (found minus true); ``false_ml`` is found in the mean case that has none of the class.
    """
    tables = _with_worst_distance(tables, column=len(tolerances_mm) + 1)
    found, truth = tables[..., FOUND_ML], tables[..., TRUTH_ML]
    error = np.where(truth > 0, found - truth, np.nan)
    unread = np.isfinite(tables[..., 0]) & np.isnan(truth)
    columns = {"dice": tables[..., 0]}
    columns |= {f"NSD@{mm:g}mm": tables[..., 1 + index] for index, mm in enumerate(tolerances_mm)}
    columns |= {
        "HD95_mm": tables[..., len(tolerances_mm) + 1],
        "volume_error_ml": np.abs(error),
        "volume_error_percent": np.where(unread, 100.0, np.abs(share(error, truth)) * 100),
        "volume_bias_ml": error,
        "false_ml": np.where(truth == 0, found, np.nan),
    }
    means = {name: _mean_over_cases(values, weights) for name, values in columns.items()}
    judged = [index for index in range(len(classes)) if np.isfinite(tables[:, index, 0]).any()]
    per_class = {classes[index]: {name: rows[index] for name, rows in means.items()} for index in judged}
    return with_means(per_class, empty={name: np.full(weights.shape[1], np.nan) for name in columns})


def _with_worst_distance(tables: Float64[np.ndarray, "s c k"], *, column: int) -> Float64[np.ndarray, "s c k"]:
    """Cases that could not be read get the largest distance of all cases, which no answer of theirs could exceed."""
    unread = np.isfinite(tables[..., 0]) & ~np.isfinite(tables[..., column])
    known = tables[..., column][np.isfinite(tables[..., column])]
    if not unread.any() or len(known) == 0:
        return tables
    filled = tables.copy()
    filled[unread, column] = known.max()
    return filled


def _mean_over_cases(values: Float64[np.ndarray, "s c"], weights: Weights) -> Float64[np.ndarray, "c b"]:
    there = np.isfinite(values)
    return share(np.where(there, values, 0.0).T @ weights, there.T @ weights)


def _volumes_ml(counts: Int64[np.ndarray, "l l"], spacing_mm: Vector) -> Float64[np.ndarray, "c two"]:
    voxels = np.stack([counts.sum(axis=1)[1:], counts.sum(axis=0)[1:]], axis=1)
    return voxels * (math.prod(spacing_mm) / 1000.0)
