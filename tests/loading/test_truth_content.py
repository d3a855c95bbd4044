"""What a case holds: every file and row of its truth, and no path."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from voxray.dataset import Dataset, read_dataset
from voxray.loading import CaseContent, case_content, list_cases

Change = Callable[[Path], object]


def flip(name: str) -> Change:
    """Another last byte of a file, whose size and times stay as they were."""

    def change(root: Path) -> None:
        path = root / name
        data, times = bytearray(path.read_bytes()), path.stat()
        data[-1] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return change


def replace(name: str, old: str, new: str) -> Change:
    """Another text in a file."""

    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return change


def write_all(root: Path) -> None:
    """An image, label maps of all kinds and a table of boxes for the case a, and another row for b."""
    root.mkdir(exist_ok=True)
    for name in ("image.mhd", "labels.mhd", "m/one.nii", "m/two.nii", "instances.nii"):
        (root / name).parent.mkdir(exist_ok=True)
        array = np.zeros((4, 5, 6), np.int16 if name == "image.mhd" else np.uint8)
        array[:2] = name != "m/two.nii"
        image: Any = SimpleITK.GetImageFromArray(array)
        SimpleITK.WriteImage(image, str(root / name))
    (root / "classes.json").write_text(json.dumps({"instances": {"1": 0}}))
    (root / "boxes.csv").write_text("case,class,x1,y1,z1,x2,y2,z2\nimage,one,1,1,1,3,3,3\nb,one,1,1,1,2,2,2\n")


KINDS: dict[str, dict[str, Any]] = {
    "labels": {"kind": "labels", "file": "labels.mhd"},
    "masks": {"kind": "mask_folder", "file": "m/{class}.nii"},
    "instances": {"kind": "instances", "file": "instances.nii", "classes_file": "classes.json"},
    "boxes": {"kind": "boxes_csv", "file": "boxes.csv", "frame": "voxel"},
}


def dataset(root: Path, kind: str, **changes: Any) -> Dataset:
    fields = {
        "name": "made",
        "licence": "CC0-1.0",
        "classes": ["one", "two"],
        "images": {"glob": "image.mhd"},
        "annotations": {**KINDS[kind], **changes.pop("annotations", {})},
    }
    path = root / "dataset.json"
    path.write_text(json.dumps({**fields, **changes}))
    return read_dataset(path)


def held(root: Path, kind: str, **changes: Any) -> CaseContent:
    described = dataset(root, kind, **changes)
    (source,) = list_cases(described)
    return case_content(described, source)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("labels", flip("labels.raw")),
        ("masks", flip("m/one.nii")),
        ("masks", lambda root: (root / "m" / "two.nii").unlink()),
        ("masks", lambda root: (root / "m" / "two.nii").rename(root / "m" / "three.nii")),
        ("instances", flip("instances.nii")),
        ("instances", replace("classes.json", "0", "1")),
        ("boxes", replace("boxes.csv", "image,one,1,1,1,3", "image,one,1,1,1,4")),
        ("boxes", replace("boxes.csv", "image,one", "image,two")),
        ("boxes", replace("boxes.csv", "b,one", "image,one")),
    ],
)
def test_another_truth_is_another_content(tmp_path: Path, kind: str, change: Change) -> None:
    write_all(tmp_path)
    before = held(tmp_path, kind)
    change(tmp_path)
    after = held(tmp_path, kind)
    assert after.scan == before.scan
    assert after.truth != before.truth


@pytest.mark.parametrize("kind", KINDS)
def test_how_truth_is_read_is_a_part_of_it_and_where_it_lies_is_not(tmp_path: Path, kind: str) -> None:
    write_all(tmp_path / "a")
    before = held(tmp_path / "a", kind)
    write_all(tmp_path / "b")
    replace("boxes.csv", "b,one,1", "b,one,0")(tmp_path / "b")
    assert held(tmp_path / "b", kind, name="other") == before, "another case's rows, another folder and name"
    file = str(KINDS[kind]["file"])
    new = file.replace("m/", "n/") if kind == "masks" else f"new_{file}"
    (tmp_path / "b" / file.split("/")[0]).rename(tmp_path / "b" / new.split("/")[0])
    assert held(tmp_path / "b", kind, annotations={"file": new}) == before
    assert held(tmp_path / "a", kind, classes=["two", "one"]).truth != before.truth
    assert held(tmp_path / "a", kind, overhang_vox=3).truth != before.truth
    if kind == "labels":
        assert held(tmp_path / "a", kind, annotations={"values": {"1": "two"}}).truth != before.truth
    if kind == "boxes":
        assert held(tmp_path / "a", kind, annotations={"frame": "LPS"}).truth != before.truth


def test_another_scan_is_another_content(tmp_path: Path) -> None:
    write_all(tmp_path)
    before = held(tmp_path, "boxes")
    flip("image.raw")(tmp_path)
    after = held(tmp_path, "boxes")
    assert after.truth == before.truth
    assert after.scan != before.scan
