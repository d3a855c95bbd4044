"""Which cases are found, and what shows before a voxel is read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from voxray.core.errors import ConfigError, DataError
from voxray.dataset import Dataset
from voxray.loading import list_cases, read_excluded, survey

Write = Callable[..., Path]
Describe = Callable[..., Dataset]

LABELS = {"kind": "labels", "file": "labels/{case}.nii.gz"}
SPHERES = {"kind": "spheres_csv", "file": "a.csv"}
HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def codes(dataset: Dataset) -> list[str]:
    return [problem.code for problem in survey(dataset).problems]


def test_cases_come_in_the_order_of_their_ids_and_hidden_files_do_not(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/b.nii.gz", "images/a.mhd", "images/._b.nii.gz", "images/notes.txt")
    cases = list_cases(describe(LABELS))
    assert [(case.case_id, Path(case.image).name) for case in cases] == [("a", "a.mhd"), ("b", "b.nii.gz")]
    assert cases[0].maps is not None
    assert cases[0].maps.file == str(tmp_path / "labels/a.nii.gz")
    assert pickle.loads(pickle.dumps(cases)) == cases


def test_a_folder_can_be_a_case(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "dicom/p1/s1/1.dcm", "dicom/p2/s1/1.dcm")
    images = {"glob": "dicom/*/*", "case_id": "dicom/([^/]+)/([^/]+)$"}
    assert [case.case_id for case in list_cases(describe(LABELS, images=images))] == ["p1_s1", "p2_s1"]


def test_an_empty_folder_and_a_missing_root_are_told(tmp_path: Path, describe: Describe) -> None:
    with pytest.raises(DataError, match=r"dataset\.no_images.*images/\*\.nii\.gz.*Mend root or images.glob"):
        list_cases(describe(LABELS))
    with pytest.raises(ConfigError, match=r"root: .*elsewhere: no such folder.*--root"):
        list_cases(describe(LABELS, root=str(tmp_path / "elsewhere")))
    with pytest.raises(ConfigError, match=r"images\.glob: /data/\*"):
        list_cases(describe(LABELS, images={"glob": "/data/*"}))


def test_one_id_for_two_images_is_told_with_both(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a.nii.gz", "images/a.mhd")
    (problem,) = survey(describe(LABELS)).problems
    assert (problem.code, problem.case_id) == ("dataset.duplicate_case", "a")
    assert problem.message == "'images/a.mhd' and 'images/a.nii.gz' have one id."


def test_an_image_without_an_id_is_told(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a1.nii.gz", "images/b1.nii.gz")
    found = survey(describe(LABELS, images={"glob": "images/*", "case_id": r"/(a\d)"}))
    assert [problem.code for problem in found.problems] == ["dataset.case_id"]
    assert [case.case_id for case in found.cases] == ["a1"]


def test_excluded_cases_are_left_out_and_must_exist(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz")
    assert [case.case_id for case in list_cases(describe(LABELS, exclude=["a"]))] == ["b"]
    with pytest.raises(ConfigError, match="exclude: c: no such case; there are a, b"):
        list_cases(describe(LABELS, exclude=["c"]))


def test_patients_from_the_id_and_from_a_table(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/p1_a.nii.gz", "images/p1_b.nii.gz", "images/p2_a.nii.gz")
    assert [c.patient_id for c in list_cases(describe(LABELS))] == ["p1_a", "p1_b", "p2_a"]
    assert [c.patient_id for c in list_cases(describe(LABELS, patients={"pattern": "^(p.)"}))] == ["p1", "p1", "p2"]
    (tmp_path / "p.csv").write_text("case,patient\np1_a,x\np1_b,x\np2_a,y\n")
    assert [c.patient_id for c in list_cases(describe(LABELS, patients={"file": "p.csv"}))] == ["x", "x", "y"]


def test_a_case_without_a_patient_is_told(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/p1.nii.gz", "images/q1.nii.gz")
    (tmp_path / "p.csv").write_text("case,patient\np1,x\n")
    for rule in ({"pattern": "^(p.)"}, {"file": "p.csv"}):
        (problem,) = survey(describe(LABELS, patients=rule)).problems
        assert (problem.code, problem.case_id) == ("patients.missing", "q1")
    with pytest.raises(ConfigError, match="has no column 'id'; found case, patient"):
        survey(describe(LABELS, patients={"file": "p.csv", "case_column": "id"}))


def test_scans_that_the_table_does_not_name_are_cases_without_an_object(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a.mhd", "images/b.mhd")
    (tmp_path / "a.csv").write_text(HEADER + "a,1,2,3,4\na,5,6,7,4\n")
    cases = list_cases(describe(SPHERES, classes=["nodule"]))
    assert [len(case.boxes.boxes) for case in cases if case.boxes is not None] == [2, 0]


def test_rows_without_an_image_are_reported_but_no_reason_to_stop(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a.mhd")
    (tmp_path / "a.csv").write_text(HEADER + "a,1,2,3,4\nx,5,6,7,4\ny,5,6,7,4\n")
    dataset = describe(SPHERES, classes=["nodule"])
    assert len(list_cases(dataset)) == 1
    (problem,) = survey(dataset).problems
    assert problem.code == "annotations.no_image"
    assert problem.message.endswith("has rows of 2 cases without an image: x, y.")
    assert not survey(describe({**SPHERES, "absent_images": "ignore"}, classes=["nodule"])).problems


def test_rows_of_excluded_cases_are_not_reported(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a.mhd", "images/b.mhd")
    (tmp_path / "a.csv").write_text(HEADER + "a,1,2,3,4\nb,5,6,7,4\n")
    assert not survey(describe(SPHERES, classes=["nodule"], exclude=["b"])).problems


def test_ids_that_do_not_fit_at_all_stop(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/scan_a.mhd")
    (tmp_path / "a.csv").write_text(HEADER + "a,1,2,3,4\n")
    with pytest.raises(DataError, match=r"annotations\.no_match.*\(a\).*\(scan_a\).*images.case_id"):
        list_cases(describe(SPHERES, classes=["nodule"]))


def test_broken_rows_stop_with_the_first_and_the_count(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a.mhd")
    (tmp_path / "a.csv").write_text(HEADER + "a,1,2,3,4\na,1,2,x,4\na,1,2\n")
    with pytest.raises(DataError, match=r"a\.csv line 3: .*'x'.*1 more problems; voxray check"):
        list_cases(describe(SPHERES, classes=["nodule"]))
    assert codes(describe(SPHERES, classes=["nodule"])) == ["annotations.number", "annotations.row"]


def test_a_missing_annotation_file_is_a_matter_of_the_dataset_file(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a.mhd")
    with pytest.raises(ConfigError, match=r"annotations\.file: .*a\.csv: no such file"):
        survey(describe(SPHERES, classes=["nodule"]))
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot be read.*give a UTF-8 text file"):
        survey(describe(SPHERES, classes=["nodule"]))


def test_boxes_and_label_maps_together(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a.mhd")
    entry = {"case": "a", "class": "spleen", "center_mm": [0, 0, 0], "size_mm": [2, 2, 2]}
    (tmp_path / "b.json").write_text(json.dumps({"frame": "LPS", "boxes": [entry]}))
    (case,) = list_cases(describe([{"kind": "boxes_json", "file": "b.json"}, LABELS]))
    assert case.boxes is not None
    assert case.maps is not None
    np.testing.assert_array_equal(case.boxes.classes, [1])


MSD = {
    "labels": {"0": "background", "1": "spleen"},
    "training": [{"image": "./images/a.nii.gz", "label": "./labels/a.nii.gz"}],
}


def test_msd_pairs_images_with_labels_and_names_values(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(MSD))
    (case,) = list_cases(describe({"kind": "msd"}))
    assert case.maps is not None
    assert case.maps.names == {1: "spleen"}
    several = {**MSD, "labels": {"background": 0, "spleen": 3, "liver": 117}}
    (tmp_path / "dataset.json").write_text(json.dumps(several))
    (other,) = list_cases(describe({"kind": "msd"}))
    assert other.maps is not None
    assert other.maps.names == {3: "spleen", 117: "liver"}
    assert Path(case.maps.file) == tmp_path / "labels/a.nii.gz"


def test_msd_images_and_entries_must_fit(tmp_path: Path, describe: Describe) -> None:
    touch(tmp_path, "images/a.nii.gz")
    entry = {"image": "./images/b.nii.gz", "label": "./labels/b.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({**MSD, "training": [*MSD["training"], entry]}))
    assert codes(describe({"kind": "msd"})) == ["annotations.no_image"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": None}, "has no table 'labels'"),
        ({"labels": {"spleen": "one"}}, "must pair a number with a name"),
        ({"labels": {"spleen": 1, "liver": 1}}, "number 1 is both 'spleen' and 'liver'"),
        ({"labels": {"1": "Spleen"}}, r"labels names Spleen, none of the dataset's classes \(liver, spleen\)"),
        ({"training": None}, "has no list 'training'"),
        ({"training": ["./images/a.nii.gz"]}, r"training\[0\] must have an image and a label"),
    ],
)
def test_a_broken_msd_file_is_told(tmp_path: Path, describe: Describe, change: object, sentence: str) -> None:
    touch(tmp_path, "images/a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({**MSD, **change}))  # type: ignore[dict-item]
    with pytest.raises(DataError, match=sentence):
        list_cases(describe({"kind": "msd"}))


def test_excluded_findings(tmp_path: Path, describe: Describe) -> None:
    (tmp_path / "x.csv").write_text(HEADER + "a,1,2,3,-1\n")
    found = read_excluded(describe({**SPHERES, "excluded_file": "x.csv"}, classes=["nodule"]))
    np.testing.assert_array_equal(found["a"].centres_mm, [[1, 2, 3]])
    assert read_excluded(describe(SPHERES, classes=["nodule"])) == {}
