"""Answers in files, of every form, against every form of truth: the same findings get the same score."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.bright_runs import register, write_run, write_spheres
from voxray.errors import ConfigError, DataError
from voxray.evaluation import Evaluation, Luna16Evaluation, read_evaluation
from voxray.inference.findings import FindingsFile, read_file
from voxray.pipelines.evaluate import evaluate
from voxray.pipelines.evaluate_files import FileOptions, Scored, evaluate_anything
from voxray.pipelines.forms import monai_json
from voxray.pipelines.progress import SilentProgress
from voxray.pipelines.scans import Scan
from voxray.pipelines.scores import parse_ious
from voxray.readers import describe, read_label_map, write_nifti
from voxray.volume import Grid, Volume

CASES = ("s0", "s1", "s2")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)


def _answered(folder: Path, task: str) -> tuple[Path, Path, Evaluation]:
    """A dataset, a run's answers to it, and their score."""
    dataset = write_spheres(folder / "data")
    write_run(folder / "run", task, val_cases=CASES)
    report = evaluate(folder / "run", dataset=dataset, output=folder / "out", progress=SilentProgress())
    return dataset, folder / "out", report


def _score(answers: Path, truth: Path | None, **options: Any) -> Scored:
    return evaluate_anything(str(answers), truth, FileOptions(**options), progress=SilentProgress())


def _evaluation(answers: Path, truth: Path, **options: Any) -> Evaluation:
    result = _score(answers, truth, **options).result
    assert isinstance(result, Evaluation)
    return result


def _alike(first: Evaluation, second: Evaluation) -> None:
    assert dict(first.metrics) == pytest.approx(dict(second.metrics), abs=1e-6, nan_ok=True)
    assert first.intervals == second.intervals


def _findings(out: Path) -> list[tuple[Scan, FindingsFile]]:
    return [
        (Scan(case, Path(f"images/{case}.nii.gz")), read_file(FindingsFile, out / f"{case}.json")) for case in CASES
    ]


def test_a_runs_own_answers_have_the_runs_score(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    (out / "s1.json").unlink()
    _alike(evaluate(tmp_path / "run", dataset=dataset, output=out, progress=SilentProgress()), report)
    _alike(_evaluation(out, dataset), report)


def test_monai_json(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    path = tmp_path / "result.json"
    path.write_text(monai_json(_findings(out), ["bright"]))
    _alike(_evaluation(path, dataset), report)


def test_nndetection_pickles(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    folder = tmp_path / "pickles"
    folder.mkdir()
    for scan, file in _findings(out):
        info = describe(dataset.parent / "images" / f"{scan.name}.nii.gz")
        grid = Grid(info.shape, info.spacing_mm, info.origin_mm, info.direction)
        box = np.array([one.box_vox for one in file.findings]).reshape(-1, 6)
        x1, y1, z1, x2, y2, z2 = box.T
        fields = {
            "pred_boxes": np.stack([z1 - 1, y1 - 1, z2, y2, x1 - 1, x2], axis=1),
            "pred_scores": np.array([one.score for one in file.findings]),
            "pred_labels": np.zeros(len(box), int),
            "restore": True,
            "itk_origin": grid.origin_mm,
            "itk_spacing": grid.spacing_mm,
            "itk_direction": grid.direction,
        }
        (folder / f"{scan.name}_boxes.pkl").write_bytes(pickle.dumps(fields))
    with pytest.raises(ConfigError, match="--trust-pickle"):
        _score(folder, dataset)
    found = _evaluation(folder, dataset, trust_pickle=True)
    # These scans lie obliquely: nnDetection's box goes through the world and back as the box of an ellipsoid.
    assert found.metrics["AP@0.10"] == report.metrics["AP@0.10"] == 1.0
    assert found.metrics["mAP"] == pytest.approx(report.metrics["mAP"], abs=0.2)


def test_a_json_of_boxes_is_truth(tmp_path: Path) -> None:
    _, out, _ = _answered(tmp_path, "detection")
    boxes = [
        {"case": scan.name, "class": "bright", "corners_mm": list(one.box_mm)}
        for scan, file in _findings(out)
        for one in file.findings[:1]
    ]
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"frame": "LPS", "boxes": boxes, "cases": ["empty"]}))
    found = _evaluation(out, truth)
    assert found.metrics["mAP"] == 1.0
    assert set(found.cases) == {*CASES, "empty"}
    assert found.failed == {"empty": "has no answer; it counts as an empty one."}
    truth.write_text(
        json.dumps({"frame": "voxel", "boxes": [{"case": "s0", "class": "bright", "corners_vox": [0] * 3 + [9] * 3}]})
    )
    assert _evaluation(out, truth).metrics["AR@0.50"] == 0.0
    path = tmp_path / "result.json"
    path.write_text(monai_json(_findings(out), ["bright"]))
    assert "in voxels of a scan that is not given" in _evaluation(path, truth).failed["s0"]


