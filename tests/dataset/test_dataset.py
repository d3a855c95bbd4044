"""A dataset file: what is read, resolved and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from voxray.core.config import to_json
from voxray.core.errors import ConfigError
from voxray.dataset import Dataset, read_dataset
from voxray.dataset.paths import file_stem
from voxray.dataset.truth import BoxesCsv, LabelMaps, MaskFolder

MINIMAL = """
name = "minimal"
licence = "CC0 1.0"
classes = ["lesion"]
[images]
glob = "images/*.nii.gz"
[annotations]
kind = "labels"
file = "labels/{case}.nii.gz"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "dataset.toml"
    path.write_text(text)
    return path


def test_paths_are_below_the_folder_of_the_file(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, MINIMAL))
    assert dataset.root == str(tmp_path)
    assert isinstance(dataset.annotations[0], LabelMaps)
    assert dataset.annotations[0].file == str(tmp_path / "labels/{case}.nii.gz")
    assert dataset.folds.kind == "kfold"


def test_root_is_relative_to_the_file_and_can_be_given_instead(tmp_path: Path) -> None:
    path = write(tmp_path, 'root = "data"\n' + MINIMAL)
    assert read_dataset(path).root == str(tmp_path / "data")
    assert read_dataset(path, root=tmp_path / "other").root == str(tmp_path / "other")


def test_root_takes_variables_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 'root = "${SCANS_OF_TODAY}/ct"\n' + MINIMAL)
    monkeypatch.setenv("SCANS_OF_TODAY", str(tmp_path / "disk"))
    assert read_dataset(path).root == str(tmp_path / "disk/ct")
    monkeypatch.delenv("SCANS_OF_TODAY")
    with pytest.raises(ConfigError, match=r"root: environment variable SCANS_OF_TODAY is not set.*--root"):
        read_dataset(path)
    assert read_dataset(path, root=tmp_path).root == str(tmp_path)


def test_root_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert read_dataset(write(tmp_path, 'root = "~/ct"\n' + MINIMAL)).root == str(tmp_path / "me/ct")


def test_any_path_takes_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, MINIMAL.replace('"labels/', '"${SCANS_OF_TODAY}/labels/'))
    monkeypatch.setenv("SCANS_OF_TODAY", "/elsewhere")
    assert read_dataset(path).annotations[0].file == "/elsewhere/labels/{case}.nii.gz"
    monkeypatch.delenv("SCANS_OF_TODAY")
    with pytest.raises(ConfigError, match=r"dataset\.toml: annotations.*file: environment variable SCANS_OF_TODAY"):
        read_dataset(path)


def test_a_default_path_is_below_root_too(tmp_path: Path) -> None:
    text = MINIMAL.replace('kind = "labels"\nfile = "labels/{case}.nii.gz"', 'kind = "mask_folder"')
    annotation = read_dataset(write(tmp_path, text)).annotations[0]
    assert isinstance(annotation, MaskFolder)
    assert annotation.file == str(tmp_path / "{case}/segmentations/{class}.nii.gz")


def test_a_dataset_survives_its_json(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, MINIMAL))
    assert Dataset.model_validate_json(to_json(dataset)) == dataset


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "minimal"', 'nam = "minimal"', "nam: no such field; did you mean 'name'"),
        ('licence = "CC0 1.0"', "", "licence: is required"),
        ('kind = "labels"', 'kind = "label"', "annotations.*label"),
        ('file = "labels/', 'fil = "labels/', "fil: no such field; did you mean 'file'"),
        ('["lesion"]', '["a", "a"]', "classes must differ"),
        ('["lesion"]', "[]", "classes"),
        ('"images/*.nii.gz"', '"images/*"\ncase_id = "a(b"', r"images\.case_id: not a regular expression"),
        ('"images/*.nii.gz"', '"images/*"\ncase_id = "ab"', r"images\.case_id: must have a group"),
        ("[annotations]", "[patients]\n[annotations]", "patients: give either pattern or file"),
        (
            'kind = "labels"\nfile = "labels/{case}.nii.gz"',
            'kind = "mask_folder"\nfile = "{case}.nii"',
            "{class} once",
        ),
        ('kind = "labels"', 'kind = "boxes_csv"', "frame: is required"),
        ("[annotations]", '[folds]\nkind = "kfold"\nnum_folds = 1\n[annotations]', "num_folds"),
        (
            "[annotations]",
            '[folds]\nkind = "holdout"\nval_share = 0.6\ntest_share = 0.4\n[annotations]',
            "leave cases",
        ),
    ],
)
def test_what_is_not_allowed_is_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in MINIMAL
    with pytest.raises(ConfigError, match=sentence):
        read_dataset(write(tmp_path, MINIMAL.replace(old, new)))


