"""Sweeps whose trials train: what is refused before, and one on a real local Ray."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.tiny_training import made_store, segmentation_recipe, train_silently
from voxray.commands.sweep import sweep
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress
from voxray.dataset.folds import KFold
from voxray.distributed.training import split_store
from voxray.sweeping.sweep_report import SweepOptions, SweepReport
from voxray.sweeping.training_trials import tracking_of_trials
from voxray.training.checkpoint import read_run, read_state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy

SPACE = """
[fields]
"optim.rate" = { low = 0.0001, high = 0.1, log = true }
"optim.clip_norm" = { choices = [1.0, 10.0] }
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was trained on other folds than its store's, which is beside it."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = segmentation_recipe("optim.epochs=2", "optim.validate_every=1")
    folds = {"kind": "holdout", "val_share": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        store = made_store(folder / "run-store", recipe, num_cases=8, folds=folds)
        train_silently(store.uri, recipe, folder / "run", workers=0, folds=KFold(num_folds=2, seed=3))
    assert set(read_run(folder / "run").val_cases) != set(split_store(store, 0)[1])
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, with its store beside it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def swept(run: Path, text: str = SPACE, *, output: Path | None = None, **options: Any) -> SweepReport:
    path = run.parent / "space.toml"
    path.write_text(text)
    asked = SweepOptions(**{"trials": 2, **options})
    return sweep([str(run)], path, output or run.parent / "out", asked, progress=SilentProgress())


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        (SPACE.replace("optim.rate", "optim.rat"), {}, "space.toml: optim.rat: no such field; did you mean 'rate'?"),
        (SPACE.replace("0.0001", "-0.1").replace(", log = true", ""), {}, "optim.rate: must be greater than 0"),
        (SPACE, {"sampler": "greedy"}, "--sampler greedy: a space that trains is searched by tpe or random."),
        (SPACE, {"data": "toy.toml"}, "--data toy.toml: trials share a store; make one with `voxray ingest`"),
        ('[fields]\n"patch.size_vox" = { choices = ["a", "b"] }', {}, "patch.size_vox: must be a valid tuple"),
        (
            '[fields]\n"patch.per_tile" = { low = 1, high = 3 }\n"grid.spacing_mm" = { choices = [1, 2] }',
            {},
            "grid.spacing_mm: must be a valid tuple",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_trains(
    run: Path, text: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        swept(run, text, **options)
    assert not (run.parent / "out").exists()


def test_a_store_that_is_not_beside_the_run_is_asked_for(run: Path) -> None:
    (run.parent / "run-store").rename(run.parent / "elsewhere")
    with pytest.raises(ConfigError, match=r"run-store: no store there; .* --data STORE"):
        swept(run)


def test_the_store_of_a_fold_is_its_cross_validations(run: Path) -> None:
    (run.parent / "run-store").rename(run.parent / "store")
    (run.parent / "crossval.json").write_text("{}")
    (run.parent / "store" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=f"{run.parent}/store: no store there"):
        swept(run)


def test_cases_without_anything_to_find_judge_no_trial(run: Path) -> None:
    bare = made_store(run.parent / "bare", segmentation_recipe(), num_cases=8, empty=True)
    with pytest.raises(ConfigError, match=r"a half of the 4 cases .* holds nothing to find"):
        swept(run, data=bare.uri)
    few = made_store(run.parent / "few", segmentation_recipe(), num_cases=1)
    with pytest.raises(ConfigError, match=r"has no case case_.*, on which run run validated"):
        swept(run, data=few.uri)
    assert not (run.parent / "out").exists()


def test_trials_on_other_data_are_not_gone_on_with(run: Path) -> None:
    trials = run.parent / "out" / "trials"
    shutil.copytree(run, trials / "0001")
    shutil.copy(run / "tracking.json", run.parent / "out")
    made_store(
        run.parent / "run-store", segmentation_recipe(), num_cases=9, folds={"kind": "holdout", "val_share": 0.5}
    )
    with pytest.raises(
        ConfigError, match=r"holds trials .* other data .*: 1 case added \(case_8\); sweep into another"
    ):
        swept(run)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.timeout(900)
def test_every_trial_is_a_training_and_the_best_is_judged_on_cases_it_never_saw(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = swept(run, output=Path("out"))
    val_cases = read_run(run).val_cases
    assert report.unseen is not None
    assert report.seen.cases + report.unseen.cases == len(val_cases) == 4
    trials = sorted(path for path in (tmp_path / "out" / "trials").iterdir())
    assert len(trials) == 2
    for trial in trials:
        about, setting = read_run(trial), json.loads((trial / "setting.json").read_text())
        assert about.recipe["optim"]["rate"] == setting["optim.rate"]
        assert set(about.val_cases) == set(report.cases) < set(val_cases)
        assert about.train_cases == read_run(run).train_cases
        assert read_state(trial).best_value is not None
    assert report.trials == 2
    assert (tmp_path / "out" / "sweep.json").exists()
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "voxray balls"]
    every = client.search_runs([experiment.experiment_id])
    (parent,) = [one for one in every if one.data.tags.get("kind") == "sweep"]
    children = [one for one in every if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 2
    assert {one.info.status for one in every} <= {"FINISHED", "KILLED"}
    assert parent.data.metrics["unseen/tuned"] == pytest.approx(report.unseen.tuned)


def test_trials_on_a_cluster_want_an_mlflow_server_where_the_run_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"^memory://nowhere/run: its trials train on any node.*MLflow server"):
        tracking_of_trials("memory://nowhere/run")
