"""MLflow: what it keeps of a training, and what happens when it is not there."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from support.tiny_training import segmentation_recipe
from voxray.core.config import to_json
from voxray.core.errors import ConfigError, ResourceError
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.distributed import mlflow_in_run
from voxray.distributed.mlflow_run import Tracking, end_unfinished, metric_name, open_tracking, prepare_tracking
from voxray.distributed.mlflow_server import tracking_uri

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy


@pytest.fixture
def run() -> Run:
    recipe = json.loads(to_json(segmentation_recipe()))
    return Run(
        name="tiny run", dataset="balls", licence="CC0-1.0", classes=("ball",), recipe=recipe, voxray_version="0.1.0"
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's file with its tables, which take a second to make."""
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    prepare_tracking(f"sqlite:///{path}")
    return path


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch, tables: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tables)) as made, closing(sqlite3.connect(tmp_path / "mlflow.db")) as copy:
        made.backup(copy)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def _client(tracking: Tracking) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking.uri)


def test_an_sqlite_file_beside_the_run_keeps_everything(run: Run, tmp_path: Path) -> None:
    told: list[str] = []
    tracking = open_tracking(run, tmp_path / "run", say=told.append)
    assert tracking.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking.last_epoch() == 0
    tracking.log_row({"rate": 0.1, "val/AP@0.10": 0.5, "val/dice": math.nan}, step=1)
    tracking.log_row({"rate": 0.05}, step=2)
    tracking.log_file("pictures/epoch_0001.png", b"png")
    tracking.end("FINISHED")
    client = _client(tracking)
    kept = client.get_run(tracking.run_id)
    assert kept.info.run_name == "tiny run"
    assert kept.info.status == "FINISHED"
    assert kept.data.params["optim.rate"] == "0.01"
    assert kept.data.params["patch.size_vox"] == "[16, 16, 16]"
    assert kept.data.tags["licence"] == "CC0-1.0"
    assert kept.data.metrics == {"rate": 0.05, "val/AP_at_0.10": 0.5}
    names = {item.path for item in client.list_artifacts(tracking.run_id)}
    assert names == {"recipe.toml", "run.json", "pictures"}
    assert tracking.last_epoch() == 2
    assert told == []


def test_a_training_that_goes_on_keeps_its_mlflow_run(run: Run, tmp_path: Path) -> None:
    first = open_tracking(run, tmp_path / "run", say=print)
    first.log_row({"rate": 0.1}, step=3)
    first.end("KILLED")
    again = open_tracking(run, tmp_path / "run", say=print)
    assert again.run_id == first.run_id
    assert again.last_epoch() == 3
    assert _client(again).get_run(again.run_id).info.status == "RUNNING"
    other = open_tracking(run, tmp_path / "other", say=print)
    assert other.run_id != first.run_id


def test_an_mlflow_run_that_was_deleted_with_its_file_is_made_anew(run: Run, tmp_path: Path) -> None:
    first = open_tracking(run, tmp_path / "run", say=print)
    for path in tmp_path.glob("mlflow.db*"):
        path.unlink()
    (tmp_path / "run" / "tracking.json").write_text(json.dumps({"uri": first.uri, "run_id": "f" * 32}))
    told: list[str] = []
    assert open_tracking(run, tmp_path / "run", say=told.append).run_id != first.run_id
    assert told == [f"The MLflow run {'f' * 32} was deleted for good; a new one is made."]


@pytest.mark.parametrize("what", ["run", "run, then experiment"])
def test_what_was_deleted_is_restored_and_said(what: str, run: Run, tmp_path: Path) -> None:
    first = open_tracking(run, tmp_path / "run", say=print)
    first.log_row({"rate": 0.1}, step=3)
    client = _client(first)
    experiment = client.get_run(first.run_id).info.experiment_id
    if "run" in what:
        client.delete_run(first.run_id)
    if "experiment" in what:
        client.delete_experiment(experiment)
    told: list[str] = []
    again = open_tracking(run, tmp_path / "run", say=told.append)
    assert again.run_id == first.run_id
    assert again.last_epoch() == 3
    info = client.get_run(again.run_id).info
    assert (info.lifecycle_stage, info.status) == ("active", "RUNNING")
    assert client.get_experiment(experiment).lifecycle_stage == "active"
    assert all("had been deleted; it is restored" in sentence for sentence in told)
    assert len(told) == (1 if what == "run" else 2)
    again.log_row({"rate": 0.05}, step=4)
    assert again.last_epoch() == 4


