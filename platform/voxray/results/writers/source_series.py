"""The series that an answer belongs to, from its DICOM headers: which file holds which slice of the answer's grid.

An answer comes on the grid that the reader made of the series. Every slice of that grid is looked for among the
files by its place in the patient; so the order of files means nothing, and an answer that lies elsewhere is refused.

What is taken of the headers is listed in `TAGS`: who and which study (what every object of a study must repeat), and
geometry. Nothing else of the patient can reach a file that is written here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from voxray.core.errors import DataError
from voxray.core.volume import Grid
from voxray.readers.dicom_file import is_dicom, parts_of, read_header, text_of, value_of
from voxray.results.writers.quiet import quietly

PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
)
"""Repeated in every object of a study; those that may be left out are written as far as the source has them."""
_MAY_BE_ABSENT = ("IssuerOfPatientID",)
TAGS = (
    *PATIENT_AND_STUDY,
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)

_BESIDE_VOX = 0.3
_ALONG_VOX = 0.2
_SPACING_TOLERANCE = 0.01
_AXIS_TOLERANCE = 0.01
"""What the reader lets pass between a series and its grid, and a little."""

_OF_FRAMES = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_OTHER_FORMS = "Take a form that needs no DICOM (NIfTI, JSON, markups)."
_EXPORT = "Give the series that the scan was read from, as the scanner or archive exports it."


@dataclass(frozen=True)
class Slice:
    """Where one slice of the grid is stored."""

    sop_class: str
    sop_instance: str
    frame: int | None
    """Its number within a multi-frame file, from 1; None for a file of one slice."""
    position: tuple[Any, ...]
    """Image Position (Patient), as the file writes it."""


@dataclass(frozen=True)
class Source:
    """A CT series in the order of a grid's slices, and what other objects of its study repeat of it."""

    slices: tuple[Slice, ...]
    grid: Grid
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    orientation: tuple[Any, ...]
    pixel_spacing: tuple[Any, ...]
    thickness: float | None
    header: Dataset = field(repr=False)
    """Of the first slice, `TAGS` alone."""

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """The size of each slice."""
        return self.grid.shape[1], self.grid.shape[0]

    @property
    def num_files(self) -> int:
        """How many files hold the slices."""
        return len({one.sop_instance for one in self.slices})


@dataclass(frozen=True)
class _Found:
    """A slice that a file offers."""

    path: Path
    header: Dataset = field(repr=False)
    index: int
    num_frames: int
    position: tuple[Any, ...]
    orientation: tuple[Any, ...]
    pixel_spacing: tuple[Any, ...]
    thickness: float | None


def read_source(files: Sequence[Path], grid: Grid, *, series_uid: str | None = None) -> Source:
    """The series among the files whose slices make up `grid`; of several CT series one must be named."""
    with quietly():
        found = [found for path in files for found in _offered(path)]
        return _source(_in_order(_one_series(found, files, series_uid), grid), grid)


def _source(ordered: Sequence[_Found], grid: Grid) -> Source:
    first = ordered[0]
    _check_instances(ordered)
    return Source(
        slices=tuple(
            Slice(
                sop_class=_sop_class(one),
                sop_instance=_required(one, "SOPInstanceUID"),
                frame=one.index + 1 if one.num_frames else None,
                position=one.position,
            )
            for one in ordered
        ),
        grid=grid,
        study_uid=_required(first, "StudyInstanceUID"),
        series_uid=_required(first, "SeriesInstanceUID"),
        frame_of_reference_uid=_required(first, "FrameOfReferenceUID"),
        orientation=first.orientation,
        pixel_spacing=first.pixel_spacing,
        thickness=first.thickness,
        header=first.header,
    )


