"""DICOM files with and without a preamble, in any encoding, with values of representations that do not suit them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from voxray.readers.dicom_file import is_dicom, parts_of, read_header, read_with_pixels, starts_dicom, text_of

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]


def write(path: Path, syntax: str) -> Path:
    dataset: Any = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SpecificCharacterSet, dataset.ImageType = "ISO_IR 100", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    dataset.Modality, dataset.Rows, dataset.Columns = "CT", 2, 3
    dataset.BitsAllocated = 16
    dataset.PixelData = np.arange(6, dtype=">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)
    return path


def without_meta(data: bytes) -> bytes:
    """The dataset alone: no preamble, no mark, no group 0002."""
    (length,) = np.frombuffer(data[140:144], "<u4")
    return data[144 + int(length) :]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("cut", ["nothing", "preamble", "preamble and mark", "all before the dataset"])
def test_a_file_is_dicom_with_and_without_its_preamble(tmp_path: Path, syntax: str, cut: str) -> None:
    data = write(tmp_path / "whole", syntax).read_bytes()
    path = tmp_path / "a"
    path.write_bytes(
        {
            "nothing": data,
            "preamble": data[128:],
            "preamble and mark": data[132:],
            "all before the dataset": without_meta(data),
        }[cut]
    )
    assert is_dicom(path)
    header = read_header(path, ["Modality", "Rows"])
    assert (header.dataset.Modality, header.dataset.Rows) == ("CT", 2)
    assert header.transfer_syntax == syntax
    assert header.num_bytes_left == 12 + (8 if syntax == ImplicitVRLittleEndian else 12)
    dataset = read_with_pixels(path)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    assert np.frombuffer(dataset.PixelData, f"{order}u2").tolist() == list(range(6))


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"DICM",
        bytes(512),
        b"\x08\x00\x16\x00" + bytes(500),
        np.arange(256, dtype="<u2").tobytes(),
        np.full(256, 8, "<i2").tobytes(),
        b"ObjectType = Image\nNDims = 3\n" * 10,
        b"\x08\x00\x16\x00UI\x04\x00abcd" + bytes(500),
        b"\x5c\x01\x00\x00" + bytes(508),
    ],
)
def test_what_only_looks_like_it_is_not(start: bytes) -> None:
    assert not starts_dicom(start)


def test_what_follows_the_pixels_is_not_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "a", ExplicitVRLittleEndian)
    whole = path.read_bytes()
    for rest in (
        b"\0",
        b"\0\0",
        bytes(100),
        b"\xfc\xff\xfc\xffOB\0\0\x04\0\0\0\0\0\0\0",
        b"garbage of any kind at all",
    ):
        path.write_bytes(whole + rest)
        assert (
            read_with_pixels(path).PixelData
            == read_with_pixels(write(tmp_path / "b", ExplicitVRLittleEndian)).PixelData
        )


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("1.5000\\1.5000", ["1.5000", "1.5000"]),
        (b"1.5\\2 \0", ["1.5", "2"]),
        (["1.5", " 2 "], ["1.5", "2"]),
        (2.5, [2.5]),
        ([1, 2], [1, 2]),
        ("CT ", ["CT"]),
    ],
)
def test_values_come_apart_whatever_their_representation(value: Any, parts: list[Any]) -> None:
    assert parts_of(value) == parts
    assert text_of(value) == str(parts[0])
    assert text_of(None) == ""
