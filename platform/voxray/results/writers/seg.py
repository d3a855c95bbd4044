"""A label map as a DICOM Segmentation that lies on the slices of its source series, voxel for voxel.

BINARY has one segment for each class that is present, numbered from 1 in the order of the classes; LABELMAP keeps the
label map's own values, and is small for many classes, but only new viewers read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import highdicom
import numpy as np
from highdicom.color import CIELabColor
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from jaxtyping import Shaped
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SegmentationStorage

from voxray.core.errors import DataError
from voxray.core.volume import Volume
from voxray.results.writers.coded_concepts import concept_of, shown
from voxray.results.writers.quiet import quietly
from voxray.results.writers.source_series import Source, nameless
from voxray.results.writers.stamping import (
    MAKER,
    Algorithm,
    Uids,
    colour,
    empty,
    equipment,
    identification,
    identify_labels,
    save,
)

SegKind = Literal["BINARY", "LABELMAP"]

SERIES_NUMBER = 9001
_SOP_CLASSES: Mapping[SegKind, str] = {"BINARY": SegmentationStorage, "LABELMAP": "1.2.840.10008.5.1.4.1.1.66.7"}


def write_seg(
    labels: Volume,
    source: Sequence[Path],
    path: Path,
    *,
    classes: Sequence[str],
    algorithm: Algorithm,
    series_uid: str | None = None,
    kind: SegKind = "BINARY",
) -> Path:
    """Writes the label map as a Segmentation and returns its path; label k is ``classes[k - 1]``.

    `source` names the files of the series that `labels.grid` is the grid of.
    """
    uids, present = identify_labels(
        labels, source, "seg", classes=classes, algorithm=algorithm, series_uid=series_uid
    )
    if not present:
        raise empty("seg")
    series = uids.source
    numbers, refer = segment_numbers(present, kind), seg_reference(uids, kind)
    with quietly():
        segmentation = Segmentation(
            source_images=source_images(series),
            pixel_array=_planes(labels, series, numbers),
            segmentation_type=SegmentationTypeValues(kind),
            segment_descriptions=[
                _description(number, classes[value - 1], value, algorithm, uids) for value, number in numbers.items()
            ],
            series_instance_uid=refer.SeriesInstanceUID,
            series_number=SERIES_NUMBER,
            sop_instance_uid=refer.SOPInstanceUID,
            instance_number=1,
            content_label="SEGMENTATION",
            content_description=shown(f"{MAKER} {algorithm.name}"),
            series_description=shown(f"{MAKER} segmentation: {algorithm.name}"),
            transfer_syntax_uid=RLELossless if kind == "LABELMAP" else ExplicitVRLittleEndian,
            **equipment(algorithm),
        )
        _organise(segmentation, uids.of("seg", kind, "dimensions"))
        save(segmentation, series, path)
    return path


def _organise(segmentation: Segmentation, uid: str) -> None:
    """Names the organisation of its dimensions by this UID; highdicom draws one at random."""
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def segment_numbers(present: Sequence[int], kind: SegKind = "BINARY") -> dict[int, int]:
    """Label value -> segment number."""
    if kind == "LABELMAP":
        return {value: value for value in present}
    return {value: number for number, value in enumerate(present, start=1)}


def seg_reference(uids: Uids, kind: SegKind = "BINARY") -> Dataset:
    """The UIDs of the answer's Segmentation, by which others refer to it."""
    refer = Dataset()
    refer.SOPClassUID = _SOP_CLASSES[kind]
    refer.SOPInstanceUID, refer.SeriesInstanceUID = uids.of("seg", kind), uids.of("seg", kind, "series")
    refer.StudyInstanceUID = uids.source.study_uid
    return refer


def source_images(source: Source) -> list[Dataset]:
    """The headers of the source's files as highdicom asks for them, holding geometry and UIDs alone."""
    if source.slices[0].frame is None:
        images = [_bare(source, one.sop_class, one.sop_instance) for one in source.slices]
        for image, one in zip(images, source.slices, strict=True):
            image.ImagePositionPatient = list(one.position)
            image.ImageOrientationPatient = list(source.orientation)
            for element in _measures(source):
                image[element.tag] = element
        return images
    if source.num_files > 1:
        raise DataError(
            "seg.several_multiframe",
            f"the series is spread over {source.num_files} multi-frame files; a Segmentation refers to one.",
            remedy="Join them into one multi-frame file or split them into single slices.",
        )
    return [_multi_frame(source)]


def _multi_frame(source: Source) -> Dataset:
    image = _bare(source, source.slices[0].sop_class, source.slices[0].sop_instance)
    image.NumberOfFrames = len(source.slices)
    shared, plane = Dataset(), Dataset()
    plane.ImageOrientationPatient = list(source.orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [_measures(source)], [plane]
    image.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for one in sorted(source.slices, key=lambda one: one.frame or 0):
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = list(one.position)
        group.PlanePositionSequence = [place]
        groups.append(group)
    image.PerFrameFunctionalGroupsSequence = groups
    return image


def _measures(source: Source) -> Dataset:
    measures = Dataset()
    measures.PixelSpacing = list(source.pixel_spacing)
    spacing = float(f"{source.grid.spacing_mm[2]:.10g}")
    measures.SliceThickness = source.thickness or spacing
    measures.SpacingBetweenSlices = spacing
    return measures


def _bare(source: Source, sop_class: str, sop_instance: str) -> Dataset:
    image = nameless(source, sop_class, sop_instance)
    image.FrameOfReferenceUID = source.frame_of_reference_uid
    image.PositionReferenceIndicator = source.header.get("PositionReferenceIndicator", "")
    image.Modality = "CT"
    image.Rows, image.Columns = source.rows_and_columns
    image.ReferringPhysicianName = None
    for name in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if name in source.header:
            image[name] = source.header[name]
    return image


def _planes(labels: Volume, source: Source, numbers: dict[int, int]) -> Shaped[np.ndarray, "z y x"]:
    """The segment numbers in the order of `source_images` or of a multi-frame file's frames."""
    table = np.zeros(max(numbers) + 1, np.uint8 if max(numbers.values()) < 256 else np.uint16)
    for value, number in numbers.items():
        table[value] = number
    order = sorted(range(len(source.slices)), key=lambda index: source.slices[index].frame or index)
    return np.stack([table[labels.voxels[:, :, index].T] for index in order])


def _description(number: int, name: str, value: int, algorithm: Algorithm, uids: Uids) -> SegmentDescription:
    concept = concept_of(name, dataset=algorithm.dataset)
    described = SegmentDescription(
        segment_number=number,
        segment_label=shown(name),
        segmented_property_category=concept.category,
        segmented_property_type=concept.type,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            **identification(algorithm), source=MAKER, parameters={"weights_sha256": algorithm.sha256}
        ),
        tracking_uid=uids.tracking(value),
        tracking_id=shown(name),
        anatomic_regions=None if concept.site is None else [concept.site],
        display_color=CIELabColor.from_rgb(*colour(value)),
    )
    if concept.side is not None:
        side = highdicom.sr.CodedConcept.from_code(concept.side)
        if concept.site is None:
            described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
        else:
            described.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [side]
    return described
