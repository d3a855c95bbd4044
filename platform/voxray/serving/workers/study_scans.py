"""Studies as volumes, and on the grids of models."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxray.core.recipe import GridConfig
from voxray.core.storage import sync
from voxray.core.volume import Volume
from voxray.inference.predictor import Prepared, prepare_scan
from voxray.readers import write_nifti
from voxray.serving.intake.study import VOLUME, read_study
from voxray.serving.paths import ServicePaths


def scan_of(places: ServicePaths, study: str) -> Volume:
    """A study's scan in its own order; the voxels are mapped, not loaded."""
    folder = places.study(study)
    info = read_study(folder)
    return Volume(np.load(folder / VOLUME, mmap_mode="r", allow_pickle=False), info.grid, info.warnings)


def prepare_study(places: ServicePaths, study: str, grid: GridConfig) -> Prepared:
    """A study on a model's grid."""
    return prepare_scan(scan_of(places, study), grid)


def write_scan(places: ServicePaths, study: str) -> Path:
    """The study's scan as NIfTI, made when it is first asked for."""
    path = places.study(study) / "scan.nii.gz"
    if not path.exists():
        write_nifti(scan_of(places, study), path)
        sync(path)
        sync(path.parent)
    return path
