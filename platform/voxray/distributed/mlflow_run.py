"""What MLflow keeps of a training: the recipe, curves, metrics, pictures.

Only the process that started the training writes, from what the workers leave in the run's folder: so an SQLite file
is enough on any cluster, nothing waits for a tracking server, and a training that goes on keeps its MLflow run.
"""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from voxray.core.addresses import Location
from voxray.core.config import to_json, to_toml
from voxray.core.errors import ConfigError, ResourceError
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.distributed.mlflow_in_run import place_of, put_back, shown
from voxray.distributed.mlflow_server import (
    Say,
    client_of,
    experiment_of,
    is_rejected,
    is_there,
    line,
    tracking_uri,
    unusable,
    without_password,
)
from voxray.training.checkpoint import recipe_of

REMEMBERED = "tracking.json"
"""In the run's folder: where its MLflow run is."""

PARENT = "VOXRAY_PARENT_RUN"
"""Environment: the MLflow run that a training is a part of, such as a sweep's."""

_PARAMS_AT_ONCE = 100
_METRICS_AT_ONCE = 1000
_PARAM_LENGTH = 500


class Tracking:
    """One MLflow run; when MLflow stops answering, that is said once and nothing more is sent.

    Where the run is deleted meanwhile it is restored, once.
    """

    def __init__(self, client: Any, run_id: str, url: str, *, say: Say) -> None:
        self._client, self.run_id, self._url, self._say = client, run_id, url, say
        self.uri = _shown(url)
        self._is_up, self._was_restored = True, False

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
        with suppress(ResourceError, OSError, sqlite3.Error):  # it is tried again with the next file, and at the end
            put_back(self._url)

    def tag(self, name: str, value: str) -> None:
        """What is said of the run in a word."""
        self._attempt(lambda: self._client.set_tag(self.run_id, metric_name(name), value))

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self._attempt(lambda: self._client.set_terminated(self.run_id, status))
        try:
            put_back(self._url)
        except (ResourceError, OSError, sqlite3.Error) as error:
            self._say(f"MLflow's tables are not in the run as they were at the end: {line(error)}")

    def _attempt(self, send: Callable[[], None]) -> None:
        if not self._is_up:
            return
        try:
            send()
        except Exception as error:
            if is_rejected(error) and not self._was_restored:
                self._send_to_restored(send)
            else:
                self._give_up(f"MLflow at {self.uri} no longer answers ({line(error)})")

    def _send_to_restored(self, send: Callable[[], None]) -> None:
        self._was_restored = True
        try:
            if is_there(self._client, self.run_id, say=self._say):
                send()
            else:
                self._give_up(f"The MLflow run {self.run_id} at {self.uri} was deleted for good")
        except Exception as error:
            self._give_up(f"MLflow at {self.uri} refuses ({line(error)})")

    def _give_up(self, why: str) -> None:
        self._is_up = False
        self._say(f"{why}; training goes on without it.")


def open_tracking(run: Run, location: Location, *, say: Say) -> Tracking:
    """The MLflow run of this training: a new one, or the one that the run's folder remembers.

    A ResourceError where MLflow cannot be reached: better before a training than after it.
    """
    uri = tracking_uri(location)
    return _opened(location, uri, lambda client: _create(client, run, uri, say), say=say)


def open_sweep(run: Run, folder: Location, *, uri: str, name: str, params: Mapping[str, str], say: Say) -> Tracking:
    """The MLflow run of a sweep over a run, in its experiment: a new one, or the one that `folder` remembers."""

    def create(client: Any) -> str:
        tags = {"dataset": run.dataset, "licence": run.licence, "run": run.name, "kind": "sweep"}
        run_id = str(client.create_run(_experiment(client, run, uri, say), tags=tags, run_name=name).info.run_id)
        for field, value in params.items():
            client.log_param(run_id, field, value[:_PARAM_LENGTH])
        return run_id

    return _opened(folder, uri, create, say=say)


