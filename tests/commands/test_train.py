"""Training in this process: what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from support.tiny_training import (
    DATASET,
    detection_recipe,
    last_weights,
    made_store,
    segmentation_recipe,
    train_silently,
)
from voxray.core.errors import ConfigError, DataError
from voxray.core.progress import Advance
from voxray.core.recipe import Recipe
from voxray.dataset import split
from voxray.dataset.folds import KFold
from voxray.distributed.train_worker import TrainJob, resume, schedule_of, train_here
from voxray.distributed.training import TrainOptions, plan, split_store, stored_sources
from voxray.store import FailedCase, Store
from voxray.training.checkpoint import load_model, read_run, read_state
from voxray.training.data import claim_run
from voxray.training.state import TrainingState


class Listener:
    """A progress that remembers, and may stop the training after an epoch as Ctrl-C does."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.amount = 0.0

    @contextmanager
    def track(self, name: str, *, total: float | None, unit: str = "") -> Iterator[Advance]:
        assert (name, unit) == ("train", "steps")
        self.total = total
        yield self._advance

    def _advance(self, amount: float = 1, /) -> None:
        self.amount += amount

    def say(self, line: str) -> None:
        self.lines.append(line)


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One file for all tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch, tracking_uri: str) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made_store(tmp_path_factory.mktemp("data") / "store", segmentation_recipe())


def test_a_training_leaves_a_model_that_predicts_and_numbers(store: Store, tmp_path: Path) -> None:
    listener = Listener()
    report = train_silently(store.uri, segmentation_recipe(), tmp_path / "run", workers=0, progress=listener)
    assert (report.epochs, report.resumed_after, report.name) == (3, 0, "run")
    assert report.metric == "dice"
    assert report.best_value is not None
    assert 0 <= report.best_value <= 1
    assert set(report.metrics) == {"dice", "dice/ball"}
    assert listener.total == listener.amount == 9
    assert [line.split(":")[0] for line in listener.lines] == ["epoch 1", "epoch 2", "epoch 3"]
    run, recipe, _ = load_model(tmp_path / "run")
    assert run.dataset == "balls"
    assert recipe == segmentation_recipe()
    assert len(run.train_cases) == 4
    assert not set(run.train_cases) & set(run.val_cases)
    assert (tmp_path / "run" / "pictures" / "epoch_0003.png").read_bytes().startswith(b"\x89PNG")
    assert "3 epochs" in str(report)


def test_detection_trains_too(tmp_path: Path) -> None:
    recipe = detection_recipe()
    report = train_silently(made_store(tmp_path / "store", recipe).uri, recipe, tmp_path / "run", workers=0)
    assert report.metric == "mAP"
    assert {"mAP", "mAR", "AP@0.10"} <= set(report.metrics)
    assert read_state(tmp_path / "run").finished


