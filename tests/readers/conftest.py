"""Small scans and DICOM series, written by other libraries than those under test."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian

from voxray.core.errors import DataError

Refused = Callable[[str], Any]
WriteSeries = Callable[..., Path]

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.fixture
def refused() -> Refused:
    """A context that wants a DataError of one code, whose text is one line with a remedy."""

    @contextmanager
    def context(code: str) -> Iterator[None]:
        with pytest.raises(DataError) as raised:
            yield
        text = str(raised.value)
        assert raised.value.code == code, text
        assert "\n" not in text
        assert raised.value.remedy

    return context


@pytest.fixture
def write_series(tmp_path: Path) -> WriteSeries:
    """Writes voxels (x y z, stored values) as single-frame CT files, the z-th at its own position.

    `changes` maps an element's name to its value, or to a function of the slice's number that gives it; a value of
    None leaves the element out.
    """

    def write(
        voxels: NDArray[Any],
        *,
        folder: str = "series",
        orientation: tuple[float, ...] = AXIAL,
        step: float = 2.5,
        origin: tuple[float, float, float] = (-10.0, -20.0, 30.0),
        syntax: str = ExplicitVRLittleEndian,
        **changes: Any,
    ) -> Path:
        (tmp_path / folder).mkdir(exist_ok=True, parents=True)
        normal = np.cross(orientation[:3], orientation[3:])
        for z in range(voxels.shape[2]):
            dataset = slice_of(voxels[:, :, z])
            dataset.ImageOrientationPatient = list(orientation)
            dataset.ImagePositionPatient = (np.asarray(origin) + normal * step * z).tolist()
            for name, value in changes.items():
                given = value(z) if callable(value) else value
                if given is None:
                    delattr(dataset, name)
                else:
                    setattr(dataset, name, given)
            dataset.file_meta.TransferSyntaxUID = syntax
            # Names against the order along the normal, so that nothing depends on them.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset.save_as(tmp_path / folder / f"{voxels.shape[2] - z:03d}.dcm", enforce_file_format=True)
        return tmp_path / folder

    return write


def slice_of(pixels: NDArray[Any]) -> Any:
    """A CT slice with stored values (x y), -1024 HU at 0."""
    dataset: Any = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT_IMAGE, pydicom.uid.generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "CT", "1.2.3", 3
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = pixels.shape[1], pixels.shape[0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.5], 7.0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset
