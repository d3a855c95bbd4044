"""Cases read from files: the truth on the image's grid, and every problem of a broken one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from voxray.core.errors import DataError
from voxray.dataset import Dataset, read_dataset
from voxray.loading import examine, list_cases, load_case, survey

Write = Callable[..., Path]
Describe = Callable[..., Dataset]
Block = Callable[..., NDArray[np.uint8]]

ALL = slice(None)
LABELS = {"kind": "labels", "file": "labels/{case}.nii.gz"}
FIRST = (slice(2, 4), slice(3, 6), slice(1, 2))
SECOND = (slice(8, 11), slice(0, 2), slice(5, 8))


def codes(dataset: Dataset) -> list[str]:
    return [problem.code for case in list_cases(dataset) for problem in examine(dataset, case).problems]


def only(dataset: Dataset) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.uint8] | None]:
    (source,) = list_cases(dataset)
    case = load_case(dataset, source)
    return case.boxes, case.classes, case.labels


def test_a_label_map_gives_labels_and_objects(write: Write, describe: Describe, block: Block) -> None:
    write("images/a.nii.gz")
    write("labels/a.nii.gz", block((1, FIRST), (2, SECOND), (1, (*SECOND[:2], slice(0, 2)))))
    boxes, classes, labels = only(describe(LABELS))
    np.testing.assert_array_equal(boxes, [[2, 3, 1, 4, 6, 2], [8, 0, 0, 11, 2, 2], [8, 0, 5, 11, 2, 8]])
    np.testing.assert_array_equal(classes, [0, 0, 1])
    assert labels is not None
    np.testing.assert_array_equal(np.unique(labels), [0, 1, 2])
    boxes, classes, labels = only(describe({**LABELS, "objects": "none"}))
    assert boxes.shape == (0, 6)
    assert labels is not None


def test_values_are_mapped_by_name(write: Write, describe: Describe, block: Block) -> None:
    write("images/a.nii.gz")
    write("labels/a.nii.gz", block((1, FIRST), (7, SECOND)))
    assert codes(describe(LABELS)) == ["labels.value"]
    _, _, labels = only(describe({**LABELS, "values": {"1": "spleen", "7": "liver"}}))
    assert labels is not None
    assert labels[2, 3, 1] == 2
    assert labels[8, 0, 5] == 1
    boxes, classes, _ = only(describe({**LABELS, "values": ["spleen"], "unlisted": "background"}))
    assert (len(boxes), classes.tolist()) == (1, [1])


def test_an_empty_map_and_an_allowed_absent_one_are_valid(write: Write, describe: Describe, block: Block) -> None:
    write("images/a.nii.gz")
    assert codes(describe(LABELS)) == ["labels.missing"]
    boxes, _, labels = only(describe({**LABELS, "absent": "empty"}))
    assert boxes.shape == (0, 6)
    assert labels is not None
    assert not labels.any()
    write("labels/a.nii.gz", block())
    assert only(describe(LABELS))[0].shape == (0, 6)


def test_a_map_on_another_grid_is_refused(write: Write, describe: Describe, block: Block) -> None:
    write("images/a.nii.gz")
    write("labels/a.nii.gz", block()[..., :-1])
    assert codes(describe(LABELS)) == ["labels.shape"]
    write("labels/a.nii.gz", block(), origin=(-15.0, -14.0, 3.0))
    (source,) = list_cases(describe(LABELS))
    (problem,) = examine(describe(LABELS), source).problems
    assert problem.code == "labels.geometry"
    assert "origin_mm -15 -14 3 (image: -15 -15 3)" in problem.message
    write("labels/a.nii.gz", block(), direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert codes(describe(LABELS)) == ["labels.geometry"]


def test_maps_and_masks_that_are_stored_otherwise_are_put_on_the_image(
    write: Write, describe: Describe, block: Block
) -> None:
    parts = block((1, FIRST), (2, SECOND))
    write("images/a.nii.gz")
    write("labels/a.nii.gz", parts)
    plain = only(describe(LABELS))
    # y runs backwards, and the axes come as z x y.
    turned = {"origin": (-15.0, -6.0, 3.0), "direction": (0, 1, 0, 0, 0, -1, 1, 0, 0), "spacing": (2.0, 1.0, 1.0)}
    stored = np.ascontiguousarray(parts[:, ::-1].transpose(2, 0, 1))
    write("labels/a.nii.gz", stored, **turned)
    for mine, theirs in zip(only(describe(LABELS)), plain, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for value, name in enumerate(("liver", "spleen"), start=1):
        write(f"masks/a/{name}.nrrd", (stored == value).astype(np.uint8), **turned)
    for mine, theirs in zip(
        only(describe({"kind": "mask_folder", "file": "masks/{case}/{class}.nrrd"})), plain, strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    write("instances/a.nii.gz", (stored == 1).astype(np.uint8), **turned)
    one = only(describe({"kind": "instances", "file": "instances/{case}.nii.gz"}, classes=["liver"]))
    np.testing.assert_array_equal(one[0], plain[0][:1])
    half = {**turned, "origin": (-14.5, -6.0, 3.0)}
    write("labels/a.nii.gz", stored, **half)
    (problem,) = examine(describe(LABELS), list_cases(describe(LABELS))[0]).problems
    assert "corners are up to 0.5 mm apart" in problem.message


def test_rounded_affines_are_accepted(write: Write, describe: Describe, block: Block) -> None:
    write("images/a.nii.gz", spacing=(0.703125, 0.703125, 2.5))
    write("labels/a.nii.gz", block(), spacing=(0.703125 * (1 + 1e-6), 0.703125, 2.5), origin=(-15.0001, -15.0, 3.0))
    assert codes(describe(LABELS)) == []


def test_masks_by_name_in_a_folder(write: Write, describe: Describe, block: Block) -> None:
    folder = {"kind": "mask_folder", "file": "masks/{case}/{class}.nii.gz"}
    write("images/a.nii.gz")
    assert codes(describe(folder)) == ["labels.missing"]
    write("masks/a/spleen.nii.gz", block((1, FIRST)))
    boxes, classes, labels = only(describe(folder))
    assert (len(boxes), classes.tolist()) == (1, [1])
    assert labels is not None
    assert labels[2, 3, 1] == 2
    write("masks/a/heart.nii.gz", block((1, SECOND)))
    assert codes(describe(folder)) == ["labels.unlisted"]
    assert codes(describe({**folder, "unlisted": "background"})) == []


def test_masks_that_overlap_or_hold_several_values(write: Write, describe: Describe, block: Block) -> None:
    folder = {"kind": "mask_folder", "file": "masks/{case}/{class}.nii.gz"}
    write("images/a.nii.gz")
    write("masks/a/spleen.nii.gz", block((1, FIRST)))
    write("masks/a/liver.nii.gz", block((255, (ALL, ALL, slice(0, 2)))))
    assert codes(describe(folder)) == ["labels.overlap"]
    _, classes, labels = only(describe({**folder, "overlaps": "first"}))
    assert classes.tolist() == [0]
    assert labels is not None
    assert labels.max() == 1
    write("masks/a/liver.nii.gz", block((1, SECOND), (2, FIRST)))
    assert codes(describe({**folder, "overlaps": "first"})) == ["labels.not_binary"]


def test_every_problem_of_a_case_is_told(write: Write, describe: Describe, block: Block) -> None:
    folder = {"kind": "mask_folder", "file": "masks/{case}/{class}.nii.gz"}
    dataset = describe(folder)
    write("images/a.nii.gz")
    write("masks/a/spleen.nii.gz", block()[..., :-1])
    write("masks/a/liver.nii.gz", block((1, FIRST), (2, SECOND)))
    write("masks/a/other.nii.gz", block())
    assert sorted(codes(dataset)) == ["labels.not_binary", "labels.shape", "labels.unlisted"]
    (source,) = list_cases(dataset)
    with pytest.raises(DataError, match=r"case a: .*2 more problems of this case; voxray check lists all") as caught:
        load_case(dataset, source)
    assert caught.value.case_id == "a"


def test_instances_with_their_classes(tmp_path: Path, write: Write, describe: Describe, block: Block) -> None:
    kind = {"kind": "instances", "file": "labels/{case}.nii.gz", "classes_file": "labels/{case}.json"}
    write("images/a.nii.gz")
    write("labels/a.nii.gz", block((1, FIRST), (2, (slice(4, 6), slice(3, 6), slice(1, 2)))))
    assert codes(describe(kind)) == ["instances.missing"]
    (tmp_path / "labels/a.json").write_text(json.dumps({"instances": {"1": 1, "2": 1}}))
    boxes, classes, labels = only(describe(kind))
    np.testing.assert_array_equal(boxes, [[2, 3, 1, 4, 6, 2], [4, 3, 1, 6, 6, 2]])
    assert classes.tolist() == [1, 1]
    assert labels is not None
    assert labels.max() == 2
    (tmp_path / "labels/a.json").write_text(json.dumps({"instances": {"1": 4, "2": 0}}))
    assert codes(describe(kind)) == ["instances.form"]
    assert only(describe({**kind, "values": {"0": "spleen", "4": "liver"}}))[1].tolist() == [0, 1]
    assert codes(describe({**kind, "values": ["liver", "spleen"]})) == ["instances.form"]
    (tmp_path / "labels/a.json").write_text(json.dumps({"instances": {"1": 1, "3": 1}}))
    assert codes(describe(kind)) == ["instances.class", "instances.absent"]
    (tmp_path / "labels/a.json").write_text("{")
    assert codes(describe(kind)) == ["instances.form"]


def test_a_binary_mask_becomes_instances(write: Write, describe: Describe, block: Block) -> None:
    kind = {"kind": "instances", "file": "labels/{case}.nii.gz"}
    write("images/a.nii.gz")
    write("labels/a.nii.gz", block((1, FIRST), (1, SECOND)))
    assert len(only(describe(kind, classes=["lesion"]))[0]) == 2
    large = {**kind, "min_object_mm3": 30.0}
    np.testing.assert_array_equal(only(describe(large, classes=["lesion"]))[0], [[8, 0, 5, 11, 2, 8]])
    absent = {**kind, "file": "none/{case}.nii.gz", "absent": "empty"}
    assert only(describe(absent, classes=["lesion"]))[0].shape == (0, 6)


def test_boxes_in_millimetres_land_on_their_voxels(tmp_path: Path, write: Write, describe: Describe) -> None:
    write("images/a.nii.gz")
    # The first voxel's centre lies at -15 -15 3 and voxels are 1 x 1 x 2 mm: edges begin at -15.5 -15.5 2.
    rows = "case,class,x1,y1,z1,x2,y2,z2\na,spleen,-13.5,-12.5,4,-11.5,-9.5,6\n"
    (tmp_path / "b.csv").write_text(rows)
    boxes, classes, labels = only(describe({"kind": "boxes_csv", "file": "b.csv", "frame": "LPS"}))
    np.testing.assert_allclose(boxes, [[2, 3, 1, 4, 6, 2]])
    assert classes.tolist() == [1]
    assert labels is None


def test_objects_of_a_table_go_before_those_of_the_labels(
    tmp_path: Path, write: Write, describe: Describe, block: Block
) -> None:
    write("images/a.nii.gz")
    write("labels/a.nii.gz", block((1, FIRST), (2, SECOND)))
    (tmp_path / "b.csv").write_text("case,class,x1,y1,z1,x2,y2,z2\na,spleen,1,1,1,3,3,3\n")
    boxes, _, labels = only(describe([{"kind": "boxes_csv", "file": "b.csv", "frame": "voxel"}, LABELS]))
    np.testing.assert_array_equal(boxes, [[1, 1, 1, 3, 3, 3]])
    assert labels is not None
    assert labels.max() == 2


def test_a_box_beyond_its_image_names_the_case(tmp_path: Path, write: Write, describe: Describe) -> None:
    write("images/a.nii.gz")
    (tmp_path / "b.csv").write_text("case,class,x1,y1,z1,x2,y2,z2\na,spleen,1,1,1,3,3,11\n")
    dataset = describe({"kind": "boxes_csv", "file": "b.csv", "frame": "voxel"})
    with pytest.raises(DataError, match=r"case a: \[boxes.outside\] box 0 \(spleen\) reaches beyond"):
        load_case(dataset, list_cases(dataset)[0])
    wide = describe({"kind": "boxes_csv", "file": "b.csv", "frame": "voxel"}, overhang_vox=3.0)
    np.testing.assert_array_equal(only(wide)[0], [[1, 1, 1, 3, 3, 8]])


def test_a_broken_image_does_not_hide_a_broken_map(write: Write, describe: Describe, block: Block) -> None:
    path = write("images/a.nii.gz")
    path.write_bytes(path.read_bytes()[:-60])
    write("labels/a.nii.gz", block((9, FIRST)))
    assert codes(describe(LABELS)) == ["nifti.truncated", "labels.value"]


MALFORMED = {
    "30_label_one_slice_short": "labels.shape",
    "31_label_shifted_3mm": "labels.geometry",
    "32_label_float_fraction": "labels.fraction",
    "33_label_negative": "labels.negative",
    "34_label_255": "labels.value",
    "35_label_empty": None,
    "36_label_spacing_rounding": None,
    "00_base_spleen": None,
}


@pytest.mark.data
@pytest.mark.parametrize(("name", "code"), MALFORMED.items())
def test_unusual_label_maps(
    shared_data: Path, tmp_path: Path, describe: Describe, name: str, code: str | None
) -> None:
    _copy_pair(shared_data, tmp_path, name)
    assert codes(describe(LABELS, classes=["spleen"])) == ([] if code is None else [code])


def _copy_pair(shared_data: Path, folder: Path, label: str) -> None:
    for name, target in (("00_base_ct", "images"), (label, "labels")):
        (folder / target).mkdir()
        shutil.copy(shared_data / "malformed" / "derived" / f"{name}.nii.gz", folder / target / "a.nii.gz")


REAL = Path(__file__).resolve().parents[1] / "datasets"


@pytest.mark.data
def test_luna16_boxes_hold_the_nodule(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXRAY_TEST_DATA", str(shared_data))
    dataset = read_dataset(REAL / "luna16_style.toml")
    cases = [load_case(dataset, source) for source in list_cases(dataset)]
    assert [case.case_id[-5:] for case in cases] == ["75227", "03192"]
    for case, diameter_mm in zip(cases, (15.48525426, 23.35064438), strict=True):
        sides_mm = (case.boxes[0, 3:] - case.boxes[0, :3]) * case.image.grid.spacing_mm
        np.testing.assert_allclose(sides_mm, diameter_mm)
        middle = ((case.boxes[0, :3] + case.boxes[0, 3:]) / 2).astype(int)
        assert case.image.hounsfield[tuple(middle)] > -200


@pytest.mark.data
def test_the_nodule_in_dicom_is_where_luna16_has_it(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXRAY_TEST_DATA", str(shared_data))
    dataset = read_dataset(REAL / "lidc_dicom.toml")
    (source,) = list_cases(dataset)
    case = load_case(dataset, source)
    assert case.case_id == "LIDC-IDRI-0001"
    assert case.boxes.shape == (1, 6)
    centre = case.image.grid.to_world((case.boxes[:, :3] + case.boxes[:, 3:]) / 2)
    np.testing.assert_allclose(centre, [[56.208, 86.343, -115.868]], atol=2.5)


@pytest.mark.data
def test_tumours_and_the_spleen(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXRAY_TEST_DATA", str(shared_data))
    dataset = read_dataset(REAL / "sts_ct.toml")
    cases = [load_case(dataset, source) for source in list_cases(dataset)]
    assert [case.case_id for case in cases] == ["STS_008", "STS_019", "STS_024", "STS_025"]
    assert [len(case.boxes) for case in cases] == [1, 1, 1, 1]
    dataset = read_dataset(REAL / "ts_spleen.toml")
    case = load_case(dataset, list_cases(dataset)[0])
    assert case.labels is not None
    assert np.bincount(case.labels.ravel())[1:].tolist() == [9668]


def test_objects_do_not_matter_to_a_segmentation(
    tmp_path: Path, write: Write, describe: Describe, block: Block
) -> None:
    """One dataset, both tasks: a box that lies outside, and an instance that its map does not show."""
    write("images/a.nii.gz")
    write("labels/a.nii.gz", block((1, FIRST)))
    maps = {"kind": "labels", "file": "labels/{case}.nii.gz"}
    table = {"kind": "boxes_csv", "file": "boxes.csv", "frame": "voxel"}
    both = describe([table, maps])
    for row in ("a,liver,50,50,50,60,60,60", "a,liver,1,1,1,1,1,1", "a,kidney,1,1,1,2,2,2"):
        (tmp_path / "boxes.csv").write_text(f"case,class,x1,y1,z1,x2,y2,z2\n{row}\n")
        assert survey(both).problems or codes(both) == ["boxes.outside"]
        assert only(both.for_task("segmentation"))[2] is not None
    assert describe(table).for_task("segmentation") == describe(table)
    (tmp_path / "labels/a.json").write_text(json.dumps({"instances": {"1": 1, "3": 1}}))
    instances = describe({"kind": "instances", "file": maps["file"], "classes_file": "labels/{case}.json"})
    assert codes(instances) == codes(instances.for_task("detection")) == ["instances.absent"]
    case = load_case(instances.for_task("segmentation"), list_cases(instances)[0])
    assert case.warnings == ("a.nii.gz: instance 3 of the JSON has no voxel.",)


def test_components_that_are_too_small_are_said(write: Write, describe: Describe, block: Block) -> None:
    write("images/a.nii.gz")
    write("labels/a.nii.gz", block((1, FIRST), (1, (slice(10, 11), slice(0, 1), slice(0, 1)))))
    dataset = describe({"kind": "labels", "file": "labels/{case}.nii.gz", "min_object_mm3": 5})
    (source,) = list_cases(dataset)
    case = load_case(dataset, source)
    assert len(case.boxes) == 1
    assert case.warnings == ("1 component (2 mm3 in all) below min_object_mm3 5: no object for a detection.",)
    seen = load_case(dataset.for_task("segmentation"), source)
    assert (len(seen.boxes), seen.warnings) == (2, ())
