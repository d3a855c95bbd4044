"""Evaluate against the original truth, with and without cases that fail."""

from __future__ import annotations

import gzip
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from support.bright_runs import Heard, register, write_run, write_spheres
from support.odd_scans import DISAGREE, Lines, contradict
from voxray.commands.evaluate import EvaluateOptions, choose_cases, evaluate
from voxray.commands.predict import AnswerOptions, predict
from voxray.core.alignment import arrangements
from voxray.core.errors import ConfigError
from voxray.core.evaluation import Evaluation, read_evaluation
from voxray.core.progress import SilentProgress
from voxray.core.volume import Volume
from voxray.dataset import read_dataset
from voxray.distributed.mlflow_run import open_tracking
from voxray.distributed.mlflow_server import tracking_uri
from voxray.loading import list_cases
from voxray.readers import read_label_map, read_volume, write_nifti
from voxray.results.class_names import read_labels
from voxray.training.checkpoint import read_run

CASES = ("s0", "s1", "s2")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)


@pytest.fixture
def spheres(tmp_path: Path) -> Path:
    """A dataset of three scans; its file."""
    return write_spheres(tmp_path / "data")


def score(tmp_path: Path, spheres: Path) -> Evaluation:
    return evaluate(tmp_path / "run", dataset=spheres, output=tmp_path / "out", progress=SilentProgress())


def test_a_detector_that_finds_all_has_a_map_of_one(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "detection", val_cases=CASES)
    report = score(tmp_path, spheres)
    assert report.metrics["mAP"] == 1.0
    assert report.metrics["AR@0.10"] == 1.0
    assert report.metrics["mAP/bright"] == 1.0
    assert (sorted(report.cases), report.failed, report.without_truth) == (list(CASES), {}, ())
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["schema"] == "voxray-evaluation/2"
    assert written["metrics"] == {k: v if math.isfinite(v) else None for k, v in report.metrics.items()}
    assert report.metrics["FROC@0.10"] == report.metrics["sensitivity@0.125"] == 1.0
    assert report.intervals["mAP"] == (1.0, 1.0)
    assert read_evaluation(tmp_path / "out").model_dump_json() == report.model_dump_json()
    assert (tmp_path / "out" / "s1.json").exists()


