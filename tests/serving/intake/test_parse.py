"""Parsing: studies, refusals, and what is left behind in either case."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving.intake.conftest import (
    PLANTED,
    code_of,
    parts_of,
    series_files,
    slice_file,
    take_in,
    taken,
    zip_of,
)
from voxray.core.errors import DataError
from voxray.core.volume import Grid, Volume
from voxray.readers import read_volume, write_nifti
from voxray.serving.errors import problem_of
from voxray.serving.intake.confined import _FORKER
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.parse import parse
from voxray.serving.intake.receive import receive
from voxray.serving.intake.refusal_codes import STATUS, status_of
from voxray.serving.intake.study import StudyInfo, read_study, series_handle, series_uid_of

Nifti = Callable[..., bytes]
UID = "1.2.3.4.5.6.7.1.1"
OTHER = "1.2.3.4.5.6.7.1.2"


def refusal(files: dict[str, bytes], folder: Path, *, series: str | None = None) -> DataError:
    with pytest.raises(DataError) as raised:
        taken(files, folder, series=series)
    return raised.value


def test_a_series_becomes_a_study(tmp_path: Path) -> None:
    study = tmp_path / "study"
    info = taken(series_files(5), study)
    assert info == read_study(study) == pickle.loads(pickle.dumps(info))
    assert (info.format, info.modality, info.is_dicom, info.num_files) == ("DICOM series", "CT", True, 5)
    assert (info.shape, info.spacing_mm, info.origin_mm) == ((8, 6, 5), (0.5, 0.8, 2.0), (1.0, 2.0, 0.0))
    assert (info.orientation, info.warnings) == ("LPS", ())
    assert info.series == series_handle(UID)
    assert series_uid_of(study) == UID
    assert UID not in info.model_dump_json()
    found, wanted = np.load(study / "volume.npy"), read_volume(study / "source")
    assert (found == wanted.voxels).all()
    assert info.grid == wanted.grid
    assert [path.name for path in sorted((study / "source").iterdir())] == [f"00000{n}.dcm" for n in range(1, 6)]


def test_a_study_that_was_read_before_is_read_no_more(tmp_path: Path) -> None:
    info = taken(series_files(), tmp_path / "study")
    before = (tmp_path / "study" / "volume.npy").stat().st_mtime_ns
    assert asyncio.run(parse(tmp_path / "study", Limits())) == info
    assert (tmp_path / "study" / "volume.npy").stat().st_mtime_ns == before


def test_a_refused_parse_leaves_what_was_received(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    two = {**series_files(4, prefix="A"), **series_files(3, prefix="B", SeriesInstanceUID=OTHER)}
    asyncio.run(receive(parts_of({"s.zip": zip_of(two)}), folder, Limits()))
    with pytest.raises(DataError, match="2 CT series"):
        asyncio.run(parse(folder, Limits()))
    assert [path.name for path in folder.iterdir()] == ["received"]
    assert asyncio.run(parse(folder, Limits(), series_uid=OTHER)).shape == (8, 6, 3)


def test_one_of_several_series_is_chosen_by_its_uid_or_its_handle(tmp_path: Path) -> None:
    two = {**series_files(4, prefix="A"), **series_files(3, prefix="B", SeriesInstanceUID=OTHER, SeriesNumber=9)}
    error = refusal(two, tmp_path / "none")
    assert error.code == "dicom.several_series"
    assert f"{series_handle(UID)} (4 files, number 3); {series_handle(OTHER)} (3 files, number 9)" in error.message
    assert UID not in str(error)
    choices = [
        {"handle": series_handle(UID), "num_files": 4, "number": "3"},
        {"handle": series_handle(OTHER), "num_files": 3, "number": "9"},
    ]
    assert error.facts == pickle.loads(pickle.dumps(error)).facts == {"series": choices}
    assert list(problem_of(error).details().model_dump(mode="json")["series"]) == choices
    for number, name in enumerate((OTHER, series_handle(OTHER))):
        info = taken(two, tmp_path / f"study{number}", series=name)
        assert info.shape == (8, 6, 3)
        assert info.warnings == (f"series {series_handle(UID)} left out (4 files)",)
    error = refusal(two, tmp_path / "wrong", series="1.2.3.9.9.9.9.9")
    assert error.code == "dicom.no_such_series"
    assert error.facts == {"series": choices}
    assert "1.2.3.9" not in str(error)


def test_two_patients_are_refused_whatever_is_chosen(tmp_path: Path) -> None:
    both = {**series_files(4, prefix="A"), **series_files(3, prefix="B", SeriesInstanceUID=OTHER, PatientID="P2")}
    for number, series in enumerate((None, UID, OTHER)):
        assert code_of({"s.zip": zip_of(both)}, tmp_path / f"{number}", series=series) == "dicom.several_patients"
    mixed = {**series_files(4), "IM002": slice_file(2, PatientID="P2")}
    assert code_of(mixed, tmp_path / "mixed") == "dicom.several_patients"


def test_two_studies_are_refused_unless_a_series_is_chosen(tmp_path: Path) -> None:
    both = {
        **series_files(4, prefix="A"),
        **series_files(3, prefix="B", SeriesInstanceUID=OTHER, StudyInstanceUID="1.2.3.4.5.6.7.2"),
    }
    assert code_of(both, tmp_path / "none") == "dicom.several_studies"
    assert taken(both, tmp_path / "study", series=UID).shape == (8, 6, 4)


def test_an_mr_scan_a_localizer_and_a_segmentation_alone_are_refused(tmp_path: Path) -> None:
    assert code_of(series_files(4, Modality="MR"), tmp_path / "mr") == "dicom.not_ct"
    assert code_of(series_files(4, Modality="SEG"), tmp_path / "seg") == "dicom.not_ct"
    scout = series_files(1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert code_of(scout, tmp_path / "scout") == "dicom.only_localizers"


def test_four_dimensions_a_missing_slice_and_doubled_ones_are_refused(tmp_path: Path) -> None:
    files = series_files(8)
    assert code_of({**files, **series_files(8, prefix="B")}, tmp_path / "four") == "dicom.four_d"
    del files["IM004"]
    assert code_of(files, tmp_path / "missing") == "dicom.missing_slice"
    assert code_of({**series_files(8), "again": slice_file(3)}, tmp_path / "doubled") == "dicom.doubled_position"


def test_a_sentence_names_our_files_and_no_other(tmp_path: Path) -> None:
    files = series_files(8, prefix=PLANTED)
    del files[f"{PLANTED}004"]
    error = refusal(files, tmp_path / "study")
    assert error.message == (
        "The upload lacks 1 of 8 slices: the first gap is 4.000 mm between 000004.dcm and 000005.dcm, "
        "where slices are 2.000 mm apart."
    )


@pytest.mark.parametrize("element", ["PatientName", "InstitutionName", "StudyDescription", "PatientComments"])
def test_a_planted_name_comes_out_nowhere(tmp_path: Path, element: str) -> None:
    files = series_files(3, **{element: PLANTED})
    assert code_of(files, tmp_path / "sound") is None
    broken = {
        name: data.replace(b"\x28\x00\x10\x00US\x02\x00\x06\x00", b"\x28\x00\x10\x00PN\x02\x00" + b"\xff\xff")
        for name, data in files.items()
    }
    assert broken != files
    assert code_of(broken, tmp_path / "broken") is not None


def test_limits_of_voxels_time_and_memory(tmp_path: Path, nifti: Nifti) -> None:
    data = {"scan.nii.gz": nifti((128, 128, 128))}
    assert code_of(data, tmp_path / "a", Limits(voxels=128**3)) is None
    assert code_of(data, tmp_path / "b", Limits(voxels=128**3 - 1)) == "upload.too_many_voxels"
    assert code_of(data, tmp_path / "c", Limits(parse_memory_bytes=1 << 20)) == "upload.parse_too_large"
    assert code_of(data, tmp_path / "d", Limits(parse_s=1e-3)) == "upload.parse_too_slow"


def test_values_that_are_no_hounsfield_units_are_refused_unless_the_service_accepts_them(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (16, 16, 16)).astype(np.int16)
    grid = Grid((16, 16, 16), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    write_nifti(Volume(voxels, grid), tmp_path / "scan.nii.gz")
    data = {"scan.nii.gz": (tmp_path / "scan.nii.gz").read_bytes()}
    assert code_of(data, tmp_path / "a", Limits()) == "scan.not_hounsfield"
    info = asyncio.run(take_in(parts_of(data), tmp_path / "b", Limits(accept_values=True)))
    assert info.warnings[0].startswith("taken as it is, though it holds values that run from 0 to 255")


def test_a_cancelled_parse_leaves_nothing(tmp_path: Path, nifti: Nifti) -> None:
    data = {"scan.nii.gz": nifti((256, 256, 128))}

    async def cancelled(after_s: float, folder: Path) -> None:
        task = asyncio.create_task(take_in(parts_of(data), folder, Limits()))
        await asyncio.sleep(after_s)
        task.cancel()
        try:
            info = await task
        except asyncio.CancelledError:
            assert not folder.exists()
        else:
            assert info.shape == (256, 256, 128)

    for number in range(12):
        asyncio.run(cancelled(0.03 * number, tmp_path / f"study{number}"))


def test_several_parses_at_once_keep_apart(tmp_path: Path, nifti: Nifti) -> None:
    async def main() -> list[StudyInfo | BaseException]:
        uploads = [{"scan.nii.gz": nifti((4 + n, 5, 6))} if n % 3 else {"scan.nii.gz": b"junk"} for n in range(12)]
        return await asyncio.gather(
            *(take_in(parts_of(files), tmp_path / f"study{n}", Limits()) for n, files in enumerate(uploads)),
            return_exceptions=True,
        )

    for number, result in enumerate(asyncio.run(main())):
        if number % 3:
            assert isinstance(result, StudyInfo)
            assert result.shape == (4 + number, 5, 6)
        else:
            assert isinstance(result, DataError)
            assert not (tmp_path / f"study{number}").exists()


def test_a_warm_parse_of_a_small_scan_is_quick(tmp_path: Path, nifti: Nifti) -> None:
    data = {"scan.nii.gz": nifti()}
    _FORKER.stop()
    times = []
    for number in range(11):
        start = time.perf_counter()
        taken(data, tmp_path / f"study{number}")
        times.append(time.perf_counter() - start)
    assert min(times[1:]) < times[0] / 3  # the first starts cold, which takes over a second


def test_the_real_uid_is_in_one_file_alone(tmp_path: Path) -> None:
    taken(series_files(), tmp_path / "study")
    known = json.loads((tmp_path / "study" / "study.json").read_text())
    assert known.pop("series_uid") == UID
    assert UID not in json.dumps(known)


def test_every_code_has_a_status() -> None:
    import voxray.serving.intake as package

    text = "\n".join(path.read_text() for path in Path(package.__file__).parent.glob("*.py"))
    codes = re.findall(r'"((?:upload|dicomweb)\.[a-z_]+)"', text)
    listed = {code for code in STATUS if code.startswith(("upload.", "dicomweb."))}
    assert set(codes) == listed
    # Each is also raised somewhere.
    assert min(Counter(codes).values()) > 1
    assert {status_of(code) for code in STATUS} <= {403, 408, 413, 415, 422, 502, 504}
    assert status_of("dicom.missing_slice") == 422
