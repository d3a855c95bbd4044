"""The grid of a header's affine, or a refusal: what every format must state alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from voxray.core.volume import Grid, Shape
from voxray.readers.refusals import refusal

MAX_VOXELS = 2**31
"""Larger volumes are refused before anything is allocated; 1024 x 1024 x 2048 still passes."""
SPACING_RANGE_MM = (0.001, 100.0)
FARTHEST_MM = 1e6
"""No scan lies further from the origin of its space; beyond, the numbers of headers tell voxels apart no more."""
SHEAR_LIMIT = 1e-3
"""The largest cosine between two voxel axes that still counts as a right angle (about 0.06 degrees)."""


def shape_of(sizes: Sequence[int], path: Path) -> Shape:
    """Three sizes as a shape; none may be below 1, and their product at most `MAX_VOXELS`."""
    x, y, z = (int(size) for size in sizes)
    if min(x, y, z) < 1:
        raise refusal(
            "grid.empty",
            path,
            f"says that it has {x} x {y} x {z} voxels; every side must be at least 1.",
            remedy="Export the volume again.",
        )
    if x * y * z > MAX_VOXELS:
        raise refusal(
            "grid.too_large",
            path,
            f"says that it has {x} x {y} x {z} voxels; at most {MAX_VOXELS} are read.",
            remedy="Check the header; if it is right, crop or resample the volume.",
        )
    return x, y, z


def grid_of(affine: Float[np.ndarray, "4 4"], shape: Shape, path: Path) -> Grid:
    """The grid of a matrix from voxel indices to LPS mm; it must be finite, invertible and free of shear."""
    if not np.isfinite(affine).all():
        raise refusal(
            "grid.not_finite",
            path,
            "has NaN or infinity in its geometry; origin, spacing and directions must be numbers.",
            remedy="Restore the geometry from the original images.",
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    check_spacing(spacing.tolist(), path)
    directions = affine[:3, :3] / spacing
    if abs(float(np.linalg.det(directions))) < 1e-3:
        raise refusal(
            "grid.singular",
            path,
            "has voxel axes that lie in one plane; its three axes must span space.",
            remedy="Restore the geometry from the original images.",
        )
    cosine = float(np.abs(np.triu(directions.T @ directions, k=1)).max())
    if cosine > SHEAR_LIMIT:
        raise refusal(
            "grid.sheared",
            path,
            f"has sheared voxels: two axes meet at {math.degrees(math.acos(min(cosine, 1.0))):.2f} degrees, "
            "not 90 (a tilted gantry leaves this).",
            remedy="Resample the volume to an orthogonal grid, for instance by converting the DICOM with dcm2niix.",
        )
    if float(np.abs(affine[:3, 3]).max()) > FARTHEST_MM:
        raise refusal(
            "grid.too_far",
            path,
            f"has its first voxel at {', '.join(f'{place:.6g}' for place in affine[:3, 3])} mm; no scan lies further "
            f"than {FARTHEST_MM:g} mm from the origin of its space.",
            remedy="Restore the geometry from the original images.",
        )
    return Grid.from_affine(affine, shape)


def check_spacing(spacing_mm: Sequence[float], path: Path) -> None:
    """Refuses a spacing that is no length of a voxel in a CT scan."""
    low, high = SPACING_RANGE_MM
    if not all(low <= side <= high for side in spacing_mm):
        text = " x ".join(f"{side:.6g}" for side in spacing_mm)
        raise refusal(
            "grid.spacing",
            path,
            f"has a voxel spacing of {text} mm; each side must lie between {low} and {high} mm.",
            remedy="Check the spacing and its unit, and write it in millimetres.",
        )