def _opened(location: Location, uri: str, create: Callable[[Any], str], *, say: Say) -> Tracking:
    """The MLflow run that the folder remembers, or a new one that it will."""
    client, folder = client_of(uri), Place.of(location)
    if place_of(uri) is not None:
        say(f"MLflow: without a server (MLFLOW_TRACKING_URI) its tables are kept in the run, as {_shown(uri)}.")
    try:
        run_id = _remembered(folder, client, uri, say) or create(client)
        folder.write(REMEMBERED, json.dumps({"uri": _shown(uri), "run_id": run_id}).encode())
        client.update_run(run_id, status="RUNNING")
    except (ConfigError, ResourceError):
        raise
    except Exception as error:
        raise unusable(uri, error) from error
    return Tracking(client, run_id, uri, say=say)


def end_unfinished(location: Location, uri: str, *, say: Say) -> None:
    """Marks the MLflow run of a training that was stopped from outside as killed, if it still counts as running."""
    run_id, known = _noted(Place.of(location), say)
    if run_id is None or known != _shown(uri):
        return
    try:
        client = client_of(uri)
        info = client.get_run(run_id).info
        if info.status == "RUNNING" and info.lifecycle_stage == "active":
            client.set_terminated(run_id, "KILLED")
    except Exception as error:
        if not is_rejected(error):  # a run that was deleted has ended
            say(f"The MLflow run {run_id} still counts as running: {line(error)}")


def prepare_tracking(uri: str) -> None:
    """Makes MLflow's tables where there are none yet: two processes that make them at once spoil each other's."""
    client = client_of(uri)
    try:
        client.search_experiments(max_results=1)
    except Exception as error:
        raise unusable(uri, error) from error


def _shown(uri: str) -> str:
    """The address as it is said and remembered."""
    return shown(without_password(uri))


def metric_name(name: str) -> str:
    """The name with what MLflow does not allow replaced: ``AP@0.10`` becomes ``AP_at_0.10``."""
    return re.sub(r"[^\w./: -]", "_", name.replace("@", "_at_"))


def _noted(folder: Place, say: Say) -> tuple[str | None, str | None]:
    """The id and the address of the MLflow run that the folder remembers."""
    if not folder.exists(REMEMBERED):
        return None, None
    try:
        known = json.loads(folder.read(REMEMBERED))
        return str(known["run_id"]), str(known["uri"])
    except (ValueError, KeyError, TypeError):
        say(f"{folder.path(REMEMBERED)} is damaged, so its MLflow run is not known.")
        return None, None


def _remembered(folder: Place, client: Any, uri: str, say: Say) -> str | None:
    """The MLflow run that the folder remembers, if it is there or can be restored."""
    run_id, known = _noted(folder, say)
    if run_id is None:
        return None
    if known != _shown(uri):
        say(f"{folder.path(REMEMBERED)} names MLflow at {known}; at {_shown(uri)} a new run is made.")
        return None
    if is_there(client, run_id, say=say):
        return run_id
    say(f"The MLflow run {run_id} was deleted for good; a new one is made.")
    return None


def _create(client: Any, run: Run, uri: str, say: Say) -> str:
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
    created = client.create_run(_experiment(client, run, uri, say), tags=tags, run_name=run.name)
    run_id = str(created.info.run_id)
    params = [Param(name, value[:_PARAM_LENGTH]) for name, value in _flat(run.recipe)]
    for first in range(0, len(params), _PARAMS_AT_ONCE):
        client.log_batch(run_id, params=params[first : first + _PARAMS_AT_ONCE])
    client.log_text(run_id, to_toml(recipe_of(run)), "recipe.toml")
    client.log_text(run_id, to_json(run), "run.json")
    return run_id


def _experiment(client: Any, run: Run, uri: str, say: Say) -> str:
    return experiment_of(client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"voxray {run.dataset}", uri, say=say)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield path, json.dumps(value)
    else:
        yield path, str(value)


def _now_ms() -> int:
    return int(time.time() * 1000)
