"""DICOM SEG: read back, the mask is the one that was written, voxel for voxel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from support.dicom_series import (
    ALGORITHM,
    CLASSES,
    ORIENTATIONS,
    files_of,
    keeps_to_itself,
    random_labels,
    unpacked,
    without_errors,
    write_multiframe,
    write_series,
)
from voxray.core.errors import DataError
from voxray.core.volume import Volume
from voxray.readers import read_volume
from voxray.results.writers import write_seg
from voxray.results.writers.seg import SegKind


def by_references(path: Path, labels: Volume, source: Path, classes: Sequence[str] = CLASSES) -> NDArray[np.uint8]:
    """The label map of a SEG, each frame put where the image that it names lies; nothing of highdicom in it."""
    dataset = pydicom.dcmread(path)
    values = {one.SegmentNumber: classes.index(one.SegmentLabel) + 1 for one in dataset.SegmentSequence
              if one.SegmentLabel in classes}  # fmt: skip
    index_of = slices_of(source, labels)
    found = np.zeros(labels.grid.shape, np.uint8)
    frames = unpacked(dataset)
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        index, position = index_of[str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber")]
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, position, atol=1e-9)
        if dataset.SegmentationType == "BINARY":
            # One segment is named once for all frames.
            named = group if "SegmentIdentificationSequence" in group else dataset.SharedFunctionalGroupsSequence[0]
            number = named.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            found[:, :, index][frame.T > 0] = values[number]
        else:
            for number, value in values.items():
                found[:, :, index][number == frame.T] = value
    return found


def slices_of(source: Path, labels: Volume) -> dict[tuple[str, int | None], tuple[int, list[float]]]:
    """(file, frame) -> which slice of the grid it is, by its place, and that place."""
    found: dict[tuple[str, int | None], tuple[int, list[float]]] = {}
    for file in files_of(source):
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        groups = dataset.get("PerFrameFunctionalGroupsSequence")
        if groups is None:
            places: list[tuple[int | None, Any]] = [(None, dataset.ImagePositionPatient)]
        else:
            places = [(n, g.PlanePositionSequence[0].ImagePositionPatient) for n, g in enumerate(groups, start=1)]
        for frame, position in places:
            index = labels.grid.to_voxel(np.array([position], float))[0, 2] - 0.5
            found[str(dataset.SOPInstanceUID), frame] = round(index), [float(value) for value in position]
    return found


def by_geometry(path: Path, labels: Volume, classes: Sequence[str] = CLASSES) -> NDArray[np.uint8]:
    """The label map of a SEG on the label map's grid, by highdicom's reading of its geometry alone."""
    segmentation = highdicom.seg.segread(path)
    grid = labels.grid
    affine = grid.affine[:, [2, 1, 0, 3]]
    volume = segmentation.get_volume(combine_segments=True, slice_start=None, allow_missing_positions=True)
    wanted = highdicom.VolumeGeometry(affine, grid.shape[::-1], "PATIENT", segmentation.FrameOfReferenceUID)
    # The SEG may begin at the other end of the stack, and holds no empty slices at its ends.
    array = volume.match_geometry(wanted, tol=1e-3).array.T
    table = np.zeros(256, np.uint8)
    for number in segmentation.segment_numbers:
        table[number] = classes.index(segmentation.get_segment_description(number).segment_label) + 1
    return np.asarray(table[array.astype(int)])


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_mask_comes_back_as_it_was(tmp_path: Path, rng: np.random.Generator, name: str, kind: SegKind) -> None:
    source = write_series(tmp_path / "ct", orientation=ORIENTATIONS[name])
    labels = random_labels(source, rng)
    path = write_seg(labels, files_of(source), tmp_path / "seg.dcm", classes=CLASSES, algorithm=ALGORITHM, kind=kind)
    np.testing.assert_array_equal(by_references(path, labels, source), labels.voxels)
    np.testing.assert_array_equal(by_geometry(path, labels), labels.voxels)
    keeps_to_itself(path)
    if kind == "BINARY":
        without_errors(path)


def test_empty_slices_and_one_slice_masks(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    grid = read_volume(source).grid
    for slices in ([0], [6], [1, 4]):
        voxels = np.zeros(grid.shape, np.uint8)
        voxels[3:5, 2, slices] = 4
        labels = Volume(voxels, grid)
        path = write_seg(labels, files_of(source), tmp_path / "seg.dcm", classes=CLASSES, algorithm=ALGORITHM)
        np.testing.assert_array_equal(by_references(path, labels, source), voxels)
        dataset = pydicom.dcmread(path)
        assert dataset.NumberOfFrames == len(slices)
        assert [one.SegmentLabel for one in dataset.SegmentSequence] == ["bright spot"]


def test_a_multi_frame_source(tmp_path: Path, rng: np.random.Generator) -> None:
    source = write_multiframe(tmp_path / "mf.dcm")
    labels = random_labels(source, rng)
    path = write_seg(labels, [source], tmp_path / "seg.dcm", classes=CLASSES, algorithm=ALGORITHM)
    np.testing.assert_array_equal(by_references(path, labels, source), labels.voxels)
    np.testing.assert_array_equal(by_geometry(path, labels), labels.voxels)
    keeps_to_itself(path)
    without_errors(path)


def test_segments_say_what_they_are(tmp_path: Path, rng: np.random.Generator) -> None:
    source = write_series(tmp_path / "ct")
    labels = random_labels(source, rng)
    labels.voxels[0, :3, 0] = 2
    path = write_seg(labels, files_of(source), tmp_path / "seg.dcm", classes=CLASSES, algorithm=ALGORITHM)
    dataset = pydicom.dcmread(path)
    assert [one.SegmentNumber for one in dataset.SegmentSequence] == [1, 2, 3, 4]
    assert [one.SegmentLabel for one in dataset.SegmentSequence] == list(CLASSES)
    types = [one.SegmentedPropertyTypeCodeSequence[0] for one in dataset.SegmentSequence]
    assert [one.CodeValue for one in types[:2]] == ["27925004", "64033007"]
    assert types[1].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert [one.CodingSchemeDesignator for one in types[2:]] == ["99VOXRAY"] * 2
    assert dataset.SegmentSequence[0].AnatomicRegionSequence[0].CodeMeaning == "Lung"
    for one in dataset.SegmentSequence:
        (algorithm,) = one.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, one.SegmentAlgorithmType) == ("a run", "AUTOMATIC")
        assert algorithm.AlgorithmVersion == "0123abc, sha256 " + "5e" * 8
        assert ALGORITHM.sha256 in str(algorithm.AlgorithmParameters)
    assert (dataset.Manufacturer, dataset.ManufacturerModelName) == ("voxray", "voxray")
    assert dataset.FrameOfReferenceUID == "1.2.3.2"
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3.1"
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == {
        f"1.2.3.4.{z}" for z in range(1, 8)
    }


def test_uids_follow_from_the_answer(tmp_path: Path, rng: np.random.Generator) -> None:
    source = write_series(tmp_path / "ct")
    labels = random_labels(source, rng)
    other = Volume(labels.voxels.copy(), labels.grid)
    other.voxels[5, 5, 5] = 3 - other.voxels[5, 5, 5] if other.voxels[5, 5, 5] in (1, 3) else 3

    def uids(volume: Volume, name: str, **options: Any) -> tuple[str, ...]:
        options = {"classes": CLASSES, "algorithm": ALGORITHM, **options}
        dataset = pydicom.dcmread(write_seg(volume, files_of(source), tmp_path / name, **options))
        tracked = [one.TrackingUID for one in dataset.SegmentSequence if "TrackingUID" in one]
        return dataset.SOPInstanceUID, dataset.SeriesInstanceUID, *tracked

    first = uids(labels, "a.dcm")
    assert uids(labels, "b.dcm") == first
    assert len(set(first)) == len(first)
    changes: list[dict[str, Any]] = [{"kind": "LABELMAP"}, {"classes": ("other", *CLASSES[1:])}]
    found = [uids(other, "c.dcm"), *(uids(labels, "d.dcm", **change) for change in changes)]
    assert len({one[0] for one in [first, *found]}) == 4


@pytest.mark.parametrize(("value", "code"), [(0, "seg.empty"), (9, "seg.unknown_label")])
def test_what_cannot_be_a_segmentation(tmp_path: Path, value: int, code: str) -> None:
    source = write_series(tmp_path / "ct")
    grid = read_volume(source).grid
    labels = Volume(np.full(grid.shape, value, np.uint8), grid)
    with pytest.raises(DataError) as caught:
        write_seg(labels, files_of(source), tmp_path / "seg.dcm", classes=CLASSES, algorithm=ALGORITHM)
    assert caught.value.code == code
    assert not (tmp_path / "seg.dcm").exists()


def test_a_series_of_several_multi_frame_files_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "ct").mkdir()
    write_multiframe(tmp_path / "ct" / "a.dcm", (14, 11, 3))
    second = write_multiframe(tmp_path / "ct" / "b.dcm", (14, 11, 3), SOPInstanceUID="1.2.3.6")
    dataset = pydicom.dcmread(second)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[2] -= 7.5
    dataset.save_as(second)
    labels = random_labels(tmp_path / "ct", rng)
    with pytest.raises(DataError, match="several_multiframe"):
        write_seg(labels, files_of(tmp_path / "ct"), tmp_path / "seg.dcm", classes=CLASSES, algorithm=ALGORITHM)


def test_more_classes_than_a_byte_holds(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct", (20, 20, 2))
    grid = read_volume(source).grid
    labels = Volume(np.arange(800, dtype=np.uint16).reshape(grid.shape) % 301, grid)
    classes = tuple(f"class {value}" for value in range(1, 301))
    kinds: tuple[SegKind, ...] = ("BINARY", "LABELMAP")
    for kind in kinds:
        path = write_seg(
            labels, files_of(source), tmp_path / "seg.dcm", classes=classes, algorithm=ALGORITHM, kind=kind
        )
        dataset = pydicom.dcmread(path)
        frames = unpacked(dataset)
        if kind == "BINARY":
            assert frames.sum() == (labels.voxels > 0).sum()
        else:
            np.testing.assert_array_equal(np.sort(frames.ravel()), np.sort(labels.voxels.ravel()))


@pytest.mark.data
def test_a_real_series(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom"
    volume = read_volume(source)
    labels = Volume(np.digitize(volume.voxels, [-400, 150, 400]).astype(np.uint8), volume.grid)
    classes = ("nodule", "liver", "bone")
    path = write_seg(labels, files_of(source), tmp_path / "seg.dcm", classes=classes, algorithm=ALGORITHM)
    np.testing.assert_array_equal(by_references(path, labels, source, classes), labels.voxels)
    np.testing.assert_array_equal(by_geometry(path, labels, classes), labels.voxels)
    without_errors(path)


@pytest.mark.data
@pytest.mark.parametrize("name", ["dcmqi_24x38x3/image", "dcmqi_24x38x3/multiframe/mf.dcm", "dcmqi_ct3slice_overlap"])
def test_hard_series(shared_data: Path, tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    source = shared_data / "dicom_hard" / name
    grid = read_volume(source, accept_values=True).grid
    coarse = rng.integers(0, 3, [side // 4 + 1 for side in grid.shape[:2]] + [grid.shape[2]]).astype(np.uint8)
    voxels = coarse.repeat(4, axis=0).repeat(4, axis=1)[: grid.shape[0], : grid.shape[1]]
    labels = Volume(np.ascontiguousarray(voxels), grid)
    files = [file for file in files_of(source) if file.suffix == ".dcm"]
    path = write_seg(labels, files, tmp_path / "seg.dcm", classes=CLASSES, algorithm=ALGORITHM)
    np.testing.assert_array_equal(by_geometry(path, labels), voxels)
    without_errors(path)
