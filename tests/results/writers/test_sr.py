"""TID 1500 reports: what they say, and that all they refer to is there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from support.dicom_series import (
    ALGORITHM,
    CLASSES,
    ORIENTATIONS,
    files_of,
    keeps_to_itself,
    random_labels,
    without_errors,
    write_multiframe,
    write_series,
)
from voxray.core.detections import Detections
from voxray.core.errors import DataError
from voxray.core.volume import Volume
from voxray.readers import read_volume
from voxray.results.writers import write_labels_sr, write_seg, write_sr

BOXES = Detections(
    boxes=np.array([[2, 3, 1, 8, 7, 4.5], [0.5, 1, 3, 4, 12, 6.9]], np.float32),
    scores=np.array([0.925, 0.25], np.float32),
    classes=np.array([0, 3]),
)


def report_of(path: Path) -> Any:
    return sr.srread(path).content


def measured(group: Any) -> dict[str, float]:
    return {one.name.meaning: float(one.value) for one in group.get_measurements()}


def items(dataset: Dataset) -> list[Dataset]:
    """Every content item of a report."""
    inside = dataset.get("ContentSequence") or []
    return [item for one in inside for item in (one, *items(one))]


def referred(dataset: Dataset) -> set[str]:
    """The instances that content items of a report point to."""
    return {one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in items(dataset)
            if "ReferencedSOPSequence" in one}  # fmt: skip


def listed(dataset: Dataset) -> dict[str, str]:
    """Instance -> series of what a report rests on, all in the source's study."""
    (study,) = dataset.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == "1.2.3"
    return {
        one.ReferencedSOPInstanceUID: series.SeriesInstanceUID
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


def is_readable(path: Path) -> None:
    """dsrdump understands the report; skips where it is not installed."""
    if shutil.which("dsrdump") is None:
        pytest.skip("no dsrdump (Debian's dcmtk) on this machine")
    dumped = subprocess.run(["dsrdump", str(path)], capture_output=True, check=False)
    assert dumped.returncode == 0, dumped.stderr
    assert b"Imaging Measurement Report" in dumped.stdout


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_findings_are_where_they_were(tmp_path: Path, name: str) -> None:
    source = write_series(tmp_path / "ct", orientation=ORIENTATIONS[name])
    grid = read_volume(source).grid
    path = write_sr(BOXES, grid, files_of(source), tmp_path / "sr.dcm", classes=CLASSES, algorithm=ALGORITHM)
    world = BOXES.to_world(grid)
    groups = report_of(path).get_volumetric_roi_measurement_groups()
    assert len(groups) == 2
    for group, box, score in zip(groups, world.boxes.astype(float), world.scores, strict=True):
        sides = box[3:] - box[:3]
        values = measured(group)
        assert values["Diameter"] == pytest.approx(sides.mean(), rel=1e-5)
        assert values["Volume"] == pytest.approx(np.pi / 6 * sides.prod(), rel=1e-5)
        assert values["Certainty of Finding"] == pytest.approx(100 * float(score))
        ends = np.array(
            group.roi.graphic_data[0] if isinstance(group.roi.graphic_data, list) else group.roi.graphic_data
        )
        np.testing.assert_allclose([*ends.min(axis=0), *ends.max(axis=0)], box, atol=1e-3)
        lengths = np.linalg.norm(ends[1::2] - ends[::2], axis=1)
        assert (np.diff(lengths) <= 1e-6).all(), "an ellipsoid begins with its longest axis"
        assert group.roi.frame_of_reference_uid == "1.2.3.2"
    without_errors(path)
    is_readable(path)
    keeps_to_itself(path)


def test_outlines_lie_on_the_slice_through_the_centre(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    grid = read_volume(source).grid
    path = write_sr(BOXES, grid, files_of(source), tmp_path / "sr.dcm", classes=CLASSES, algorithm=ALGORITHM)
    report = report_of(path)
    outlines, bodies = report.get_planar_roi_measurement_groups(), report.get_volumetric_roi_measurement_groups()
    assert [one.tracking_uid for one in outlines] == [one.tracking_uid for one in bodies]
    assert [one.tracking_identifier for one in outlines] == ["nodule 1", "bright spot 2"]
    wanted = [("1.2.3.4.3", (2, 3, 8, 7)), ("1.2.3.4.5", (0.5, 1, 4, 11))]
    for group, (instance, (x1, y1, x2, y2)) in zip(outlines, wanted, strict=True):
        points = group.roi.value
        np.testing.assert_allclose([*points.min(axis=0), *points.max(axis=0)], [x1, y1, x2, y2])
        np.testing.assert_array_equal(points[0], points[-1])
        (image,) = (
            group.roi.source_images_for_segmentation if hasattr(group.roi, "x") else [group.roi.ContentSequence[0]]
        )
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == instance


def test_frames_of_a_multi_frame_source_are_named(tmp_path: Path) -> None:
    source = write_multiframe(tmp_path / "mf.dcm")
    grid = read_volume(source).grid
    path = write_sr(BOXES, grid, [source], tmp_path / "sr.dcm", classes=CLASSES, algorithm=ALGORITHM)
    frames = [one.ReferencedSOPSequence[0].ReferencedFrameNumber for one in items(pydicom.dcmread(path))
              if "ReferencedSOPSequence" in one]  # fmt: skip
    assert frames == [5, 3], "frames run against the grid"
    without_errors(path)


def test_world_boxes_say_the_same(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    grid = read_volume(source).grid
    words: dict[str, Any] = {"classes": CLASSES, "algorithm": ALGORITHM}
    paths = [
        write_sr(found, grid, files_of(source), tmp_path / f"{number}.dcm", **words)
        for number, found in enumerate((BOXES, BOXES.to_world(grid), BOXES.to_world(grid).in_frame("RAS")))
    ]
    texts = [[one.get("NumericValue") or one.get("MeasuredValueSequence", [Dataset()])[0].get("NumericValue")
              for one in items(pydicom.dcmread(path))] for path in paths]  # fmt: skip
    assert texts[0] == texts[1] == texts[2]


def test_findings_say_what_they_are_and_who_found_them(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    grid = read_volume(source).grid
    path = write_sr(BOXES, grid, files_of(source), tmp_path / "sr.dcm", classes=CLASSES, algorithm=ALGORITHM)
    first, second = report_of(path).get_volumetric_roi_measurement_groups()
    assert (first.finding_type, first.finding_category) == (
        codes.SCT.Nodule,
        codes.SCT.MorphologicallyAbnormalStructure,
    )
    assert [site.value for site in first.finding_sites] == [codes.SCT.Lung]
    assert (second.finding_type.scheme_designator, second.finding_type.meaning) == ("99VOXRAY", "bright spot")
    dataset = pydicom.dcmread(path)
    texts = [one.TextValue for one in items(dataset) if one.ValueType == "TEXT"]
    assert "a run" in texts
    assert f"weights_sha256={ALGORITHM.sha256}" in texts
    assert (dataset.CompletionFlag, dataset.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    evidence = listed(dataset)
    assert evidence == {f"1.2.3.4.{z}": "1.2.3.1" for z in range(1, 8)}
    assert referred(dataset) <= set(evidence)


def test_nothing_found_is_a_report_that_says_so(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    grid = read_volume(source).grid
    words: dict[str, Any] = {"classes": CLASSES, "algorithm": ALGORITHM}
    empty = Volume(np.zeros(grid.shape, np.uint8), grid)
    paths = [
        write_sr(Detections.empty(), grid, files_of(source), tmp_path / "a.dcm", **words),
        write_labels_sr(empty, files_of(source), tmp_path / "b.dcm", **words),
    ]
    for path in paths:
        groups = report_of(path).get_image_measurement_groups()
        assert [group.tracking_identifier for group in groups] == list(CLASSES)
        assert [measured(group) for group in groups] == [{"Number of findings": 0.0}] * 4
        assert set(listed(pydicom.dcmread(path)).values()) == {"1.2.3.1"}
        without_errors(path)
        is_readable(path)
        keeps_to_itself(path)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_volumes_refer_to_the_segments(tmp_path: Path, rng: np.random.Generator, kind: Any) -> None:
    source = write_series(tmp_path / "ct")
    labels = random_labels(source, rng)
    words: dict[str, Any] = {"classes": CLASSES, "algorithm": ALGORITHM, "kind": kind}
    path = write_labels_sr(labels, files_of(source), tmp_path / "sr.dcm", **words)
    seg = pydicom.dcmread(write_seg(labels, files_of(source), tmp_path / "seg.dcm", **words))
    segments = {one.SegmentNumber: one for one in seg.SegmentSequence if one.SegmentLabel in CLASSES}
    dataset = pydicom.dcmread(path)
    groups = report_of(path).get_volumetric_roi_measurement_groups()
    assert len(groups) == len(segments) == 3
    pointers = [one.ReferencedSOPSequence[0] for one in items(dataset) if "ReferencedSOPSequence" in one]
    assert {one.ReferencedSOPInstanceUID for one in pointers} == {seg.SOPInstanceUID}
    assert {one.ReferencedSOPClassUID for one in pointers} == {seg.SOPClassUID}
    for group, pointer in zip(groups, pointers, strict=True):
        segment = segments[pointer.ReferencedSegmentNumber]
        assert (group.tracking_uid, group.tracking_identifier) == (segment.TrackingUID, segment.TrackingID)
        assert group.finding_type.value == segment.SegmentedPropertyTypeCodeSequence[0].CodeValue
        value = CLASSES.index(segment.SegmentLabel) + 1
        assert measured(group)["Volume"] == pytest.approx(0.5 * 0.8 * 2.5 * (labels.voxels == value).sum())
    assert listed(dataset) == {
        **{f"1.2.3.4.{z}": "1.2.3.1" for z in range(1, 8)},
        seg.SOPInstanceUID: seg.SeriesInstanceUID,
    }
    if kind == "BINARY":
        # Debian's tools do not know the other, which is of 2024.
        without_errors(path)
        is_readable(path)
    keeps_to_itself(path)


def test_uids_follow_from_the_findings(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    grid = read_volume(source).grid

    def uid(found: Detections) -> str:
        path = tmp_path / "sr.dcm"
        write_sr(found, grid, files_of(source), path, classes=CLASSES, algorithm=ALGORITHM)
        return str(pydicom.dcmread(path).SOPInstanceUID)

    assert uid(BOXES) == uid(BOXES)
    assert len({uid(BOXES), uid(BOXES.take([0])), uid(Detections.empty())}) == 3


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    grid = read_volume(source).grid
    labels = Volume(np.full(grid.shape, 5, np.uint8), grid)
    with pytest.raises(DataError, match=r"sr\.unknown_label"):
        write_labels_sr(labels, files_of(source), tmp_path / "sr.dcm", classes=CLASSES, algorithm=ALGORITHM)


@pytest.mark.data
def test_a_real_series(shared_data: Path, tmp_path: Path) -> None:
    """The nodule of LIDC-IDRI-0001 as LUNA16 has it: (56.208, 86.343, -115.868) mm, 23.35 mm."""
    source = shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom"
    centre, radius = np.array([56.208, 86.343, -115.868]), 23.350644 / 2
    found = Detections(
        boxes=np.concatenate([centre - radius, centre + radius])[None].astype(np.float32),
        scores=np.array([0.99], np.float32),
        classes=np.array([0]),
        frame="LPS",
    )
    grid = read_volume(source).grid
    path = write_sr(found, grid, files_of(source), tmp_path / "sr.dcm", classes=("nodule",), algorithm=ALGORITHM)
    (group,) = report_of(path).get_volumetric_roi_measurement_groups()
    assert measured(group)["Diameter"] == pytest.approx(23.3506, rel=1e-4)
    (outline,) = report_of(path).get_planar_roi_measurement_groups()
    instance = outline.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    header = next(one for one in map(pydicom.dcmread, files_of(source)) if one.SOPInstanceUID == instance)
    assert abs(float(header.ImagePositionPatient[2]) - centre[2]) <= 1.25
    middle = outline.roi.value[:-1].mean(axis=0) - 0.5
    place = np.array(header.ImagePositionPatient[:2], float) + middle * np.array(header.PixelSpacing, float)[::-1]
    np.testing.assert_allclose(place, centre[:2], atol=0.01)
    without_errors(path)
    is_readable(path)
