"""What a store says of itself: its manifest, and the summary that each shard carries in its footer."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from voxray.core.config import Config
from voxray.core.detections import Box

SCHEMA_VERSION = 1


class ShardFile(Config):
    """One Parquet file, by its name below the store's root."""

    name: str
    bytes: PositiveInt
    sha256: str


class TileEntry(Config):
    """What one row group holds."""

    start: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    objects: tuple[NonNegativeInt, ...] = ()
    """Which of the case's objects are this tile's own."""
    num_cut: NonNegativeInt = 0
    label_voxels: dict[PositiveInt, PositiveInt] = Field(default_factory=dict)


class CaseSummary(Config):
    """What a shard says of its case; it is in the footer of the case's first file."""

    case_id: str
    patient_id: str
    signature: str
    """Of the files, the annotations and the recipe that it was made from."""
    grid: dict[str, Any]
    """The recipe's grid over this case: `Grid.to_dict`."""
    original_grid: dict[str, Any]
    boxes: tuple[Box, ...]
    """Every object, in edge voxels of `grid`."""
    classes: tuple[NonNegativeInt, ...]
    label_voxels: dict[PositiveInt, PositiveInt]
    tiles: tuple[TileEntry, ...]
    tiles_per_file: tuple[PositiveInt, ...]
    foreground_hu: str
    """A histogram of the foreground's Hounsfield units: `voxray.store.histogram`."""
    warnings: tuple[str, ...] = ()
    """What is worth knowing of its scan and its truth, though both were read."""


class CaseEntry(Config):
    """A case in the manifest."""

    patient_id: str
    image: str = ""
    """Where the scan was read from: LUNA16's folders are its folds."""
    signature: str
    grid: dict[str, Any]
    original_grid: dict[str, Any]
    num_tiles: PositiveInt
    num_objects: NonNegativeInt
    files: tuple[ShardFile, ...]
    warnings: tuple[str, ...] = ()
    """What is worth knowing of its scan and its truth, though both were read."""


class FailedCase(Config):
    """A case that was set aside; it keeps its place in the folds."""

    code: str
    message: str
    patient_id: str = ""
    image: str = ""
    """Both empty where the case has no scan."""


class ForegroundHu(Config):
    """Hounsfield units inside objects or labels, over all cases."""

    mean: float
    std: float
    percentile_00_5: float
    median: float
    percentile_99_5: float


class ObjectSizes(Config):
    """Sides of a class's objects in mm along x, y, z."""

    count: PositiveInt
    smallest_mm: tuple[float, float, float]
    median_mm: tuple[float, float, float]
    largest_mm: tuple[float, float, float]


class Fingerprint(Config):
    """What is known of the dataset as a whole; enough to plan a recipe from."""

    num_cases: NonNegativeInt
    num_patients: NonNegativeInt
    spacing_mm: tuple[tuple[float, float, float], ...]
    """Of each case as it was scanned, turned to RAS; cases in ascending order of their ids."""
    shape: tuple[tuple[int, int, int], ...]
    foreground_hu: ForegroundHu | None
    objects: dict[str, ObjectSizes]
    """By class name."""
    cases_without_objects: NonNegativeInt
    label_voxels: dict[str, PositiveInt]
    """By class name, on the recipe's grid."""


class Manifest(Config):
    """manifest.json."""

    schema_version: int = SCHEMA_VERSION
    voxray_version: str
    dataset: dict[str, Any]
    recipe: dict[str, Any]
    """The fields that shaped the tiles: task, grid and the sizes in patch."""
    recipe_digest: str
    cases: dict[str, CaseEntry]
    failed: dict[str, FailedCase] = Field(default_factory=dict)
    fingerprint: Fingerprint

    @property
    def classes(self) -> tuple[str, ...]:
        """Foreground class names."""
        return tuple(self.dataset["classes"])