def _stop_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C right after that epoch: one step of the next one is done."""
    from voxray.training.run_files import RunWriter

    save = RunWriter.save

    def stopping(self, training, record, then) -> None:  # type: ignore[no-untyped-def]
        save(self, training, record, then)
        if record.epoch == epoch:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunWriter, "save", stopping)


def test_a_stopped_training_goes_on_and_ends_bit_identical(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = segmentation_recipe("optim.ema_decay=0.9")
    train_silently(store.uri, recipe, tmp_path / "straight", workers=0)
    with monkeypatch.context() as patch:
        _stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train_silently(store.uri, recipe, tmp_path / "halted", workers=0)
    assert read_state(tmp_path / "halted").place == (2, 1)
    report = train_silently(store.uri, recipe, tmp_path / "halted", workers=0)
    assert (report.resumed_after, report.resumed_steps, report.epochs) == (2, 1, 3)
    assert "went on after 2 and 1 steps" in str(report)
    assert last_weights(tmp_path / "halted") == last_weights(tmp_path / "straight")
    rows = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("halted", "straight")]
    assert [row["loss/total"] for row in rows[0]] == [row["loss/total"] for row in rows[1]]


def test_a_run_keeps_its_global_batch_whatever_the_number_of_workers(store: Store, tmp_path: Path) -> None:
    recipe, run = segmentation_recipe("optim.epochs=2"), tmp_path / "run"
    listener = Listener()
    planned = plan(store, recipe, str(run), TrainOptions(workers=3))
    claim_run(run, planned)
    assert planned.run.num_slots == 3
    assert planned.remarks == ()
    train_silently(store.uri, recipe, run, workers=0, progress=listener)
    assert read_run(run).num_slots == 3
    (said,) = (line for line in listener.lines if "global batch" in line)
    assert said.endswith(
        "is 3 x 2 patches, and stays so; 1 of 3 workers compute it, each its part one after another."
    )
    assert read_state(run).finished
    more = plan(store, recipe, str(tmp_path / "one"), TrainOptions(workers=2, slots=1))
    assert more.remarks[0].endswith("it has work for 1 workers, and no more of the 2 are used.")


def test_a_run_of_an_earlier_voxray_gets_a_global_batch_when_it_goes_on(store: Store, tmp_path: Path) -> None:
    recipe = segmentation_recipe()
    claim_run(tmp_path, plan(store, recipe, str(tmp_path), TrainOptions(workers=2)))
    fields = json.loads((tmp_path / "run.json").read_text())
    assert fields.pop("num_slots") == 2
    (tmp_path / "run.json").write_text(json.dumps(fields))
    assert plan(store, recipe, str(tmp_path), TrainOptions(workers=1)).run.num_slots == 1


def test_a_finished_training_says_so(store: Store, tmp_path: Path) -> None:
    recipe = segmentation_recipe("optim.epochs=1")
    train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    before = last_weights(tmp_path / "run")
    again = train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    assert "finished before" in str(again)
    assert last_weights(tmp_path / "run") == before


def test_another_recipe_in_the_same_folder_is_refused(store: Store, tmp_path: Path) -> None:
    train_silently(store.uri, segmentation_recipe("optim.epochs=1"), tmp_path / "run", workers=0)
    with pytest.raises(ConfigError, match=r"recipe\.optim\.rate = 0\.01, but 0\.02"):
        train_silently(
            store.uri, segmentation_recipe("optim.epochs=1", "optim.rate=0.02"), tmp_path / "run", workers=0
        )
    with pytest.raises(ConfigError, match="seed = 0, but 5"):
        train_silently(store.uri, segmentation_recipe("optim.epochs=1"), tmp_path / "run", workers=0, seed=5)


def test_a_store_for_another_recipe_is_refused_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="made for another recipe"):
        train_silently(store.uri, segmentation_recipe("patch.size_vox=[24,24,24]"), tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()


def test_without_a_fold_every_case_trains_and_the_last_checkpoint_is_the_best(store: Store, tmp_path: Path) -> None:
    recipe = segmentation_recipe("optim.epochs=2")
    report = train_silently(store.uri, recipe, tmp_path / "run", workers=0, fold=None, name="all")
    assert (report.best_epoch, report.best_value, report.metrics) == (2, None, {})
    assert len(read_run(tmp_path / "run").train_cases) == 6
    assert read_run(tmp_path / "run").name == "all"


def test_a_damaged_checkpoint_is_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = segmentation_recipe()
    with monkeypatch.context() as patch:
        _stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    folder = tmp_path / "run" / "checkpoints"
    path = folder / "epoch_0001_step_000001" / "trainer.pt"
    path.write_bytes(path.read_bytes()[:100])
    listener = Listener()
    with monkeypatch.context() as patch:
        _stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train_silently(store.uri, recipe, tmp_path / "run", workers=0, progress=listener)
    (warning,) = (line for line in listener.lines if "warning" in line)
    assert "trainer.pt: cannot be read" in warning
    assert "goes on from the checkpoint before, epoch_0001: 1 steps are done again" in warning
    assert read_state(tmp_path / "run").place == (2, 1)
    for path in folder.glob("*/trainer.pt"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"run\.damaged.*trainer\.pt"):
        train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    for path in folder.glob("*/trainer.pt"):
        path.unlink()
    with pytest.raises(DataError, match=r"run\.incomplete.*trainer\.pt"):
        train_silently(store.uri, recipe, tmp_path / "run", workers=0)


def test_folds_are_those_of_the_whole_dataset(tmp_path: Path) -> None:
    """A case that was set aside does not move others from one side to the other."""
    whole = made_store(tmp_path / "whole", segmentation_recipe())
    manifest = whole.manifest
    for lost in manifest.cases:
        rest = {name: entry for name, entry in manifest.cases.items() if name != lost}
        failed = {lost: FailedCase(code="c", message="m")}
        lesser = replace(whole, manifest=manifest.model_copy(update={"cases": rest, "failed": failed}))
        for fold in range(3):
            expected = [tuple(one for one in side if one != lost) for side in split_store(whole, fold)]
            assert list(split_store(lesser, fold)) == expected
    assert DATASET["folds"]["num_folds"] == 3


def test_luna16_folders_and_patients_are_folds_of_a_store_too(tmp_path: Path) -> None:
    """A store remembers where scans lay and whose they are, of cases that were set aside too."""
    store = made_store(tmp_path / "store", segmentation_recipe(), folds={"kind": "luna16_subsets"})
    cases = {
        name: entry.model_copy(update={"image": f"luna/subset{number % 3}/{name}.mhd"})
        for number, (name, entry) in enumerate(store.manifest.cases.items())
    }
    failed = {
        "x": FailedCase(code="c", message="m", patient_id="case_0", image="luna/subset0/x.mhd"),
        "no scan": FailedCase(code="c", message="m"),
    }
    manifest = store.manifest.model_copy(update={"cases": cases, "failed": failed})
    store = replace(store, manifest=manifest)
    assert split_store(store, 1)[1] == ("case_1", "case_4")
    (fold,) = [fold for fold in range(6) if "case_0" in split_store(store, fold, KFold(num_folds=6))[1]]
    assert split(stored_sources(store), KFold(num_folds=6), fold).val_ids == ("case_0", "x")


def test_a_job_travels(store: Store, tmp_path: Path) -> None:
    recipe = segmentation_recipe("optim.epochs=1")
    train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    job = TrainJob(read_run(tmp_path / "run"), store.uri, str(tmp_path / "run"))
    assert TrainJob.from_dict(json.loads(json.dumps(job.to_dict()))) == job
    schedule = schedule_of(recipe, job.run.model_copy(update={"num_slots": 2}))
    assert (schedule.steps_per_epoch, schedule.batch_size, schedule.num_slots) == (3, 2, 2)


def test_resuming_restores_the_counters(store: Store, tmp_path: Path) -> None:
    recipe: Recipe = segmentation_recipe("optim.epochs=2")
    train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    training = TrainingState(recipe.network.build(recipe, 1), recipe.optim)
    assert resume(training, str(tmp_path / "run")) == ""
    assert (training.epochs_done, training.num_steps, len(training.history)) == (2, 6, 2)


def test_changed_data_are_refused_or_accepted_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is made again after labels were corrected, and the same command."""
    recipe = segmentation_recipe()
    store = made_store(tmp_path / "store", recipe)
    with monkeypatch.context() as patch:
        _stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    made_store(tmp_path / "store", recipe, num_cases=7)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"1 of its 3 epochs on other data .* 1 case added \(case_6\)"):
        train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    listener = Listener()
    train_silently(store.uri, recipe, tmp_path / "run", workers=0, accept_changed_data=True, progress=listener)
    assert any("changed data: 1 case added (case_6)" in line for line in listener.lines)
    run, _, _ = load_model(tmp_path / "run", "last")
    assert [(version.after_epoch, version.changes) for version in run.data] == [(0, ""), (1, "1 case added (case_6)")]
    remembered = json.loads((tmp_path / "run" / "tracking.json").read_text())
    tags = MlflowClient(remembered["uri"]).get_run(remembered["run_id"]).data.tags
    assert tags["data"] == run.data[-1].digest
    assert tags["data_changes"] == "after epoch 1: 1 case added (case_6)"
    train_silently(store.uri, recipe, tmp_path / "run", workers=0)