def test_label_maps_against_a_dataset_and_against_a_folder(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "segmentation")
    _alike(_evaluation(out, dataset), report)
    maps = tmp_path / "maps"
    for case in CASES:
        (maps / case).mkdir(parents=True)
        (maps / case / f"{case}_trans.nii.gz").write_bytes((out / f"{case}.nii.gz").read_bytes())
    _alike(_evaluation(maps, dataset), report)
    found = _evaluation(maps, dataset.parent / "labels")
    assert found.classes == ("1",)
    assert found.metrics["HD95_mm/1"] == pytest.approx(report.metrics["HD95_mm/bright"])


def test_label_maps_that_do_not_fit(tmp_path: Path) -> None:
    dataset, out, _ = _answered(tmp_path, "segmentation")
    maps = tmp_path / "maps"
    maps.mkdir()
    good = read_label_map(out / "s0.nii.gz")
    moved = Grid(good.grid.shape, good.grid.spacing_mm, (0.0, 0.0, 999.0), good.grid.direction)
    write_nifti(Volume(good.voxels, moved), maps / "s0.nii.gz")
    second = read_label_map(out / "s1.nii.gz")
    write_nifti(Volume(second.voxels * 5, second.grid), maps / "s1.nii.gz")
    write_nifti(second, maps / "other.nii.gz")
    scored = _score(maps, dataset)
    assert isinstance(scored.result, Evaluation)
    failed = scored.result.failed
    assert "s0.nii.gz does not lie on the truth's grid" in failed["s0"]
    assert "has label 5, the truth 1 classes (bright)" in failed["s1"]
    assert failed["s2"] == "has no answer; it counts as an empty one."
    assert scored.result.metrics["dice"] == 0.0
    assert "1 answers are of no case of spheres: other" in scored.ending


def test_label_maps_need_label_maps(tmp_path: Path) -> None:
    _, out, _ = _answered(tmp_path, "segmentation")
    truth = tmp_path / "truth.json"
    box = {"case": "s0", "class": "bright", "center_mm": [0, 0, 0], "size_mm": [5, 5, 5]}
    truth.write_text(json.dumps({"frame": "LPS", "boxes": [box]}))
    with pytest.raises(ConfigError, match="truth: has boxes alone; the label maps of out need label maps as truth"):
        _score(out, truth)
    luna = tmp_path / "luna"
    luna.mkdir()
    for name in ("annotations.csv", "annotations_excluded.csv"):
        (luna / name).write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n")
    (luna / "seriesuids.csv").write_text("s0\n")
    with pytest.raises(ConfigError, match="label maps have no scores, so there is no FROC"):
        _score(out, luna, rules="luna16")


def test_a_truth_without_objects_has_no_score(tmp_path: Path) -> None:
    _, out, _ = _answered(tmp_path, "detection")
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"frame": "LPS", "boxes": [], "classes": ["bright"], "cases": list(CASES)}))
    scored = _score(out, truth)
    assert isinstance(scored.result, Evaluation)
    assert np.isnan(scored.result.metrics["mAP"])
    assert scored.result.without_truth == ("bright",)
    assert scored.tables[0].rows == ()


def test_findings_by_luna16s_rules(tmp_path: Path) -> None:
    dataset, out, _ = _answered(tmp_path, "detection")
    rows = [
        ",".join([case, *map(str, file.findings[0].center_mm), "19.0"])
        for (_, file), case in zip(_findings(out), CASES, strict=True)
    ]
    (dataset.parent / "spheres.csv").write_text(
        "\n".join(["seriesuid,coordX,coordY,coordZ,diameter_mm", *rows]) + "\n"
    )
    text = dataset.read_text()
    start, end = text.index("[[annotations]]"), text.index("[folds]")
    dataset.write_text(text[:start] + '[[annotations]]\nkind = "spheres_csv"\nfile = "spheres.csv"\n\n' + text[end:])
    found = _score(out, dataset, rules="luna16").result
    assert isinstance(found, Luna16Evaluation)
    assert (found.cpm, found.counts["True positives"]) == (1.0, 3)
    path = tmp_path / "result.json"
    path.write_text(monai_json(_findings(out), ["bright"]))
    again = _score(path, dataset, rules="luna16").result
    assert isinstance(again, Luna16Evaluation)
    assert again.counts == found.counts
    of_run = _score(tmp_path / "run", dataset, rules="luna16", which="all").result
    assert isinstance(of_run, Luna16Evaluation)
    assert (of_run.counts, of_run.scans, of_run.cpm) == (found.counts, 3, found.cpm)
    with pytest.raises(ConfigError, match="LUNA16's rules have bands instead"):
        _score(tmp_path / "run", dataset, rules="luna16", against=out / "evaluation.json")
    series = tmp_path / "two"
    series.mkdir()
    for name in ("annotations.csv", "annotations_excluded.csv"):
        (series / name).write_text((dataset.parent / "spheres.csv").read_text())
    (series / "seriesuids.csv").write_text("s0\ns2\n")
    with pytest.raises(ConfigError, match="names no dataset, so its scans are not known"):
        _score(tmp_path / "run", series, rules="luna16", which="all")
    (about,) = (tmp_path / "run" / "checkpoints").glob("*/run.json")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"dataset_file": str(dataset)}))
    with pytest.raises(ConfigError, match=r"knows nothing of s1, which .* was scored on"):
        _score(tmp_path / "run", series, rules="luna16", which="all")


