"""Scans of clinical size to measure on: a real abdomen, enlarged, where the real data is; else a generated one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from voxray.core.volume import Grid, Shape, Vector, Volume
from voxray.phantoms.kinds import draw_phantom
from voxray.preprocess import resample, resample_labels
from voxray.readers import read_label_map, read_volume, write_nifti

NOISE_HU = 12.0
ORIGIN_MM = (-180.0, -160.0, -640.0)
"""Of a patient on a table. At 0 the extent-keeping Spacingd of MONAI 1.6.1 mistakes an offset's sign."""


def write_scans(folder: Path, number: int, shape: Shape, spacing_mm: Vector) -> list[str]:
    """Scans `<id>_ct.nii.gz` with masks `<id>_labels.nii.gz` of one organ, alike but for noise; returns their ids."""
    image, labels = enlarged(shape, spacing_mm)
    ids = [f"case_{index:03d}" for index in range(number)]
    for index, case_id in enumerate(ids):
        write_nifti(with_noise(image, index), folder / f"{case_id}_ct.nii.gz")
        write_nifti(labels, folder / f"{case_id}_labels.nii.gz")
    return ids


def with_noise(image: Volume, seed: int) -> Volume:
    """The image with noise of its own: enlarged voxels would compress too well."""
    noise = np.random.default_rng(seed).normal(0, NOISE_HU, image.grid.shape).astype(np.float32)
    return Volume(np.clip(image.voxels + noise, -1024, 3071).astype(np.int16), image.grid)


def enlarged(shape: Shape, spacing_mm: Vector) -> tuple[Volume, Volume]:
    """An abdomen and the mask of its spleen on a grid of that shape and spacing, in LPS orientation."""
    image, labels = _abdomen()
    finer = np.divide(np.multiply(image.grid.shape, image.grid.spacing_mm), shape)
    fine = (float(finer[0]), float(finer[1]), float(finer[2]))
    grid = Grid(shape, spacing_mm, ORIGIN_MM, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    region = tuple(slice(0, side) for side in shape)
    return (
        Volume(np.ascontiguousarray(resample(image, fine).voxels[region]), grid),
        Volume(np.ascontiguousarray(resample_labels(labels, fine).voxels[region]), grid),
    )


def _abdomen() -> tuple[Volume, Volume]:
    repository = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("VOXRAY_TEST_DATA", repository.parent / "shared" / "data")) / "abdomen"
    if (folder / "TS_example_ct.nii.gz").exists():
        image = read_volume(folder / "TS_example_ct.nii.gz")
        organs = read_label_map(folder / "TS_example_ct_labels117_fast.nii.gz").voxels
        return image, Volume((organs == 1).astype(np.uint8), image.grid)
    phantom = draw_phantom("abdomen", 0)
    return phantom.image, Volume((phantom.labels == 1).astype(np.uint8), phantom.image.grid)
