"""Whose answer stands in a folder: known by content, never by name or date."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from support.bright_runs import TURNS, Heard, register, write_run
from support.bright_scans import sphere_scan
from voxray.commands.predict import AnswerOptions, PredictReport, predict
from voxray.core.answer_json import LabelsFile, find_answer_file, read_file
from voxray.core.storage import Place
from voxray.inference.candidates.file import read_head
from voxray.inference.trained_model import open_model
from voxray.loading.scans import Scan
from voxray.readers import read_label_map, read_volume, volume_content, write_nifti
from voxray.results.earlier_answers import find_earlier_answer


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)


@pytest.fixture
def patients(tmp_path: Path) -> tuple[Path, Path]:
    """Two patients' scans of one name, the second one older than any answer, and a run."""
    write_run(tmp_path / "run", "segmentation")
    paths = tmp_path / "p1" / "ct.nii.gz", tmp_path / "p2" / "ct.nii.gz"
    for path, turn in zip(paths, TURNS, strict=False):
        path.parent.mkdir()
        write_nifti(sphere_scan(turn, angles_deg=(11.0, 4.0, 0.0))[0], path)
        os.utime(path, (1_000, 1_000))
    return paths


def answer(tmp_path: Path, *scans: Path, said: Heard | None = None, **options: Any) -> PredictReport:
    asked = AnswerOptions(device="cpu", runtime="torch", **options)
    return predict(tmp_path / "run", list(scans), tmp_path / "out", asked, progress=said or Heard())


def overlaps(tmp_path: Path, scan: Path) -> bool:
    """Whether the mask of that name is the scan's."""
    mask, volume = read_label_map(tmp_path / "out" / "ct.nii.gz"), read_volume(scan)
    if mask.voxels.shape != volume.voxels.shape:
        return False
    bright = volume.voxels > 0
    return bool(((mask.voxels > 0) & bright).sum() > 0.9 * bright.sum())


def test_another_patients_scan_of_the_same_name_is_refused_and_the_others_are_answered(
    tmp_path: Path, patients: tuple[Path, Path]
) -> None:
    first, second = patients
    assert answer(tmp_path, first).done == ("ct",)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    third = shutil.copy(second, second.with_name("other.nii.gz"))
    report = answer(tmp_path, second, Path(third), keep_candidates=True, save="preview")
    assert (report.done, report.skipped, list(report.failed)) == (("other",), (), ["ct"])
    assert report.failed["ct"] == (
        f"{second}: {tmp_path}/out/ct.json answers another scan of that name, {first}; give another folder with -o, "
        f"or rename the scan."
    )
    for name, data in before.items():
        assert (tmp_path / "out" / name).read_bytes() == data, "the first patient's answer stays"
    assert not (tmp_path / "out" / "ct.png").exists()
    assert sorted(path.name for path in (tmp_path / "out" / "candidates").iterdir()) == ["other.parquet"]
    assert overlaps(tmp_path, first)
    write_run(tmp_path / "run", "segmentation", threshold=0.4)
    assert list(answer(tmp_path, second).failed) == ["ct"], "whatever model answers"


def test_tables_of_all_findings_do_not_take_up_another_scans(tmp_path: Path, patients: tuple[Path, Path]) -> None:
    write_run(tmp_path / "run", "detection")
    first, second = patients
    answer(tmp_path, first)
    answer(tmp_path, second, save="csv-luna16")
    rows = (tmp_path / "out" / "luna16.csv").read_text().splitlines()
    assert rows == ["seriesuid,coordX,coordY,coordZ,probability"]


def test_a_moved_scan_is_the_same_scan(tmp_path: Path, patients: tuple[Path, Path]) -> None:
    first, _ = patients
    answer(tmp_path, first)
    moved = tmp_path / "elsewhere" / "ct.nii.gz"
    moved.parent.mkdir()
    shutil.move(first, moved)
    assert answer(tmp_path, moved).skipped == ("ct",)


