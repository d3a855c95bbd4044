"""Distances between surfaces in mm: NSD (Nikolov 2021, on voxels) and HD95 (Huttenlocher 1993, 95th percentile).

A mask's surface are its voxels with one of their six neighbours outside the mask; the end of the scan is outside.
Distances run between centres of surface voxels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray
from scipy import spatial

from voxray.core.volume import Vector


class Distances(NamedTuple):
    """From each surface voxel of the found mask to the true surface, and the other way round, in mm."""

    from_found: Float64[np.ndarray, " n"]
    from_truth: Float64[np.ndarray, " m"]

    def nsd(self, tolerance_mm: float) -> float:
        """Normalised surface Dice: the share of both surfaces that lies within the tolerance of the other."""
        within = np.count_nonzero(self.from_found <= tolerance_mm) + np.count_nonzero(self.from_truth <= tolerance_mm)
        return within / (len(self.from_found) + len(self.from_truth))

    def hd95_mm(self) -> float:
        """The larger of both directions' 95th percentile."""
        return float(max(np.percentile(self.from_found, 95), np.percentile(self.from_truth, 95)))


def surface_distances(
    found: Bool[np.ndarray, "x y z"], truth: Bool[np.ndarray, "x y z"], spacing_mm: Vector
) -> Distances:
    """Both directions' distances; neither mask may be empty. Crop the masks first: only what is inside counts."""
    edges = surface(found), surface(truth)
    assert edges[0].any(), "found"
    assert edges[1].any(), "truth"
    points = [np.argwhere(edge) for edge in edges]
    shared = [other[tuple(own.T)] for own, other in zip(points, edges[::-1], strict=True)]
    return Distances(*(_nearest(points[i][~shared[i]], points[1 - i], shared[i], spacing_mm) for i in (0, 1)))


def surface(mask: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """The voxels of the mask that touch the outside with a face."""
    inner = mask.copy()
    for axis in range(3):
        view, own = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        view[1:] &= own[:-1]
        view[:-1] &= own[1:]
        view[[0, -1]] = False
    edges: NDArray[np.bool_] = mask & ~inner
    return edges


def _nearest(
    apart: Int64[np.ndarray, "n 3"], others: Int64[np.ndarray, "m 3"], shared: NDArray[np.bool_], spacing_mm: Vector
) -> Float64[np.ndarray, " k"]:
    """The distance of each voxel to the nearest of the others; those that both surfaces share have none."""
    distances = np.zeros(len(shared))
    if len(apart):
        # A tree of surface points is several times faster than a distance transform of the whole box around them.
        tree = spatial.cKDTree(others * np.asarray(spacing_mm), balanced_tree=False, compact_nodes=False)
        distances[~shared] = tree.query(apart * np.asarray(spacing_mm))[0]
    return distances
