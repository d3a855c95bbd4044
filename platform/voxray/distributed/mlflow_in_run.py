"""MLflow without a server, for a run that lies elsewhere: its tables are a file of this process, and of the run.

SQLite wants a file system, so the tables are fetched when a run is opened, and put back, as ``RUN/mlflow.db`` with
``RUN/mlartifacts``, after every validation and at the end. What a process that was killed had not put back yet is
sent again from the run's history.
"""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from voxray.core.addresses import Location, file_url, sqlite_path, sqlite_url
from voxray.core.storage import Place

TABLES, ARTIFACTS = "mlflow.db", "mlartifacts"
_WHERE = "place.txt"
"""Beside the tables: the place that they are put back to; a process that is handed their URL finds it there."""

_urls: dict[str, str] = {}


def url_in_run(location: Location) -> str:
    """The URL of this process's copy of the tables of a run elsewhere, fetched when it is first asked for."""
    place = Place.of(location)
    if place.uri not in _urls:
        folder = Path(tempfile.mkdtemp(prefix="voxray_mlflow_"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        (folder / _WHERE).write_text(place.uri, encoding="utf-8")
        with suppress(FileNotFoundError):
            place.fetch(TABLES, folder / TABLES)
            _relocate(folder / TABLES, f"{place.uri}/{ARTIFACTS}", file_url(folder / ARTIFACTS))
        _urls[place.uri] = sqlite_url(folder / TABLES)
    return _urls[place.uri]


def place_of(url: str) -> Place | None:
    """The run's place that the tables at a URL are a copy of; None for all others."""
    path = sqlite_path(url)
    where = None if path is None else path.with_name(_WHERE)
    if where is None or not where.is_file():
        return None
    return Place.of(where.read_text(encoding="utf-8"))


def shown(url: str) -> str:
    """The URL as it is remembered and said: of tables that are a run's own, where they lie there."""
    place = place_of(url)
    return url if place is None else f"{place.uri}/{TABLES}"


def put_back(url: str) -> None:
    """Puts the tables, and the artifacts that are not there yet, into the run; whole, whoever writes meanwhile."""
    place, path = place_of(url), sqlite_path(url)
    if place is None or path is None or not path.exists():
        return
    with tempfile.TemporaryDirectory(prefix="voxray_") as scratch:
        copy = Path(scratch) / TABLES
        with closing(sqlite3.connect(path, timeout=60)) as tables, closing(sqlite3.connect(copy)) as whole:
            tables.backup(whole)
        _relocate(copy, file_url(path.parent / ARTIFACTS), f"{place.uri}/{ARTIFACTS}")
        place.put(TABLES, copy)
    folder = path.parent / ARTIFACTS
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = f"{ARTIFACTS}/{file.relative_to(folder).as_posix()}"
        if place.size(name) != file.stat().st_size:
            place.put(name, file)


def _relocate(tables: Path, old: str, new: str) -> None:
    """Has the tables say that artifacts lie elsewhere; MLflow writes where they say."""
    with closing(sqlite3.connect(tables)) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (old, new))