def test_a_rewritten_scan_is_answered_anew_whatever_its_size_and_date(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    header, data = tmp_path / "ct.mhd", tmp_path / "ct.raw"
    for number, turn in enumerate((TURNS[0], TURNS[1])):
        volume = sphere_scan(turn, angles_deg=(0.0, 0.0, 0.0))[0]
        image: Any = SimpleITK.GetImageFromArray(np.roll(volume.voxels, 9 * number, axis=0).T)
        SimpleITK.WriteImage(image, str(tmp_path / f"{number}.mhd"))
    shutil.copy(tmp_path / "0.raw", data)
    header.write_text((tmp_path / "0.mhd").read_text().replace("0.raw", "ct.raw"))
    os.utime(data, (1_000, 1_000))
    assert answer(tmp_path, header).done == ("ct",)
    assert answer(tmp_path, header).skipped == ("ct",)
    shutil.copy(tmp_path / "1.raw", data)
    os.utime(data, (900, 900))
    said = Heard()
    assert answer(tmp_path, header, said=said).done == ("ct",)
    assert "ct: its files have changed since it was answered; it is answered anew" in said.lines
    assert overlaps(tmp_path, header)


def test_a_mask_that_is_not_the_one_that_was_written_is_not_taken(
    tmp_path: Path, patients: tuple[Path, Path]
) -> None:
    first, second = patients
    answer(tmp_path, first)
    mask = tmp_path / "out" / "ct.nii.gz"
    written = mask.read_bytes()
    assert read_file(LabelsFile, tmp_path / "out" / "ct.json").file_sha256 == volume_content(mask)
    for wrong in (written[:-20], written[:-1] + bytes([written[-1] ^ 1])):
        mask.write_bytes(wrong)
        said = Heard()
        assert answer(tmp_path, first, said=said).done == ("ct",)
        assert f"ct: {mask} is not the label map that was written; it is answered anew" in said.lines
        assert mask.read_bytes() == written
    del second


def test_candidates_are_those_of_the_scan(tmp_path: Path, patients: tuple[Path, Path]) -> None:
    first, second = patients
    answer(tmp_path, first, keep_candidates=True)
    assert answer(tmp_path, first, keep_candidates=True).skipped == ("ct",)
    folder = Place.of(tmp_path / "out" / "candidates")
    assert read_head(folder, "ct.parquet").scan_sha256 == volume_content(first)
    shutil.copy(second, first)
    os.utime(first, (1_000, 1_000))
    (tmp_path / "out" / "ct.json").unlink()
    assert answer(tmp_path, first).done == ("ct",)
    assert read_head(folder, "ct.parquet").scan_sha256 != volume_content(first)
    assert answer(tmp_path, first, keep_candidates=True).done == ("ct",), "the candidates are of the other scan"
    assert read_head(folder, "ct.parquet").scan_sha256 == volume_content(first)


def test_what_an_earlier_version_wrote_is_answered_anew(tmp_path: Path, patients: tuple[Path, Path]) -> None:
    first, second = patients
    answer(tmp_path, first)
    path = tmp_path / "out" / "ct.json"
    data = json.loads(path.read_text())
    for name in ("scan", "file_sha256"):
        del data[name]
    path.write_text(json.dumps(data))
    said = Heard()
    assert answer(tmp_path, second, said=said).done == ("ct",)
    assert f"ct: {path} does not say which scan it answers; it is answered anew" in said.lines
    found = find_answer_file(path)
    assert found is not None
    assert found.scan is not None
    assert (found.scan.sha256, found.scan.path) == (volume_content(second), str(second))


@pytest.mark.parametrize("update", [{"sha256": "0"}, {"classes": ("dark",)}, {"recipe_sha256": "0"}, {"engine": "x"}])
def test_another_network_or_way_of_reading_it_is_another_answer(
    tmp_path: Path, patients: tuple[Path, Path], update: dict[str, Any]
) -> None:
    first, _ = patients
    answer(tmp_path, first)
    mark = open_model(tmp_path / "run", device="cpu", runtime="torch").stamp
    scan = Scan("ct", first)
    assert find_earlier_answer(scan, tmp_path / "out", mark).is_answered
    assert not find_earlier_answer(scan, tmp_path / "out", mark.model_copy(update=update)).is_answered
