"""Where MLflow is, whether it answers, and what it has deleted: restored, or else made anew."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voxray.core.addresses import Location, file_url, local_path, sqlite_path, sqlite_url
from voxray.core.errors import ConfigError, ResourceError
from voxray.distributed.mlflow_in_run import url_in_run

Say = Callable[[str], None]

_PROBE_S = 10.0
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""The codes for a run that is not there, and for a text that is no run's id."""
_REJECTED = (*_ABSENT, "INVALID_STATE")
"""The codes for writing to a run that was deleted."""
_NO_ANSWER = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "IO_ERROR", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
"""The codes under which MLflow's client also reports that it found no server."""


def tracking_uri(location: Location) -> str:
    """Where MLflow is: ``MLFLOW_TRACKING_URI``, or else an SQLite file beside the run; of one elsewhere, in it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        path = local_path(location)
        return url_in_run(location) if path is None else sqlite_url(path.resolve().parent / "mlflow.db")
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme == "file" or len(scheme) == 1 or "/" in scheme:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={uri}: MLflow no longer keeps up its file store; use an SQLite file "
            f"({sqlite_url(Path('mlflow.db'))}) or a server (http://host:5000)."
        )
    sqlite_path(uri)
    return uri


def client_of(uri: str) -> Any:
    """MLflow's client, once a server has answered; a ResourceError where none does.

    MLflow's own client tries for minutes: so there is one short try before it.
    """
    _probe(uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    path = sqlite_path(uri)
    try:
        if path is not None:
            _prepare_sqlite(path)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri)
    except Exception as error:
        raise unusable(uri, error) from error


def experiment_of(client: Any, name: str, uri: str, *, say: Say) -> str:
    """The id of the experiment of that name: the one that is there, restored where it was deleted, or a new one."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        path = sqlite_path(uri)
        artifacts = None if path is None else file_url(path.resolve().parent / "mlartifacts")
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another training may have made it just now
            if found is None:
                raise
    _restore_experiment(client, found, say=say)
    return str(found.experiment_id)


def is_there(client: Any, run_id: str, *, say: Say) -> bool:
    """Whether MLflow has the run; one that was deleted is restored, with its experiment, and that is said.

    False for one that was deleted for good, or that may not be restored.
    """
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return False
        raise
    _restore_experiment(client, client.get_experiment(info.experiment_id), say=say)
    try:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            client.restore_run(run_id)
    except MlflowException as error:
        if error.error_code in _NO_ANSWER:
            raise
        return False
    if info.lifecycle_stage != "active":
        say(f"The MLflow run {run_id} had been deleted; it is restored.")
    return True


def is_rejected(error: Exception) -> bool:
    """Whether MLflow answers, and refuses what is asked of it, as it does of what was deleted."""
    return getattr(error, "error_code", None) in _REJECTED


def unusable(uri: str, error: Exception) -> ResourceError:
    """The sentence for an MLflow that does not answer, or refuses to."""
    code = getattr(error, "error_code", None)
    if "mlflow db upgrade" in str(error):
        shown = shlex.quote(without_password(uri))
        return ResourceError(
            f"MLflow's tables at {without_password(uri)} are of another version than MLflow here; copy them, then "
            f"run `mlflow db upgrade {shown}`, or name others with MLFLOW_TRACKING_URI."
        )
    if code is None or code in _NO_ANSWER:
        return _unreachable(uri, line(error))
    return ResourceError(
        f"MLflow at {without_password(uri)} answers, but refuses ({code}: {line(error)}); mend that there, correct "
        f"MLFLOW_TRACKING_URI, or unset it to track in an SQLite file beside the run."
    )


def without_password(uri: str) -> str:
    """The address as it may be shown."""
    return uri if uri.startswith("sqlite") else re.sub(r"//[^/@]*@", "//", uri)


def line(error: object) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _restore_experiment(client: Any, experiment: Any, *, say: Say) -> None:
    from mlflow.exceptions import MlflowException

    if experiment.lifecycle_stage == "active":
        return
    try:
        client.restore_experiment(experiment.experiment_id)
    except MlflowException as error:
        if client.get_experiment(experiment.experiment_id).lifecycle_stage == "active":
            return  # another training has restored it just now
        raise ResourceError(
            f"MLflow's experiment {experiment.name} was deleted, and cannot be restored ({line(error)}); restore it "
            f"there, or name another one with MLFLOW_EXPERIMENT_NAME."
        ) from error
    say(f"MLflow's experiment {experiment.name} had been deleted; it is restored, with its runs.")


def _probe(uri: str) -> None:
    """Looks whether a server is there, with one short try."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PROBE_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise _unreachable(uri, f"it answers {error.code}") from None
    except (OSError, ValueError) as error:
        raise _unreachable(uri, line(getattr(error, "reason", error))) from None


def _prepare_sqlite(path: Path) -> None:
    """Write-ahead logging: several times faster, and readers do not block; it stays set in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=60)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def _unreachable(uri: str, why: str) -> ResourceError:
    return ResourceError(
        f"MLflow at {without_password(uri)} cannot be reached ({why}); start it, correct MLFLOW_TRACKING_URI, or "
        f"unset it to track in an SQLite file beside the run."
    )