def _offered(path: Path) -> list[_Found]:
    """The CT slices of a file; none where it is no DICOM file or holds something else."""
    header = _header(path)
    if header is None:
        return []
    try:
        if text_of(value_of(header, "Modality")) != "CT" or not header.get("Rows"):
            return []
        if "LOCALIZER" in [str(kind).upper() for kind in parts_of(value_of(header, "ImageType") or "")]:
            return []
        groups = header.get("PerFrameFunctionalGroupsSequence")
        frames = range(int(header.get("NumberOfFrames") or 1)) if groups else range(1)
        found = [_frame(path, header, index, len(frames) if groups else 0) for index in frames]
    except Exception as error:
        # pydicom parses values when they are asked for, and raises anything that damaged bytes happen to cause.
        raise _unreadable(path, error) from None
    return [one for one in found if one is not None]


def _header(path: Path) -> Dataset | None:
    if path.name.startswith(".") or not path.is_file():
        return None
    if not is_dicom(path):
        return None
    try:
        return read_header(path, TAGS).dataset
    except Exception as error:
        # As above.
        raise _unreadable(path, error) from None


def _frame(path: Path, header: Dataset, index: int, num_frames: int) -> _Found | None:
    position = _value(header, index, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _value(header, index, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _value(header, index, "PixelMeasuresSequence", "PixelSpacing")
    thickness = _value(header, index, "PixelMeasuresSequence", "SliceThickness")
    if position is None or orientation is None or spacing is None:
        return None
    for values, count in ((position, 3), (orientation, 6), (spacing, 2)):
        if np.isfinite(np.asarray(values, float)).sum() != count:
            raise ValueError("a place in the patient that is no place")
    return _Found(
        path=path,
        header=header,
        index=index,
        num_frames=num_frames,
        position=tuple(position),
        orientation=tuple(orientation),
        pixel_spacing=tuple(spacing),
        thickness=None if thickness is None else float(thickness),
    )


def _value(header: Dataset, index: int, group: str, name: str) -> Any:
    """A value of one frame: from its own functional group, the shared one, or the file; None where it is not said."""
    for sequence, item in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        groups = header.get(sequence)
        inner = groups[item].get(group) if groups and item < len(groups) else None
        if inner and value_of(inner[0], name) is not None:
            return _number_or_numbers(value_of(inner[0], name))
    value = value_of(header, name)
    return None if value is None else _number_or_numbers(value)


def _number_or_numbers(value: Any) -> Any:
    """A value as pydicom gives it, or as numbers where its representation is text."""
    parts = parts_of(value)
    if all(isinstance(part, float) for part in parts):
        return value
    numbers = [float(part) for part in parts]
    return numbers if len(numbers) > 1 else numbers[0]


def _one_series(found: Sequence[_Found], files: Sequence[Path], series_uid: str | None) -> list[_Found]:
    where = _where(files)
    if not found:
        raise DataError(
            "source.not_dicom",
            f"{where}: holds no DICOM CT slices, which DICOM answers must refer to.",
            remedy="Give the DICOM series, or take a form that needs none (NIfTI, JSON, markups).",
        )
    series: dict[str, list[_Found]] = defaultdict(list)
    for one in found:
        series[str(one.header.get("SeriesInstanceUID", "")).strip()].append(one)
    if series_uid is not None and series_uid not in series:
        raise DataError("source.no_such_series", f"{where}: holds no CT series of that UID.", remedy=_EXPORT)
    if series_uid is None and len(series) > 1:
        raise DataError(
            "source.several_series",
            f"{where}: holds {len(series)} CT series.",
            remedy="Name the one that the scan was read from.",
        )
    return series[series_uid] if series_uid is not None else list(found)


def _in_order(found: Sequence[_Found], grid: Grid) -> list[_Found]:
    """The slices as the grid has them; whatever does not lie on it, or is missing or doubled, is refused."""
    first = found[0]
    where = first.path.parent
    spacing_x, spacing_y, _ = grid.spacing_mm
    columns, rows, num_slices = grid.shape
    for one in found:
        if (int(one.header.Columns), int(one.header.Rows)) != (columns, rows):
            raise _other_grid(
                where, f"{one.header.Columns} x {one.header.Rows} pixels, the answer {columns} x {rows}"
            )
        if not np.allclose(np.asarray(one.pixel_spacing, float), (spacing_y, spacing_x), rtol=_SPACING_TOLERANCE):
            raise _other_grid(where, f"pixels of other sides than the answer's {spacing_x:g} x {spacing_y:g} mm")
        axes = np.asarray(one.orientation, float).reshape(2, 3).T
        if not np.allclose(axes, grid.rotation[:, :2], atol=_AXIS_TOLERANCE):
            raise _other_grid(where, "axes that run other ways than the answer's")
    index = grid.to_voxel(np.array([one.position for one in found], float)) - 0.5
    places = np.rint(index[:, 2]).astype(int)
    off = np.abs(index - np.stack([np.zeros(len(found)), np.zeros(len(found)), places], axis=1)).max(axis=0)
    if off[:2].max() > _BESIDE_VOX or off[2] > _ALONG_VOX:
        raise _other_grid(where, "slices that lie elsewhere than the answer's")
    if sorted(places.tolist()) != list(range(num_slices)):
        raise _other_grid(where, f"{len(found)} slices, the answer {num_slices}")
    return [found[int(place)] for place in np.argsort(places)]


def _other_grid(where: Path, text: str) -> DataError:
    return DataError("source.other_grid", f"{where}: the series has {text}.", remedy=_EXPORT)


def _required(one: _Found, name: str) -> str:
    value = str(one.header.get(name, "") or "").strip()
    if not value:
        raise DataError(
            "source.incomplete",
            f"{one.path}: has no {name}, without which no DICOM object can refer to it.",
            remedy="Export the series again from the scanner or archive; anonymisers must keep UIDs or replace them.",
        )
    return value


def _sop_class(one: _Found) -> str:
    """The kind of image that the file says to be: what refers to it repeats this, and archives look it up."""
    uid = UID(_required(one, "SOPClassUID"))
    if uid.type != "SOP Class" or "Image Storage" not in uid.name:
        raise DataError(
            "source.sop_class",
            f"{one.path}: has the SOP Class UID {uid}, which is no class of images in DICOM; no archive could "
            f"find what a DICOM object refers to by it.",
            remedy=f"{_OTHER_FORMS} Anonymise again and keep the SOP Class UID (of CT: {CTImageStorage}).",
        )
    if uid in _OF_FRAMES and not one.num_frames:
        raise DataError(
            "source.sop_class",
            f"{one.path}: has the SOP Class UID of {uid.name}, and is a single slice without frames.",
            remedy=f"{_OTHER_FORMS} Export the series again from the scanner or archive.",
        )
    return str(uid)


def _check_instances(found: Sequence[_Found]) -> None:
    """Refuses files that one UID stands for: what refers to one of them would refer to all."""
    paths: dict[str, Path] = {}
    for one in found:
        uid = _required(one, "SOPInstanceUID")
        if paths.setdefault(uid, one.path) != one.path:
            raise DataError(
                "source.same_instance",
                f"{one.path} and {paths[uid].name} have the same SOPInstanceUID, so no DICOM object can refer to one "
                f"of them.",
                remedy=f"{_OTHER_FORMS} Anonymise again with a UID for each file.",
            )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        "source.unreadable",
        f"{path}: has a DICOM header that cannot be read ({type(error).__name__}).",
        remedy="Copy or export the file again.",
    )


def _where(files: Sequence[Path]) -> str:
    return str(files[0].parent if len(files) > 1 else files[0]) if files else "no file"


def nameless(source: Source, sop_class: str, sop_instance: str) -> Dataset:
    """A file of the series by its UIDs, with nothing of the patient: what highdicom asks for as a header."""
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = sop_class, sop_instance
    header.StudyInstanceUID, header.SeriesInstanceUID = source.study_uid, source.series_uid
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(header, name, "")
    header.StudyDate = header.StudyTime = None
    return header


def patient_and_study(source: Source) -> Dataset:
    """The elements that every object of the study repeats, as UTF-8; absent ones are empty if they must be there."""
    copied = Dataset()
    copied.SpecificCharacterSet = "ISO_IR 192"
    for name in PATIENT_AND_STUDY:
        value = source.header.get(name)
        if value is not None and value != "":
            setattr(copied, name, str(value))
        elif name not in _MAY_BE_ABSENT:
            setattr(copied, name, "")
    return copied
