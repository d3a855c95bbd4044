"""DICOM series and files, written by pydicom."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from voxray.core.errors import DataError
from voxray.readers import describe, read_label_map, read_volume

STORED = (np.arange(6 * 5 * 8).reshape(6, 5, 8) * 3).astype(np.uint16)
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)


def test_a_series_is_read_in_order_with_its_world(write_series: Any) -> None:
    volume = read_volume(write_series(STORED))
    assert (volume.hounsfield == STORED.astype(int) - 1024).all()
    assert volume.grid.spacing_mm == (0.5, 0.8, 2.5)
    assert volume.grid.origin_mm == (-10.0, -20.0, 30.0)
    assert volume.grid.orientation == "LPS"


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE, (-1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1)])
def test_the_world_is_that_of_itk(write_series: Any, orientation: tuple[float, ...]) -> None:
    folder = write_series(STORED, orientation=orientation)
    volume = read_volume(folder)
    reader: Any = SimpleITK.ImageSeriesReader
    names = reader.GetGDCMSeriesFileNames(str(folder))
    image: Any = SimpleITK.ReadImage(names)
    assert (volume.voxels == SimpleITK.GetArrayFromImage(image).T).all()
    for index in ((0, 0, 0), (5, 0, 7), (0, 4, 3)):
        itk = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(volume.grid.to_world(np.array([index]) + 0.5)[0], itk, atol=1e-5)


def test_signed_values_and_padding(write_series: Any) -> None:
    signed = STORED.astype(np.int16) - 2000
    assert read_volume(write_series(signed)).voxels.min() == -3024


def test_slope_and_intercept_may_change_between_slices(write_series: Any) -> None:
    folder = write_series(STORED, RescaleSlope=lambda z: 1 + z, RescaleIntercept=lambda z: -10.5 * z)
    wanted = np.rint(STORED * (1.0 + np.arange(8)) - 10.5 * np.arange(8))
    assert (read_volume(folder).voxels == wanted).all()


def test_one_file_is_a_volume_of_one_slice(write_series: Any) -> None:
    info = describe(write_series(STORED) / "001.dcm")
    assert info.shape == (6, 5, 1)
    assert info.spacing_mm[2] == 7.0
    assert "thickness" in info.warnings[0]


def test_a_file_needs_no_suffix(write_series: Any, tmp_path: Path) -> None:
    (write_series(STORED) / "001.dcm").rename(tmp_path / "IM1")
    assert read_volume(tmp_path / "IM1").grid.shape == (6, 5, 1)


def test_two_series_are_refused_until_one_is_named(write_series: Any, refused: Any) -> None:
    folder = write_series(STORED)
    other = write_series(STORED[:, :, :3], folder="other", SeriesInstanceUID="1.2.4")
    for file in other.iterdir():
        shutil.copy(file, folder / f"x{file.name}")
    with refused("dicom.several_series"):
        read_volume(folder)
    with pytest.raises(DataError, match=r"1\.2\.3 \(8 files, number 3\); 1\.2\.4 \(3 files"):
        read_volume(folder)
    assert read_volume(folder, series_uid="1.2.4").grid.shape[2] == 3
    assert "series 1.2.4 left out (3 files)" in describe(folder, series_uid="1.2.3").warnings
    with refused("dicom.no_such_series"):
        read_volume(folder, series_uid="1.2.5")


def test_what_lies_beside_the_slices_is_told(write_series: Any) -> None:
    folder = write_series(STORED)
    for name, changes in (
        ("seg", {"Modality": "SEG"}),
        ("sr", {"Modality": "SR"}),
        ("scout", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    ):
        file = write_series(STORED[:, :, :1], folder=f"of_{name}", **changes) / "001.dcm"
        file.rename(folder / name)
    (folder / "LICENSE").write_text("free")
    (folder / ".DS_Store").write_text("")
    (folder / "deeper").mkdir()
    info = describe(folder)
    assert info.shape == (6, 5, 8)
    assert info.warnings == (
        "not DICOM, ignored: LICENSE",
        "folders within are not read: deeper",
        "1 objects of modality SEG ignored",
        "1 objects of modality SR ignored",
        "1 localizer images ignored",
        "slices are 7 mm thick and 2.5 mm apart; the distance counts",
    )
    assert (read_volume(folder).voxels == STORED.astype(int) - 1024).all()


def test_folders_without_a_series_are_refused(write_series: Any, tmp_path: Path, refused: Any) -> None:
    write_series(STORED, folder="study/series")
    with refused("dicom.subfolders"):
        read_volume(tmp_path / "study")
    (tmp_path / "empty").mkdir()
    with refused("dicom.no_files"):
        read_volume(tmp_path / "empty")


def test_a_file_that_says_dicom_and_is_none_is_refused(write_series: Any, refused: Any) -> None:
    folder = write_series(STORED)
    (folder / "009.dcm").write_bytes(b"nothing")
    with refused("dicom.not_dicom"):
        read_volume(folder)
    with refused("dicom.not_dicom"):
        read_volume(folder / "009.dcm")


@pytest.mark.parametrize("modality", ["MR", "PT", "US", "RTDOSE"])
def test_other_modalities_are_refused_by_name(write_series: Any, modality: str) -> None:
    with pytest.raises(DataError, match=modality) as raised:
        read_volume(write_series(STORED, Modality=modality))
    assert raised.value.code == "dicom.not_ct"


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("dicom.not_ct", {"Modality": None}),
        ("dicom.only_localizers", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("dicom.no_position", {"ImagePositionPatient": None}),
        ("dicom.no_position", {"ImageOrientationPatient": None}),
        ("dicom.no_pixel_spacing", {"PixelSpacing": None}),
        ("dicom.no_rescale", {"RescaleSlope": None}),
        ("dicom.no_rescale", {"RescaleIntercept": None}),
        ("dicom.no_rescale", {"RescaleSlope": 0}),
        ("dicom.no_pixels", {"Rows": None}),
        ("dicom.no_pixels", {"PixelData": None}),
        ("dicom.truncated", {"Rows": 6}),
        ("dicom.bad_pixels", {"Rows": 4, "Columns": 2}),
        ("dicom.pixel_format", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
        ("dicom.pixel_format", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("dicom.pixel_format", {"BitsAllocated": 1}),
        ("dicom.not_hounsfield", {"RescaleType": "OD"}),
        ("dicom.not_hounsfield", {"ModalityLUTSequence": [Dataset()]}),
        ("dicom.inconsistent_size", {"Rows": lambda z: 5 - (z == 3)}),
        ("dicom.inconsistent_spacing", {"PixelSpacing": lambda z: [0.8, 0.5 + 0.1 * (z == 3)]}),
        ("dicom.inconsistent_orientation", {"ImageOrientationPatient": lambda z: [1, 0, 0, 0, 1 - 2 * (z == 3), 0]}),
        ("dicom.bad_orientation", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}),
        ("dicom.missing_slice", {"ImagePositionPatient": lambda z: [0, 0, 2 * z + 2 * (z > 5)]}),
        ("dicom.doubled_position", {"ImagePositionPatient": lambda z: [0, 0, 2 * z - 2 * (z > 5)]}),
        ("dicom.four_d", {"ImagePositionPatient": lambda z: [0, 0, z % 4]}),
        ("dicom.uneven_spacing", {"ImagePositionPatient": lambda z: [0, 0, z**1.2]}),
        ("dicom.gantry_tilt", {"ImagePositionPatient": lambda z: [0, 0.5 * z, 2 * z]}),
        ("grid.spacing", {"PixelSpacing": [0, 0.5]}),
        ("voxels.range", {"RescaleIntercept": 32767}),
    ],
)
def test_a_series_that_is_no_regular_ct_is_refused(write_series: Any, refused: Any, code: str, changes: Any) -> None:
    folder = write_series(STORED, **changes)
    with refused(code):
        read_volume(folder)


def test_headers_alone_tell_of_a_cut_file(write_series: Any, refused: Any) -> None:
    folder = write_series(STORED)
    file = folder / "004.dcm"
    file.write_bytes(file.read_bytes()[:-8])
    with refused("dicom.truncated"):
        describe(folder)


def test_values_that_cannot_be_parsed_are_refused(write_series: Any, refused: Any) -> None:
    for before, after in ((b"0.8\\0.5 ", b"0.8\\x.5 "), (b"0.8\\0.5 ", b"0.8     ")):
        folder = write_series(STORED)
        file = folder / "004.dcm"
        assert before in file.read_bytes()
        file.write_bytes(file.read_bytes().replace(before, after))
        with refused("dicom.bad_value"):
            read_volume(folder)


def test_an_unknown_transfer_syntax_is_refused(write_series: Any, refused: Any) -> None:
    folder = write_series(STORED)
    syntax = b"1.2.840.10008.1.2.1\0"
    for unknown in (b"1.2.840.10008.1.2.9\0", b"1.2.840.10008.1.x.9\0"):
        for file in folder.iterdir():
            file.write_bytes(file.read_bytes().replace(syntax, unknown))
        with refused("dicom.transfer_syntax"):
            read_volume(folder)
        syntax = unknown


def test_a_damaged_header_is_refused(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\xff")
    with refused("dicom.unreadable"):
        read_volume(tmp_path / "a.dcm")


def test_dicom_is_no_label_map(write_series: Any, refused: Any) -> None:
    with refused("path.not_label_map"):
        read_label_map(write_series(STORED))


def test_the_unspecified_rescale_type_is_told(write_series: Any) -> None:
    assert "US" in describe(write_series(STORED, RescaleType="US")).warnings[0]


def multiframe(stored: NDArray[Any], path: Path, *, per_frame_rescale: bool = False, **changes: Any) -> Path:
    """An enhanced CT file: positions in each frame's own group, the rest in the shared one."""

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    dataset: Any = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.3.4"
    dataset.Modality, dataset.SeriesInstanceUID = "CT", "1.2.3"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.Columns, dataset.Rows, dataset.NumberOfFrames = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.5], SliceThickness=2)],
        CTImageFrameTypeSequence=[item(PixelPresentation=changes.pop("presentation", "MONOCHROME"))],
    )
    rescale = [item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")]
    if not per_frame_rescale:
        shared.PixelValueTransformationSequence = rescale
    frames = []
    for z in range(stored.shape[2]):
        frame = item(PlanePositionSequence=[item(ImagePositionPatient=[1, 2, 3 - 2 * z])])
        if per_frame_rescale:
            frame.PixelValueTransformationSequence = [item(RescaleSlope=1 + z, RescaleIntercept=z, RescaleType="HU")]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    dataset.PixelData = stored.T.tobytes()
    dataset["PixelData"].VR = "OW"
    for name, value in changes.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_frames_of_one_file_are_sorted_by_their_own_positions(tmp_path: Path) -> None:
    volume = read_volume(multiframe(STORED, tmp_path / "a.dcm"))
    assert (volume.voxels == STORED[:, :, ::-1].astype(int) - 1024).all()
    assert volume.grid.origin_mm == (1.0, 2.0, 3.0 - 14)
    assert volume.grid.spacing_mm == (0.5, 0.8, 2.0)


def test_each_frame_has_its_own_rescale(tmp_path: Path) -> None:
    voxels = read_volume(multiframe(STORED, tmp_path / "a.dcm", per_frame_rescale=True)).voxels
    wanted = STORED.astype(int) * (1 + np.arange(8)) + np.arange(8)
    assert (voxels == wanted[:, :, ::-1]).all()


def test_frames_without_a_group_are_refused(tmp_path: Path, refused: Any) -> None:
    with refused("dicom.bad_value"):
        read_volume(multiframe(STORED, tmp_path / "a.dcm", NumberOfFrames=7))
    with refused("dicom.not_hounsfield"):
        read_volume(multiframe(STORED, tmp_path / "b.dcm", presentation="COLOR"))
    dataset = pydicom.dcmread(tmp_path / "b.dcm")
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(tmp_path / "c.dcm")
    with refused("dicom.no_position"):
        read_volume(tmp_path / "c.dcm")


def test_nothing_that_names_a_patient_is_told(write_series: Any) -> None:
    folder = write_series(STORED, PatientName="Canary^Yellow", PatientID="Canary", SeriesDescription="Canary")
    assert "anary" not in str(describe(folder).to_dict()).replace(str(folder), "")


def without_geometry(file: Path, **changes: Any) -> None:
    """Makes a file a screen save: nothing in it says where it lies."""
    dataset: Any = pydicom.dcmread(file)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, name)
    dataset.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    for name, value in changes.items():
        setattr(dataset, name, value)
    dataset.save_as(file)


