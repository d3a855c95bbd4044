"""Pixels in every transfer syntax come out as stored, and cut streams never pass."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from voxray.core.errors import DataError
from voxray.readers import read_volume
from voxray.readers.dicom_pixels import decode


@pytest.fixture
def stored(rng: np.random.Generator) -> NDArray[np.int16]:
    smooth = np.add.outer(np.arange(64), np.arange(48)) * 10 - 500
    return (smooth[..., None] + rng.integers(-5, 5, (64, 48, 3))).astype(np.int16)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_native_pixels(write_series: Any, stored: NDArray[np.int16], syntax: str) -> None:
    assert (read_volume(write_series(stored, syntax=syntax, RescaleIntercept=0)).voxels == stored).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_packed_pixels(write_series: Any, stored: NDArray[np.int16], syntax: str) -> None:
    folder = write_series(stored, RescaleIntercept=0)
    for file in folder.iterdir():
        pack(file, syntax)
    assert (read_volume(folder).voxels == stored).all()


def pack(file: Path, syntax: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(file)
        dataset.compress(syntax)
        dataset.save_as(file)


def test_jpeg_lossless_by_gdcm(tmp_path: Path, stored: NDArray[np.int16]) -> None:
    path = tmp_path / "a.dcm"
    image: Any = SimpleITK.GetImageFromArray(stored[:, :, 0].T)
    made: Any = SimpleITK.ImageFileWriter
    writer = made()
    writer.SetFileName(str(path))
    writer.SetUseCompression(True)
    writer.SetImageIO("GDCMImageIO")
    writer.Execute(image)
    syntax = str(pydicom.dcmread(path).file_meta.TransferSyntaxUID)
    assert syntax in ("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90")
    assert (decode(path, syntax)[0] == stored[:, :, 0].T).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_cut_stream_never_passes(write_series: Any, stored: NDArray[np.int16], syntax: str, share: float) -> None:
    file = write_series(stored[:, :, :1]) / "001.dcm"
    header = file.read_bytes().index(b"\xe0\x7f\x10\x00")
    pack(file, syntax)
    data = file.read_bytes()
    file.write_bytes(data[: header + 12 + int((len(data) - header - 12) * share)])
    with pytest.raises(DataError) as raised:
        read_volume(file)
    assert raised.value.code in ("dicom.bad_pixels", "dicom.unreadable", "dicom.no_pixels")


def test_a_frame_without_an_end_mark_is_refused(write_series: Any, refused: Any, stored: NDArray[np.int16]) -> None:
    file = write_series(stored[:, :, :1]) / "001.dcm"
    pack(file, JPEG2000Lossless)
    dataset = pydicom.dcmread(file)
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 2 * 2 - 40]])
    dataset.save_as(file)
    with refused("dicom.bad_pixels"):
        read_volume(file)
