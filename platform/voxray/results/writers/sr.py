"""Findings or a segmentation as a DICOM structured report: TID 1500 in a Comprehensive 3D SR.

Each finding is a volumetric measurement group (TID 1411): the ellipsoid that its box encloses as a surface in the
frame of reference (so its centre and box too), with diameter, volume and score. A planar group (TID 1410) of the same
tracking UID outlines it on the slice through its centre, for viewers that show marks on slices only. Each class of a
segmentation is a group that refers to a segment of the SEG, with its volume. A report without findings says of each
class that there were 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import sr
from jaxtyping import Float
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from voxray.core.detections import Detections
from voxray.core.volume import Grid, Volume
from voxray.results.writers.coded_concepts import PRIVATE_SCHEME, Concept, concept_of, shown
from voxray.results.writers.quiet import quietly
from voxray.results.writers.seg import SegKind, seg_reference, segment_numbers
from voxray.results.writers.source_series import Source, nameless, read_source
from voxray.results.writers.stamping import (
    MAKER,
    Algorithm,
    Uids,
    detections_digest,
    device_uid,
    equipment,
    identification,
    identify_labels,
    save,
)

SERIES_NUMBER = 9002
COUNT = Code("NUM_FINDINGS", PRIVATE_SCHEME, "Number of findings")

_Measured = sr.VolumetricROIMeasurementsAndQualitativeEvaluations
_Outlined = sr.PlanarROIMeasurementsAndQualitativeEvaluations
_Counted = sr.MeasurementsAndQualitativeEvaluations


def write_sr(
    detections: Detections,
    grid: Grid,
    source: Sequence[Path],
    path: Path,
    *,
    classes: Sequence[str],
    algorithm: Algorithm,
    series_uid: str | None = None,
) -> Path:
    """Writes findings (in voxels of `grid` or in world mm) as a report, and returns its path; none are allowed."""
    series = read_source(source, grid, series_uid=series_uid)
    uids = Uids(algorithm, series, detections_digest(detections, classes))
    world = detections.to_world(grid) if detections.frame == "voxel" else detections.in_frame("LPS")
    boxes_vox = (detections if detections.frame == "voxel" else detections.to_voxel(grid)).boxes.astype(np.float64)
    with quietly():
        groups: list[Any] = []
        for number, (kind, score, box_mm, box_vox) in enumerate(
            zip(world.classes, world.scores, world.boxes.astype(np.float64), boxes_vox, strict=True), start=1
        ):
            described = _described(uids, number, classes[int(kind)], f"{classes[int(kind)]} {number}")
            groups.append(_volumetric(uids, described, box_mm, score=float(score)))
            groups.append(_planar(uids, described, box_vox))
        groups = groups or [_none_of(uids, number, name) for number, name in enumerate(classes, start=1)]
        save(_report(uids, groups, None), series, path)
    return path


def write_labels_sr(
    labels: Volume,
    source: Sequence[Path],
    path: Path,
    *,
    classes: Sequence[str],
    algorithm: Algorithm,
    series_uid: str | None = None,
    kind: SegKind = "BINARY",
) -> Path:
    """Writes the volume of each class that is present, with a reference to its segment; returns the path.

    The SEG that it refers to is the one that `write_seg` makes of the same label map in that kind, now or later: its
    UIDs follow from the answer. A label map without any class gives a report that says so, and refers to none.
    """
    uids, present = identify_labels(labels, source, "sr", classes=classes, algorithm=algorithm, series_uid=series_uid)
    counts = np.bincount(labels.voxels.ravel(), minlength=len(classes) + 1)
    voxel_mm3 = float(np.prod(labels.grid.spacing_mm))
    with quietly():
        seg = seg_reference(uids, kind)
        groups: list[Any] = [
            _segment(uids, seg, value=value, number=number, name=classes[value - 1], mm3=counts[value] * voxel_mm3)
            for value, number in segment_numbers(present, kind).items()
        ]
        groups = groups or [_none_of(uids, number, name) for number, name in enumerate(classes, start=1)]
        save(_report(uids, groups, seg if present else None), uids.source, path)
    return path


def _report(uids: Uids, groups: Sequence[Any], seg: Dataset | None) -> sr.Comprehensive3DSR:
    algorithm, series = uids.algorithm, uids.source
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.DCM.Device,
                observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                    uid=device_uid(algorithm),
                    name=shown(algorithm.name),
                    manufacturer_name=MAKER,
                    model_name=MAKER,
                ),
            )
        ),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return sr.Comprehensive3DSR(
        evidence=[*_evidence(series), *([] if seg is None else [seg])],
        content=content[0],
        series_instance_uid=uids.of("sr", "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uids.of("sr"),
        instance_number=1,
        is_complete=True,
        series_description=shown(f"{MAKER} report: {algorithm.name}"),
        **equipment(algorithm),
    )


def _evidence(source: Source) -> list[Dataset]:
    """The source's files, as the report lists what it rests on."""
    files = {one.sop_instance: one.sop_class for one in source.slices}
    return [nameless(source, kind, instance) for instance, kind in files.items()]


