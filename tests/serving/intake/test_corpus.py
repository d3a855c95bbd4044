"""Real, hard and damaged files as uploads: each becomes a study or is refused by its reader's code, nothing else."""

from __future__ import annotations

import asyncio
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from serving.intake.conftest import (
    check_study,
    code_of,
    parts_of,
    read_all,
    series_files,
    take_in,
    taken,
    zip_of,
)
from voxray.core.errors import DataError
from voxray.readers import read_volume
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.study import series_handle

pytestmark = pytest.mark.data


def reader_code(path: Path) -> str | None:
    try:
        read_volume(path)
    except DataError as error:
        return error.code
    return None


def codes_of(uploads: Sequence[dict[str, bytes]], folder: Path) -> list[str | None]:
    """As `code_of`, of many uploads, a few at once."""

    async def main() -> list[str | None]:
        room = asyncio.Semaphore(4)

        async def one(number: int, files: dict[str, bytes]) -> str | None:
            study = folder / f"study{number}"
            async with room:
                try:
                    info = await take_in(parts_of(files), study, Limits(parse_s=100))
                except DataError as error:
                    refusal = error
                else:
                    check_study(study, info)
                    return None
            assert not study.exists()
            assert str(folder) not in str(refusal)
            return refusal.code

        return await asyncio.gather(*(one(number, files) for number, files in enumerate(uploads)))

    return asyncio.run(main())


def with_data(path: Path) -> dict[str, bytes]:
    """A file, and what lies beside a header."""
    if path.suffix in (".mhd", ".nhdr"):
        return {path.name: path.read_bytes()} | {
            other.name: other.read_bytes()
            for other in path.parent.iterdir()
            if other.name.endswith((".raw", ".zraw", ".raw.gz", ".nii.gz")) and other.stat().st_size < 1 << 22
            if other.name in path.read_bytes().decode(errors="replace")
        }
    return {path.name: path.read_bytes()}