def test_a_worker_does_not_go_on_with_a_store_that_was_remade(store: Store, tmp_path: Path) -> None:
    recipe = segmentation_recipe("optim.epochs=1")
    train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    other = made_store(tmp_path / "other", recipe, num_cases=5)
    with pytest.raises(DataError, match=r"store\.changed"):
        train_here(TrainJob(read_run(tmp_path / "run"), other.uri, str(tmp_path / "run")))


def test_a_setting_under_which_nothing_is_learnt_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = detection_recipe("anchors={base_shapes_vox=[[0.1,0.1,0.1]], level_scales=[1,2,4]}")
    store = made_store(tmp_path / "store", recipe)
    with pytest.raises(ConfigError, match=r"store: nothing can be learnt: 0 of 4 objects .* no anchor"):
        train_silently(store.uri, recipe, tmp_path / "run", workers=0)
    empty = made_store(tmp_path / "empty", detection_recipe(), empty=True)
    with pytest.raises(ConfigError, match="none of the 4 training cases holds an object"):
        train_silently(empty.uri, detection_recipe("patch.foreground=0"), tmp_path / "run", workers=0)
    with pytest.raises(ConfigError, match=r"tiny: nothing can be learnt: loss\.dice_weight"):
        train_silently(
            tmp_path / "x.toml", segmentation_recipe("loss.dice_weight=0", "loss.ce_weight=0"), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_fold_whose_cases_were_set_aside_is_refused(tmp_path: Path) -> None:
    whole = made_store(tmp_path / "store", segmentation_recipe())
    sides = split_store(whole, 0)
    for side, what in zip(sides, ("train", "validate"), strict=True):
        cases = {name: entry for name, entry in whole.manifest.cases.items() if name not in side}
        failed = {name: FailedCase(code="c", message=f"case {name}: broken.") for name in side}
        manifest = whole.manifest.model_copy(update={"cases": cases, "failed": failed})
        with pytest.raises(ConfigError, match=f"fold 0: none of the cases that should {what} .*{side[0]}: broken"):
            split_store(replace(whole, manifest=manifest), 0)


def test_a_dataset_file_is_ingested_first_beside_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        train_silently(tmp_path / "missing.toml", segmentation_recipe(), tmp_path / "run", workers=0)
