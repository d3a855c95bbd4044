"""The stored values of a DICOM file's pixels, in any transfer syntax that is read here, exactly as encoded.

pydicom decodes native and RLE pixels and, with OpenJPEG, JPEG 2000; GDCM (within SimpleITK) decodes JPEG and JPEG-LS.
Which library decodes what is fixed, so that a file gives the same values wherever voxray is installed.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from jaxtyping import Integer
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import pixel_array

from voxray.readers.refusals import refusal

NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"}
DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = {"1.2.840.10008.1.2.5"}
_GDCM = {f"1.2.840.10008.1.2.4.{last}" for last in (50, 51, 57, 70, 80, 81)}
_OPENJPEG = {f"1.2.840.10008.1.2.4.{last}" for last in (90, 91, 201, 202, 203)}
TRANSFER_SYNTAXES = NATIVE | _RLE | _GDCM | _OPENJPEG

_END_OF_IMAGE = b"\xff\xd9"
_PIXEL_MODULE = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
)


def decode(path: Path, transfer_syntax: str) -> Integer[np.ndarray, "frames y x"]:
    """All frames of a file as stored values; no rescale slope or intercept is applied."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = _decode(path, transfer_syntax)
    except Exception as error:
        # Decoders raise anything that a damaged stream happens to cause.
        raise refusal(
            "dicom.bad_pixels",
            path,
            f"has pixel data that cannot be decoded ({type(error).__name__}: {str(error)[:200]}).",
            remedy="Copy or export the file again.",
        ) from None
    return pixels.reshape(-1, *pixels.shape[-2:])


def _decode(path: Path, transfer_syntax: str) -> np.ndarray[Any, Any]:
    dataset = pydicom.dcmread(path)
    if transfer_syntax in NATIVE:
        _check_length(dataset)
        return pixel_array(dataset)
    if transfer_syntax in _RLE:
        return pixel_array(dataset)
    _check_ends(dataset)
    if transfer_syntax in _OPENJPEG:
        return pixel_array(dataset, decoding_plugin="pylibjpeg")
    return _by_gdcm(dataset)


def _check_length(dataset: pydicom.Dataset) -> None:
    """Refuses more bytes than the header says, which pydicom lets pass; an odd length is padded by one."""
    pixels = dataset.Rows * dataset.Columns * int(dataset.get("NumberOfFrames") or 1)
    promised = pixels * dataset.BitsAllocated // 8
    if not promised <= len(dataset.PixelData) <= promised + promised % 2:
        raise ValueError(f"{len(dataset.PixelData)} bytes where the header promises {promised}")


def _check_ends(dataset: pydicom.Dataset) -> None:
    """Refuses frames that do not end in JPEG's end mark: decoders fill what is cut off, and say nothing."""
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    for number, frame in enumerate(generate_frames(dataset.PixelData, number_of_frames=num_frames), start=1):
        if not frame.rstrip(b"\0\xff").endswith(_END_OF_IMAGE):
            raise ValueError(f"frame {number} is cut off")


def _by_gdcm(dataset: pydicom.Dataset) -> np.ndarray[Any, Any]:
    """GDCM's decoding of the pixel module alone: without a rescale to apply, the values come out as stored."""
    bare = pydicom.Dataset()
    bare.SOPClassUID, bare.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    for name in _PIXEL_MODULE:
        if name in dataset:
            bare[name] = dataset[name]
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.dcm"
        bare.save_as(file, enforce_file_format=True)
        return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))))
