"""Answers never take the place of what is read, nor of what somebody else wrote."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from support.bright_runs import TURNS, register, write_run
from support.bright_scans import sphere_scan
from voxray.commands.predict import AnswerOptions, PredictReport, predict
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress
from voxray.core.volume import Volume
from voxray.readers import read_label_map, write_nifti


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A scan in a folder."""
    folder = tmp_path / "scans"
    folder.mkdir()
    write_nifti(sphere_scan(TURNS[0], angles_deg=(0.0, 0.0, 0.0))[0], folder / "ct.nii.gz")
    return folder


class Told(SilentProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


def answer(
    run: Path, given: Path, out: Path, *, save: str = "", overwrite: bool = False, told: Told | None = None
) -> PredictReport:
    options = AnswerOptions(device="cpu", runtime="torch", save=save, overwrite=overwrite)
    return predict(run, [given], out, options, progress=told or SilentProgress())


def contents(folder: Path) -> Mapping[str, str]:
    """Every file below a folder, by what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("way", ["the folder", "a link to it", "a link to the scan", "a hard link"])
def test_a_scan_is_never_written_over(tmp_path: Path, scans: Path, way: str) -> None:
    write_run(tmp_path / "run", "segmentation")
    out = tmp_path / "out"
    if way == "a link to it":
        out.symlink_to(scans)
    elif way != "the folder":
        out.mkdir()
        link = os.link if way == "a hard link" else os.symlink
        link(scans / "ct.nii.gz", out / "ct.nii.gz")
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"ct\.nii\.gz: is the scan.*give another folder with -o"):
            answer(tmp_path / "run", scans, scans if way == "the folder" else out, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_what_lies_beside_a_scan_is_part_of_it(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    (scans / "ct.json").write_text('{"Modality": "CT"}')
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"ct\.json: is a file beside the scan"):
            answer(tmp_path / "run", scans, scans, overwrite=overwrite)
    assert contents(tmp_path) == before
    (scans / "ct.json").unlink()
    assert answer(tmp_path / "run", scans, scans).done == ("ct",), "no name collides"
    assert answer(tmp_path / "run", scans, scans).failed == {}


@pytest.mark.parametrize("name", ["ct.json", "ct.nii.gz", "ct.png"])
def test_what_somebody_else_wrote_stays_unless_told(tmp_path: Path, scans: Path, name: str) -> None:
    write_run(tmp_path / "run", "segmentation")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"{name}: is there already.*--overwrite"):
        answer(tmp_path / "run", scans, out, save="preview")
    assert contents(out) == {name: hashlib.sha256(b"mine").hexdigest()}
    if name == "ct.png":
        assert answer(tmp_path / "run", scans, out).done == ("ct",)
        assert (out / name).read_bytes() == b"mine", "a form that is not wanted is not removed"
    report = answer(tmp_path / "run", scans, out, save="preview", overwrite=True)
    assert report.done == ("ct",)
    assert (out / name).read_bytes() != b"mine"
    assert answer(tmp_path / "run", scans, out, save="preview").skipped == ("ct",)


@pytest.mark.parametrize(("form", "name"), [("csv-luna16", "luna16.csv"), ("monai-json", "monai.json")])
def test_a_table_of_ones_own_stays(tmp_path: Path, scans: Path, form: str, name: str) -> None:
    write_run(tmp_path / "run", "detection")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name}: is there already"):
        answer(tmp_path / "run", scans, out, save=form)
    assert contents(out) == {name: hashlib.sha256(b"mine").hexdigest()}
    (out / name).unlink()
    assert answer(tmp_path / "run", scans, out, save=form).done == ("ct",)
    assert answer(tmp_path / "run", scans, out, save=form).skipped == ("ct",), "voxray's own is written again"
    (out / name).write_text("corrected")
    with pytest.raises(ConfigError, match="was changed since"):
        answer(tmp_path / "run", scans, out, save=form)


def test_answers_within_a_folder_of_scans_are_no_scans(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    for _ in range(2):
        told = Told()
        report = answer(tmp_path / "run", scans, scans / "answers", told=told)
        assert sorted([*report.done, *report.skipped]) == ["ct"]
        assert report.failed == {}
    assert any(
        "answers that voxray wrote are left out, as they are no scans: ct.nii.gz" in text for text in told.texts
    )
    assert sorted(path.name for path in (scans / "answers").iterdir()) == ["ct.json", "ct.nii.gz"]


def test_a_label_map_that_was_corrected_by_hand_stays(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    shutil.copy(scans / "ct.nii.gz", scans / "other.nii.gz")
    out = tmp_path / "out"
    answer(tmp_path / "run", scans / "ct.nii.gz", out)
    labels = read_label_map(out / "ct.nii.gz")
    write_nifti(Volume(np.ascontiguousarray(labels.voxels[::-1]), labels.grid), out / "ct.nii.gz")
    mine = (out / "ct.nii.gz").read_bytes()
    report = answer(tmp_path / "run", scans, out)
    assert (report.done, list(report.failed)) == (("other",), ["ct"])
    assert "was changed since voxray wrote it" in report.failed["ct"]
    assert (out / "ct.nii.gz").read_bytes() == mine
    assert answer(tmp_path / "run", scans, out, overwrite=True).done == ("ct",)
    assert (out / "ct.nii.gz").read_bytes() != mine


def test_a_runs_own_folders_are_no_place_for_answers(tmp_path: Path, scans: Path) -> None:
    run = tmp_path / "run"
    write_run(run, "detection")
    shutil.copy(scans / "ct.nii.gz", scans / "state.nii.gz")
    before = contents(run)
    for place in (run, run / "checkpoints" / "new", run / "." / "candidates"):
        with pytest.raises(ConfigError, match="run"):
            answer(run, scans, place, overwrite=True)
    assert contents(run) == before
    assert answer(run, scans, run / "answers").failed == {}


def test_a_folder_where_an_answer_would_be_is_refused(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    (tmp_path / "out" / "ct.nii.gz").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"ct\.nii\.gz: is a folder"):
        answer(tmp_path / "run", scans, tmp_path / "out", overwrite=True)
    with pytest.raises(ConfigError, match=r"-o .*ct\.nii\.gz is a file"):
        answer(tmp_path / "run", scans, scans / "ct.nii.gz")