@pytest.mark.parametrize("series", ["1.2.3", "1.2.999"])
def test_screen_saves_and_dose_reports_are_left_out_by_name(write_series: Any, series: str) -> None:
    folder = write_series(STORED)
    save = write_series(STORED[:, :, :1], folder="other", SeriesInstanceUID=series) / "001.dcm"
    without_geometry(save)
    save.rename(folder / "save.dcm")
    info = describe(folder)
    assert info.shape == (6, 5, 8)
    assert info.warnings[0] == (
        "ignored, as nothing says where they lie in the patient (screen saves, dose reports): save.dcm"
    )
    assert (read_volume(folder).voxels == STORED.astype(int) - 1024).all()


def test_a_slice_that_lost_half_of_its_place_is_no_screen_save(write_series: Any, refused: Any) -> None:
    folder = write_series(STORED)
    file = folder / "004.dcm"
    dataset = pydicom.dcmread(file)
    del dataset.ImagePositionPatient
    dataset.save_as(file)
    with refused("dicom.no_position"):
        read_volume(folder)


def test_only_screen_saves_are_refused(write_series: Any, refused: Any) -> None:
    folder = write_series(STORED)
    for file in folder.iterdir():
        without_geometry(file)
    with refused("dicom.no_position"):
        read_volume(folder)


