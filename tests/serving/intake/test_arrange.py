"""Which of the files that were sent are the scan."""

from __future__ import annotations

import gzip
import io
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from serving.intake.conftest import PLANTED, code_of, series_files, taken, zip_of
from voxray.serving.intake.limits import Limits

Nifti = Callable[..., bytes]
MHD = """ObjectType = Image
NDims = 3
Offset = 1 2 3
TransformMatrix = 1 0 0 0 1 0 0 0 1
ElementSpacing = 1 1 2
DimSize = 4 3 2
ElementType = MET_SHORT
ElementDataFile = {}
"""
NHDR = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 3 2
space directions: (1,0,0) (0,1,0) (0,0,2)
kinds: domain domain domain
endian: little
encoding: {}
space origin: (1,2,3)
{}
"""
VOXELS = np.arange(-12, 12, dtype="<i2")
RAW = VOXELS.tobytes()


def mhd(name: str) -> bytes:
    return MHD.format(name).encode()


def nhdr(name: str, encoding: str = "raw") -> bytes:
    return NHDR.format(encoding, f"data file: {name}\n").encode()


@pytest.mark.parametrize(
    "files",
    [
        {"scan.mhd": mhd("scan.raw"), "scan.raw": RAW},
        {"data.bin": RAW, f"{PLANTED}.mhd": mhd("data.bin")},
        {"a.mhd": mhd("b.mha"), "b.mha": RAW},
        {"scan.mha": mhd("LOCAL") + RAW},
        {"unnamed": mhd("LOCAL") + RAW},
        {"s.zip": zip_of({"x/scan.mhd": mhd("scan.raw"), "x/scan.raw": RAW, "y/scan.raw": RAW[::-1]})},
        {"scan.nhdr": nhdr("scan.raw"), "scan.raw": RAW},
        {"scan.nrrd": nhdr("scan.raw"), "scan.raw": RAW},
        {"scan.nhdr": nhdr("scan.raw.gz", "gzip"), "scan.raw.gz": gzip.compress(RAW)},
        {"scan.nrrd": NHDR.format("raw", "").encode() + RAW},
        {"unnamed": NHDR.format("raw", "").encode() + RAW},
        {
            "scan.mhd": mhd("scan.raw").replace(b"NDims", b"Comment = #ElementDataFile = scan.raw\nNDims"),
            "scan.raw": RAW,
        },
    ],
)
def test_one_volume_in_many_forms(tmp_path: Path, files: dict[str, bytes]) -> None:
    if "b.mha" in files:
        # Two volumes by their names: refused, as it is not known which is the scan.
        assert code_of(files, tmp_path / "study") == "upload.several_scans"
        return
    info = taken(files, tmp_path / "study")
    assert (info.shape, info.spacing_mm, info.origin_mm) == ((4, 3, 2), (1.0, 1.0, 2.0), (1.0, 2.0, 3.0))
    found = np.load(tmp_path / "study" / "volume.npy")
    assert (found.ravel(order="F") == VOXELS).all()
    names = {path.name for path in (tmp_path / "study" / "source").iterdir()}
    assert names <= {"scan.mhd", "scan.mha", "scan.nhdr", "scan.nrrd", "scan.raw"}


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"scan.mhd": mhd(f"{PLANTED}.raw")}, "metaimage.missing_data"),
        ({"scan.mhd": mhd(f"{PLANTED}.raw"), "other.raw": RAW}, "metaimage.missing_data"),
        ({"scan.mhd": mhd(f"/etc/{PLANTED}"), PLANTED: RAW}, "metaimage.outside_folder"),
        ({"scan.mhd": mhd(f"../{PLANTED}.raw"), f"{PLANTED}.raw": RAW}, "metaimage.outside_folder"),
        ({"scan.nhdr": nhdr(f"{PLANTED}.raw")}, "nrrd.missing_data"),
        ({"scan.nhdr": nhdr(f"..\\{PLANTED}.raw"), f"{PLANTED}.raw": RAW}, "nrrd.outside_folder"),
        ({"x.zip": zip_of({"a/scan.mhd": mhd("scan.raw"), "b/scan.raw": RAW})}, "metaimage.missing_data"),
        ({"1.mhd": mhd("scan.raw"), "2.mhd": mhd("scan.raw"), "scan.raw": RAW}, "upload.several_scans"),
        ({"a/scan.raw": RAW, "b/scan.raw": RAW, "scan.mhd": mhd("scan.raw")}, "upload.several_scans"),
        ({"notes.txt": b"nothing"}, "upload.unknown_format"),
        ({"a.jpg": b"\xff\xd8\xff" * 99, "b.pdf": b"%PDF-1.4"}, "upload.unknown_format"),
        ({"scan.nii.gz": b"", "x": b"x"}, "nifti.empty"),
        ({"scan.dcm": b"", "x": b"x"}, "dicom.not_dicom"),
        ({"labels.seg.nrrd": NHDR.format("raw", "").encode() + RAW}, "path.label_map"),
    ],
)
def test_what_is_no_single_scan_is_refused(tmp_path: Path, files: dict[str, bytes], code: str) -> None:
    assert code_of(files, tmp_path / "study") == code


def test_dicom_beside_a_volume_and_two_volumes_are_refused(tmp_path: Path, nifti: Nifti) -> None:
    assert code_of({**series_files(), "labels.nii.gz": nifti()}, tmp_path / "a") == "upload.several_scans"
    assert code_of({"1.nii.gz": nifti(), "2.nii.gz": nifti()}, tmp_path / "b") == "upload.several_scans"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", ["", "blob", "scan.raw", "scan.nii.gz"])
def test_nifti_is_known_without_its_name(tmp_path: Path, nifti: Nifti, suffix: str, name: str) -> None:
    assert taken({name: nifti(suffix=suffix)}, tmp_path / "study").format == "NIfTI-1"


def test_a_gzip_bomb_is_refused_by_its_header(tmp_path: Path, nifti: Nifti) -> None:
    """A header of 1024 x 1024 x 2048 voxels and zeros to match, where the ratio gives it away; none is unpacked."""
    start = bytearray(gzip.decompress(nifti())[:352])
    start[42:48] = np.array([1024, 1024, 2048], "<i2").tobytes()
    zeros = gzip.compress(bytes(4 << 20))
    bomb = gzip.compress(bytes(start)) + zeros * 1024
    assert len(bomb) < 5 << 20
    assert code_of({"scan.nii.gz": bomb}, tmp_path / "a", Limits(parse_s=20)) == "upload.expands_too_far"
    assert code_of({"scan.nii.gz": bomb}, tmp_path / "b", Limits(voxels=1 << 27)) == "upload.too_many_voxels"
    start[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    lying = gzip.compress(bytes(start)) + zeros
    assert code_of({"scan.nii.gz": lying}, tmp_path / "c") == "grid.too_large"


def test_a_gzip_bomb_behind_a_modest_header_is_refused_where_the_header_ends(tmp_path: Path, nifti: Nifti) -> None:
    bomb = gzip.compress(gzip.decompress(nifti())) + gzip.compress(bytes(4 << 20)) * 1024
    assert code_of({"scan.nii.gz": bomb}, tmp_path / "study", Limits(parse_s=20)) == "nifti.longer"


def test_a_volume_of_one_value_is_no_bomb(tmp_path: Path, nifti: Nifti) -> None:
    data = nifti((200, 200, 200), value=-1000)
    assert 200**3 * 2 / len(data) > 200
    assert taken({"scan.nii.gz": data}, tmp_path / "study").shape == (200, 200, 200)


@pytest.mark.parametrize("sent", ["NFC", "NFD"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
@pytest.mark.parametrize("packed", [False, True])
def test_accents_may_be_encoded_otherwise_in_the_header(tmp_path: Path, sent: Any, named: Any, packed: bool) -> None:
    name, other = unicodedata.normalize(sent, "Zoë.raw"), unicodedata.normalize(named, "Zoë.raw")
    files = {unicodedata.normalize(sent, "Zoë/a.mhd"): mhd(other), unicodedata.normalize(sent, "Zoë/") + name: RAW}
    assert taken({"a.zip": zip_of(files)} if packed else files, tmp_path / "study").shape == (4, 3, 2)
    assert (np.load(tmp_path / "study" / "volume.npy").ravel(order="F") == VOXELS).all()


def test_of_two_alike_the_one_that_the_header_spells_is_read(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        files = {"a.mhd": mhd(unicodedata.normalize(form, "Zoë.raw"))}
        files |= {
            unicodedata.normalize(other, "Zoë.raw"): RAW if other == form else RAW[::-1] for other in ("NFC", "NFD")
        }
        taken(files, tmp_path / form)
        assert (np.load(tmp_path / form / "volume.npy").ravel(order="F") == VOXELS).all()


@pytest.mark.parametrize("series", ["its own", "1.2.999"])
def test_screen_saves_and_slices_without_a_preamble_are_told_apart(tmp_path: Path, series: str) -> None:
    files = series_files()
    name = min(files)
    save: Any = pydicom.dcmread(io.BytesIO(files[name]))
    for place in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(save, place)
    save.SeriesInstanceUID = save.SeriesInstanceUID if series == "its own" else series
    buffer = io.BytesIO()
    save.save_as(buffer)
    files["save"] = buffer.getvalue()
    files[f"{name}x"] = files.pop(name)[132:]
    info = taken(files, tmp_path / "study")
    assert info.shape[2] == info.num_files == len(files) - 1
    assert [text for text in info.warnings if "nothing says where they lie" in text]