def test_a_new_training_restores_the_experiment_that_was_deleted(run: Run, tmp_path: Path) -> None:
    first = open_tracking(run, tmp_path / "run", say=print)
    client = _client(first)
    client.delete_experiment(client.get_run(first.run_id).info.experiment_id)
    told: list[str] = []
    other = open_tracking(run, tmp_path / "other", say=told.append)
    assert other.run_id != first.run_id
    assert told == ["MLflow's experiment voxray balls had been deleted; it is restored, with its runs."]


@pytest.mark.parametrize("with_experiment", [False, True])
def test_what_was_deleted_for_good_is_made_anew(with_experiment: bool, run: Run, tmp_path: Path) -> None:
    first = open_tracking(run, tmp_path / "run", say=print)
    client = _client(first)
    client.delete_run(first.run_id)
    store = client._tracking_client.store  # as `mlflow gc` does
    experiment = client.get_run(first.run_id).info.experiment_id
    store._hard_delete_run(first.run_id)
    if with_experiment:
        client.delete_experiment(experiment)
        store._hard_delete_experiment(experiment)
    told: list[str] = []
    again = open_tracking(run, tmp_path / "run", say=told.append)
    assert again.run_id != first.run_id
    assert told == [f"The MLflow run {first.run_id} was deleted for good; a new one is made."]
    assert open_tracking(run, tmp_path / "run", say=print).run_id == again.run_id


