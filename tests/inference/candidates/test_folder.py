"""Candidates beside answers and beside checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.bright_runs import TURNS, register, write_run
from support.bright_scans import sphere_scan
from support.tiny_training import detection_recipe, made_store, segmentation_recipe, train_silently
from voxray.commands.predict import AnswerOptions, PredictReport, predict
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress
from voxray.core.recipe import DetectionMerge, SegmentationMerge
from voxray.core.storage import Place
from voxray.inference.candidates.file import read_recorded
from voxray.inference.candidates.folder import CandidateFolder
from voxray.inference.trained_model import open_model
from voxray.readers import read_label_map, write_nifti
from voxray.store import Store
from voxray.tasks import build_task, recorded_labels
from voxray.tasks.merging import merge_candidates
from voxray.training.checkpoint import read_state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    register(monkeypatch)


def answered(tmp_path: Path, *overrides: str, keep: bool = True) -> PredictReport:
    options = AnswerOptions(overrides=overrides, device="cpu", runtime="torch", keep_candidates=keep)
    return predict(tmp_path / "run", [tmp_path / "scan.nii.gz"], tmp_path / "out", options, progress=SilentProgress())


def test_candidates_of_an_answer_give_the_answer(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    write_nifti(sphere_scan(TURNS[1], angles_deg=(11.0, 4.0, 0.0))[0], tmp_path / "scan.nii.gz")
    assert answered(tmp_path, keep=False).done == ("scan",)
    assert not (tmp_path / "out" / "candidates").exists()
    assert answered(tmp_path).done == ("scan",)
    assert answered(tmp_path).skipped == ("scan",)
    recorded = read_recorded(Place.of(tmp_path / "out" / "candidates"), "scan.parquet")
    labels = read_label_map(tmp_path / "out" / "scan.nii.gz")
    wrong = np.count_nonzero(recorded.labels(SegmentationMerge()).voxels != labels.voxels)
    assert wrong <= 0.002 * np.count_nonzero(labels.voxels)


def test_another_merge_needs_no_new_candidates_but_another_window_does(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "detection")
    write_nifti(sphere_scan(TURNS[1], angles_deg=(11.0, 4.0, 0.0))[0], tmp_path / "scan.nii.gz")
    answered(tmp_path)
    path = tmp_path / "out" / "candidates" / "scan.parquet"
    before = path.read_bytes()
    assert answered(tmp_path, "merge.tile_iou=0.4").done == ("scan",)
    assert path.read_bytes() != before  # answered anew, so recorded anew, with the merge that it was answered with
    engine = open_model(tmp_path / "run", overrides=["merge.tile_iou=0.9"])
    candidates = CandidateFolder.of(Place.of(path.parent), engine.recipe, engine.run.classes)
    assert candidates.find("scan", engine.stamp) is not None
    other = open_model(tmp_path / "run", overrides=["inference.overlap=0.5"])
    assert candidates.find("scan", other.stamp) is None
    assert candidates.find("scam", engine.stamp) is None


def test_validation_keeps_what_the_best_and_the_last_network_said(tmp_path: Path) -> None:
    recipe = detection_recipe("optim.validate_every=1", "optim.epochs=3")
    store = made_store(tmp_path / "store", recipe)
    report = train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    state = read_state(tmp_path / "run")
    kept_folders = sorted(path.name for path in (tmp_path / "run" / "candidates").iterdir())
    assert kept_folders == sorted({state.best, "epoch_0003"})
    engine = open_model(tmp_path / "run")
    folder = Place.of(tmp_path / "run" / "candidates" / state.best)
    recorded = [read_recorded(folder, f"{case_id}.parquet") for case_id in engine.run.val_cases]
    assert {one.head.model.sha256 for one in recorded} == {engine.stamp.sha256}
    assert isinstance(engine.recipe.merge, DetectionMerge)
    found = [merge_candidates(one.required, one.grid, engine.recipe.merge) for one in recorded]
    cases = [Store.open(store.uri).read_case(case_id) for case_id in engine.run.val_cases]
    for one, case in zip(recorded, cases, strict=True):
        assert one.truth is not None
        np.testing.assert_array_equal(one.truth.boxes, case.boxes)
        assert one.head.patient == case.patient_id
    score = build_task(engine.recipe, engine.run.classes).score(found, cases)
    assert score["mAP"] == pytest.approx(report.best_value)


def test_validation_keeps_probabilities_of_few_classes(tmp_path: Path) -> None:
    recipe = segmentation_recipe("optim.epochs=1")
    store = made_store(tmp_path / "store", recipe)
    train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    engine = open_model(tmp_path / "run")
    folder = Place.of(tmp_path / "run" / "candidates" / "epoch_0001")
    assert folder.names(".") == sorted(f"{case_id}.parquet" for case_id in engine.run.val_cases)
    recorded = read_recorded(folder, f"{engine.run.val_cases[0]}.parquet")
    assert (recorded.head.classes, recorded.truth) == (("ball",), None)


def test_of_many_classes_some_must_be_named() -> None:
    recipe = segmentation_recipe()
    names = [f"organ {number}" for number in range(9)]
    with pytest.raises(
        ConfigError, match=r"9 classes are too many .* name up to 7, as --keep-classes organ 0,organ 1"
    ):
        recorded_labels(recipe.task, names, ())
    assert recorded_labels(recipe.task, names, ("organ 3", "organ 1")) == (4, 2)
    with pytest.raises(ConfigError, match="--keep-classes: no class is named 'organ'"):
        recorded_labels(recipe.task, names, ("organ",))
    with pytest.raises(ConfigError, match="is for segmentation"):
        recorded_labels("detection", names, ("organ 3",))
