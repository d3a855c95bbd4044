"""Label maps as viewers ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from voxray.core.volume import Grid, Volume
from voxray.readers import read_label_map, write_nifti
from voxray.serving.workers.label_maps import centroids, centroids_of, label_file
from voxray.serving.workers.protocol import Extension, LabelFormat, LabelType

OBLIQUE = Grid((5, 4, 3), (0.7, 0.8, 2.5), (-12.5, 40.0, -300.25), (0.0, -1.0, 0, 0.6, 0, -0.8, 0.8, 0, 0.6))
LABELS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements={"max_value": 4})


@pytest.mark.parametrize("extension", get_args(Extension))
@pytest.mark.parametrize("dtype", [None, *get_args(LabelType)])
@pytest.mark.parametrize("compress", [True, False])
def test_values_and_places_stay(
    extension: Extension, dtype: LabelType | None, compress: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    labels = Volume(rng.integers(0, 7, OBLIQUE.shape).astype(np.uint8), OBLIQUE)
    write_nifti(labels, tmp_path / "answer.nii.gz")
    path = label_file(tmp_path / "answer.nii.gz", LabelFormat(extension, dtype, compress))
    image: Any = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), labels.voxels)
    np.testing.assert_allclose(image.GetOrigin(), OBLIQUE.origin_mm, atol=1e-4)
    np.testing.assert_allclose(image.GetSpacing(), OBLIQUE.spacing_mm, atol=1e-6)
    np.testing.assert_allclose(image.GetDirection(), OBLIQUE.direction, atol=1e-6)
    assert image.GetPixelID() == (SimpleITK.sitkUInt16 if dtype == "uint16" else SimpleITK.sitkUInt8)
    if extension == ".nrrd":
        assert (b"encoding: raw" in path.read_bytes()) == (not compress)
    assert label_file(tmp_path / "answer.nii.gz", LabelFormat(extension, dtype, compress)) == path


def test_a_value_that_would_not_fit_is_not_changed(tmp_path: Path) -> None:
    voxels = np.zeros(OBLIQUE.shape, np.uint16)
    voxels[1, 2, 1] = 300
    write_nifti(Volume(voxels, OBLIQUE), tmp_path / "answer.nii.gz")
    path = label_file(tmp_path / "answer.nii.gz", LabelFormat(".nrrd", "uint8", compress=True))
    np.testing.assert_array_equal(read_label_map(path).voxels, voxels)


@given(voxels=LABELS)
def test_centroids_are_centres_of_mass(voxels: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]) -> None:
    want = {
        int(value): tuple(int(np.floor(axis + 1e-9)) for axis in ndimage.center_of_mass(voxels == value))
        for value in np.unique(voxels)
        if value
    }
    assert centroids(voxels) == want


def test_centroids_are_reckoned_once(tmp_path: Path) -> None:
    voxels = np.zeros(OBLIQUE.shape, np.uint8)
    voxels[1, 2, 0] = voxels[3, 2, 2] = 2
    write_nifti(Volume(voxels, OBLIQUE), tmp_path / "answer.nii.gz")
    assert centroids_of(tmp_path / "answer.nii.gz") == {2: (2, 2, 1)}
    (tmp_path / "answer.nii.gz").unlink()
    assert centroids_of(tmp_path / "answer.nii.gz") == {2: (2, 2, 1)}