def _described(uids: Uids, number: int, name: str, identifier: str) -> dict[str, Any]:
    """What every group of a finding or class says of it."""
    concept = concept_of(name, dataset=uids.algorithm.dataset)
    return {
        "tracking_identifier": sr.TrackingIdentifier(uid=uids.tracking(number), identifier=shown(identifier)),
        "finding_category": concept.category,
        "finding_type": concept.type,
        "finding_sites": _sites(concept),
        "algorithm_id": _algorithm(uids.algorithm),
    }


def _volumetric(uids: Uids, described: dict[str, Any], box_mm: Float[np.ndarray, " 6"], *, score: float) -> _Measured:
    """A box as a group; the volume is that of the ellipsoid that it encloses, the diameter the mean of its sides."""
    sides = box_mm[3:] - box_mm[:3]
    return _Measured(
        **described,
        referenced_volume_surface=sr.VolumeSurface(
            graphic_type=sr.GraphicTypeValues3D.ELLIPSOID,
            graphic_data=_ellipsoid((box_mm[:3] + box_mm[3:]) / 2, sides),
            frame_of_reference_uid=uids.source.frame_of_reference_uid,
            source_series=sr.SourceSeriesForSegmentation(uids.source.series_uid),
        ),
        measurements=[
            _measured(codes.SCT.Diameter, sides.mean(), codes.UCUM.Millimeter),
            _measured(codes.SCT.Volume, np.pi / 6 * sides.prod(), codes.UCUM.CubicMillimeter),
            _measured(codes.DCM.CertaintyOfFinding, 100 * score, codes.UCUM.Percent),
        ],
    )


def _planar(uids: Uids, described: dict[str, Any], box_vox: Float[np.ndarray, " 6"]) -> _Outlined:
    """The box on the slice through its centre, as columns and rows from the corner of the first pixel."""
    rows, columns = uids.source.rows_and_columns
    index = int(np.clip(np.floor((box_vox[2] + box_vox[5]) / 2), 0, len(uids.source.slices) - 1))
    x1, x2 = np.clip(box_vox[[0, 3]], 0, columns)
    y1, y2 = np.clip(box_vox[[1, 4]], 0, rows)
    one = uids.source.slices[index]
    return _Outlined(
        **described,
        referenced_region=sr.ImageRegion(
            graphic_type=sr.GraphicTypeValues.POLYLINE,
            graphic_data=np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]),
            source_image=sr.SourceImageForRegion(
                referenced_sop_class_uid=one.sop_class,
                referenced_sop_instance_uid=one.sop_instance,
                referenced_frame_numbers=None if one.frame is None else [one.frame],
            ),
        ),
    )


def _segment(uids: Uids, seg: Dataset, *, value: int, number: int, name: str, mm3: float) -> _Measured:
    return _Measured(
        **_described(uids, value, name, name),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=number,
            source_series=sr.SourceSeriesForSegmentation(uids.source.series_uid),
        ),
        measurements=[_measured(codes.SCT.Volume, mm3, codes.UCUM.CubicMillimeter)],
    )


def _none_of(uids: Uids, number: int, name: str) -> _Counted:
    """A group that says that a class was looked for and not found."""
    return _Counted(**_described(uids, number, name, name), measurements=[_measured(COUNT, 0, codes.UCUM.NoUnits)])


def _measured(name: Code, value: float, unit: Code) -> sr.Measurement:
    return sr.Measurement(name=name, value=float(f"{value:.6g}"), unit=unit)


def _sites(concept: Concept) -> list[sr.FindingSite] | None:
    """Where a finding lies; a part of the body is its own site, which says its side."""
    if concept.site is not None:
        return [sr.FindingSite(concept.site, laterality=concept.side)]
    if concept.is_anatomy and concept.type.scheme_designator == "SCT":
        return [sr.FindingSite(concept.type, laterality=concept.side)]
    return None


def _algorithm(algorithm: Algorithm) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        **identification(algorithm), parameters=[f"weights_sha256={algorithm.sha256}"], manufacturer=MAKER
    )


def _ellipsoid(centre: Float[np.ndarray, " 3"], sides: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "6 3"]:
    """The ends of the three axes, the longest first."""
    ends = [centre + sign * np.eye(3)[axis] * sides[axis] / 2 for axis in np.argsort(-sides) for sign in (-1, 1)]
    return np.array(ends)