@pytest.mark.parametrize("text", ["{", '{"uri": "x"}'])
def test_a_damaged_note_of_the_run_is_no_unreachable_server(text: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tracking.json").write_text(text)
    told: list[str] = []
    assert open_tracking(run, tmp_path / "run", say=told.append).run_id
    assert told == [f"{tmp_path}/run/tracking.json is damaged, so its MLflow run is not known."]


def test_another_address_than_the_remembered_one_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_tracking(run, tmp_path / "run", say=print)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    told: list[str] = []
    assert open_tracking(run, tmp_path / "run", say=told.append).run_id != first.run_id
    other = f"sqlite:///{tmp_path}/other.db"
    assert told == [f"{tmp_path}/run/tracking.json names MLflow at {first.uri}; at {other} a new run is made."]


def test_tables_of_another_version_of_mlflow_are_no_unreachable_server(run: Run, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as tables:
        tables.execute("UPDATE alembic_version SET version_num = '75868b020152'")
    with pytest.raises(ResourceError, match=r"of another version .* run `mlflow db upgrade sqlite:///") as raised:
        open_tracking(run, tmp_path / "run", say=print)
    assert "cannot be reached" not in str(raised.value)


@pytest.mark.parametrize("name", ["a?b#c%25d%3F", "Läsion & a=b+c;d:e@f'\"[g]*\n"])
def test_the_tables_and_artifacts_lie_beside_the_run_whatever_its_folder_is_called(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, folder = tmp_path / "here", tmp_path / name
    here.mkdir()
    monkeypatch.chdir(here)
    tracking = open_tracking(run, folder / "run", say=print)
    tracking.log_file("pictures/a.png", b"png")
    tracking.end("FINISHED")
    assert _client(tracking).get_run(tracking.run_id).info.status == "FINISHED"
    assert open_tracking(run, folder / "run", say=print).run_id == tracking.run_id
    assert len(list(folder.glob("mlartifacts/*/artifacts/pictures/a.png"))) == 1
    assert (folder / "mlflow.db").is_file()
    assert {path.name for path in folder.iterdir()} - {"run", "mlartifacts"} <= {
        f"mlflow.db{suffix}" for suffix in ("", "-wal", "-shm")
    }
    assert {path.name for path in tmp_path.iterdir()} - {"mlflow.db"} == {"here", name}
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_the_file_store_is_refused_with_what_to_use(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=r"file store; use an SQLite file \(sqlite:////"):
        tracking_uri(tmp_path / "run")


def test_a_server_that_is_down_is_said_at_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(ResourceError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be reached") as raised:
        open_tracking(run, tmp_path / "run", say=print)
    assert "secret" not in str(raised.value)


class _Broken(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@pytest.fixture
def broken_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Broken)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_in_trouble_is_said_at_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_server: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", broken_server)
    with pytest.raises(ResourceError, match="it answers 503"):
        open_tracking(run, tmp_path / "run", say=print)


def test_an_sqlite_file_in_a_place_that_cannot_be_is_said_at_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(ResourceError, match="cannot be reached"):
        open_tracking(run, tmp_path / "run", say=print)


def test_when_mlflow_goes_away_that_is_said_once_and_training_goes_on(run: Run, tmp_path: Path) -> None:
    told: list[str] = []
    say: Callable[[str], None] = told.append
    tracking = open_tracking(run, tmp_path / "run", say=say)
    with sqlite3.connect(tmp_path / "mlflow.db") as tables:
        tables.execute("DROP TABLE metrics")
    for step in range(3):
        tracking.log_row({"rate": 0.1}, step=step)
    tracking.log_file("a.png", b"png")
    tracking.end("FINISHED")
    assert len(told) == 1
    assert "no longer answers" in told[0]
    assert "training goes on without it" in told[0]


def test_a_run_that_is_deleted_while_it_trains_is_restored_once(run: Run, tmp_path: Path) -> None:
    told: list[str] = []
    tracking = open_tracking(run, tmp_path / "run", say=told.append)
    client = _client(tracking)
    client.delete_run(tracking.run_id)
    tracking.log_row({"rate": 0.1}, step=1)
    assert told == [f"The MLflow run {tracking.run_id} had been deleted; it is restored."]
    assert tracking.last_epoch() == 1
    client.delete_run(tracking.run_id)
    for step in (2, 3):
        tracking.log_row({"rate": 0.1}, step=step)
    assert len(told) == 2
    assert "training goes on without it" in told[1]


def test_a_run_that_is_deleted_for_good_while_it_trains_is_no_unreachable_server(run: Run, tmp_path: Path) -> None:
    told: list[str] = []
    tracking = open_tracking(run, tmp_path / "run", say=told.append)
    client = _client(tracking)
    client.delete_run(tracking.run_id)
    client._tracking_client.store._hard_delete_run(tracking.run_id)
    for step in range(3):
        tracking.log_row({"rate": 0.1}, step=step)
    assert told == [
        f"The MLflow run {tracking.run_id} at {tracking.uri} was deleted for good; training goes on without it."
    ]


def test_ending_what_was_deleted_or_forgotten_says_nothing(run: Run, tmp_path: Path) -> None:
    told: list[str] = []
    tracking = open_tracking(run, tmp_path / "run", say=told.append)
    client = _client(tracking)
    end_unfinished(tmp_path / "run", tracking.uri, say=told.append)
    assert client.get_run(tracking.run_id).info.status == "KILLED"
    client.update_run(tracking.run_id, status="RUNNING")
    client.delete_run(tracking.run_id)
    end_unfinished(tmp_path / "run", tracking.uri, say=told.append)
    client._tracking_client.store._hard_delete_run(tracking.run_id)
    end_unfinished(tmp_path / "run", tracking.uri, say=told.append)
    end_unfinished(tmp_path / "no run", tracking.uri, say=told.append)
    assert told == []


def test_metric_names_are_those_that_mlflow_allows() -> None:
    assert metric_name("val/AP@0.10/nodule") == "val/AP_at_0.10/nodule"
    assert metric_name("val/dice/aorta (left)") == "val/dice/aorta _left_"


def test_of_a_run_elsewhere_the_tables_are_in_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beside a job they would go with the job's temporary folder."""
    place, told = Place.of(f"memory://{uuid4().hex}/run"), list[str]()
    tracking = open_tracking(run, place.uri, say=told.append)
    assert tracking.uri == f"{place.uri}/mlflow.db"
    assert told == [
        f"MLflow: without a server (MLFLOW_TRACKING_URI) its tables are kept in the run, as {place.uri}/mlflow.db."
    ]
    tracking.log_row({"rate": 0.1}, step=1)
    tracking.log_file("pictures/epoch_0001.png", b"png")
    assert place.names(f"mlartifacts/{tracking.run_id}/artifacts/pictures") == ["epoch_0001.png"]
    tracking.log_row({"rate": 0.05}, step=2)
    tracking.end("FINISHED")
    # As another process on another node finds it; MLflow, too, remembers where a run's artifacts were.
    monkeypatch.setattr(mlflow_in_run, "_urls", {})
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", OrderedDict())
    again = open_tracking(run, place.uri, say=told.append)
    assert again.run_id == tracking.run_id
    assert again.last_epoch() == 2
    again.log_file("curves.png", b"png")
    assert place.names(f"mlartifacts/{tracking.run_id}/artifacts") == ["curves.png", "recipe.toml", "run.json"]
    again.end("FINISHED")
    place.fetch("mlflow.db", tmp_path / "fetched.db")
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/fetched.db").get_run(tracking.run_id)
    assert found.info.artifact_uri == f"{place.uri}/mlartifacts/{tracking.run_id}/artifacts"
    assert found.data.metrics == {"rate": 0.05}
