"""Zip archives, sound and hostile; every bomb is made here."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.intake.conftest import PLANTED, code_of, series_files, taken, zip_of
from voxray.serving.intake.limits import Limits

Nifti = Callable[..., bytes]


def test_a_zip_is_known_by_its_content_and_unpacks_under_our_own_names(tmp_path: Path, nifti: Nifti) -> None:
    packed = zip_of({"a/b/": b"", f"a/b/{PLANTED}.nii.gz": nifti()})
    info = taken({f"{PLANTED}.bin": packed}, tmp_path / "study")
    assert info.shape == (9, 8, 7)
    assert [path.name for path in (tmp_path / "study" / "source").iterdir()] == ["scan.nii.gz"]


def test_what_systems_leave_in_zips_does_not_count(tmp_path: Path) -> None:
    slices = {f"ct/{name}.dcm": data for name, data in series_files().items()}
    leavings = {"__MACOSX/ct/._IM000.dcm": b"\0\5\26\7", "ct/.DS_Store": b"x", "Thumbs.db": b"x", "notes.txt": b"hi"}
    info = taken({"ct.zip": zip_of(slices | leavings)}, tmp_path / "study")
    assert info.shape == (8, 6, 4)
    assert info.warnings == ("1 files that are no part of the scan were left out",)


def test_several_zips_and_files_are_one_upload(tmp_path: Path) -> None:
    files = list(series_files(6).items())
    upload = {"1.zip": zip_of(dict(files[:2])), files[2][0]: files[2][1], "2.zip": zip_of(dict(files[3:]))}
    assert taken(upload, tmp_path / "study").shape == (8, 6, 6)


@pytest.mark.parametrize(
    "name", ["../x.nii", "a/../../x.nii", "/etc/x.nii", "C:\\x.nii", "..\\x.nii", "\\\\host\\x.nii"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, nifti: Nifti, name: str) -> None:
    assert code_of({"s.zip": zip_of({name: nifti()})}, tmp_path / "study") == "upload.unsafe_entry"
    assert not list(tmp_path.rglob("x.nii"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        entry = zipfile.ZipInfo("scan.nii")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    assert code_of({"s.zip": packed.getvalue()}, tmp_path / "study") == "upload.unsafe_entry"


def test_encrypted_zips_are_refused(tmp_path: Path, nifti: Nifti) -> None:
    data = bytearray(zip_of({"scan.nii.gz": nifti()}))
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.index(magic) + place
        data[start : start + 2] = struct.pack("<H", struct.unpack("<H", data[start : start + 2])[0] | 1)
    assert code_of({"s.zip": bytes(data)}, tmp_path / "study") == "upload.encrypted"


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("inner.zip", zip_of({"a": b"x"})),
        ("scan.dcm", zip_of({"a": b"x"})),
        ("inner.tar", b"\0" * 257 + b"ustar\0" + b"\0" * 300),
        ("inner.7z", b"7z\xbc\xaf\x27\x1c" + b"x" * 600),
    ],
)
def test_archives_within_archives_are_refused(tmp_path: Path, name: str, inner: bytes) -> None:
    assert code_of({"s.zip": zip_of({name: inner})}, tmp_path / "study") == "upload.nested_archive"


def test_empty_zips_are_refused(tmp_path: Path) -> None:
    assert code_of({"s.zip": zip_of({})}, tmp_path / "a") == "upload.empty"
    assert code_of({"s.zip": zip_of({"folder/": b""})}, tmp_path / "b") == "upload.empty"


def test_methods_that_cost_much_memory_are_refused(tmp_path: Path, nifti: Nifti) -> None:
    for number, method in enumerate((zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)):
        packed = zip_of({"scan.nii": nifti(suffix=".nii")}, method)
        assert code_of({"s.zip": packed}, tmp_path / f"study{number}") == "upload.bad_zip"


def test_damaged_zips_are_refused(tmp_path: Path, nifti: Nifti) -> None:
    data = zip_of({"scan.nii": nifti((30, 30, 30), ".nii")})
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x55
    for number, damaged in enumerate(
        (data[:-30], data[: len(data) // 2], bytes(flipped), b"PK\x03\x04" + b"x" * 999)
    ):
        assert code_of({"s.zip": damaged}, tmp_path / f"study{number}") == "upload.bad_zip"


def test_a_directory_that_points_nowhere_is_refused(tmp_path: Path) -> None:
    data = bytearray(zip_of({"1.dcm": b"x", "2.dcm": b"y"}))
    end = data.index(b"PK\x05\x06")
    # The directory's place is told too high, so that entries seem to begin before the file does.
    struct.pack_into("<I", data, end + 16, struct.unpack_from("<I", data, end + 16)[0] + 50)
    assert code_of({"s.zip": bytes(data)}, tmp_path / "study") == "upload.bad_zip"


def bomb(num_entries: int, size: int) -> bytes:
    return zip_of({f"{n}.dcm": bytes(size) for n in range(num_entries)})


def test_a_bomb_of_one_entry_is_refused_by_its_ratio(tmp_path: Path) -> None:
    data = bomb(1, 256 << 20)
    assert len(data) < 1 << 19
    assert code_of({"s.zip": data}, tmp_path / "study") == "upload.expands_too_far"


def test_a_bomb_of_many_entries_is_refused_by_its_ratio_and_by_its_size(tmp_path: Path) -> None:
    data = bomb(100, 1 << 20)
    assert code_of({"s.zip": data}, tmp_path / "a") == "upload.expands_too_far"
    limits = Limits(expanded_bytes=50 << 20)
    assert code_of({"s.zip": data}, tmp_path / "b", limits) == "upload.expands_too_far"


def test_a_bomb_whose_entries_share_their_data_is_refused(tmp_path: Path) -> None:
    """As in Fifield, A better zip bomb (WOOT 2019), in its simplest form: one kernel, many entries."""
    data = bytearray(bomb(1, 1 << 20))
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry, tail = bytes(data[start:end]), bytearray(data[end:])
    count = 500
    struct.pack_into("<HHII", tail, 8, count, count, len(entry) * count, start)
    assert code_of({"s.zip": bytes(data[:start]) + entry * count + bytes(tail)}, tmp_path / "study") in (
        "upload.expands_too_far",
        "upload.bad_zip",
    )


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    data = bytearray(bomb(1, 4 << 20))
    for magic, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(magic) + place, 1000)
    assert code_of({"s.zip": bytes(data)}, tmp_path / "study") == "upload.bad_zip"


def test_entries_are_counted(tmp_path: Path) -> None:
    data = zip_of({f"{n}.dcm": b"x" for n in range(50)})
    assert code_of({"s.zip": data}, tmp_path / "a", Limits(entries=49)) == "upload.too_many_files"
    assert code_of({"1.zip": data, "2.zip": data}, tmp_path / "b", Limits(entries=99)) == "upload.too_many_files"
    assert code_of({"1.zip": data, "2.zip": data}, tmp_path / "c", Limits(entries=100)) == "dicom.not_dicom"


def test_a_dicom_file_with_a_zip_in_its_preamble_is_dicom(tmp_path: Path) -> None:
    files = {name: b"PK\x03\x04" + data[4:] for name, data in series_files().items()}
    assert taken(files, tmp_path / "study").is_dicom
