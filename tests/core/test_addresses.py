"""Which texts are paths and which are addresses, and that a path comes back out of its URL as it went in."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import unquote

import pytest
from sqlalchemy.engine import create_engine

from voxray.core.addresses import at_home, file_url, local_path, sqlite_path, sqlite_url
from voxray.core.errors import ConfigError
from voxray.core.storage import Place

NAMES = (
    "plain",
    "a?b",
    "a#b",
    "a%25b",
    "a%3Fb",
    "100%",
    "a b",
    "Läsion",
    "a&b=c+d;e:f",
    "'a\"[b]*",
    "a\nb",
    "a@b",
    "~x",
)


@pytest.mark.parametrize("text", ["s3://bucket/run", "memory://x", "simplecache::s3://bucket/run", "gs://b"])
def test_an_address_is_no_path(text: str) -> None:
    assert local_path(text) is None


@pytest.mark.parametrize("text", ["run", "/a/s3://b", "a::b", "file:a", "data:x", "local:x", "C:/x", "~x", "a?b"])
def test_whatever_does_not_begin_as_an_address_is_the_path_that_it_is(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_path(text) == Path(text)
    place = Place.of(text)
    assert place.is_local
    assert place.uri == str(Path(text).absolute())
    assert local_path(Path(text)) == Path(text)


def test_the_home_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/run") == tmp_path / "run"
    assert Place.of("~").uri == str(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_url_names_the_path_that_it_was_made_of(name: str) -> None:
    path = Path("/folder") / name / "run"
    assert local_path(file_url(path)) == path
    assert Place.of(file_url(path)).uri == str(path)
    assert at_home(Path(file_url(path))) == path


@pytest.mark.parametrize("url", ["file://folder/run", "file:///a?b", "file:///a#b", "file://[x/y", "local://run"])
def test_a_file_url_that_could_mean_two_things_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^(file|local)://.*(give that, or the path|or give the path)\.$"):
        local_path(url)


@pytest.mark.parametrize("name", NAMES)
def test_an_sqlite_url_opens_the_file_that_it_was_made_of_and_nothing_else(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "tables.db"
    path.parent.mkdir()
    url = sqlite_url(path)
    assert sqlite_path(url) == path
    engine = create_engine(url)
    with engine.begin() as tables:
        tables.exec_driver_sql("CREATE TABLE t (x)")
    engine.dispose()
    assert sqlite3.connect(path).execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    assert [found.name for found in tmp_path.iterdir()] == [name]
    assert unquote(url).endswith(str(path)) or "%" in name


def test_what_is_no_sqlite_url_names_no_file() -> None:
    assert sqlite_path("http://host:5000") is None
    assert sqlite_path("postgresql://host/db") is None
    assert sqlite_path("sqlite:///a.db?timeout=5") == Path("a.db")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_an_sqlite_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"names no file; give one such as sqlite:////"):
        sqlite_path(url)


def test_a_question_mark_that_was_not_escaped_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"a \? in a folder's name is written %3F"):
        sqlite_path("sqlite:////data/a?b/mlflow.db")


@pytest.mark.parametrize("text", ["s3://bucket/run", "memory://x/y"])
def test_an_address_where_a_path_is_wanted_is_refused(text: str) -> None:
    for value in (Path(text), [Path("run"), Path(text)]):
        with pytest.raises(ConfigError, match=rf"^{text}: is not on this machine"):
            at_home(value)


@pytest.mark.parametrize("value", [None, 3, "s3://bucket", Path("run"), Path("C:/x"), [Path("a:b/c")]])
def test_other_options_stay_as_they_are(value: object) -> None:
    assert at_home(value) == value


def test_a_folder_whose_name_ends_in_a_colon_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scan:").mkdir()
    monkeypatch.chdir(tmp_path)
    assert at_home(Path("scan:/a")) == Path("scan:/a")