def test_a_directory_and_what_systems_leave_behind_are_no_slices(
    write_series: Any, tmp_path: Path, refused: Any
) -> None:
    folder = write_series(STORED)
    directory: Any = pydicom.Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory.SOPClassUID, directory.SOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3.9"
    directory.FileSetID = "DISC"
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    for name in ("Thumbs.db", "preview.jpg", "._001.dcm", ".hidden"):
        (folder / name).write_bytes(b"\xff\xd8\xff\xe0")
    info = describe(folder)
    assert info.shape == (6, 5, 8)
    assert info.warnings[:2] == ("not DICOM, ignored: Thumbs.db, preview.jpg", "DICOMDIR (a DICOM directory) ignored")
    with refused("dicom.not_ct"):
        read_volume(folder / "DICOMDIR")
    (tmp_path / "disc").mkdir()
    (folder / "DICOMDIR").rename(tmp_path / "disc" / "DICOMDIR")
    with refused("dicom.no_files"):
        read_volume(tmp_path / "disc")
    folder.rename(tmp_path / "disc" / "series")
    with refused("dicom.subfolders"):
        read_volume(tmp_path / "disc")


def test_series_are_listed_with_what_tells_them_apart(write_series: Any) -> None:
    folder = write_series(STORED, SeriesDescription="Lung 1.0")
    for file in write_series(STORED, folder="other", SeriesInstanceUID="1.2.4", SeriesNumber=None).iterdir():
        shutil.copy(file, folder / f"x{file.name}")
    with pytest.raises(
        DataError, match=r"1\.2\.3 \(8 files, number 3, “Lung 1\.0”\); 1\.2\.4 \(8 files, number \?\)"
    ) as one:
        read_volume(folder)
    assert "--series" in one.value.remedy


