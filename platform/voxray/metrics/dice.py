"""Dice per class from one joint histogram of found and true labels; no mask per class is ever made."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, UInt8

SLAB_VOXELS = 2**20
"""Voxels counted at once, so that the histogram's index fits into the processor's cache."""


def confusion(
    found: UInt8[np.ndarray, "x y z"], truth: UInt8[np.ndarray, "x y z"], *, num_labels: int
) -> Int64[np.ndarray, "l l"]:
    """Voxels by found label (row) and true label (column); labels are below `num_labels`, at most 256."""
    assert found.shape == truth.shape, (found.shape, truth.shape)
    assert found.dtype == truth.dtype == np.uint8, (found.dtype, truth.dtype)
    found, truth = np.ravel(found), np.ravel(truth)
    counts = np.zeros(256 * 256, np.int64)
    for start in range(0, found.size, SLAB_VOXELS):
        slab = slice(start, start + SLAB_VOXELS)
        pair = found[slab].astype(np.uint16) << 8 | truth[slab]
        counts += np.bincount(pair, minlength=256 * 256)
    table = counts.reshape(256, 256)
    assert not table[num_labels:].any(), f"found labels must be below {num_labels}"
    assert not table[:, num_labels:].any(), f"true labels must be below {num_labels}"
    return table[:num_labels, :num_labels]


def dice(table: Int64[np.ndarray, "l l"]) -> Float64[np.ndarray, " c"]:
    """Dice of each foreground class from a `confusion`; nan where the class has no true voxel."""
    both, found, truth = np.diagonal(table)[1:], table.sum(axis=1)[1:], table.sum(axis=0)[1:]
    return np.where(truth > 0, 2.0 * both / np.maximum(found + truth, 1), np.nan)