def test_dice_is_that_of_the_written_labels_and_the_original_truth(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    report = score(tmp_path, spheres)
    by_hand = []
    for case in CASES:
        found = read_label_map(tmp_path / "out" / f"{case}.nii.gz").voxels == 1
        truth = read_label_map(spheres.parent / "labels" / f"{case}.nii.gz").voxels == 1
        by_hand.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
        assert report.cases[case]["bright"] == pytest.approx(by_hand[-1])
    assert report.metrics["dice"] == pytest.approx(np.mean(by_hand))
    assert report.metrics["dice/bright"] == pytest.approx(np.mean(by_hand))
    assert 0.9 < report.metrics["dice"] < 1.0
    assert report.metrics["NSD@3mm"] >= report.metrics["NSD@1mm"] > 0.5
    assert 0 < report.metrics["HD95_mm"] < 3.0
    low, high = report.intervals["volume_error_percent"]
    assert low <= report.metrics["volume_error_percent"] <= high < 10
    assert report.segmentation is not None
    assert report.segmentation.cases["s1"]["bright"].dice == report.cases["s1"]["bright"]


def test_answers_that_are_there_are_scored_as_they_are(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "detection", val_cases=CASES)
    score(tmp_path, spheres)
    path = tmp_path / "out" / "s0.json"
    data = json.loads(path.read_text())
    data["findings"] = []
    path.write_text(json.dumps(data))
    report = score(tmp_path, spheres)
    assert report.metrics["AR@0.10"] == pytest.approx(2 / 3)
    assert report.cases["s0"]["findings"] == 0


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_case_that_fails_is_listed_and_counts_as_missed(tmp_path: Path, spheres: Path, task: str) -> None:
    write_run(tmp_path / "run", task, val_cases=CASES)
    whole = score(tmp_path, spheres).metrics
    image = spheres.parent / "images" / "s2.nii.gz"
    image.write_bytes(image.read_bytes()[:2000])
    report = score(tmp_path, spheres)
    assert list(report.failed) == ["s2"]
    assert "[nifti.truncated]" in report.failed["s2"]
    if task == "detection":
        assert report.metrics["AR@0.10"] == pytest.approx(2 / 3)
    else:
        assert report.cases["s2"]["bright"] == 0.0
        assert report.metrics["dice"] < 0.7 * whole["dice"]


def test_a_truth_that_does_not_fit_its_scan_is_not_judged_and_not_zero(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    file = spheres.parent / "labels" / "s2.nii.gz"
    truth = read_label_map(file)
    x, y, z = truth.grid.origin_mm
    write_nifti(replace(truth, grid=replace(truth.grid, origin_mm=(x, y + 5.0, z))), file)
    report = score(tmp_path, spheres)
    assert (sorted(report.cases), report.failed) == (["s0", "s1"], {})
    assert "s2.nii.gz does not lie where its image lies: corners are up to 5 mm apart" in report.not_judged["s2"]
    assert report.metrics["dice"] == np.mean([report.cases[case]["bright"] for case in ("s0", "s1")])
    assert not (tmp_path / "out" / "s2.json").exists()
    for case in ("s0", "s1"):
        (spheres.parent / "labels" / f"{case}.nii.gz").write_bytes(b"")
    nothing = score(tmp_path, spheres)
    assert (nothing.cases, nothing.metrics, nothing.intervals, sorted(nothing.not_judged)) == ({}, {}, {}, [*CASES])
    assert read_evaluation(tmp_path / "out").not_judged == nothing.not_judged


def test_a_kept_map_is_read_by_the_names_of_its_index(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    first = score(tmp_path, spheres)
    file = tmp_path / "out" / "s0.nii.gz"
    labels = read_label_map(file)
    turned = list(arrangements())[21]
    write_nifti(Volume(np.ascontiguousarray(turned.voxels(labels.voxels)) * 7, turned.grid(labels.grid)), file)
    index = json.loads((tmp_path / "out" / "s0.json").read_text())
    index["labels"][0]["value"] = 7
    (tmp_path / "out" / "s0.json").write_text(json.dumps(index))
    grid = read_label_map(spheres.parent / "labels" / "s0.nii.gz").grid
    back = read_labels(tmp_path / "out" / "s0.json", ["other", "bright"], grid)
    np.testing.assert_array_equal(back.voxels, labels.voxels * 2)
    assert first.metrics["dice"] > 0.9


def test_thresholds_of_iou_are_an_option(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "detection", val_cases=CASES)
    how = EvaluateOptions(ious=(0.3, 0.6))
    report = evaluate(tmp_path / "run", how, dataset=spheres, output=tmp_path / "out", progress=SilentProgress())
    assert {"AP@0.30", "AP@0.60", "FROC@0.30", "FROC@0.60"} < set(report.metrics)
    assert report.detection is not None
    assert report.detection.ious == (0.3, 0.6)


def test_which_cases_are_scored(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "detection", val_cases=("s1",), fold=0)
    run, data = read_run(tmp_path / "run", "checkpoints/epoch_0000/run.json"), read_dataset(spheres)
    assert [case.case_id for case in choose_cases(run, data, "val")] == ["s1"]
    assert [case.case_id for case in choose_cases(run, data, "all")] == list(CASES)
    with pytest.raises(ConfigError, match="has no test cases"):
        choose_cases(run, data, "test")
    with pytest.raises(ConfigError, match="must be val, test or all"):
        choose_cases(run, data, "train")
    strange = run.model_copy(update={"val_cases": ("s1", "x9")})
    with pytest.raises(ConfigError, match=r"has no case x9 \(1 of 2"):
        choose_cases(strange, data, "val")
    with pytest.raises(ConfigError, match="--cases all or test"):
        choose_cases(run.model_copy(update={"val_cases": ()}), data, "val")


def test_the_dataset_must_fit_the_run(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "detection", val_cases=CASES, classes=("nodule",))
    with pytest.raises(ConfigError, match="classes are bright; run bright answers nodule"):
        score(tmp_path, spheres)
    write_run(tmp_path / "second", "detection", dataset_file=str(tmp_path / "moved.toml"))
    options = {"output": tmp_path / "out", "progress": SilentProgress()}
    with pytest.raises(ConfigError, match=r"moved\.toml: the dataset file of run bright is gone"):
        evaluate(tmp_path / "second", **options)  # type: ignore[arg-type]
    write_run(tmp_path / "third", "detection")
    with pytest.raises(ConfigError, match="give one with --dataset"):
        evaluate(tmp_path / "third", **options)  # type: ignore[arg-type]


def test_a_segmentation_needs_label_maps(tmp_path: Path, spheres: Path) -> None:
    text = spheres.read_text()
    start, end = text.index('[[annotations]]\nkind = "labels"'), text.index("[folds]")
    spheres.write_text(text[:start] + text[end:])
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    with pytest.raises(ConfigError, match="no label map"):
        score(tmp_path, spheres)


class Progressed:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.track = SilentProgress().track

    def say(self, line: str) -> None:
        """Remembers the line."""
        self.said.append(line)


def score_in_mlflow(tmp_path: Path, spheres: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Progressed, str]:
    """A score of a run that remembers an MLflow run; what was said, and MLflow's address."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_run(tmp_path / "run", "detection", val_cases=CASES)
    about = read_run(tmp_path / "run", "checkpoints/epoch_0000/run.json")
    open_tracking(about, tmp_path / "run", say=print).end("FINISHED")
    uri, progress = tracking_uri(tmp_path / "run"), Progressed()
    evaluate(tmp_path / "run", dataset=spheres, output=tmp_path / "out", progress=progress)
    return progress, uri


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_the_score_goes_into_the_trainings_mlflow_run(
    tmp_path: Path, spheres: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, uri = score_in_mlflow(tmp_path, spheres, monkeypatch)
    assert progress.said == []
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "voxray spheres"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["evaluate/spheres/val/mAP"] == 1.0
    assert run.data.metrics["evaluate/spheres/val/AP_at_0.10/bright"] == 1.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_silent_mlflow_costs_no_score(tmp_path: Path, spheres: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_in_mlflow(tmp_path, spheres, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    progress = Progressed()
    report = evaluate(tmp_path / "run", dataset=spheres, output=tmp_path / "out", progress=progress)
    assert report.metrics["mAP"] == 1.0
    assert len(progress.said) == 1
    assert "cannot be reached" in progress.said[0]


def test_what_readers_warn_of_is_in_the_score(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    dataset = read_dataset(spheres)
    sources = {source.case_id: source for source in list_cases(dataset)}
    contradict(Path(sources["s0"].image))
    maps = sources["s1"].maps
    assert maps is not None
    contradict(Path(maps.file))
    progress = Lines()
    report = evaluate(tmp_path / "run", dataset=spheres, output=tmp_path / "out", progress=progress)
    named = f"{Path(maps.file).name}: {DISAGREE}"
    assert report.warnings == {"s0": (DISAGREE,), "s1": (named,)}
    assert read_evaluation(tmp_path / "out").warnings == report.warnings
    assert [line for line in progress.said if "warning" in line] == [
        f"case s0: warning: {DISAGREE}",
        f"case s1: warning: {named}",
    ]
    assert not report.failed


def test_scans_that_changed_are_answered_and_scored_anew(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    first = score(tmp_path, spheres)
    assert sorted(first.contents) == list(CASES)
    assert score(tmp_path, spheres).contents == first.contents
    image = spheres.parent / "images" / "s0.nii.gz"
    volume, times = read_volume(image), image.stat()
    write_nifti(Volume(np.full_like(volume.voxels, -900), volume.grid), image)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    said = Heard()
    again = evaluate(tmp_path / "run", dataset=spheres, output=tmp_path / "out", progress=said)
    assert said.lines == [
        "case s0: its files have changed since it was answered; it is answered anew",
        "case s0: warning: every voxel is -900 HU",
    ]
    assert again.cases["s0"]["bright"] == 0.0
    assert again.cases["s1"] == first.cases["s1"]
    assert again.contents["s0"].scan != first.contents["s0"].scan
    labels = spheres.parent / "labels" / "s1.nii.gz"
    volume, times = read_label_map(labels), labels.stat()
    write_nifti(Volume(np.roll(volume.voxels, 4, axis=0), volume.grid), labels)
    os.utime(labels, ns=(times.st_atime_ns, times.st_mtime_ns))
    corrected = score(tmp_path, spheres)
    assert corrected.cases["s1"]["bright"] < first.cases["s1"]["bright"] - 0.1
    assert corrected.contents["s1"].truth != first.contents["s1"].truth


def test_cases_of_the_same_name_elsewhere_are_other_cases(tmp_path: Path, spheres: Path) -> None:
    write_run(tmp_path / "run", "detection", val_cases=CASES)
    score(tmp_path, spheres)
    other = write_spheres(tmp_path / "other")
    for number in range(3):
        path = other.parent / "images" / f"s{number}.nii.gz"
        volume = read_volume(path)
        write_nifti(Volume(np.full_like(volume.voxels, -900), volume.grid), path)
        os.utime(path, (1_000, 1_000))
    report = evaluate(tmp_path / "run", dataset=other, output=tmp_path / "out", progress=Heard())
    assert report.metrics["AR@0.10"] == 0.0
    answers = tmp_path / "answers"
    options = AnswerOptions(device="cpu", runtime="torch")
    predict(tmp_path / "run", [spheres.parent / "images"], answers, options, progress=SilentProgress())
    before = (answers / "s0.json").read_bytes()
    with pytest.raises(ConfigError, match=r"answers another scan named s0, .*holds no score; give another folder"):
        evaluate(tmp_path / "run", dataset=other, output=answers, progress=SilentProgress())
    assert (answers / "s0.json").read_bytes() == before


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_whatever_a_library_raises_of_one_case_costs_that_case(
    tmp_path: Path, spheres: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", task, val_cases=CASES)
    image = spheres.parent / "images" / "s1.nii.gz"
    content = bytearray(gzip.decompress(image.read_bytes()))
    content[148:151] = b"odd"  # descrip
    image.write_bytes(gzip.compress(content))
    original: Any = nib.Nifti1Header.__getitem__

    def confused(header: nib.Nifti1Header, item: str) -> object:
        if item == "dim" and bytes(original(header, "descrip")).startswith(b"odd"):
            raise KeyError("xyzt_units")
        return original(header, item)

    monkeypatch.setattr(nib.Nifti1Header, "__getitem__", confused)
    report = score(tmp_path, spheres)
    assert "a fault of voxray: KeyError: 'xyzt_units'" in {**report.failed, **report.not_judged}["s1"]
    assert {"s0", "s2"} <= set(report.cases)
    assert (Path(report.output) / "s2.json").exists()
