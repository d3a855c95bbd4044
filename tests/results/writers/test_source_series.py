"""Series found again among files, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from support.dicom_series import ORIENTATIONS, files_of, write_multiframe, write_series
from voxray.core.errors import DataError
from voxray.core.volume import Grid
from voxray.readers import read_volume
from voxray.results.writers.source_series import Source, read_source


def refused(code: str, read: Callable[[], Source]) -> DataError:
    with pytest.raises(DataError) as caught:
        read()
    assert caught.value.code == code, str(caught.value)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_slices_come_in_the_order_of_the_grid(tmp_path: Path, name: str) -> None:
    folder = write_series(tmp_path / "ct", orientation=ORIENTATIONS[name])
    grid = read_volume(folder).grid
    source = read_source(files_of(folder), grid)
    centres = grid.to_world(np.array([[0.5, 0.5, z + 0.5] for z in range(grid.shape[2])]))
    np.testing.assert_allclose([np.array(one.position, float) for one in source.slices], centres, atol=1e-6)
    assert source.num_files == grid.shape[2]


def test_frames_of_one_file(tmp_path: Path) -> None:
    path = write_multiframe(tmp_path / "mf.dcm")
    source = read_source([path], read_volume(path).grid)
    assert [one.frame for one in source.slices] == [7, 6, 5, 4, 3, 2, 1]


def test_other_files_beside_the_series_are_left_out(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    grid = read_volume(folder).grid
    (folder / "notes.txt").write_text("not DICOM")
    write_series(tmp_path / "scout", (14, 11, 1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "mr", (14, 11, 1), Modality="MR")
    for other in ("scout", "mr"):
        shutil.copy(tmp_path / other / "000.dcm", folder / f"{other}.dcm")
    assert read_source(files_of(folder), grid).num_files == 7


def test_one_of_two_series_must_be_named(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    grid = read_volume(folder).grid
    other = write_series(tmp_path / "other", (14, 11, 3), SeriesInstanceUID="1.2.3.9")
    files = files_of(folder) + files_of(other)
    refused("source.several_series", lambda: read_source(files, grid))
    refused("source.no_such_series", lambda: read_source(files, grid, series_uid="1.9"))
    refused("source.other_grid", lambda: read_source(files, grid, series_uid="1.2.3.9"))
    assert read_source(files, grid, series_uid="1.2.3.1").num_files == 7


def test_what_is_no_dicom_is_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    grid = read_volume(folder).grid
    (tmp_path / "a.nii.gz").write_bytes(b"not DICOM")
    refused("source.not_dicom", lambda: read_source([], grid))
    refused("source.not_dicom", lambda: read_source([tmp_path / "a.nii.gz"], grid))
    refused("source.not_dicom", lambda: read_source([tmp_path / "missing.dcm"], grid))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (14, 11, 6)},
        {"shape": (11, 14, 7)},
        {"spacing_mm": (0.5, 0.82, 2.5)},
        {"spacing_mm": (0.5, 0.8, 2.7)},
        {"origin_mm": (-10.0, -20.0, 31.0)},
        {"origin_mm": (-9.8, -20.0, 30.0)},
        {"direction": (1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0)},
    ],
)
def test_an_answer_on_another_grid_is_refused(tmp_path: Path, change: dict[str, tuple[float, ...]]) -> None:
    folder = write_series(tmp_path / "ct")
    grid: Grid = dataclasses.replace(read_volume(folder).grid, **change)  # type: ignore[arg-type]
    refused("source.other_grid", lambda: read_source(files_of(folder), grid))


@pytest.mark.parametrize("name", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_series_without_its_uids_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_series(tmp_path / "ct", (14, 11, 7), orientation=ORIENTATIONS["axial"], **{name: None})
    error = refused("source.incomplete", lambda: read_source(files_of(folder), read_volume(folder).grid))
    assert name in str(error)


def test_a_missing_or_doubled_slice_is_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    grid = read_volume(folder).grid
    refused("source.other_grid", lambda: read_source(files_of(folder)[1:], grid))
    refused("source.other_grid", lambda: read_source([*files_of(folder), files_of(folder)[0]], grid))


def test_a_damaged_header_is_refused_and_nothing_of_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.warns(UserWarning, match="exceeds"):
        folder = write_series(tmp_path / "ct", PatientName="SECRETNAME^" + "x" * 80)
    grid = read_volume(folder).grid
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        assert read_source(files_of(folder), grid).num_files == 7
        content = (folder / "000.dcm").read_bytes()
        (folder / "000.dcm").write_bytes(content.replace(b"\\1.0\\", b"\\z.0\\"))
        error = refused("source.unreadable", lambda: read_source(files_of(folder), grid))
    assert "SECRET" not in str(error) + caplog.text
    assert caplog.text == ""


@pytest.mark.parametrize(
    "uid",
    [
        "2.25.3841015643452503209109170649121759",
        "1.2.840.113619.4.30",
        "1.2.840.10008.1.1",
        "1.2.840.10008.5.1.4.1.1.2.1",
    ],
    ids=["anonymised", "private", "no image", "of frames"],
)
def test_a_class_of_images_that_nobody_knows_is_refused(tmp_path: Path, uid: str) -> None:
    folder = write_series(tmp_path / "ct", SOPClassUID=uid)
    error = refused("source.sop_class", lambda: read_source(files_of(folder), read_volume(folder).grid))
    assert "NIfTI, JSON" in error.remedy


def test_files_that_share_a_uid_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", SOPInstanceUID="1.2.3.4")
    refused("source.same_instance", lambda: read_source(files_of(folder), read_volume(folder).grid))


def test_slices_without_preamble_and_of_other_representations_are_found_again(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    as_written = read_source(files_of(folder), read_volume(folder).grid)
    for number, file in enumerate(files_of(folder)):
        dataset = pydicom.dcmread(file)
        spacing = "\\".join(str(side) for side in dataset.PixelSpacing)
        dataset["PixelSpacing"] = pydicom.DataElement(0x00280030, "UT", spacing)
        dataset.save_as(file)
        if number % 2:
            file.write_bytes(file.read_bytes()[132:])
    source = read_source(files_of(folder), read_volume(folder).grid)
    assert [one.sop_instance for one in source.slices] == [one.sop_instance for one in as_written.slices]
    assert [float(side) for side in source.pixel_spacing] == [float(side) for side in as_written.pixel_spacing]
