"""Info: what a scan's headers say, for people and as JSON; the voxels are read only when asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from voxray.core.volume import Shape, Vector
from voxray.readers.stored import Stored, hounsfield


@dataclass(frozen=True)
class Info:
    """A scan that can be read, as its headers describe it."""

    path: str
    format: str
    num_files: int
    shape: Shape
    spacing_mm: Vector
    origin_mm: Vector
    """The centre of the first voxel, LPS."""
    direction: tuple[float, ...]
    """Row-major cosines; the columns are the LPS directions of the voxel axes."""
    orientation: str
    """The side that each axis points to, such as ``RAS``."""
    dtype: str
    """The type that the file stores."""
    modality: str | None
    """None where the format does not tell."""
    series_uid: str | None
    """DICOM only."""
    range_hu: tuple[int, int] | None
    """The least and the greatest value; None where the voxels were not read."""
    warnings: tuple[str, ...]
    """What is worth knowing though the scan is read."""

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def info_of(stored: Stored, *, pixels: bool) -> Info:
    """The info of a checked header; with `pixels` the voxels are read and checked as well."""
    grid = stored.grid
    volume = hounsfield(stored) if pixels else None
    return Info(
        path=str(stored.path),
        format=stored.format,
        num_files=stored.num_files,
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        origin_mm=grid.origin_mm,
        direction=grid.direction,
        orientation=grid.orientation,
        dtype=stored.dtype,
        modality=stored.modality,
        series_uid=stored.series_uid,
        range_hu=None if volume is None else (int(volume.voxels.min()), int(volume.voxels.max())),
        warnings=stored.warnings if volume is None else volume.warnings,
    )
