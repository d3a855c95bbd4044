"""A label map as a DICOM RT Structure Set: closed contours on the slices of its source series, one ROI a class.

Contours run halfway between voxel centres, so the centres of a class's voxels lie inside and all others outside:
drawn again on the same slices, they give the same mask. A hole is joined to the contour around it by a line that runs
there and back (the keyhole of PS3.3 C.8.8.6.3), which encloses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import contourpy
import numpy as np
from jaxtyping import Bool, Float
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ExplicitVRLittleEndian, RTStructureSetStorage
from scipy.spatial import KDTree

from voxray import __version__
from voxray.core.errors import DataError
from voxray.core.volume import Volume
from voxray.results.writers.coded_concepts import concept_of, shown
from voxray.results.writers.quiet import quietly
from voxray.results.writers.source_series import Slice, Source
from voxray.results.writers.stamping import MAKER, Algorithm, Uids, colour, empty, identify_labels, save

SERIES_NUMBER = 9003
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""The retired class that Referenced Study still has to name (Detached Study Management)."""
_DECIMALS = 3
_NEAR = 0.02
"""Of a voxel."""
MAX_CONTOURS = 50_000
"""Viewers choke on more, and organs need far fewer."""

_Point = Float[np.ndarray, " 2"]
Polygon = Float[np.ndarray, "n 2"]


def write_rtstruct(
    labels: Volume,
    source: Sequence[Path],
    path: Path,
    *,
    classes: Sequence[str],
    algorithm: Algorithm,
    series_uid: str | None = None,
) -> Path:
    """Writes the label map as a Structure Set and returns its path; label k is ``classes[k - 1]``."""
    uids, present = identify_labels(
        labels, source, "rtstruct", classes=classes, algorithm=algorithm, series_uid=series_uid
    )
    if not present:
        raise empty("rtstruct")
    series = uids.source
    with quietly():
        dataset = _header(uids)
        dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(series)]
        dataset.StructureSetROISequence = [_roi(uids, value, classes[value - 1]) for value in present]
        dataset.RTROIObservationsSequence = [_observation(uids, value, classes[value - 1]) for value in present]
        dataset.ROIContourSequence = _contours(labels, series, present)
        save(dataset, series, path)
    return path


def _header(uids: Uids) -> FileDataset:
    """An empty Structure Set that says who made it."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = UID(uids.of("rtstruct"))
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, PYDICOM_IMPLEMENTATION_UID
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", uids.of("rtstruct", "series")
    dataset.SeriesNumber, dataset.InstanceNumber = SERIES_NUMBER, 1
    dataset.SeriesDescription = shown(f"{MAKER} contours: {uids.algorithm.name}")
    dataset.OperatorsName = ""
    dataset.Manufacturer = dataset.ManufacturerModelName = MAKER
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = __version__, uids.algorithm.sha256
    dataset.StructureSetLabel, dataset.ApprovalStatus = MAKER, "UNAPPROVED"
    dataset.StructureSetDescription = shown(f"{uids.algorithm.name}, {uids.algorithm.identity}", 1024)
    now = datetime.now()
    dataset.StructureSetDate = dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.StructureSetTime = dataset.InstanceCreationTime = now.strftime("%H%M%S")
    dataset.FrameOfReferenceUID = uids.source.frame_of_reference_uid
    dataset.PositionReferenceIndicator = uids.source.header.get("PositionReferenceIndicator", "")
    return dataset


def _frame_of_reference(source: Source) -> Dataset:
    """The study, series and files that the contours lie on."""
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ContourImageSequence = [_image(one) for one in source.slices]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, source.study_uid
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = source.frame_of_reference_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(one: Slice) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = one.sop_class, one.sop_instance
    if one.frame is not None:
        image.ReferencedFrameNumber = one.frame
    return image


def _roi(uids: Uids, value: int, name: str) -> Dataset:
    roi = Dataset()
    roi.ROINumber, roi.ROIName = value, shown(name)
    roi.ReferencedFrameOfReferenceUID = uids.source.frame_of_reference_uid
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    roi.ROIGenerationDescription = shown(f"{MAKER} {uids.algorithm.name}")
    return roi


def _observation(uids: Uids, value: int, name: str) -> Dataset:
    concept = concept_of(name, dataset=uids.algorithm.dataset)
    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = value
    observation.RTROIInterpretedType = "ORGAN" if concept.is_anatomy else ""
    observation.ROIInterpreter = ""
    observation.RTROIIdentificationCodeSequence = [_coded(concept.type)]
    return observation


def _coded(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _contours(labels: Volume, source: Source, present: Sequence[int]) -> list[Dataset]:
    """For each class its contours on all slices."""
    found: dict[int, list[Dataset]] = {value: [] for value in present}
    for number, (value, index, polygon) in enumerate(_polygons(labels), start=1):
        if number > MAX_CONTOURS:
            raise DataError(
                "rtstruct.too_many_contours",
                f"the label map needs more than {MAX_CONTOURS} contours: its classes are scattered into specks.",
                remedy="Take the DICOM SEG, which holds voxels.",
            )
        found[value].append(_contour(labels, source.slices[index], polygon, index))
    items = []
    for value, contours in found.items():
        item = Dataset()
        item.ReferencedROINumber, item.ROIDisplayColor = value, list(colour(value))
        for number, contour in enumerate(contours, start=1):
            contour.ContourNumber = number
        item.ContourSequence = contours
        items.append(item)
    return items


def _polygons(labels: Volume) -> Iterator[tuple[int, int, Polygon]]:
    """Every outline, with its class's value and its slice."""
    for index in range(labels.grid.shape[2]):
        flat = labels.voxels[:, :, index]
        for value in np.unique(flat[flat > 0]):
            for polygon in outlines(flat == value):
                yield int(value), index, polygon


