"""Files are one where the file system says so, whatever their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from voxray.core.apart import Input, keep_apart, keep_out, require_folder
from voxray.core.errors import ConfigError


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scans" / "ct.nii.gz"
    path.parent.mkdir()
    path.write_bytes(b"scan")
    return path


def check(written: Path, scan: Path) -> None:
    keep_apart([written], [Input(scan, "the scan")], instead="give another folder with -o")


@pytest.mark.parametrize("way", ["itself", "relative", "dots", "symlink", "linked folder", "hard link"])
def test_every_name_of_an_input_is_the_input(
    tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "by_link").symlink_to(scan.parent)
    (tmp_path / "link.nii.gz").symlink_to(scan)
    os.link(scan, tmp_path / "hard.nii.gz")
    written = {
        "itself": scan,
        "relative": Path("scans/ct.nii.gz"),
        "dots": tmp_path / "scans" / ".." / "scans" / "ct.nii.gz",
        "symlink": tmp_path / "link.nii.gz",
        "linked folder": tmp_path / "by_link" / "ct.nii.gz",
        "hard link": tmp_path / "hard.nii.gz",
    }[way]
    with pytest.raises(ConfigError, match=r"the scan.*would be written over; give another folder"):
        check(written, scan)


def test_other_files_are_none_and_what_is_not_there_is_none(tmp_path: Path, scan: Path) -> None:
    (tmp_path / "same.nii.gz").write_bytes(b"scan")
    check(tmp_path / "same.nii.gz", scan)
    check(tmp_path / "new.nii.gz", scan)
    check(scan, tmp_path / "gone.nii.gz")


def test_a_folder_within_a_folder(tmp_path: Path, scan: Path) -> None:
    (tmp_path / "link").symlink_to(scan.parent)
    for folder in (scan.parent, scan.parent / "new" / "deep", tmp_path / "link" / "new"):
        with pytest.raises(ConfigError, match="the store, which is read"):
            keep_out(folder, [Input(scan.parent, "the store")], instead="give another")
    keep_out(tmp_path / "other", [Input(scan.parent, "the store")], instead="give another")
    keep_out(tmp_path, [Input(scan.parent, "the store")], instead="give another")


def test_a_file_is_no_folder(tmp_path: Path, scan: Path) -> None:
    require_folder(tmp_path / "new" / "deep", "-o")
    for folder in (scan, scan / "answers"):
        with pytest.raises(ConfigError, match=r"-o .*ct\.nii\.gz is a file"):
            require_folder(folder, "-o")
