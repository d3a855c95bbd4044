"""From a DICOM header to frames: single-frame CT, enhanced multi-frame CT and its legacy conversion alike.

In a multi-frame file each value is looked up in the frame's own functional group, then in the shared one, then in the
file itself.
"""

from __future__ import annotations

import math
import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pydicom.config
import pydicom.uid

from voxray.readers import dicom_file
from voxray.readers.dicom_file import parts_of, text_of
from voxray.readers.dicom_pixels import NATIVE, TRANSFER_SYNTAXES
from voxray.readers.dicom_slices import DicomFrame
from voxray.readers.refusals import refusal

TAGS = (
    "ImageType",
    "Modality",
    "SeriesDescription",
    "PixelPresentation",
    "SliceThickness",
    "SeriesInstanceUID",
    "SeriesNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "LossyImageCompression",
    "ModalityLUTSequence",
    "RealWorldValueMappingSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
"""All that is read of a header: nothing in it names the patient, unless someone wrote that into the description."""

_HOUNSFIELD_UNITS = ("[hnsf'U]", "HU")
_ELEMENT_HEADER = {"1.2.840.10008.1.2": 8}
"""Bytes before the value of Pixel Data: 8 with implicit value representations, else 12."""
_EXPORT = "Export the original CT images from the scanner or archive."


@dataclass(frozen=True)
class Instance:
    """One DICOM file's header, and how many bytes of the file follow it (None where that cannot be told)."""

    path: Path
    dataset: pydicom.Dataset
    transfer_syntax: str
    num_bytes_left: int | None
    is_directory: bool = False
    """Whether it is a DICOMDIR."""

    @property
    def modality(self) -> str:
        """Such as CT; empty where the file does not say."""
        return text_of(value_of(self.dataset, "Modality", self.path))

    @property
    def series_uid(self) -> str:
        """Which series the file belongs to."""
        return text_of(value_of(self.dataset, "SeriesInstanceUID", self.path))

    @property
    def series_number(self) -> str:
        """As shown on the scanner's console, for people."""
        return text_of(value_of(self.dataset, "SeriesNumber", self.path)) or "?"

    @property
    def series_description(self) -> str:
        """Free text of the scanner or its operator, for people; it is shown where a series must be chosen."""
        return text_of(value_of(self.dataset, "SeriesDescription", self.path))

    @property
    def dtype(self) -> str:
        """The stored type by its numpy name."""
        bits = int(_number(self.dataset, "BitsAllocated", self.path) or 16)
        return f"{'int' if _number(self.dataset, 'PixelRepresentation', self.path) else 'uint'}{bits}"


def is_localizer(instance: Instance) -> bool:
    """Whether an image is a scout view, which lies in a CT series' folder but is no slice of it."""
    kinds = parts_of(value_of(instance.dataset, "ImageType", instance.path) or [])
    return "LOCALIZER" in [str(kind).upper() for kind in kinds]


def has_place(instance: Instance) -> bool:
    """Whether an image says anything of its place in the patient, which screen saves and dose reports do not."""
    return any(
        _lookup(instance, 0, group, name) is not None
        for group, name in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
        )
    )


def frames_of(instance: Instance) -> list[DicomFrame]:
    """The frames of a CT file; whatever stands against reading them as HU on a grid is refused."""
    dataset, path = instance.dataset, instance.path
    rows, columns, count = (_number(dataset, name, path) for name in ("Rows", "Columns", "NumberOfFrames"))
    if not rows or not columns:
        raise refusal("dicom.no_pixels", path, "holds no image (no Rows and Columns).", remedy=_EXPORT)
    num_frames = int(count or 1)
    _check_pixels(instance, int(rows) * int(columns) * num_frames)
    groups = value_of(dataset, "PerFrameFunctionalGroupsSequence", path)
    if groups is None and num_frames > 1:
        raise refusal(
            "dicom.no_position",
            path,
            f"has {num_frames} frames without a functional group each, so that their places are not known.",
            remedy=_EXPORT,
        )
    if groups is not None and len(groups) != num_frames:
        raise refusal(
            "dicom.bad_value",
            path,
            f"has {num_frames} frames but {len(groups)} functional groups.",
            remedy="Copy or export the file again.",
        )
    return [_frame(instance, index, int(columns), int(rows)) for index in range(num_frames)]


def meaning_warnings(instances: Sequence[Instance]) -> list[str]:
    """What is worth knowing of the values of a series, though it is read."""
    found = set()
    for one in instances:
        if text_of(_lookup(one, 0, "PixelValueTransformationSequence", "RescaleType")) == "US":
            found.add("the rescale type is US (unspecified); values are taken as HU")
        if text_of(value_of(one.dataset, "LossyImageCompression", one.path)) == "01":
            found.add("the images were compressed with loss")
    return sorted(found)


def value_of(dataset: Any, name: str, path: Path) -> Any:
    """An element's value, or None where it is absent or empty; one that cannot be parsed is refused."""
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            return dicom_file.value_of(dataset, name)
    except Exception as error:
        # pydicom parses values when they are asked for, and raises anything that damaged bytes happen to cause.
        raise _bad_value(path, name, f"{type(error).__name__}: {error}") from None


