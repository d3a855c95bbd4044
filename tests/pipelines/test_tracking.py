"""MLflow: what it keeps of a training, and what happens when it is not there."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.tiny_training import segmentation_recipe
from voxray.config import to_json
from voxray.errors import ConfigError, ResourceError
from voxray.pipelines.tracking import Tracking, metric_name, open_tracking, tracking_uri
from voxray.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy


@pytest.fixture
def run() -> Run:
    recipe = json.loads(to_json(segmentation_recipe()))
    return Run(
        name="tiny run", dataset="balls", licence="CC0-1.0", classes=("ball",), recipe=recipe, voxray_version="0.1.0"
    )


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert open_tracking(run, tmp_path / "run", say=print).run_id != first.run_id


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
    _client(tracking).delete_run(tracking.run_id)
    for step in range(3):
        tracking.log_row({"rate": 0.1}, step=step)
    tracking.log_file("a.png", b"png")
    tracking.end("FINISHED")
    assert len(told) == 1
    assert "training goes on without it" in told[0]


def test_metric_names_are_those_that_mlflow_allows() -> None:
    assert metric_name("val/AP@0.10/nodule") == "val/AP_at_0.10/nodule"
    assert metric_name("val/dice/aorta (left)") == "val/dice/aorta _left_"
