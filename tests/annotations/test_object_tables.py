"""Tables of objects: what a row means, and what each broken row is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from voxray.annotations.object_tables import (
    BoxFile,
    read_boxes_csv,
    read_boxes_json,
    read_monai_json,
    read_spheres_by_case,
    read_spheres_csv,
)
from voxray.core.errors import DataError
from voxray.dataset.paths import file_stem
from voxray.dataset.truth import BoxesCsv, MonaiJson, SpheresCsv

CLASSES = ("solid", "part_solid")
HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def spheres(text: str, **config: object) -> BoxFile:
    return read_spheres_csv(text, SpheresCsv.model_validate({"file": "a", **config}), ("nodule",), where="a.csv")


def boxes(text: str, **config: object) -> BoxFile:
    settings = BoxesCsv.model_validate({"file": "b", "frame": "LPS", **config})
    return read_boxes_csv(text, settings, CLASSES, where="b.csv")


def messages(found: BoxFile) -> list[str]:
    return [f"{problem.code} {problem.message}" for problem in found.problems]


def test_a_sphere_is_the_cube_around_it() -> None:
    found = spheres(HEADER + "1.2.3,10,-20,30.5,5\n1.2.3,0,0,0,2\n1.2.4,1,1,1,4\n")
    assert not found.problems
    assert list(found.boxes) == ["1.2.3", "1.2.4"]
    assert found.boxes["1.2.3"].frame == "LPS"
    np.testing.assert_array_equal(
        found.boxes["1.2.3"].boxes, [[7.5, -22.5, 28, 12.5, -17.5, 33], [-1, -1, -1, 1, 1, 1]]
    )
    np.testing.assert_array_equal(found.boxes["1.2.3"].classes, [0, 0])


def test_ras_is_turned_to_lps() -> None:
    lps = spheres(HEADER + "a,10,-20,30,5\n").boxes["a"]
    ras = spheres(HEADER + "a,-10,20,30,5\n", frame="RAS").boxes["a"]
    np.testing.assert_array_equal(ras.boxes, lps.boxes)
    assert ras.frame == "LPS"


def test_rows_that_cannot_be_used_are_all_told_with_their_lines() -> None:
    rows = ["a,1,2,3,4", "a,1,2,3", "b,1,x,3,4", "b,nan,2,3,4", "c,1,2,3,-1", ",1,2,3,4", "a,1,2,3,4", "a,1,2,3,4,5"]
    found = spheres(HEADER + "\n".join(rows) + "\n")
    assert list(found.boxes) == ["a"]
    assert messages(found) == [
        "annotations.row a.csv line 3: must have 5 fields as the header does, has 4.",
        "annotations.number a.csv line 4: must be a finite number, got 'x'.",
        "annotations.number a.csv line 5: must be a finite number, got 'nan'.",
        "annotations.box_size a.csv line 6: case c: the box 1.5 2.5 3.5 0.5 1.5 2.5 has no size.",
        "annotations.case a.csv line 7: names no case, got ''.",
        "annotations.repeated a.csv line 8: case a: the same box -1 0 1 3 4 5 again.",
        "annotations.row a.csv line 9: must have 5 fields as the header does, has 6.",
    ]
    assert all(problem.remedy for problem in found.problems)


def test_a_missing_column_is_told_with_those_found() -> None:
    assert messages(spheres("uid,coordX,coordY,coordZ,diameter_mm\n")) == [
        "annotations.columns a.csv: has no column seriesuid; found uid, coordX, coordY, coordZ, diameter_mm."
    ]
    assert messages(spheres(""))[0].endswith("found nothing.")


def test_a_byte_order_mark_and_blank_lines_are_no_problem() -> None:
    found = spheres("\ufeff" + HEADER + "\na,1,2,3,4\n\n")
    assert not found.problems
    assert list(found.boxes) == ["a"]


@pytest.mark.parametrize("form", ["corners", "center_size"])
def test_boxes_in_both_forms(form: str) -> None:
    numbers = "1,2,3,5,8,13" if form == "corners" else "3,5,8,4,6,10"
    found = boxes(f"case,class,x1,y1,z1,x2,y2,z2\np, part_solid ,{numbers}\n", form=form)
    np.testing.assert_array_equal(found.boxes["p"].boxes, [[1, 2, 3, 5, 8, 13]])
    np.testing.assert_array_equal(found.boxes["p"].classes, [1])


def test_boxes_in_ras_swap_the_corners() -> None:
    found = boxes("case,class,x1,y1,z1,x2,y2,z2\np,solid,1,2,3,5,8,13\n", frame="RAS")
    np.testing.assert_array_equal(found.boxes["p"].boxes, [[-5, -8, 3, -1, -2, 13]])


def test_boxes_in_voxels_stay_as_they_are() -> None:
    found = boxes("case,class,x1,y1,z1,x2,y2,z2\np,solid,1,2,3,5,8,13\n", frame="voxel")
    assert found.boxes["p"].frame == "voxel"
    np.testing.assert_array_equal(found.boxes["p"].boxes, [[1, 2, 3, 5, 8, 13]])


def test_other_columns_and_delimiters() -> None:
    text = "scan;a;b;c;d;e;f\nq;1;2;3;5;8;13\n"
    settings = {"case_column": "scan", "class_column": None, "delimiter": ";", "box_columns": tuple("abcdef")}
    np.testing.assert_array_equal(boxes(text, **settings).boxes["q"].boxes, [[1, 2, 3, 5, 8, 13]])


def test_an_unknown_class_is_told_with_the_nearest() -> None:
    (problem,) = boxes("case,class,x1,y1,z1,x2,y2,z2\np,part_sold,1,2,3,5,8,13\n").problems
    assert problem.code == "annotations.class"
    assert problem.message == "b.csv line 2: no class is called 'part_sold'."
    assert problem.remedy == "Did you mean 'part_solid'?"


def boxes_json(data: object) -> BoxFile:
    return read_boxes_json(json.dumps(data), CLASSES, where="b.json")


def test_json_boxes_in_both_forms() -> None:
    centre = {"case": "p", "class": "solid", "center_mm": [3, 5, 8], "size_mm": [4, 6, 10]}
    corners = {"case": "p", "class": "part_solid", "corners_mm": [1, 2, 3, 5, 8, 13]}
    found = boxes_json({"frame": "LPS", "boxes": [centre, corners]})
    assert not found.problems
    np.testing.assert_array_equal(found.boxes["p"].boxes, [[1, 2, 3, 5, 8, 13]] * 2)
    np.testing.assert_array_equal(found.boxes["p"].classes, [0, 1])


def test_json_boxes_in_voxels() -> None:
    box = {"case": "p", "class": "solid", "corners_vox": [1, 2, 3, 5, 8, 13]}
    assert boxes_json({"frame": "voxel", "boxes": [box]}).boxes["p"].frame == "voxel"
    assert messages(boxes_json({"frame": "LPS", "boxes": [box]})) == [
        "annotations.form b.json: boxes[0]: 'center_mm' must be a list, got None."
    ]


def test_broken_json_entries_are_all_told() -> None:
    good = {"case": "p", "class": "solid", "corners_mm": [1, 2, 3, 5, 8, 13]}
    changes: list[dict[str, object]] = [
        {"corners_mm": [1, 2, 3]},
        {"corners_mm": [1, 2, 3, 5, 8, None]},
        {"corners_mm": [1, 2, 3, 1, 8, 13]},
        {"class": "glass"},
        {"case": 7},
    ]
    found = boxes_json({"frame": "LPS", "boxes": [3, *({**good, **change} for change in changes)]})
    codes = ["form", "form", "number", "class", "case", "box_size"]
    assert sorted(problem.code for problem in found.problems) == sorted(f"annotations.{code}" for code in codes)
    assert not found.boxes


@pytest.mark.parametrize(
    ("text", "code"),
    [("{", "json"), ("[]", "form"), ('{"boxes": []}', "frame"), ('{"frame": "ITK", "boxes": []}', "frame")],
)
def test_a_json_file_that_is_none_is_refused(text: str, code: str) -> None:
    with pytest.raises(DataError) as caught:
        read_boxes_json(text, CLASSES, where="b.json")
    assert caught.value.code == f"annotations.{code}"


def monai(data: object, classes: tuple[str, ...] = ("nodule",)) -> BoxFile:
    config = MonaiJson(file="f")
    return read_monai_json(json.dumps(data), config, classes, case_id_of=file_stem, where="f.json")


def test_monai_lists_are_centre_and_size_in_lps() -> None:
    entry = {"image": "1.2/1.2.nii.gz", "box": [[10, 20, 30, 4, 4, 4], [0, 0, 0, 2, 2, 2]], "label": [0, 0]}
    found = monai({"training": [entry], "validation": [{"image": "1.3/1.3.nii.gz", "box": [], "label": []}]})
    np.testing.assert_array_equal(found.boxes["1.2"].boxes, [[8, 18, 28, 12, 22, 32], [-1, -1, -1, 1, 1, 1]])
    assert found.boxes["1.3"].boxes.shape == (0, 6)


def test_monai_labels_are_named_by_the_dataset_or_the_file_and_else_by_place() -> None:
    entry = {"image": "a.nii", "box": [[10, 20, 30, 4, 4, 4], [0, 0, 0, 2, 2, 2]], "label": [1, 2]}
    data, classes = {"training": [entry], "validation": []}, ("liver", "kidney")

    def read(data: object, **fields: object) -> BoxFile:
        config = MonaiJson.model_validate({"file": "f", **fields})
        return read_monai_json(json.dumps(data), config, classes, case_id_of=file_stem, where="f.json")

    named = {**data, "labels": {"0": "background", "1": "kidney", "2": "liver"}}
    assert read(named).boxes["a"].classes.tolist() == [1, 0]
    assert read(named, values=["background", "liver", "kidney"]).boxes["a"].classes.tolist() == [0, 1]
    assert read(data, values={"1": "kidney", "2": "liver"}).boxes["a"].classes.tolist() == [1, 0]
    (problem,) = read(data).problems
    assert "label must be one of 0 (liver), 1 (kidney), got 2" in problem.message
    (problem,) = read({**data, "labels": {"1": "background", "2": "liver"}}).problems
    assert "label 1 is 'background', which is no class" in problem.message
    with pytest.raises(DataError, match="labels: number 1 is both"):
        read({**data, "labels": {"liver": 1, "kidney": 1}})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"label": [0]}, "form"),
        ({"label": [0, 1]}, "class"),
        ({"label": [0, True]}, "class"),
        ({"box": [[1, 2, 3, 4], [0, 0, 0, 2, 2, 2]]}, "number"),
        ({"image": None}, "case"),
    ],
)
def test_broken_monai_entries_are_told(change: dict[str, object], code: str) -> None:
    entry = {"image": "1.2.nii.gz", "box": [[10, 20, 30, 4, 4, 4], [0, 0, 0, 2, 2, 2]], "label": [0, 0]}
    found = monai({"training": [{**entry, **change}], "validation": []})
    assert [problem.code for problem in found.problems] == [f"annotations.{code}"]


def test_excluded_findings_keep_their_unknown_diameter() -> None:
    text = HEADER + "a,1,2,3,-1\na,4,5,6,3.5\nb,7,8,9,-1\n"
    found = read_spheres_by_case(text, SpheresCsv(file="a"), where="x.csv")
    np.testing.assert_array_equal(found["a"].centres_mm, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(found["a"].diameters_mm, [-1, 3.5])
    with pytest.raises(DataError, match=r"x\.csv line 2: must be a finite number"):
        read_spheres_by_case(HEADER + "a,1,2,?,-1\n", SpheresCsv(file="a"), where="x.csv")


@pytest.mark.data
def test_the_annotations_of_luna16(shared_data: Path) -> None:
    # 1186 nodules in 601 of the 888 scans (Setio 2017, section 2).
    found = spheres((shared_data / "froc_luna16" / "annotations.csv").read_text())
    assert not found.problems
    assert sum(len(truth.boxes) for truth in found.boxes.values()) == 1186
    assert len(found.boxes) == 601
