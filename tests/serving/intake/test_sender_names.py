"""Refusals name the files as they were sent, to their sender; names are shown safely."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from serving.intake.conftest import Files, parts_of, series_files, slice_file, take_in, zip_of
from voxray.core.errors import DataError
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.sender_names import as_sent, noting, shown

MHD = (
    b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"
    b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
    b"ElementDataFile = Jane Doe.raw\n"
)


def told(files: Files, folder: Path) -> DataError:
    """What the sender of these files is told."""
    names: list[str] = []
    with pytest.raises(DataError) as raised:
        asyncio.run(take_in(noting(parts_of(files), names), folder, Limits()))
    assert not [name for name in names if name in str(raised.value)], "within there are numbers alone"
    return as_sent(raised.value, names)


def without(files: Mapping[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name not in names}


SERIES = series_files(8)
DOUBLED = {**SERIES, "CT/copy of IM003.dcm": slice_file(3)}
CASES: dict[str, tuple[dict[str, bytes], str, tuple[str, ...]]] = {
    "doubled": (DOUBLED, "dicom.doubled_position", ("“IM003”", "“CT/copy of IM003.dcm”")),
    "missing": (without(SERIES, "IM004"), "dicom.missing_slice", ("“IM003”", "“IM005”")),
    "no header": ({**SERIES, "IM004": b"x" * 900}, "dicom.missing_slice", ("“IM003”", "“IM004”", "“IM005”")),
    "truncated": ({**SERIES, "IM002": SERIES["IM002"][:-20]}, "dicom", ("“IM002”",)),
    "another size": ({**SERIES, "odd.dcm": slice_file(8, Rows=4, Columns=4)}, "dicom", ("“odd.dcm”",)),
    "no DICOM": ({**SERIES, "note.dcm": b"hello" * 40}, "dicom", ("“note.dcm”",)),
    "in a zip": ({"a.zip": zip_of(DOUBLED)}, "dicom.doubled_position", ("“IM003”", "“CT/copy of IM003.dcm”")),
    "in two zips": (
        {"a.zip": zip_of(SERIES), "b.zip": zip_of({"IM003": slice_file(3)})},
        "dicom.doubled_position",
        ("“IM003” in “a.zip”", "“IM003” in “b.zip”"),
    ),
    "zip and file": (
        {"a.zip": zip_of(SERIES), "x/more.dcm": slice_file(3)},
        "dicom.doubled_position",
        ("“IM003” in “a.zip”", "“x/more.dcm”"),
    ),
    "mhd alone": ({"Jane Doe.mhd": MHD}, "metaimage.missing_data", ("“Jane Doe.mhd”", "“Jane Doe.raw”")),
    "short raw": ({"Jane Doe.mhd": MHD, "Jane Doe.raw": b"ab"}, "metaimage", ("“Jane Doe.raw”",)),
    "two volumes": ({"a.mhd": MHD, "b.mhd": MHD}, "upload.several_scans", ("“a.mhd”", "“b.mhd”")),
    "no NIfTI": ({"Jane.nii": b"x" * 2000}, "nifti.not_nifti", ("“Jane.nii”",)),
    "short NIfTI": ({"Jane.nii.gz": b"\x1f\x8b" + b"x" * 2000}, "nifti", ("“Jane.nii.gz”",)),
    "tar": ({"Jane.tar": b"x" * 2000}, "upload.not_zip", ("“Jane.tar”",)),
    "zip in a zip": ({"a.zip": zip_of({"in/b.zip": zip_of(SERIES)})}, "upload.nested_archive", ("“in/b.zip”",)),
    "broken zip": ({"Jane.zip": zip_of(SERIES)[:3000]}, "upload.bad_zip", ("“Jane.zip”",)),
}


@pytest.mark.parametrize("name", CASES)
def test_files_are_named_as_they_were_sent(name: str, tmp_path: Path) -> None:
    files, code, names = CASES[name]
    error = told(files, tmp_path / "study")
    assert error.code.startswith(code), error
    for one in names:
        assert one in error.message, error.message
    assert ".dcm" not in error.message.replace(".dcm”", "")
    assert "00000" not in error.message
    assert "scan." not in error.message
    assert "sent" not in error.facts


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("IM 1.dcm", "“IM 1.dcm”"),
        ("Läsion/日本.nii", "“Läsion/日本.nii”"),
        ("a\nb\x1b[31m\u202egnp.exe\udcff\0", "“a\ufffdb\ufffd[31m\ufffdgnp.exe\ufffd\ufffd”"),
    ],
)
def test_names_are_shown_without_what_a_screen_would_obey(name: str, safe: str) -> None:
    assert shown(name) == safe
    assert shown(name).encode()


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    text = shown("begin" + "x" * 5000 + "end.dcm")
    assert len(text) == 102
    assert text.startswith("“begin")
    assert text.endswith("end.dcm”")


def test_files_without_names_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    with pytest.raises(DataError) as raised:
        asyncio.run(take_in(parts_of(DOUBLED), folder, Limits()))
    assert "file 4 and file 9 lie at the same one" in as_sent(raised.value, ()).message


def test_warnings_say_which_file_of_the_upload_they_name(tmp_path: Path) -> None:
    saved = slice_file(9, ImagePositionPatient=None, ImageOrientationPatient=None)
    files = {**SERIES, "Jane Doe.dcm": saved}
    uploads = {
        "file 9 of the upload": files,
        "file 9 of the archive": {"a.zip": zip_of(files)},
    }
    for number, (said, upload) in enumerate(uploads.items()):
        info = asyncio.run(take_in(parts_of(upload), tmp_path / str(number), Limits()))
        (warning,) = [one for one in info.warnings if "screen saves" in one]
        assert warning.endswith(f": {said}")