def parts(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"name": "d", "licence": "CC0", "classes": ["a"], "images": {"glob": "*.nii"}}
    return {**data, "annotations": {"kind": "labels", "file": "{case}.nii"}, **changes}


def test_several_classes_need_to_be_told_apart() -> None:
    table = {"kind": "boxes_csv", "file": "b.csv", "frame": "LPS", "class_column": None}
    assert Dataset.model_validate(parts(annotations=table))
    with pytest.raises(ValueError, match="class_column is needed where there are 2 classes"):
        Dataset.model_validate(parts(annotations=table, classes=["a", "b"]))
    with pytest.raises(ValueError, match="classes_file is needed"):
        Dataset.model_validate(parts(annotations={"kind": "instances", "file": "x"}, classes=["a", "b"]))


def test_values_name_one_of_the_classes_at_least() -> None:
    labels = {"kind": "labels", "file": "{case}.nii"}
    assert Dataset.model_validate(parts(annotations={**labels, "values": {"1": "a", "2": "other"}}))
    with pytest.raises(ValueError, match="values names none of the classes, which are a"):
        Dataset.model_validate(parts(annotations={**labels, "values": {"1": "A"}}))


def test_a_table_and_label_maps_go_together_but_not_two_of_one_sort() -> None:
    boxes, labels = {"kind": "boxes_json", "file": "b.json"}, {"kind": "labels", "file": "{case}.nii"}
    assert len(Dataset.model_validate(parts(annotations=[boxes, labels])).annotations) == 2
    with pytest.raises(ValueError, match="one table of objects and one kind of label map"):
        Dataset.model_validate(parts(annotations=[labels, labels]))


def test_values_may_be_a_list_of_names() -> None:
    assert LabelMaps(file="x", values=["a", "b"]).values == {1: "a", 2: "b"}  # type: ignore[arg-type]
    assert LabelMaps.model_validate({"file": "x", "values": {"4": "b"}}).values == {4: "b"}
    with pytest.raises(ValueError, match="greater than 0"):
        LabelMaps.model_validate({"file": "x", "values": {"0": "b"}})


def test_a_table_has_no_default_frame() -> None:
    with pytest.raises(ValueError, match="frame"):
        BoxesCsv.model_validate({"file": "x"})


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("a/b.nii.gz", "b"),
        ("1.3.6.1.4.mhd", "1.3.6.1.4"),
        ("1.3.6.1.4", "1.3.6.1.4"),
        ("x/scan.v2.nrrd", "scan.v2"),
        ("S.NII.GZ", "S"),
    ],
)
def test_file_stem(path: str, stem: str) -> None:
    assert file_stem(path) == stem


def test_case_and_patient_ids_are_the_joined_groups() -> None:
    dataset = Dataset.model_validate(
        parts(images={"glob": "*", "case_id": r"subset(\d)/(\w+)\."}, patients={"pattern": r"^(\d)_"})
    )
    assert dataset.images.case_id_of("subset3/abc.mhd") == "3_abc"
    assert dataset.images.case_id_of("elsewhere/abc.mhd") is None
    assert dataset.patients is not None
    assert dataset.patients.patient_of("3_abc") == "3"
    assert dataset.patients.patient_of("abc") is None
