"""Names that clients give: found again, and never kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from voxray.serving.http.aliases import KEY, Aliases, key_in
from voxray.serving.jobs.store import JobStore

NAME = "Doe^Jane 1950-01-02"


def ledger_with(folder: Path, *studies: str) -> JobStore:
    """A ledger in a file, with these studies."""
    store = JobStore(f"sqlite:///{folder / 'service.db'}")
    for study in studies:
        store.add_study(study, "me", "{}", hours=1)
    return store


def test_names_are_found_by_their_owner_alone(tmp_path: Path) -> None:
    store = ledger_with(tmp_path, "a" * 32, "b" * 32)
    aliases = Aliases(store.engine, tmp_path)
    assert aliases.study("me", NAME) is None
    aliases.give("me", NAME, "a" * 32)
    aliases.give("me", NAME + "x", "b" * 32)
    assert aliases.study("me", NAME) == "a" * 32
    assert aliases.study("you", NAME) is None
    assert aliases.study("m", "e\0" + NAME) is None
    aliases.give("me", NAME, "b" * 32)
    assert aliases.study("me", NAME) == "b" * 32
    assert Aliases(store.engine, tmp_path).study("me", NAME) == "b" * 32
    store.close()


def test_a_study_takes_its_names_with_it(tmp_path: Path) -> None:
    store = ledger_with(tmp_path, "a" * 32)
    aliases = Aliases(store.engine, tmp_path)
    aliases.give("me", NAME, "a" * 32)
    store.remove_study("a" * 32)
    assert aliases.study("me", NAME) is None
    store.close()


def test_nothing_on_the_disk_tells_the_name(tmp_path: Path) -> None:
    store = ledger_with(tmp_path, "a" * 32)
    Aliases(store.engine, tmp_path).give("me", NAME, "a" * 32)
    store.close()
    for path in tmp_path.iterdir():
        assert b"Jane" not in path.read_bytes()
    assert (tmp_path / KEY).stat().st_mode & 0o077 == 0


def test_those_who_come_at_once_have_one_key(tmp_path: Path) -> None:
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(key_in, [folder] * 8))
        assert len(set(found)) == 1
        assert len(found[0]) == 32
        assert [path.name for path in folder.iterdir()] == [KEY]
