"""Places: files that appear whole or not at all, on a disk and elsewhere, and sentences where they cannot."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from uuid import uuid4

import pytest

from voxray.core.errors import ConfigError, ResourceError
from voxray.core.storage import Place, sync_all


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place on a disk, and one on another file system."""
    return Place.of(tmp_path / "place" if request.param == "local" else f"memory://{uuid4().hex}/place")


def test_what_is_written_is_read_listed_and_removed(place: Place) -> None:
    assert not place.exists("a/one")
    assert place.size("a/one") is None
    assert place.names("a") == place.folders("a") == []
    place.write("a/one", b"first")
    place.write("a/one", b"second")
    place.write("a/b/two", b"")
    assert place.read("a/one") == b"second"
    assert place.size("a/one") == 6
    assert place.names("a") == ["one"]
    assert place.folders("a") == ["b"]
    place.remove("a/one")
    place.remove("a/one")
    assert place.names("a") == []
    place.clear()
    place.clear()
    assert not place.exists("a/b/two")
    with pytest.raises(FileNotFoundError):
        place.read("a/one")


def test_a_file_whose_writing_fails_never_appears(place: Place) -> None:
    place.write("a/one", b"old")
    with pytest.raises(TypeError), place.writing("a/one") as path, path.open("wb") as stream:
        stream.writelines([b"half", None])  # type: ignore[list-item]
    assert place.read("a/one") == b"old"
    assert place.names("a") == ["one"]


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    place = Place.of(tmp_path)
    place.write("a/one", b"done")
    (tmp_path / "a" / ".two.12345678.unfinished").write_bytes(b"half")
    assert place.names("a") == ["one"]
    place.sweep("a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["one"]


def test_a_place_travels_and_a_relative_one_means_the_same_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place.of("store")
    place.write("one", b"1")
    sent = pickle.dumps(place)
    monkeypatch.chdir("/")
    assert pickle.loads(sent).read("one") == b"1"


def test_arrow_reaches_the_same_files(place: Place) -> None:
    place.write("one", b"1")
    root, files = place.arrow()
    with files.open_input_stream(f"{root}/one") as stream:
        assert stream.read() == b"1"


def test_where_it_cannot_be_one_sentence_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"file/store: cannot be written \(Not a directory\); check access"):
        Place.of(tmp_path / "file" / "store").write("one", b"")
    with pytest.raises(ResourceError, match=r"^/proc/store: cannot be written"):
        Place.of("/proc/store").write("one", b"")
    with pytest.raises(ConfigError, match="nosuch://bucket: cannot be opened"):
        Place.of("nosuch://bucket")


def test_what_is_synced_reaches_the_disk_with_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "study"
    (folder / "source").mkdir(parents=True)
    files = [folder / "volume", folder / "source" / "slice"]
    for path in files:
        path.write_bytes(b"x")
    (folder / "link").symlink_to(tmp_path / "nothing")
    synced = list[Path]()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink()))
    sync_all(folder)
    assert sorted(synced) == sorted([*files, folder / "source", folder, tmp_path])


@pytest.mark.parametrize("name", ["r*", "r?", "r[12]", "r"])
def test_what_is_removed_is_that_name_and_not_what_it_would_match(name: str) -> None:
    """On object storage a folder named `r*` must not take `r1` with it."""
    place = Place.of(f"memory://{uuid4().hex}")
    for folder in ("r1", "r2", name):
        place.write(f"{folder}/one", b"1")
        place.write(f"{folder}/.ray/two", b"2")
    place.remove(f"{name}/one")
    place.below(f"{name}/.ray").clear()
    assert not place.exists(f"{name}/one")
    assert not place.exists(f"{name}/.ray/two")
    for folder in ("r1", "r2"):
        assert place.names(folder) == ["one"]
        assert place.names(f"{folder}/.ray") == ["two"]