def test_malformed_files_meet_the_fate_that_their_reader_gives_them(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "malformed"
    expected = json.loads((folder / "derived" / "EXPECTED.json").read_text())
    paths = [folder / "derived" / name for name in expected]
    suffixes = (".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".nhdr", ".dcm")
    paths += sorted(path for path in (folder / "corpora").rglob("*") if path.name.endswith(suffixes))
    assert len(paths) > 130
    found = dict(zip(paths, codes_of([with_data(path) for path in paths], tmp_path), strict=True))
    changed = {path.name: (code, reader_code(path)) for path, code in found.items() if code != reader_code(path)}
    # An upload without a byte is told before it is read; a header whose data file is a volume brings two scans.
    assert changed == {
        "03_empty_file.nii.gz": ("upload.empty", "nifti.empty"),
        "BallBinary30x30x30_byteskip_minus_one_nifti.nhdr": ("upload.several_scans", "nrrd.skip"),
        "BallBinary30x30x30_nifti.nhdr": ("upload.several_scans", "nrrd.longer"),
    }
    for path, code in found.items():
        verdict = expected.get(str(path.relative_to(folder / "derived")), "") if "derived" in path.parts else ""
        assert code or not verdict.startswith("must fail") or "label" in path.name or "00_base_ct" in verdict


def test_single_dicom_files_in_every_transfer_syntax(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted((shared_data / "dicom_hard" / "single_ct").glob("*.dcm"))
    found = codes_of([{"x": path.read_bytes()} for path in paths], tmp_path)
    assert {path.name: code for path, code in zip(paths, found, strict=True)} == {
        path.name: reader_code(path) for path in paths
    }
    assert sum(code is None for code in found) == 23


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("dicom2nifti_failing_ct_2series", "dicom.several_studies"),
        ("panimg_dicom_4d", "dicom.several_series"),
        ("panimg_dicom_4d_enhanced", "dicom.several_series"),
        ("panimg_dicom_intercept", None),
        ("panimg_dicom_slope", None),
        ("panimg_enhanced_multiframe", "dicom.four_d"),
    ],
)
def test_hard_series_as_files_and_as_a_zip(shared_data: Path, tmp_path: Path, name: str, code: str | None) -> None:
    with tarfile.open(shared_data / "dicom_hard" / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    tree = [path for path in sorted((tmp_path / "tree").rglob("*")) if path.is_file()]
    files = {str(path.relative_to(tmp_path / "tree")): path.read_bytes() for path in tree}
    assert code_of(files, tmp_path / "files") == code
    assert code_of({"series.zip": zip_of(files)}, tmp_path / "zip") == code
    assert code_of(
        {"series.tar.xz": (shared_data / "dicom_hard" / f"{name}.tar.xz").read_bytes()}, tmp_path / "t"
    ) == ("upload.not_zip")


def test_a_phase_of_many_can_be_chosen(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "dicom_hard" / "panimg_dicom_4d.tar.xz") as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    folder = next(path for path in (tmp_path / "tree").iterdir() if path.is_dir())
    uid = "1.1.1.1.1.1.11111.1.1.1.1111.1111.900000000000000000000000000003"
    info = taken(read_all(folder), tmp_path / "study", series=series_handle(uid))
    assert (info.shape, info.series) == ((3, 2, 4), series_handle(uid))
    assert uid[:20] not in info.model_dump_json()


def test_a_scan_with_its_segmentation_beside_it(shared_data: Path, tmp_path: Path) -> None:
    files = read_all(shared_data / "dicom_hard" / "dcmqi_ct3slice_overlap")
    info = taken(files, tmp_path / "study")
    assert "1 objects of modality SEG ignored" in info.warnings
    assert "1 files that are no part of the scan were left out" in info.warnings


def test_real_scans_come_out_as_their_readers_read_them(shared_data: Path, tmp_path: Path) -> None:
    series = shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom"
    luna = shared_data / "lidc" / "luna16_style" / "subset0"
    uploads: list[tuple[dict[str, bytes], Path]] = [
        (read_all(series), series),
        ({"series.zip": zip_of(read_all(series))}, series),
        *((with_data(path), path) for path in sorted(luna.glob("*.mhd"))),
        (
            with_data(shared_data / "abdomen" / "slicerio_CTChest4.nrrd"),
            shared_data / "abdomen/slicerio_CTChest4.nrrd",
        ),
        (with_data(shared_data / "abdomen" / "TS_example_ct.nii.gz"), shared_data / "abdomen/TS_example_ct.nii.gz"),
    ]
    for number, (files, path) in enumerate(uploads):
        info, wanted = taken(files, tmp_path / f"study{number}"), read_volume(path)
        assert (np.load(tmp_path / f"study{number}" / "volume.npy") == wanted.voxels).all()
        assert info.grid == wanted.grid
        assert info.orientation == wanted.grid.orientation


def test_two_real_patients_in_one_zip(shared_data: Path, tmp_path: Path) -> None:
    files = read_all(shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom")
    assert code_of({"two.zip": zip_of(files | series_files())}, tmp_path / "study") == "dicom.several_patients"


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with some of it changed, cut, doubled or taken out, most often near its start, where headers are."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        reach = len(changed) if rng.random() < 0.4 else min(len(changed), 1200)
        place = int(rng.integers(0, max(reach, 1)))
        kind = int(rng.integers(0, 5))
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            changed[place : place + 4] = rng.bytes(4)
        elif kind == 2:
            changed[place : place + 2] = b"\xff\xff"
        elif kind == 3:
            del changed[place : place + int(rng.integers(1, 64))]
        else:
            changed[place:place] = changed[place : place + int(rng.integers(1, 64))]
    return bytes(changed[: int(rng.integers(0, len(changed)))] if rng.random() < 0.15 else changed)


def test_mutated_files_are_read_or_refused(shared_data: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    hard, derived = shared_data / "dicom_hard" / "single_ct", shared_data / "malformed" / "derived"
    seeds: list[dict[str, bytes]] = [
        with_data(derived / "00_base_ct.nii.gz"),
        with_data(derived / "mhd" / "50_valid.mhd"),
        with_data(derived / "mhd" / "51_valid_zraw.mhd"),
        with_data(shared_data / "malformed" / "corpora" / "pynrrd" / "BallBinary30x30x30_gz.nrrd"),
        {"s.zip": zip_of(series_files(3))},
        series_files(3),
        *({"x.dcm": (hard / name).read_bytes()} for name in ("pydicom_693_J2KR.dcm", "WG04_CT1_RLE.dcm")),
        *({"x.dcm": (hard / name).read_bytes()} for name in ("WG04_CT1_JPLL.dcm", "WG04_CT1_JLSL.dcm")),
    ]
    uploads = []
    for number in range(240):
        files = dict(seeds[number % len(seeds)])
        name = list(files)[int(rng.integers(0, len(files)))]
        uploads.append(files | {name: mutated(files[name], rng)})
    found = codes_of(uploads, tmp_path)
    assert len(found) == 240
    assert sum(code is not None for code in found) > 80
    assert sum(code is None for code in found) > 20
    assert not {"upload.parse_died", "upload.parse_too_slow"} & set(found), Counter(found)