@pytest.mark.parametrize(
    ("name", "vr", "value"),
    [
        ("PixelSpacing", "UT", "0.8000\\0.5000"),
        ("PixelSpacing", "LO", ["0.8", "0.5"]),
        ("PixelSpacing", "UN", b"0.8\\0.5 "),
        ("PixelSpacing", "FD", [0.8, 0.5]),
        ("ImageOrientationPatient", "UT", "1\\0\\0\\0\\1\\0"),
        ("ImageType", "UT", "ORIGINAL\\PRIMARY\\AXIAL"),
        ("Modality", "LO", "CT"),
        ("Modality", "UN", b"CT"),
        ("RescaleSlope", "UT", "1.0"),
        ("RescaleSlope", "FL", 1.0),
        ("RescaleIntercept", "SH", "-1024"),
        ("RescaleIntercept", "UN", b"-1024 "),
        ("SliceThickness", "ST", "7.0"),
        ("Rows", "UL", 5),
        ("Columns", "IS", "6"),
        ("BitsStored", "LO", "16"),
        ("NumberOfFrames", "US", 1),
        ("SeriesInstanceUID", "LO", "1.2.3"),
    ],
)
def test_elements_of_other_representations_are_understood(write_series: Any, name: str, vr: str, value: Any) -> None:
    folder = write_series(STORED)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset[name] = pydicom.DataElement(pydicom.tag.Tag(name), vr, value)
        dataset.save_as(file)
    volume = read_volume(folder)
    assert (volume.voxels == STORED.astype(int) - 1024).all()
    assert volume.grid.spacing_mm == (0.5, 0.8, 2.5)


