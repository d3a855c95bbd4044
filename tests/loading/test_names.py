"""A dataset whose files, tables and lists come from different systems: marks at the start, accents in two forms."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxray.core.errors import ConfigError
from voxray.dataset import read_dataset, split
from voxray.loading import list_cases, load_case

FORMS = ("NFC", "NFD")
BOM = b"\xef\xbb\xbf"
TABLE = "case,x,y,z,d,class\nJosé_1,-10,-10,10,6,léber\nJosé_2,-8,-8,8,4,léber\n"


def spelled(form: Any, text: str) -> str:
    return unicodedata.normalize(form, text)


@pytest.fixture
def dataset_file(tmp_path: Path, write: Any) -> Any:
    """Writes a dataset whose scans are spelled in one form on the disk, and in another in all that names them."""

    def make(disk: str, written: str, **changes: Any) -> Path:
        for number in (1, 2):
            write(spelled(disk, f"données/José_{number}.nii.gz"))
            labels = np.zeros((12, 10, 8), np.uint8)
            labels[3:6, 3:6, 3:6] = 1
            write(spelled(disk, f"masques/José_{number}/léber.nii.gz"), labels)
        table = tmp_path / spelled(disk, "tables-é.csv")
        table.write_bytes(BOM + spelled(written, TABLE).encode())
        sides = [{"train": ["José_1"], "val": ["José_2"]}]
        (tmp_path / spelled(disk, "plis-é.json")).write_bytes(
            BOM + spelled(written, json.dumps(sides, ensure_ascii=False)).encode()
        )
        (tmp_path / "côtés.csv").write_bytes(
            BOM + spelled(written, "case,split\nJosé_1,train\nJosé_2,val\n").encode()
        )
        data = {
            "name": "d",
            "licence": "CC0",
            "classes": ["léber"],
            "images": {"glob": "données/*.nii.gz"},
            "annotations": {
                "kind": "spheres_csv",
                "file": "tables-é.csv",
                "case_column": "case",
                "centre_columns": ["x", "y", "z"],
                "diameter_column": "d",
                "class_column": "class",
            },
            "folds": {"kind": "lists", "file": "plis-é.json"},
            **changes,
        }
        path = tmp_path / "d.json"
        path.write_bytes(BOM + spelled(written, json.dumps(data, ensure_ascii=False)).encode())
        return path

    return make


@pytest.mark.parametrize("disk", FORMS)
@pytest.mark.parametrize("written", FORMS)
def test_scans_tables_and_lists_find_each_other(dataset_file: Any, disk: str, written: str) -> None:
    for folds in ({"kind": "lists", "file": "plis-é.json"}, {"kind": "csv", "file": "côtés.csv"}):
        dataset = read_dataset(dataset_file(disk, written, folds=folds))
        cases = list_cases(dataset)
        assert [case.case_id for case in cases] == ["José_1", "José_2"]
        assert split(cases, dataset.folds, 0).val_ids == ("José_2",)
        assert all(len(load_case(dataset, case).boxes) == 1 for case in cases)


@pytest.mark.parametrize("disk", FORMS)
@pytest.mark.parametrize("written", FORMS)
@pytest.mark.parametrize(
    "annotations",
    [
        {"kind": "mask_folder", "file": "masques/{case}/{class}.nii.gz"},
        {"kind": "labels", "file": "masques/{case}/léber.nii.gz", "values": {"1": "léber"}},
    ],
)
def test_label_maps_are_found(dataset_file: Any, disk: str, written: str, annotations: Any) -> None:
    dataset = read_dataset(dataset_file(disk, written, annotations=annotations))
    for case in list_cases(dataset):
        labels = load_case(dataset, case).labels
        assert labels is not None
        assert np.count_nonzero(labels) == 27


def test_text_of_another_encoding_is_refused_by_name(dataset_file: Any) -> None:
    path = dataset_file("NFC", "NFC")
    path.write_bytes(path.read_bytes().removeprefix(BOM).decode().encode("utf-16"))
    with pytest.raises(ConfigError, match=r"d\.json: cannot be read \(it is UTF-16 text; save it as UTF-8\)"):
        read_dataset(path)


def test_two_scans_of_one_name_are_refused(dataset_file: Any, write: Any) -> None:
    path = dataset_file("NFC", "NFC")
    write(spelled("NFD", "données/José_1.nii.gz"))
    with pytest.raises(Exception, match=r"dataset\.duplicate_case"):
        list_cases(read_dataset(path))
