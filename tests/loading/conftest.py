"""Small scans written by SimpleITK, so that what is tested does not write what it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from voxray.dataset import Dataset

Write = Callable[..., Path]
Describe = Callable[..., Dataset]

SHAPE = (12, 10, 8)
SPACING = (1.0, 1.0, 2.0)
ORIGIN = (-15.0, -15.0, 3.0)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an array as a scan below `tmp_path`; without one, an image that differs from voxel to voxel."""

    def write_array(
        name: str, voxels: NDArray[Any] | None = None, *, spacing: tuple[float, ...] = SPACING, **grid: Any
    ) -> Path:
        if voxels is None:
            voxels = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 900 - 400).astype(np.int16)
        image: Any = SimpleITK.GetImageFromArray(voxels.transpose(2, 1, 0))
        image.SetSpacing(spacing)
        image.SetOrigin(grid.get("origin", ORIGIN))
        image.SetDirection(grid.get("direction", (1, 0, 0, 0, 1, 0, 0, 0, 1)))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(image, str(path))
        return path

    return write_array


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """A dataset with its root at `tmp_path`, whose images lie in ``images``."""

    def make(annotations: object, **changes: Any) -> Dataset:
        data = {
            "name": "d",
            "licence": "CC0",
            "classes": ["liver", "spleen"],
            "images": {"glob": ["images/*.nii.gz", "images/*.mhd"]},
            "annotations": annotations,
            "root": str(tmp_path),
            **changes,
        }
        return Dataset.model_validate(data, context={"root": str(tmp_path)})

    return make


@pytest.fixture
def block() -> Callable[..., NDArray[np.uint8]]:
    """A label map of zeros with boxes of values in it: ``block((1, (slice(2, 4), ...)))``."""

    def make(*parts: tuple[int, tuple[slice, slice, slice]]) -> NDArray[np.uint8]:
        voxels = np.zeros(SHAPE, np.uint8)
        for value, where in parts:
            voxels[where] = value
        return voxels

    return make