def _contour(labels: Volume, one: Slice, polygon: Polygon, index: int) -> Dataset:
    """A polygon in voxel indices of a slice, in LPS mm."""
    places = np.column_stack([polygon, np.full(len(polygon), float(index))]) + 0.5
    contour = Dataset()
    contour.ContourImageSequence = [_image(one)]
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(polygon)
    contour.ContourData = np.round(labels.grid.to_world(places), _DECIMALS).ravel().tolist()
    return contour


def outlines(mask: Bool[np.ndarray, "x y"]) -> Iterator[Polygon]:
    """The mask's closed outlines as ``x y`` in pixel indices, holes joined to what is around them."""
    columns, rows = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(columns) == 0:
        return
    corner = np.array([columns[0], rows[0]])
    cut = mask[columns[0] : columns[-1] + 1, rows[0] : rows[-1] + 1]
    # A rim of background closes what touches the border of the image.
    padded = np.pad(cut, 1).astype(np.float64).T
    lines = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset, name="serial")
    for points, offsets in zip(*lines.filled(0.5, 2.0), strict=True):
        rings = [_straightened(points[begin:end][:-1]) for begin, end in pairwise(offsets)]
        yield _keyholed(rings) - 1 + corner


def _straightened(ring: Polygon) -> Polygon:
    """The ring without the points that lie on a line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    bends = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    return np.asarray(ring[bends])


def _keyholed(rings: Sequence[Polygon]) -> Polygon:
    """The outer ring with each hole visited on a line there and back, from the point of the ring that is nearest."""
    outer, *holes = rings
    if not holes:
        return outer
    nearest = KDTree(outer)
    visits: dict[int, list[Polygon]] = defaultdict(list)
    for hole in holes:
        distances, points = nearest.query(hole)
        there = int(np.argmin(distances))
        here = int(points[there])
        bend = _bend(outer[here], hole[there])[None]
        visits[here] += [bend, np.roll(hole, -there, axis=0), hole[there][None], bend, outer[here][None]]
    pieces, last = [], 0
    for here in sorted(visits):
        pieces += [outer[last : here + 1], *visits[here]]
        last = here + 1
    return np.concatenate([*pieces, outer[last:]])


def _bend(here: _Point, there: _Point) -> _Point:
    """A point between the two by which a line goes past all voxel centres: what lies on it is neither in nor out."""
    middle = (here + there) / 2
    bends = [middle + 0.13 * np.array([np.cos(turn), np.sin(turn)]) for turn in np.arange(0.35, 6.6, 0.9)]
    return next((bend for bend in bends if _is_clear(here, bend) and _is_clear(bend, there)), middle)


def _is_clear(begin: _Point, end: _Point) -> bool:
    """Whether the line between two points keeps away from whole-numbered ones."""
    for axis in (0, 1):
        low, high = sorted((begin[axis], end[axis]))
        whole = np.arange(np.ceil(low), np.floor(high) + 1)
        if high - low < _NEAR:
            other = (begin[1 - axis] + end[1 - axis]) / 2 if len(whole) else 0.5
        else:
            other = begin[1 - axis] + (whole - begin[axis]) / (end[axis] - begin[axis]) * (end - begin)[1 - axis]
        if (np.abs(other - np.rint(other)) < _NEAR).any():
            return False
    return True