def test_text_where_whole_numbers_belong_is_read_as_written(write_series: Any) -> None:
    """A representation that its own bytes do not follow: pydicom refuses a whole number of 0.8."""
    folder = write_series(STORED)
    for file in folder.iterdir():
        data = file.read_bytes()
        assert b"\x28\x00\x30\x00DS" in data
        file.write_bytes(data.replace(b"\x28\x00\x30\x00DS", b"\x28\x00\x30\x00IS"))
    assert read_volume(folder).grid.spacing_mm == (0.5, 0.8, 2.5)


@pytest.mark.parametrize(("start", "suffix"), [(128, ".ima"), (132, "")])
def test_slices_without_a_preamble_are_slices(write_series: Any, start: int, suffix: str) -> None:
    folder = write_series(STORED)
    for file in (folder / "001.dcm", folder / "004.dcm"):
        data = file.read_bytes()
        file.unlink()
        file.with_suffix(suffix).write_bytes(data[start:])
    info = describe(folder, pixels=True)
    assert info.shape == (6, 5, 8)
    assert info.warnings == describe(write_series(STORED, folder="again")).warnings
    assert (read_volume(folder).voxels == STORED.astype(int) - 1024).all()


@pytest.mark.parametrize("excess", [b"\0", b"\0\0", b"ab", bytes(30)])
def test_bytes_after_the_pixels_are_padding(write_series: Any, excess: bytes) -> None:
    pixels = STORED[:, :, :1]
    folder = write_series(pixels, PixelData=pixels.T.tobytes() + excess)
    volume = read_volume(folder)
    assert (volume.voxels == pixels.astype(int) - 1024).all()
    (told,) = [text for text in volume.warnings if "follow the pixels" in text]
    # An odd number of bytes is made even by whoever writes it.
    assert told.startswith(f"{len(excess) + len(excess) % 2} bytes ")


def test_more_bytes_than_padding_are_refused(write_series: Any, refused: Any) -> None:
    pixels = STORED[:, :, :1]
    for excess in (pixels.T.tobytes(), b"x" * 12):
        with refused("dicom.bad_pixels"):
            read_volume(write_series(pixels, PixelData=pixels.T.tobytes() + excess))


def test_a_private_class_of_objects_is_read_like_any_ct(write_series: Any) -> None:
    folder = write_series(STORED, SOPClassUID="2.25.3841015643452503209109170649121759")
    assert (read_volume(folder).voxels == STORED.astype(int) - 1024).all()


def test_frames_take_what_they_share_from_the_shared_group(tmp_path: Path) -> None:
    path = multiframe(STORED, tmp_path / "a.dcm", PixelPaddingValue=0, BitsStored=12, HighBit=11)
    dataset: Any = pydicom.dcmread(path)
    cells = STORED.T.copy()
    cells[:, 2] |= 0x9000
    dataset.PixelData = cells.tobytes()
    dataset.save_as(path)
    volume = read_volume(path)
    assert (volume.voxels == STORED[:, :, ::-1].astype(int) - 1024).all()
    assert any(text.startswith("48 pixels have bits above") for text in volume.warnings)
