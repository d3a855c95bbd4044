"""Cross-validation on a real Ray: from a dataset's file to a package, with stops, one by one and side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.balls import RECIPE, Teller, store_of, told, weights_of, write_balls
from voxray.commands.consolidate import consolidate
from voxray.commands.crossval import CrossvalOptions, crossval
from voxray.commands.predict import AnswerOptions, predict
from voxray.core.errors import DataError, ResourceError
from voxray.core.progress import SilentProgress
from voxray.distributed.placement_groups import rooms
from voxray.training.checkpoint import find_state
from voxray.training.crossval_folder import finished_folds

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _ray(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    del one_ray
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset's file."""
    return write_balls(tmp_path_factory.mktemp("data") / "balls")


def test_from_a_dataset_to_a_package_with_a_stop_between_the_folds(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "cv"
    with pytest.raises(KeyboardInterrupt):
        crossval(data, RECIPE, output, CrossvalOptions(), progress=Teller(lambda line: line.startswith("fold 1")))
    assert finished_folds(output) == (0,)
    first, teller = weights_of(output / "fold_0"), Teller()
    report = crossval(data, RECIPE, output, CrossvalOptions(), progress=teller)
    assert (list(report.folds), report.unfinished) == ([0, 1], ())
    assert weights_of(output / "fold_0") == first
    assert told(teller.lines, "fold 0") == []
    assert report.evaluation.failed == {}
    assert len(report.evaluation.cases) == 4
    made = consolidate([output], tmp_path / "model", progress=SilentProgress())
    assert len(made.members) == 2
    scans = data.parent / "images"
    answered = predict(
        tmp_path / "model", [scans], tmp_path / "out", AnswerOptions(device="cpu"), progress=SilentProgress()
    )
    assert (len(answered.done), answered.failed) == (4, {})


def test_folds_side_by_side_stop_together_and_go_on(data: Path, tmp_path: Path) -> None:
    store, output = store_of(data, tmp_path / "store"), tmp_path / "cv"
    both = CrossvalOptions(at_once=2)
    # So many epochs that none is through before the stop that follows on the first has reached it.
    longer = RECIPE.model_copy(update={"optim": RECIPE.optim.model_copy(update={"epochs": 60, "validate_every": 60})})
    before = rooms()
    with pytest.raises(KeyboardInterrupt):
        crossval(store.uri, longer, output, both, progress=Teller(lambda line: "epoch 1:" in line))
    until = time.monotonic() + 30
    while rooms() != before:
        assert time.monotonic() < until, "a stopped fold keeps its room, and the next training would wait for it"
        time.sleep(0.1)
    begun = [json.loads((output / f"fold_{fold}" / "tracking.json").read_text()) for fold in range(2)]
    assert [_status(one) for one in begun] == ["KILLED", "KILLED"]
    assert any(find_state(output / f"fold_{fold}") for fold in range(2))
    assert finished_folds(output) == ()
    teller = Teller()
    report = crossval(store.uri, longer, output, both, progress=teller)
    assert (list(report.folds), report.unfinished) == ([0, 1], ())
    assert {"fold 0: finished", "fold 1: finished"} <= set(teller.lines)
    assert [_status(one) for one in begun] == ["FINISHED", "FINISHED"]


def test_folds_that_would_wait_for_each_other_are_refused(data: Path, tmp_path: Path) -> None:
    store = store_of(data, tmp_path / "store")
    options = CrossvalOptions(workers=9, at_once=2)
    with pytest.raises(
        ResourceError, match="2 trainings with 9 workers each and the tasks that feed them need 9 logical CPUs"
    ):
        crossval(store.uri, RECIPE, tmp_path / "cv", options, progress=SilentProgress())


def test_what_stops_one_fold_is_said_as_it_is(data: Path, tmp_path: Path) -> None:
    store = store_of(data, tmp_path / "store")
    for path in (tmp_path / "store" / "cases").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"\[store\.damaged\]"):
        crossval(store.uri, RECIPE, tmp_path / "cv", CrossvalOptions(at_once=2), progress=SilentProgress())


def _status(remembered: dict[str, str]) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(tracking_uri=remembered["uri"]).get_run(remembered["run_id"]).info.status)
