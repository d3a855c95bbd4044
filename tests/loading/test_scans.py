"""Which scans an input names, and how they are called."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from voxray.core.errors import ConfigError
from voxray.loading.scans import Scan, find_scans, stem


def make(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


DICOM = b"\0" * 128 + b"DICM"


def test_a_folder_gives_its_volumes_and_its_series(tmp_path: Path) -> None:
    make(tmp_path / "b.nii.gz")
    make(tmp_path / "deep" / "a.MHD")
    make(tmp_path / "deep" / "a.raw")
    make(tmp_path / "series" / "IM0001", DICOM)
    make(tmp_path / "series" / "IM0002", DICOM)
    make(tmp_path / "notes.txt")
    assert find_scans([tmp_path]) == [
        Scan("b", tmp_path / "b.nii.gz"),
        Scan("a", tmp_path / "deep" / "a.MHD"),
        Scan("series", tmp_path / "series"),
    ]
    assert find_scans([tmp_path / "series"]) == [Scan("series", tmp_path / "series")]


def test_the_same_name_in_two_folders_takes_the_folder_along(tmp_path: Path) -> None:
    make(tmp_path / "p1" / "ct.nii.gz")
    make(tmp_path / "p2" / "ct.nii.gz")
    make(tmp_path / "p2" / "late.nii.gz")
    assert [scan.name for scan in find_scans([tmp_path])] == ["p1_ct", "p2_ct", "late"]


@pytest.mark.parametrize(("one", "other"), [("CT", "ct"), ("M\u00fcller", "Mu\u0308ller")])
def test_names_that_a_disk_may_hold_alike_are_told_apart(tmp_path: Path, one: str, other: str) -> None:
    make(tmp_path / "p1" / f"{one}.nii.gz")
    make(tmp_path / "p2" / f"{other}.nii.gz")
    assert [scan.name for scan in find_scans([tmp_path])] == [f"p1_{one}", f"p2_{other}"]
    with pytest.raises(ConfigError, match="both be written as"):
        find_scans([tmp_path / "p1" / f"{one}.nii.gz", tmp_path / "p2" / f"{other}.nii.gz"])


def test_a_scan_that_is_named_twice_is_answered_once(tmp_path: Path) -> None:
    path = make(tmp_path / "ct.nii")
    assert find_scans([path, tmp_path]) == find_scans([tmp_path])


def test_the_same_name_in_two_formats_takes_the_suffix_along(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a" / "ct.nii"), make(tmp_path / "b" / "ct.nii.gz")
    assert [scan.name for scan in find_scans([first, second])] == ["ct_nii", "ct_nii_gz"]
    make(tmp_path / "a" / "ct.mha")
    assert [scan.name for scan in find_scans([tmp_path / "a"])] == ["ct_mha", "ct_nii"]


def test_two_files_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a" / "ct.nii"), make(tmp_path / "b" / "ct.nii")
    with pytest.raises(ConfigError, match="both be written as 'ct_nii'"):
        find_scans([first, second])


def test_missing_and_empty_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        find_scans([tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="holds no scan"):
        find_scans([tmp_path])


def test_dots_in_names_stay(tmp_path: Path) -> None:
    assert stem(Path("1.3.6.1.nii.gz")) == "1.3.6.1"
    series = tmp_path / "1.2.840.1"
    series.mkdir()
    assert stem(series) == "1.2.840.1"
    assert stem(Path("slice.dcm")) == "slice"


def test_a_list_names_scans_beside_it(tmp_path: Path) -> None:
    first, second = make(tmp_path / "p1" / "ct.nii.gz"), make(tmp_path / "p2" / "ct.nii.gz")
    make(tmp_path / "p3" / "series" / "IM0001", DICOM)
    names = make(tmp_path / "study.txt", f"# to answer\np1/ct.nii.gz\n\n{second}\n  p3\n".encode())
    assert find_scans([names]) == [
        Scan("p1_ct", first),
        Scan("p2_ct", second),
        Scan("series", tmp_path / "p3" / "series"),
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"ct.nii\nnothing.nii\n", r"study.txt, line 2: .*nothing.nii: no such file or folder"),
        (b"# nothing\n", "study.txt: names no scan"),
        (b"\xff\xfe\x00", "study.txt: is not UTF-8 text"),
    ],
)
def test_a_list_that_names_no_scan_is_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    make(tmp_path / "ct.nii")
    with pytest.raises(ConfigError, match=sentence):
        find_scans([make(tmp_path / "study.txt", content)])


@pytest.mark.parametrize("disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_scans_are_found_whatever_the_normal_form_of_their_names(tmp_path: Path, disk: Any, written: Any) -> None:
    make(tmp_path / unicodedata.normalize(disk, "Zoë/ct.nii.gz"))
    line = unicodedata.normalize(written, "Zoë/ct.nii.gz")
    listed = make(tmp_path / "study.txt", b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    for given in (listed, tmp_path / line, (tmp_path / line).parent):
        assert [scan.path.name for scan in find_scans([given])] == ["ct.nii.gz"]
