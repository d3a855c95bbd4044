"""One CT series of a folder that holds several, named for an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest

from support.bright_runs import TURNS, register, write_run
from support.bright_scans import sphere_scan
from support.dicom_series import write_volume
from voxray.commands.predict import AnswerOptions, PredictReport, predict
from voxray.core.answer_json import FindingsFile, read_file
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress
from voxray.loading.scans import find_scans
from voxray.readers import series_in

FIRST, SECOND = "1.2.3.10", "1.2.3.20"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two series of as many slices in one folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)
    write_run(tmp_path / "run", "detection")
    for uid, angle, start in ((FIRST, 0.0, "a"), (SECOND, 11.0, "b")):
        volume, _ = sphere_scan(TURNS[0], angles_deg=(angle, 0.0, 0.0))
        folder = write_volume(tmp_path / start, volume, SeriesInstanceUID=uid, SeriesDescription=f"Series {start}")
        for file in folder.iterdir():
            dataset: Any = pydicom.dcmread(file)
            dataset.SOPInstanceUID += f".{len(start)}{angle:.0f}"
            (tmp_path / "study").mkdir(exist_ok=True)
            dataset.save_as(tmp_path / "study" / f"{start}{file.name}")
    return tmp_path / "study"


def answer(study: Path, out: str, *series: str, **options: Any) -> PredictReport:
    return predict(
        study.parent / "run",
        [study],
        study.parent / out,
        AnswerOptions(device="cpu", series=series, **options),
        progress=SilentProgress(),
    )


def test_the_series_that_is_named_is_answered_and_no_other_in_its_place(study: Path) -> None:
    refused = answer(study, "none")
    assert f"{FIRST} (" in refused.failed["study"]
    assert "--series" in refused.failed["study"]
    centres = []
    for uid, out in ((FIRST, "one"), (SECOND, "two")):
        report = answer(study, out, uid, save="dicom-sr")
        assert (report.done, report.failed, report.without) == (("study",), {}, {})
        said = str(pydicom.dcmread(study.parent / out / "study.sr.dcm"))
        assert (uid in said, {FIRST, SECOND} - {uid} <= set(said.split())) == (True, False)
        centres.append(read_file(FindingsFile, study.parent / out / "study.json").findings[0].center_mm)
    assert centres[0] != centres[1]
    assert answer(study, "one", FIRST).skipped == ("study",)
    before = (study.parent / "one" / "study.json").read_bytes()
    assert "answers another scan of that name" in answer(study, "one", SECOND).failed["study"]
    assert (study.parent / "one" / "study.json").read_bytes() == before


def test_a_series_is_looked_for_in_all_inputs_and_the_rest_is_left_out(study: Path, tmp_path: Path) -> None:
    volume, _ = sphere_scan(TURNS[0], angles_deg=(0.0, 0.0, 0.0))
    other = write_volume(tmp_path / "more" / "other", volume, SeriesInstanceUID="1.2.3.30")
    said: list[str] = []
    (scan,) = find_scans([study, tmp_path / "more"], series=["1.2.3.30"], say=said.append)
    assert (scan.name, scan.path, scan.series_uid) == ("other", other, "1.2.3.30")
    assert said == ["1 scans are left out, as --series names none of theirs: study"]
    both = find_scans([study, other], series=["1.2.3.30", SECOND])
    assert [(scan.name, scan.series_uid) for scan in both] == [("other", "1.2.3.30"), ("study", SECOND)]


def test_a_series_that_is_not_there_and_two_of_one_folder_are_refused(study: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--series 1\.9: is no CT series of the inputs; {FIRST} \("):
        find_scans([study], series=["1.9"])
    with pytest.raises(ConfigError, match="one series of each"):
        find_scans([study], series=[FIRST, SECOND])


def test_series_are_listed_with_words_that_tell_them_apart(study: Path, tmp_path: Path) -> None:
    found = series_in(study)
    assert list(found) == [FIRST, SECOND]
    assert found[SECOND].startswith(f"{SECOND} (")
    assert found[SECOND].endswith("“Series b”)")
    assert series_in(tmp_path / "run") == {}


def test_a_folder_of_dose_reports_beside_a_series_is_no_scan(study: Path, tmp_path: Path) -> None:
    root = tmp_path / "patient"
    root.mkdir()
    (tmp_path / "a").rename(root / "ct")
    report = root / "dose" / "1"
    report.parent.mkdir()
    dataset: Any = pydicom.dcmread(study / next(path.name for path in study.iterdir()))
    dataset.Modality = "SR"
    dataset.save_as(report)
    (root / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    said: list[str] = []
    assert [scan.name for scan in find_scans([root], say=said.append)] == ["ct"]
    assert said == [f"{root / 'dose'}: holds no CT (SR), and is left out"]
    assert [scan.name for scan in find_scans([root / "dose"])] == ["dose"]
