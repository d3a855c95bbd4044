"""RT structure sets: contours that are drawn again give the mask they were made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from support.dicom_series import (
    ALGORITHM,
    CLASSES,
    ORIENTATIONS,
    files_of,
    keeps_to_itself,
    random_labels,
    without_errors,
    write_multiframe,
    write_series,
)
from voxray.core.errors import DataError
from voxray.core.volume import Grid, Volume
from voxray.readers import read_volume
from voxray.results.writers import rtstruct as module
from voxray.results.writers import write_rtstruct
from voxray.results.writers.rtstruct import outlines


def drawn(path: Path, grid: Grid) -> NDArray[np.uint8]:
    """The label map that the contours enclose, by the centres of its voxels."""
    found = np.zeros(grid.shape, np.uint8)
    columns, rows = np.indices(grid.shape[:2])
    centres = np.column_stack([columns.ravel(), rows.ravel()])
    for item in pydicom.dcmread(path).ROIContourSequence:
        for contour in item.ContourSequence:
            points = grid.to_voxel(np.array(contour.ContourData, float).reshape(-1, 3)) - 0.5
            assert len(points) == contour.NumberOfContourPoints
            index = round(points[0, 2])
            np.testing.assert_allclose(points[:, 2], index, atol=0.01)
            inside = Outline(points[:, :2]).contains_points(centres).reshape(grid.shape[:2])
            assert not found[:, :, index][inside].any(), "contours do not overlap"
            found[:, :, index][inside] = item.ReferencedROINumber
    return found


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_contours_enclose_the_mask(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    source = write_series(tmp_path / "ct", orientation=ORIENTATIONS[name])
    labels = random_labels(source, rng)
    path = write_rtstruct(labels, files_of(source), tmp_path / "rt.dcm", classes=CLASSES, algorithm=ALGORITHM)
    np.testing.assert_array_equal(drawn(path, labels.grid), labels.voxels)
    without_errors(path)
    keeps_to_itself(path)


def test_contours_name_their_slices(tmp_path: Path, rng: np.random.Generator) -> None:
    for source in (write_series(tmp_path / "ct"), write_multiframe(tmp_path / "mf.dcm")):
        labels = random_labels(source, rng)
        path = write_rtstruct(labels, files_of(source), tmp_path / "rt.dcm", classes=CLASSES, algorithm=ALGORITHM)
        without_errors(path)
        dataset = pydicom.dcmread(path)
        (frame,) = dataset.ReferencedFrameOfReferenceSequence
        (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
        assert (frame.FrameOfReferenceUID, series.SeriesInstanceUID) == ("1.2.3.2", "1.2.3.1")
        assert len(series.ContourImageSequence) == labels.grid.shape[2]
        for item in dataset.ROIContourSequence:
            for contour in item.ContourSequence:
                z = round((float(contour.ContourData[2]) - labels.grid.origin_mm[2]) / 2.5)
                (image,) = contour.ContourImageSequence
                wanted = ("1.2.3.5", 7 - z) if source.is_file() else (f"1.2.3.4.{z + 1}", None)
                assert (image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")) == wanted


def test_regions_say_what_they_are(tmp_path: Path, rng: np.random.Generator) -> None:
    source = write_series(tmp_path / "ct")
    labels = random_labels(source, rng)
    words = {"classes": CLASSES, "algorithm": ALGORITHM}
    path = write_rtstruct(labels, files_of(source), tmp_path / "rt.dcm", **words)  # type: ignore[arg-type]
    dataset = pydicom.dcmread(path)
    assert [(one.ROINumber, one.ROIName) for one in dataset.StructureSetROISequence] == [
        (value, CLASSES[value - 1]) for value in (1, 3, 4)
    ]
    kinds = [one.RTROIInterpretedType for one in dataset.RTROIObservationsSequence]
    assert kinds == ["", "ORGAN", ""]
    assert len({tuple(one.ROIDisplayColor) for one in dataset.ROIContourSequence}) == 3
    again = write_rtstruct(labels, files_of(source), tmp_path / "again.dcm", **words)  # type: ignore[arg-type]
    assert pydicom.dcmread(again).SOPInstanceUID == dataset.SOPInstanceUID


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 0.8, 1.0]))
def test_any_mask_is_enclosed(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(1, 14, 2))) < density
    columns, rows = np.indices(mask.shape)
    centres = np.column_stack([columns.ravel(), rows.ravel()])
    found = np.zeros(mask.shape, bool)
    for polygon in outlines(mask):
        found |= Outline(polygon).contains_points(centres).reshape(mask.shape)
    np.testing.assert_array_equal(found, mask)


def test_straight_edges_have_two_ends() -> None:
    mask = np.zeros((40, 30), bool)
    mask[5:25, 4:20] = True
    (polygon,) = outlines(mask)
    assert len(polygon) == 8, "four sides and the corners between pixel centres"


@pytest.mark.parametrize(("value", "code"), [(0, "rtstruct.empty"), (9, "rtstruct.unknown_label")])
def test_what_has_no_contours(tmp_path: Path, value: int, code: str) -> None:
    source = write_series(tmp_path / "ct")
    grid = read_volume(source).grid
    labels = Volume(np.full(grid.shape, value, np.uint8), grid)
    with pytest.raises(DataError) as caught:
        write_rtstruct(labels, files_of(source), tmp_path / "rt.dcm", classes=CLASSES, algorithm=ALGORITHM)
    assert caught.value.code == code


def test_specks_without_end_are_refused(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CONTOURS", 20)
    source = write_series(tmp_path / "ct")
    with pytest.raises(DataError, match="too_many_contours"):
        write_rtstruct(
            random_labels(source, rng),
            files_of(source),
            tmp_path / "rt.dcm",
            classes=CLASSES,
            algorithm=ALGORITHM,
        )


@pytest.mark.data
def test_a_real_series(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom"
    volume = read_volume(source)
    bone = np.zeros(volume.grid.shape, np.uint8)
    bone[..., 3:6] = volume.voxels[..., 3:6] > 250
    labels = Volume(bone, volume.grid)
    path = write_rtstruct(labels, files_of(source), tmp_path / "rt.dcm", classes=("bone",), algorithm=ALGORITHM)
    np.testing.assert_array_equal(drawn(path, volume.grid), bone)
    without_errors(path)
