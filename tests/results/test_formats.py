"""Forms of answers: those that a study's archive takes, and any form of one case."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pydicom
import pytest

from support.bright_runs import TURNS, register, write_run
from support.bright_scans import sphere_scan
from support.dicom_series import keeps_to_itself, unpacked, without_errors, write_volume
from voxray.commands.predict import AnswerOptions, PredictReport, predict
from voxray.core.answer_json import FindingsFile, detections_of, read_file
from voxray.core.errors import ConfigError, DataError
from voxray.core.progress import PlainProgress, SilentProgress
from voxray.inference.predictor import Prediction
from voxray.inference.trained_model import open_model
from voxray.loading.scans import find_scans
from voxray.readers import read_label_map, read_volume, write_nifti
from voxray.results.case_answer import CaseAnswer
from voxray.results.formats import FORMATS, SERVED, format_named, served_formats, write_format
from voxray.results.saving import chosen_formats, gather


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A DICOM series and a NIfTI file."""
    scan = sphere_scan(TURNS[0], angles_deg=(11.0, 4.0, 0.0))[0]
    write_volume(tmp_path / "scans" / "series", scan)
    write_nifti(scan, tmp_path / "scans" / "file.nii.gz")
    return tmp_path / "scans"


def answered(tmp_path: Path, scans: Path, save: str, *overrides: str, skip: bool = False) -> PredictReport:
    options = AnswerOptions(overrides=overrides, device="cpu", save=save, skip_unsupported=skip)
    return predict(tmp_path / "run", [scans], tmp_path / "out", options, progress=SilentProgress())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_segmentation_of_a_dicom_series(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    report = answered(tmp_path, scans, "dicom-sr,rtstruct")
    assert (report.done, report.failed) == (("file", "series"), {})
    out = tmp_path / "out"
    assert {"series.seg.dcm", "series.sr.dcm", "series.rtstruct.dcm"} <= names(out), "the report brings its SEG"
    assert list(report.without) == ["file"]
    assert [one.form for one in report.without["file"]] == ["dicom-sr", "rtstruct", "dicom-seg"]
    assert all("[source.not_dicom]" in one.why and one.is_unsupported for one in report.without["file"])
    assert str(report).startswith("2 answered, 0 answered before, 0 failed, 3 forms not made: ")
    assert len(report.missing) == 3
    labels = read_label_map(out / "series.nii.gz")
    seg = pydicom.dcmread(out / "series.seg.dcm")
    assert unpacked(seg).sum() == (labels.voxels == 1).sum() > 0
    evidence = pydicom.dcmread(out / "series.sr.dcm").CurrentRequestedProcedureEvidenceSequence[0]
    assert {one.SeriesInstanceUID for one in evidence.ReferencedSeriesSequence} == {"1.2.3.1", seg.SeriesInstanceUID}
    for form in ("seg", "sr", "rtstruct"):
        without_errors(out / f"series.{form}.dcm")
        keeps_to_itself(out / f"series.{form}.dcm")


def test_findings_of_a_dicom_series(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    report = answered(tmp_path, scans, "dicom-sr,markups")
    out = tmp_path / "out"
    assert {"series.sr.dcm", "series.mrk.json", "file.mrk.json"} <= names(out)
    assert "file.sr.dcm" not in names(out)
    assert list(report.without) == ["file"]
    (markup,) = json.loads((out / "series.mrk.json").read_text())["markups"]
    (finding,) = read_file(FindingsFile, out / "series.json").findings
    np.testing.assert_allclose(markup["center"], finding.center_mm, atol=1e-3)
    np.testing.assert_allclose(markup["size"], finding.size_mm, atol=1e-3)
    without_errors(out / "series.sr.dcm")


def test_a_form_that_no_scan_can_have_is_said_before_the_work_and_counted(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    stream = io.StringIO()
    for skip in (False, True):
        options = AnswerOptions(device="cpu", save="preview,dicom-seg", skip_unsupported=skip)
        report = predict(
            tmp_path / "run", [scans / "file.nii.gz"], tmp_path / "out", options, progress=PlainProgress(stream)
        )
        assert str(report).startswith("1 answered, 0 answered before, 0 failed, 1 form not made: ")
        assert (len(report.missing), len(report.waived)) == ((0, 1) if skip else (1, 0))
    said = stream.getvalue().splitlines()
    assert "--save dicom-seg: 1 of 1 scans are no DICOM series and will be without" in said[0]
    assert names(tmp_path / "out") == {"file.json", "file.nii.gz", "file.png"}


def test_an_anonymised_class_of_images_costs_the_dicom_forms_alone(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    volume = read_volume(scans / "series")
    write_volume(scans / "anonymised", volume, SOPClassUID="2.25.3841015643452503209109170649121759")
    report = answered(tmp_path, scans, "dicom-seg,dicom-sr,rtstruct", skip=True)
    assert (report.done, report.failed) == (("anonymised", "file", "series"), {})
    assert {one.form for one in report.without["anonymised"]} == {"dicom-seg", "dicom-sr", "rtstruct"}
    assert all("[source.sop_class]" in one.why for one in report.without["anonymised"])
    assert {"anonymised.json", "anonymised.nii.gz", "series.seg.dcm", "series.sr.dcm"} <= names(tmp_path / "out")
    assert not report.missing, "what these headers cannot have was waived"
    assert len(report.waived) == report.not_made == 6


@pytest.mark.parametrize("error", [KeyError("2.25.38"), TypeError("no mapping"), MemoryError()])
def test_a_form_that_fails_from_anything_costs_itself_alone(
    tmp_path: Path, scans: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(answer: CaseAnswer, path: Path) -> None:
        del path
        if answer.case == "series":
            raise error

    write_run(tmp_path / "run", "detection")
    monkeypatch.setitem(cast(dict[str, Any], FORMATS), "markups", replace(FORMATS["markups"], write=fails))
    report = answered(tmp_path, scans, "markups,csv-luna16,dicom-sr", skip=True)
    assert (report.done, report.failed) == (("file", "series"), {})
    (unmade,) = report.without["series"]
    assert (unmade.form, unmade.is_unsupported) == ("markups", False)
    assert ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__) in unmade.why
    assert {"series.json", "series.sr.dcm", "luna16.csv"} <= names(tmp_path / "out")
    assert list(report.missing) == ["series: without markups"], "a failure is never waived"


def test_a_damaged_answer_costs_its_own_rows_of_what_is_gathered(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    answered(tmp_path, scans, "")
    (tmp_path / "out" / "file.json").write_text("{")
    (tmp_path / "out" / "monai.json").mkdir()
    wanted = chosen_formats("csv-luna16,monai-json", "detection")
    lacking = gather(wanted, find_scans([scans]), tmp_path / "out", ("bright",))
    assert {name: [one.form for one in some] for name, some in lacking.items()} == {
        "file": ["csv-luna16", "monai-json"],
        "monai.json": ["monai-json"],
    }
    assert "series" in (tmp_path / "out" / "luna16.csv").read_text()


def test_a_rerun_makes_only_what_is_missing(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    answered(tmp_path, scans, "")
    written = (tmp_path / "out" / "series.json").stat().st_mtime_ns
    report = answered(tmp_path, scans / "series", "dicom-sr")
    assert report.done == ("series",)
    assert (tmp_path / "out" / "series.json").stat().st_mtime_ns == written, "the answer is not given again"
    assert answered(tmp_path, scans / "series", "dicom-sr").skipped == ("series",)


def test_forms_do_not_outlive_their_answer(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    series = scans / "series"
    answered(tmp_path, series, "dicom-sr,markups")
    time.sleep(0.01)
    answered(tmp_path, series, "markups", "merge.min_size_mm=25")
    assert names(tmp_path / "out") == {"series.json", "series.mrk.json"}
    assert json.loads((tmp_path / "out" / "series.mrk.json").read_text())["markups"] == []


def test_a_form_made_later_of_the_files_is_the_same(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    answered(tmp_path, scans / "series", "dicom-sr")
    file = read_file(FindingsFile, tmp_path / "out" / "series.json")
    grid = read_volume(scans / "series").grid
    found = detections_of(file, ("bright",), frame="voxel")
    answer = CaseAnswer("series", Prediction(grid, detections=found), ("bright",), file.model, scans / "series")
    later = pydicom.dcmread(write_format("sr", answer, tmp_path / "later.dcm"))
    at_once = pydicom.dcmread(tmp_path / "out" / "series.sr.dcm")
    assert later.SOPInstanceUID == at_once.SOPInstanceUID
    assert later.ContentSequence == at_once.ContentSequence


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_every_form_of_a_case(tmp_path: Path, scans: Path, task: str) -> None:
    write_run(tmp_path / "run", task)
    engine = open_model(tmp_path / "run")
    prediction = engine.predictor().predict(read_volume(scans / "series"))
    answer = CaseAnswer("one", prediction, engine.run.classes, engine.stamp, scans / "series")
    made = {}
    for name, form in FORMATS.items():
        path = tmp_path / f"one{form.suffix}"
        if form.write and task in form.tasks:
            made[name] = write_format(name, answer, path).read_bytes()
        else:
            with pytest.raises(ConfigError, match=f"form {name}: not a form of a {task}'s answer"):
                write_format(name, answer, path)
    assert all(made.values())
    assert set(made) == {"preview", "sr", *(("luna16", "markups") if task == "detection" else ("seg", "rtstruct"))}
    assert not list(tmp_path.glob(".*")), "nothing unfinished is left"


def test_a_form_that_needs_dicom_is_refused_for_a_file(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    engine = open_model(tmp_path / "run")
    source = scans / "file.nii.gz"
    answer = CaseAnswer(
        "one", engine.predictor().predict(read_volume(source)), engine.run.classes, engine.stamp, source
    )
    with pytest.raises(DataError, match=r"\[source\.not_dicom\]"):
        write_format("sr", answer, tmp_path / "one.dcm")
    assert not (tmp_path / "one.dcm").exists()


def test_both_spellings_of_a_format_are_one(tmp_path: Path, scans: Path) -> None:
    for one in FORMATS.values():
        assert format_named(one.name) is format_named(one.option) is one
    assert format_named("tiff") is None
    assert set(SERVED) == set(FORMATS) - {"monai-json"}
    assert [one.option for one in chosen_formats("seg, sr,nifti", "segmentation")] == [
        "dicom-seg",
        "dicom-sr",
        "nifti",
    ]
    assert chosen_formats("luna16", "detection") == chosen_formats("csv-luna16", "detection")
    write_run(tmp_path / "run", "segmentation")
    report = answered(tmp_path, scans, "seg,preview", skip=True)
    assert {"series.seg.dcm", "series.png", "file.png"} <= names(tmp_path / "out")
    assert [one.form for one in report.without["file"]] == ["dicom-seg"], "told as the help spells it"
    assert answered(tmp_path, scans / "series", "dicom-seg").skipped == ("series",)


def test_what_is_served_of_a_task() -> None:
    assert served_formats("detection", is_dicom=True) == ("json", "preview", "luna16", "markups", "sr")
    assert served_formats("segmentation", is_dicom=True) == ("json", "nifti", "preview", "seg", "sr", "rtstruct")
    assert served_formats("segmentation", is_dicom=False) == ("json", "nifti", "preview")


def test_what_the_formats_are_is_known_without_torch() -> None:
    code = "import sys, voxray.results.formats; print({'torch', 'matplotlib', 'pydicom'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