def _check_pixels(instance: Instance, num_pixels: int) -> None:
    dataset, path, syntax = instance.dataset, instance.path, instance.transfer_syntax
    if syntax not in TRANSFER_SYNTAXES:
        raise refusal(
            "dicom.transfer_syntax",
            path,
            f"is encoded with transfer syntax {syntax or '(missing)'} "
            f"({pydicom.uid.UID(syntax, pydicom.config.IGNORE).name or 'unknown'}), which is not read.",
            remedy="Convert it to Explicit VR Little Endian, for instance with dcmconv or gdcmconv.",
        )
    samples, bits = _number(dataset, "SamplesPerPixel", path), _number(dataset, "BitsAllocated", path)
    meaning = text_of(value_of(dataset, "PhotometricInterpretation", path))
    if samples not in (None, 1.0) or bits not in (8.0, 16.0, 32.0) or not meaning.startswith("MONOCHROME"):
        raise refusal(
            "dicom.pixel_format",
            path,
            f"has {meaning or 'unnamed'} pixels with {samples or 1:g} samples of {bits or 0:g} bits; CT has one "
            "monochrome sample of 8, 16 or 32 bits.",
            remedy=_EXPORT,
        )
    left = None if instance.num_bytes_left is None else instance.num_bytes_left - _ELEMENT_HEADER.get(syntax, 12)
    if left is not None and left <= 0:
        raise refusal("dicom.no_pixels", path, "holds no pixel data.", remedy=_EXPORT)
    if left is not None and syntax in NATIVE and left < num_pixels * int(bits) // 8:
        raise refusal(
            "dicom.truncated",
            path,
            f"has {left} bytes left for {num_pixels} pixels of {bits:g} bits.",
            remedy="Copy or export the file again.",
        )


def _frame(instance: Instance, index: int, columns: int, rows: int) -> DicomFrame:
    _check_hounsfield(instance, index)
    position = _numbers(instance, index, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _numbers(instance, index, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        raise refusal(
            "dicom.no_position",
            instance.path,
            f"has no Image {'Position' if position is None else 'Orientation'} (Patient): its place is unknown.",
            remedy=_EXPORT,
        )
    spacing = _numbers(instance, index, "PixelMeasuresSequence", "PixelSpacing", 2)
    if spacing is None:
        raise refusal("dicom.no_pixel_spacing", instance.path, "has no Pixel Spacing.", remedy=_EXPORT)
    thickness = _numbers(instance, index, "PixelMeasuresSequence", "SliceThickness", 1)
    slope = _numbers(instance, index, "PixelValueTransformationSequence", "RescaleSlope", 1)
    intercept = _numbers(instance, index, "PixelValueTransformationSequence", "RescaleIntercept", 1)
    if slope is None or intercept is None or slope[0] == 0.0:
        raise refusal(
            "dicom.no_rescale",
            instance.path,
            "has no rescale slope and intercept, so that its Hounsfield units are not known.",
            remedy=_EXPORT,
        )
    return DicomFrame(
        path=instance.path,
        index=index,
        columns=columns,
        rows=rows,
        position_mm=(position[0], position[1], position[2]),
        orientation=tuple(orientation),
        pixel_spacing_mm=(spacing[0], spacing[1]),
        thickness_mm=thickness[0] if thickness else None,
        slope=slope[0],
        intercept=intercept[0],
    )


def _check_hounsfield(instance: Instance, index: int) -> None:
    """Refuses CT objects whose values are something else: perfusion maps, colour overlays, look-up tables."""
    kind = text_of(_lookup(instance, index, "PixelValueTransformationSequence", "RescaleType")).upper() or "HU"
    presentation = text_of(_lookup(instance, index, "CTImageFrameTypeSequence", "PixelPresentation")) or "MONOCHROME"
    units = _lookup(instance, index, "RealWorldValueMappingSequence", "MeasurementUnitsCodeSequence")
    unit = text_of(value_of(units[0], "CodeValue", instance.path)) if units else _HOUNSFIELD_UNITS[0]
    has_table = value_of(instance.dataset, "ModalityLUTSequence", instance.path) is not None
    if (
        kind in ("HU", "HU_MOD", "US")
        and presentation == "MONOCHROME"
        and unit in _HOUNSFIELD_UNITS
        and not has_table
    ):
        return
    raise refusal(
        "dicom.not_hounsfield",
        instance.path,
        f"does not hold Hounsfield units (rescale type {kind}, pixel presentation {presentation}, unit {unit}"
        f"{', a modality look-up table' if has_table else ''}).",
        remedy=_EXPORT,
    )


def _lookup(instance: Instance, index: int, group: str, name: str) -> Any:
    """A value of one frame: from its own functional group, the shared one, or the file."""
    path = instance.path
    for sequence, item in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        groups = value_of(instance.dataset, sequence, path)
        inner = None if groups is None or item >= len(groups) else value_of(groups[item], group, path)
        value = None if inner is None else value_of(inner[0], name, path)
        if value is not None:
            return value
    mapping = value_of(instance.dataset, group, path) if group.startswith("RealWorld") else None
    return value_of(mapping[0] if mapping is not None else instance.dataset, name, path)


def _numbers(instance: Instance, index: int, group: str, name: str, count: int) -> list[float] | None:
    value = _lookup(instance, index, group, name)
    if value is None:
        return None
    try:
        values = [float(item) for item in parts_of(value)]
    except (TypeError, ValueError):
        values = []
    if len(values) != count or not all(math.isfinite(item) for item in values):
        raise _bad_value(instance.path, name, str(value))
    return values


def _number(dataset: pydicom.Dataset, name: str, path: Path) -> float | None:
    value = value_of(dataset, name, path)
    try:
        return None if value is None else float(parts_of(value)[0])
    except (TypeError, ValueError):
        raise _bad_value(path, name, str(value)) from None


def _bad_value(path: Path, name: str, value: str) -> Exception:
    return refusal(
        "dicom.bad_value",
        path,
        f"has a {name} that cannot be used ({value[:100]}).",
        remedy="Copy or export the file again.",
    )
