"""Scores never take the place of what is read, nor of what somebody else wrote."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import SimpleITK

from results.test_answers import contents
from support.bright_runs import register, write_run, write_spheres
from voxray.commands.evaluate_files import FileOptions, evaluate_anything
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress

CASES = ("s0", "s1")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)


@pytest.fixture
def spheres(tmp_path: Path) -> Path:
    """A dataset of two scans; its file."""
    return write_spheres(tmp_path / "data", 2)


def score(answers: Path, truth: Path, **options: object) -> None:
    evaluate_anything(str(answers), truth, FileOptions(**options), progress=SilentProgress())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["data/dataset.toml", "data/boxes.csv", "data/labels/s0.nii.gz", "data/images/s0.nii.gz", "run/state.json"],
)
def test_the_json_of_a_run_is_nothing_that_is_read(tmp_path: Path, spheres: Path, name: str) -> None:
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    before = contents(tmp_path)
    os.link(tmp_path / name, tmp_path / "link.json")
    for path in (tmp_path / name, tmp_path / "link.json"):
        with pytest.raises(ConfigError, match="would be written over"):
            score(tmp_path / "run", spheres, json_file=path, output=tmp_path / "out", overwrite=True)
    (tmp_path / "link.json").unlink()
    assert contents(tmp_path) == before


def test_a_runs_answers_are_no_labels_and_no_scans(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    before = contents(tmp_path)
    for name in (".", "labels", "images"):
        with pytest.raises(ConfigError, match=r"dataset|is the scan"):
            score(tmp_path / "run", spheres, output=spheres.parent / name, overwrite=True)
    spheres.write_text(spheres.read_text().replace("images/*.nii.gz", "**/[s]*.nii.gz").replace("labels/", "l/"))
    shutil.move(spheres.parent / "labels", tmp_path / "labels")
    with pytest.raises(ConfigError, match=r"would be taken for a scan of dataset spheres"):
        score(tmp_path / "run", spheres, output=spheres.parent / "answers")
    assert not (spheres.parent / "answers").exists()
    assert set(contents(tmp_path)) == {name.replace("data/labels", "labels") for name in before}


def test_a_score_of_ones_own_stays_unless_told(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "detection", val_cases=CASES)
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "evaluation.json"
    path.write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=r"evaluation\.json: is there already"):
        score(tmp_path / "run", spheres, output=tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["evaluation.json"]
    assert path.read_text() == '{"mine": 1}'
    score(tmp_path / "run", spheres, output=tmp_path / "out", overwrite=True)
    score(tmp_path / "run", spheres, output=tmp_path / "out", json_file=path)
    assert json.loads(path.read_text())["schema"] == "voxray-evaluation/2"


def test_the_score_of_files_is_none_of_them(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    out = tmp_path / "out"
    score(tmp_path / "run", spheres, output=out)
    before = contents(tmp_path)
    read = [
        out / "s0.json",
        out / "s0.nii.gz",
        spheres,
        spheres.parent / "labels" / "s1.nii.gz",
        out / "evaluation.json",
    ]
    for path in read:
        with pytest.raises(ConfigError, match=f"{path.name}: .*would be written over"):
            score(out, spheres, json_file=path, against=out, overwrite=True)
    mine = tmp_path / "notes.json"
    mine.write_text("[]")
    with pytest.raises(ConfigError, match=r"notes\.json: is there already"):
        score(out, spheres, json_file=mine)
    mine.unlink()
    assert contents(tmp_path) == before
    score(out, spheres, output=out)
    score(out, spheres, json_file=out / "evaluation.json")


def test_a_data_file_of_another_name_is_read_too(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    for folder in ("images", "labels"):
        path = spheres.parent / folder / "s0.nii.gz"
        image = SimpleITK.ReadImage(str(path))
        path.unlink()
        SimpleITK.WriteImage(image, str(path.with_name("s0.mhd")))
        path.with_name("s0.raw").rename(path.with_name("voxels.raw"))
        header = path.with_name("s0.mhd")
        header.write_text(header.read_text().replace("s0.raw", "voxels.raw"))
    text = spheres.read_text().replace('"images/*.nii.gz"', '["images/*.nii.gz", "images/*.mhd"]')
    spheres.write_text(text.replace("labels/{case}.nii.gz", "labels/{case}.mhd"))
    before = contents(tmp_path)
    for folder in ("images", "labels"):
        path = spheres.parent / folder / "voxels.raw"
        with pytest.raises(ConfigError, match=r"voxels\.raw: is .*data file.*would be written over"):
            score(tmp_path / "run", spheres, json_file=path, output=tmp_path / "out", overwrite=True)
    assert contents(tmp_path) == before


def test_official_files_of_ones_own_stay(tmp_path: Path) -> None:
    truth, out = tmp_path / "luna16", tmp_path / "out"
    truth.mkdir()
    out.mkdir()
    (truth / "seriesuids.csv").write_text("1.2\n1.3\n")
    (truth / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2,0,0,0,8\n")
    (truth / "annotations_excluded.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n")
    marks = tmp_path / "mine.csv"
    marks.write_text("seriesuid,coordX,coordY,coordZ,probability\n1.2,0,0,0,0.9\n")
    (out / "CADAnalysis.txt").write_text("of somebody's own evaluation")
    with pytest.raises(ConfigError, match=r"CADAnalysis\.txt: is there already"):
        score(marks, truth, output=out)
    assert list(contents(out)) == ["CADAnalysis.txt"]
    (out / "CADAnalysis.txt").unlink()
    for _ in range(2):
        score(marks, truth, output=out)
    assert len(contents(out)) == 6, "five files and their record"
    with pytest.raises(ConfigError, match=r"annotations\.csv: is a file of the truth"):
        score(marks, truth, json_file=truth / "annotations.csv", overwrite=True)
