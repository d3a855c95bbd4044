"""CT series with a study and a patient around them, as archives hold them, and what checks objects made of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from voxray.core.volume import Volume
from voxray.readers import read_volume
from voxray.results.writers import Algorithm

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
ORIENTATIONS = {
    "axial": AXIAL,
    "oblique": OBLIQUE,
    "mirrored": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
}
SHAPE = (14, 11, 7)
CLASSES = ("nodule", "kidney_left", "gluteus_maximus_left", "bright spot")
ALGORITHM = Algorithm(name="a run", version="0123abc", sha256="5e" * 32, dataset="luna16")
SECRETS = ("SECRETSTREET", "SECRETHOSPITAL", "SECRETNURSE", "SECRETSTORY", "SECRETALIAS")


def write_series(
    folder: Path, shape: tuple[int, int, int] = SHAPE, *, orientation: tuple[float, ...] = AXIAL, **changes: Any
) -> Path:
    """A series of single slices, named against their order, with more about the patient than anyone needs."""
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    for z in range(shape[2]):
        dataset = _slice(shape)
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        dataset.SOPInstanceUID = f"1.2.3.4.{z + 1}"
        dataset.ImageOrientationPatient = list(orientation)
        dataset.ImagePositionPatient = (np.array([-10.0, -20.0, 30.0]) + normal * 2.5 * z).tolist()
        dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.5], 2.5
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        _change(dataset, changes)
        dataset.save_as(folder / f"{(z * 5) % shape[2]:03d}.dcm", enforce_file_format=True)
    return folder


def write_volume(folder: Path, volume: Volume, **changes: Any) -> Path:
    """A scan as a series of single slices; its axes must be right-handed, as DICOM's are."""
    grid = volume.grid
    assert np.linalg.det(grid.rotation) > 0
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(grid.shape[2]):
        dataset = _slice(grid.shape)
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.4.{z + 1}"
        dataset.ImageOrientationPatient = [f"{value:.11f}" for value in grid.rotation[:, :2].T.ravel()]
        dataset.ImagePositionPatient = [f"{value:.9f}" for value in (grid.affine @ [0, 0, z, 1])[:3]]
        dataset.PixelSpacing, dataset.SliceThickness = list(grid.spacing_mm[1::-1]), grid.spacing_mm[2]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -4096
        dataset.PixelData = np.ascontiguousarray((volume.voxels[:, :, z].T + 4096).astype(np.uint16)).tobytes()
        dataset["PixelData"].VR = "OW"
        _change(dataset, changes)
        dataset.save_as(folder / f"{z:03d}.dcm", enforce_file_format=True)
    return folder


def write_multiframe(path: Path, shape: tuple[int, int, int] = SHAPE, **changes: Any) -> Path:
    """An enhanced CT file whose frames run against the normal."""

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    dataset = _slice(shape)
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.3.5"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames = shape[2]
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=list(AXIAL))],
            PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.5], SliceThickness=2.5)],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=[-10.0, -20.0, 30.0 - 2.5 * z])])
        for z in range(shape[2])
    ]
    dataset.PixelData = np.zeros(shape, np.uint16).tobytes()
    _change(dataset, changes)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _slice(shape: tuple[int, int, int]) -> Any:
    dataset: Any = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName, dataset.PatientID = "Müller^Änne", "id-77"
    dataset.PatientBirthDate, dataset.PatientSex = "19500102", "F"
    dataset.PatientAddress, dataset.InstitutionName, dataset.OperatorsName = SECRETS[:3]
    dataset.AdditionalPatientHistory, dataset.OtherPatientNames, dataset.PatientAge = SECRETS[3], SECRETS[4], "071Y"
    dataset.Manufacturer, dataset.StationName = "SECRETHOSPITAL scanners", "SECRETHOSPITAL"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.2"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200203", "101112", "S7"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = "A99", "Who^Doctor"
    dataset.Modality, dataset.SeriesNumber, dataset.ImageType = "CT", 3, ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PositionReferenceIndicator = "XY"
    dataset.Columns, dataset.Rows = shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = np.zeros(shape[:2], np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def _change(dataset: Any, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)


def files_of(source: Path) -> list[Path]:
    return sorted(source.iterdir()) if source.is_dir() else [source]


def random_labels(source: Path, rng: np.random.Generator, *, num_classes: int = len(CLASSES)) -> Volume:
    """Specks and blocks of every class but the second, on the grid that the reader makes of the source."""
    grid = read_volume(source).grid
    voxels = np.where(rng.random(grid.shape) < 0.2, rng.integers(0, num_classes + 1, grid.shape), 0)
    voxels[0, 0, 0] = voxels[-1, -1, -1] = voxels[2:6, 3:8, 1:4] = 1
    voxels[4, 5, 2] = 0
    voxels[voxels == 2] = 0
    return Volume(voxels.astype(np.uint8), grid)


def without_errors(path: Path) -> None:
    """Has dciodvfy look at the file; skips where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("no dciodvfy (Debian's dicom3tools) on this machine")
    said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, check=False).stderr.decode("latin-1")
    assert not [line for line in said.splitlines() if line.startswith("Error")], said


def keeps_to_itself(path: Path) -> None:
    """The file repeats who and which study, and nothing else that the source knows of the patient."""
    content = path.read_bytes()
    assert not [secret for secret in SECRETS if secret.encode() in content]
    dataset = pydicom.dcmread(path)
    assert "PatientAge" not in dataset
    assert str(dataset.PatientName) == "Müller^Änne"
    said = [str(dataset.get(name)) for name in ("PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID")]
    assert said == ["id-77", "19500102", "F", "1.2.3"]
    said = [str(dataset.get(name)) for name in ("StudyDate", "StudyTime", "StudyID", "AccessionNumber")]
    assert said == ["20200203", "101112", "S7", "A99"]
    assert dataset.SeriesInstanceUID != "1.2.3.1"


def unpacked(dataset: Dataset) -> NDArray[Any]:
    """Frames of a SEG as stored (frame, y, x), by numpy alone for one bit a pixel."""
    shape = int(dataset.NumberOfFrames), dataset.Rows, dataset.Columns
    if dataset.BitsAllocated != 1:
        return np.asarray(dataset.pixel_array).reshape(shape)
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    return bits[: int(np.prod(shape))].reshape(shape)
