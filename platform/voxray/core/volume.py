"""Grid and Volume: voxels on a regular grid in patient space, and the way between voxel and world.

World is LPS millimetres (DICOM, ITK). Two voxel coordinates are in use and never mixed up:

* *index* coordinates name voxel centres: voxel i has its centre at i;
* *edge* coordinates measure from the grid's first corner: voxel i covers [i, i + 1). Boxes live here.

So edge = index + 0.5, which is what `to_world` and `to_voxel` (both in edge coordinates) take care of.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int16, Shaped
from numpy.typing import NDArray

Vector = tuple[float, float, float]
Shape = tuple[int, int, int]

_LPS_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: shape (x y z), spacing, the centre of the first voxel in LPS mm, direction cosines.

    `direction` is row-major 3x3; its columns are the LPS directions of the three voxel axes.
    """

    shape: Shape
    spacing_mm: Vector
    origin_mm: Vector
    direction: tuple[float, ...]

    @cached_property
    def rotation(self) -> Float[np.ndarray, "3 3"]:
        """The direction cosines as a matrix: columns are voxel axes in LPS."""
        return np.asarray(self.direction, dtype=np.float64).reshape(3, 3)

    @cached_property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel index (centre) -> LPS mm, homogeneous."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.rotation * np.asarray(self.spacing_mm)
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def orientation(self) -> str:
        """The nearest axis code, by the side that each axis points to, such as ``RAS`` or ``LPS``."""
        return "".join(_LPS_LETTERS[row][int(positive)] for row, positive in _dominant_axes(self.rotation))

    def to_world(self, points_vox: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Edge coordinates in voxels -> LPS mm."""
        index = np.asarray(points_vox, dtype=np.float64) - 0.5
        return np.asarray(index @ self.affine[:3, :3].T + self.affine[:3, 3])

    def to_voxel(self, points_mm: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """LPS mm -> edge coordinates in voxels."""
        offset = np.asarray(points_mm, dtype=np.float64) - self.affine[:3, 3]
        return np.asarray(offset @ np.linalg.inv(self.affine[:3, :3]).T + 0.5)

    def is_close(self, other: Grid, *, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have one shape and no corner differs by more than the tolerance."""
        if self.shape != other.shape:
            return False
        corners = np.array([np.zeros(3), self.shape], dtype=np.float64)
        every = np.array(
            [[corners[i, 0], corners[j, 1], corners[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        )
        return bool(np.abs(self.to_world(every) - other.to_world(every)).max() <= tolerance_mm)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON and Parquet."""
        return {
            "shape": list(self.shape),
            "spacing_mm": list(self.spacing_mm),
            "origin_mm": list(self.origin_mm),
            "direction": list(self.direction),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Grid:
        """The inverse of `to_dict`."""
        return Grid(
            shape=_three(data["shape"], int),
            spacing_mm=_three(data["spacing_mm"], float),
            origin_mm=_three(data["origin_mm"], float),
            direction=tuple(float(value) for value in data["direction"]),
        )

    @staticmethod
    def from_affine(affine: Float[np.ndarray, "4 4"], shape: Shape) -> Grid:
        """The grid of a voxel-index -> LPS mm matrix; the matrix must have no shear."""
        columns = np.asarray(affine, dtype=np.float64)[:3, :3]
        spacing = np.linalg.norm(columns, axis=0)
        return Grid(
            shape=_three(shape, int),
            spacing_mm=_three(spacing, float),
            origin_mm=_three(np.asarray(affine)[:3, 3], float),
            direction=tuple((columns / spacing).ravel().tolist()),
        )


@dataclass(frozen=True)
class Volume:
    """Voxels on a grid: int16 Hounsfield units for an image, an unsigned integer type for a label map."""

    voxels: Shaped[np.ndarray, "x y z"]
    grid: Grid
    warnings: tuple[str, ...] = ()
    """What its reader says of the file: what is worth knowing though it was read. Whatever is made of it has none."""

    def __post_init__(self) -> None:
        assert self.voxels.shape == self.grid.shape, (self.voxels.shape, self.grid.shape)

    @property
    def hounsfield(self) -> Int16[np.ndarray, "x y z"]:
        """The voxels of an image, in HU."""
        assert self.voxels.dtype == np.int16, self.voxels.dtype
        return self.voxels


def _dominant_axes(rotation: NDArray[np.float64]) -> list[tuple[int, bool]]:
    """For each voxel axis the LPS axis that it follows most, each used once, and whether it runs along it."""
    remaining = np.abs(rotation).copy()
    found: dict[int, tuple[int, bool]] = {}
    for _ in range(3):
        row, column = np.unravel_index(int(np.argmax(remaining)), (3, 3))
        found[int(column)] = (int(row), bool(rotation[row, column] > 0))
        remaining[row, :] = remaining[:, column] = -1.0
    return [found[column] for column in range(3)]


def _three(values: Any, kind: type) -> Any:
    first, second, third = (kind(value) for value in values)
    return first, second, third
