"""What MLflow keeps of a training: the recipe, curves, metrics, pictures.

Only the process that started the training writes, from what the workers leave in the run's folder: so an SQLite file
is enough on any cluster, nothing waits for a tracking server, and a training that goes on keeps its MLflow run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sqlite3
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from voxray.config import to_json, to_toml
from voxray.errors import ConfigError, ResourceError
from voxray.place import Location, Place
from voxray.run import Run
from voxray.training.checkpoint import recipe_of

REMEMBERED = "tracking.json"
"""In the run's folder: where its MLflow run is."""

PARENT = "VOXRAY_PARENT_RUN"
"""Environment: the MLflow run that a training is a part of, such as a sweep's."""

_PARAMS_AT_ONCE = 100
_METRICS_AT_ONCE = 1000
_PARAM_LENGTH = 500
_PROBE_S = 10.0


class Tracking:
    """One MLflow run; when MLflow stops answering, that is said once and nothing more is sent."""

    def __init__(self, client: Any, run_id: str, uri: str, *, say: Callable[[str], None]) -> None:
        self._client, self.run_id, self.uri, self._say = client, run_id, uri, say
        self._is_up = True

    def last_epoch(self) -> int:
        """The last epoch that MLflow knows of; 0 for a new run."""
        known = self._client.get_metric_history(self.run_id, "rate")
        return max((int(metric.step) for metric in known), default=0)

    def log_row(self, row: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step; those that are not finite are left out."""
        from mlflow.entities import Metric

        time_ms = _now_ms()
        metrics = [
            Metric(metric_name(name), float(value), time_ms, step)
            for name, value in row.items()
            if math.isfinite(value)
        ]

        def send() -> None:
            for first in range(0, len(metrics), _METRICS_AT_ONCE):
                self._client.log_batch(self.run_id, metrics=metrics[first : first + _METRICS_AT_ONCE])

        self._attempt(send)

    def log_file(self, name: str, data: bytes) -> None:
        """An artifact; folders in the name are made."""
        folder, _, leaf = name.rpartition("/")

        def send() -> None:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / leaf
                path.write_bytes(data)
                self._client.log_artifact(self.run_id, str(path), folder or None)

        self._attempt(send)

    def tag(self, name: str, value: str) -> None:
        """What is said of the run in a word."""
        self._attempt(lambda: self._client.set_tag(self.run_id, metric_name(name), value))

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self._attempt(lambda: self._client.set_terminated(self.run_id, status))

    def _attempt(self, send: Callable[[], None]) -> None:
        if not self._is_up:
            return
        try:
            send()
        except Exception as error:
            self._is_up = False
            self._say(f"MLflow at {self.uri} no longer answers ({_line(error)}); training goes on without it.")


def open_tracking(run: Run, location: Location, *, say: Callable[[str], None]) -> Tracking:
    """The MLflow run of this training: a new one, or the one that the run's folder remembers.

    A ResourceError where MLflow cannot be reached: better before a training than after it.
    """
    uri = tracking_uri(location)
    return _opened(location, uri, lambda client: _create(client, run, uri), say=say)


def open_sweep(
    run: Run, folder: Location, *, uri: str, name: str, params: Mapping[str, str], say: Callable[[str], None]
) -> Tracking:
    """The MLflow run of a sweep over a run, in its experiment: a new one, or the one that `folder` remembers."""

    def create(client: Any) -> str:
        tags = {"dataset": run.dataset, "licence": run.licence, "run": run.name, "kind": "sweep"}
        run_id = str(client.create_run(_experiment(client, run, uri), tags=tags, run_name=name).info.run_id)
        for field, value in params.items():
            client.log_param(run_id, field, value[:_PARAM_LENGTH])
        return run_id

    return _opened(folder, uri, create, say=say)


def _opened(location: Location, uri: str, create: Callable[[Any], str], *, say: Callable[[str], None]) -> Tracking:
    """The MLflow run that the folder remembers, or a new one that it will."""
    _probe(uri)
    folder = Place.of(location)
    try:
        client = _client(uri)
        run_id = _remembered(folder, client, uri) or create(client)
        folder.write(REMEMBERED, json.dumps({"uri": _without_password(uri), "run_id": run_id}).encode())
        client.update_run(run_id, status="RUNNING")
    except (ConfigError, ResourceError):
        raise
    except Exception as error:
        raise _unreachable(uri, _line(error)) from error
    return Tracking(client, run_id, uri=_without_password(uri), say=say)


def end_unfinished(location: Location, uri: str) -> None:
    """Marks the MLflow run of a training that was stopped from outside as killed, if it still counts as running."""
    place = Place.of(location)
    if not place.exists(REMEMBERED):
        return
    client = _client(uri)
    run_id = _remembered(place, client, uri)
    if run_id is not None and client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, "KILLED")


def prepare_tracking(uri: str) -> None:
    """Makes MLflow's tables where there are none yet: two processes that make them at once spoil each other's."""
    _probe(uri)
    try:
        _client(uri).search_experiments(max_results=1)
    except Exception as error:
        raise _unreachable(uri, _line(error)) from error


def tracking_uri(location: Location) -> str:
    """Where MLflow is: ``MLFLOW_TRACKING_URI``, or else an SQLite file beside the run."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        is_local = "://" not in str(location)
        parent = Path(location).resolve().parent if is_local else Path.cwd()
        return f"sqlite:///{parent / 'mlflow.db'}"
    scheme = urllib.parse.urlsplit(uri).scheme
    if scheme in ("", "file") or len(scheme) == 1:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={uri}: MLflow no longer keeps up its file store; use an SQLite file "
            f"(sqlite:///{Path.cwd() / 'mlflow.db'}) or a server (http://host:5000)."
        )
    return uri


