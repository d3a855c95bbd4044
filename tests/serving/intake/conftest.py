"""Uploads for the tests: parts from files and bytes, zips, slices with a patient's name in them."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from voxray.core.errors import DataError
from voxray.core.volume import Grid, Volume
from voxray.readers import write_nifti
from voxray.serving.intake.disk import remove
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.parse import parse
from voxray.serving.intake.receive import UploadPart, receive
from voxray.serving.intake.study import StudyInfo

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
PLANTED = "QUIMBYSALLOW"
"""A patient's name that must come out nowhere."""

Files = Mapping[str, bytes]


async def chunks_of(data: bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def parts_of(files: Files) -> AsyncIterator[UploadPart]:
    for name, data in files.items():
        yield UploadPart(name, chunks_of(data))


async def take_in(
    parts: AsyncIterator[UploadPart], folder: Path, limits: Limits, *, series_uid: str | None = None
) -> StudyInfo:
    """Receives and reads an upload into a study's folder; whatever goes wrong, the folder goes with it."""
    await receive(parts, folder, limits)
    try:
        return await parse(folder, limits, series_uid=series_uid)
    except BaseException:
        await remove(folder)
        raise


def taken(files: Files, folder: Path, limits: Limits | None = None, *, series: str | None = None) -> StudyInfo:
    return asyncio.run(take_in(parts_of(files), folder, limits or Limits(), series_uid=series))


def code_of(files: Files, folder: Path, limits: Limits | None = None, *, series: str | None = None) -> str | None:
    """The code by which an upload is refused; whatever happens, what must hold of refusals and studies does."""
    try:
        info = taken(files, folder, limits, series=series)
    except DataError as error:
        refusal = error
    else:
        check_study(folder, info)
        return None
    text = f"{refusal} {refusal.remedy}"
    assert not folder.exists(), "a refused upload leaves nothing"
    assert str(folder.parent) not in text
    assert "\n" not in text
    assert PLANTED not in text
    assert refusal.remedy
    return refusal.code


def check_study(folder: Path, info: StudyInfo) -> None:
    """What holds of every study that was taken in."""
    voxels = np.load(folder / "volume.npy", mmap_mode="r")
    assert voxels.dtype == np.int16
    assert voxels.shape == info.shape
    assert sorted(path.name for path in folder.iterdir()) == ["source", "study.json", "volume.npy"]
    assert PLANTED not in info.model_dump_json() + (folder / "study.json").read_text()


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def zip_of(files: Files, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def slice_file(z: int = 0, **changes: Any) -> bytes:
    """A CT slice of 8 x 6 pixels, 2 mm above the one before; `changes` set elements by name."""
    dataset: Any = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT_IMAGE, pydicom.uid.generate_uid()
    dataset.Modality, dataset.SeriesNumber = "CT", 3
    dataset.PatientName, dataset.PatientID = f"{PLANTED}^ANN", f"{PLANTED}-1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.4.5.6.7.1", "1.2.3.4.5.6.7.1.1"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = 6, 8
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [1, 2, 2.0 * z], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.5], 2.0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = np.full((6, 8), 1000 + z, np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    for name, value in changes.items():
        setattr(dataset, name, value)
    packed = io.BytesIO()
    dataset.save_as(packed, enforce_file_format=True)
    return packed.getvalue()


def series_files(count: int = 4, *, prefix: str = "IM", **changes: Any) -> dict[str, bytes]:
    return {f"{prefix}{z:03d}": slice_file(z, **changes) for z in range(count)}


@pytest.fixture
def nifti(tmp_path: Path) -> Callable[..., bytes]:
    """Makes a NIfTI file of random values."""

    def make(shape: tuple[int, int, int] = (9, 8, 7), suffix: str = ".nii.gz", *, value: int | None = None) -> bytes:
        rng = np.random.default_rng(5)
        voxels = np.full(shape, value, np.int16) if value is not None else rng.integers(-1000, 1000, shape, np.int16)
        path = tmp_path / f"made{suffix}"
        write_nifti(Volume(voxels, Grid(shape, (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))), path)
        return path.read_bytes()

    return make