def test_only_the_answered_cases_where_that_is_asked_for(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    (out / "s1.json").unlink()
    every, answered = _evaluation(out, dataset), _evaluation(out, dataset, which="answered")
    assert every.which == "all"
    assert every.metrics["AR@0.10"] == pytest.approx(2 / 3)
    assert list(every.failed) == ["s1"]
    assert (answered.which, list(answered.cases), answered.failed) == ("answered", ["s0", "s2"], {})
    assert answered.metrics["AR@0.10"] == report.metrics["AR@0.10"]
    with pytest.raises(ConfigError, match="--cases val: of answers in files must be all or answered"):
        _score(out, dataset, which="val")


def test_where_the_result_goes_and_a_comparison(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    path = out / "s0.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"findings": []}))
    before = tmp_path / "before.json"
    before.write_bytes((out / "evaluation.json").read_bytes())
    scored = _score(out, dataset, output=tmp_path / "new", json_file=tmp_path / "a" / "new.json", against=before)
    assert read_evaluation(tmp_path / "new").metrics["AR@0.10"] == pytest.approx(2 / 3)
    assert read_evaluation(tmp_path / "a" / "new.json").metrics["AR@0.10"] == pytest.approx(2 / 3)
    (row,) = [row for row in scored.tables[-1].rows if row[0] == "AR@0.10"]
    assert row[1] == "-0.333"
    assert report.metrics["AR@0.10"] == 1.0
    assert f"differences are out minus {report.run}, paired case by case" in scored.ending


def test_answers_and_truth_that_say_nothing(tmp_path: Path) -> None:
    dataset, out, _ = _answered(tmp_path, "detection")
    empty = tmp_path / "empty"
    empty.mkdir()
    fold = tmp_path / "cv" / "fold_1" / "evaluation"
    fold.mkdir(parents=True)
    (fold / "evaluation.json").write_text("{}")
    (tmp_path / "cv" / "crossval.json").write_text("{}")
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "boxes.json").write_text(json.dumps({"frame": "LPS", "boxes": []}))
    (tmp_path / "other.json").write_text(
        json.dumps([{"image": "x.nii.gz", "box": [], "label": [], "label_scores": []}])
    )
    for answers, truth, sentence in (
        (empty, dataset, "holds no answers; give a run, or"),
        (fold, dataset, f"holds no answers; those of all folds are in {tmp_path}/cv/answers"),
        (tmp_path / "note.txt", dataset, "is no form of answers that is known"),
        (tmp_path / "none", dataset, "no such file or folder; give a run"),
        (out, None, "say what to score them against"),
        (out, empty, "holds no label map"),
        (out, tmp_path / "note.txt", "is no truth"),
        (out, tmp_path / "none", "no such file or folder; give a dataset's file"),
        (out, tmp_path / "boxes.json", "has no box, so nothing can be scored"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            _score(answers, truth)
    with pytest.raises(DataError, match=r"none of its cases \(x.nii.gz\) is one of spheres's \(s0, s1, s2\)"):
        _score(tmp_path / "other.json", dataset)


def test_thresholds_as_they_are_written() -> None:
    assert parse_ious("0.1:0.5:0.05") == (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
    assert parse_ious("0.5") == (0.5,)
    assert parse_ious("0.1,0.5,0.75") == (0.1, 0.5, 0.75)
    for text in ("0.5:0.1:0.05", "0", "0.1:0.5", "0.5,0.1", "x", "0.2:0.4:0", "1.5", "nan"):
        with pytest.raises(ConfigError, match="--ious"):
            parse_ious(text)