def metric_name(name: str) -> str:
    """The name with what MLflow does not allow replaced: ``AP@0.10`` becomes ``AP_at_0.10``."""
    return re.sub(r"[^\w./: -]", "_", name.replace("@", "_at_"))


def _probe(uri: str) -> None:
    """Looks whether a server is there, with one short try; MLflow's own client tries for minutes."""
    if urllib.parse.urlsplit(uri).scheme not in ("http", "https"):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PROBE_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise _unreachable(uri, f"it answers {error.code}") from None
    except (OSError, ValueError) as error:
        raise _unreachable(uri, _line(getattr(error, "reason", error))) from None


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        _prepare_sqlite(Path(uri.removeprefix("sqlite:///")))
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _prepare_sqlite(path: Path) -> None:
    """Write-ahead logging: several times faster, and readers do not block; it stays set in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=60)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def _remembered(folder: Place, client: Any, uri: str) -> str | None:
    from mlflow.exceptions import MlflowException

    if not folder.exists(REMEMBERED):
        return None
    known = json.loads(folder.read(REMEMBERED))
    if known.get("uri") != _without_password(uri):
        return None
    try:
        client.get_run(known["run_id"])
    except MlflowException:
        return None
    return str(known["run_id"])


def _create(client: Any, run: Run, uri: str) -> str:
    from mlflow.entities import Param

    tags = {
        "dataset": run.dataset,
        "licence": run.licence,
        "recipe": str(run.recipe["name"]),
        "fold": str(run.fold),
        "seed": str(run.seed),
        "commit": run.commit,
        "voxray_version": run.voxray_version,
        "train_cases": str(len(run.train_cases)),
        "val_cases": str(len(run.val_cases)),
    }
    if parent := os.environ.get(PARENT):
        tags["mlflow.parentRunId"] = parent
    created = client.create_run(_experiment(client, run, uri), tags=tags, run_name=run.name)
    run_id = str(created.info.run_id)
    params = [Param(name, value[:_PARAM_LENGTH]) for name, value in _flat(run.recipe)]
    for first in range(0, len(params), _PARAMS_AT_ONCE):
        client.log_batch(run_id, params=params[first : first + _PARAMS_AT_ONCE])
    client.log_text(run_id, to_toml(recipe_of(run)), "recipe.toml")
    client.log_text(run_id, to_json(run), "run.json")
    return run_id


def _experiment(client: Any, run: Run, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"voxray {run.dataset}"
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    artifacts = None
    if uri.startswith("sqlite:///"):
        artifacts = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another training may have made it just now
        if found is None:
            raise
        return str(found.experiment_id)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield path, json.dumps(value)
    else:
        yield path, str(value)


def _unreachable(uri: str, why: str) -> ResourceError:
    return ResourceError(
        f"MLflow at {_without_password(uri)} cannot be reached ({why}); start it, correct MLFLOW_TRACKING_URI, or "
        f"unset it to track in an SQLite file beside the run."
    )


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _now_ms() -> int:
    return int(time.time() * 1000)
