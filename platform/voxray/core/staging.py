"""Staging: files elsewhere that are read as files on this machine, in a temporary folder that is gone afterwards.

A worker stages the files of the one case or scan that it works on, so that disk and memory hold what is under way and
no more. A file that is not there is not staged: what reads it says so, as of any file. What is refused meanwhile
names the address, and not the copy. Unlike a working copy, nothing is written back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from voxray.core.addresses import Location, local_path
from voxray.core.errors import VoxrayError
from voxray.core.storage import Place
from voxray.core.text import on_disk, read_text, spellings, text_in
from voxray.core.working_copy import renamed

_AT_ONCE = 8


class Staging:
    """A folder of copies; an address has one path in it, and a path on this machine stays as it is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._heads: list[str] = []

    def path(self, location: str) -> Path:
        """Where the copy lies, or will."""
        here = local_path(location)
        if here is not None:
            return here
        head, sign, rest = location.rstrip("/").rpartition("://")
        if head + sign not in self._heads:
            self._heads.append(head + sign)
        parts = [part if part not in (".", "..") else f"_{part}" for part in rest.split("/")]
        return self._folder.joinpath(str(self._heads.index(head + sign)), *parts)

    def bring(self, location: str) -> Path:
        """A copy of the file; none where it is not there."""
        path = self.path(location)
        if local_path(location) is None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            for spelled in spellings(location):
                above, _, name = spelled.rstrip("/").rpartition("/")
                if _fetched(_place(above), name, path):
                    break
        return path

    def bring_all(self, locations: Iterable[str]) -> None:
        """Copies of the files that are there."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(self.bring, locations):
                pass

    def bring_folder(self, location: str) -> Path:
        """A copy of the folder: its files, and folders within by name alone; none where it is not there."""
        path = self.path(location)
        if local_path(location) is not None or path.exists():
            return path
        files, folders = listed(location)
        for name in folders:
            (path / name).mkdir(parents=True, exist_ok=True)
        self.bring_all(f"{location.rstrip('/')}/{name}" for name in files)
        return path

    def leave_empty(self, location: str) -> None:
        """An empty file in place of one of which nothing but its name matters."""
        path = self.path(location)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def named(self, text: str) -> str:
        """The text with addresses in place of the paths of their copies."""
        for number, head in enumerate(self._heads):
            text = text.replace(f"{self._folder}/{number}/", head)
        return text


@contextmanager
def staging() -> Iterator[Staging]:
    """A Staging whose copies are gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="voxray_scan_") as folder:
        staged = Staging(Path(folder))
        try:
            yield staged
        except VoxrayError as error:
            told = renamed(error, staged.named)
            if told is error:
                raise
            raise told.with_traceback(error.__traceback__) from error


def listed(location: str) -> tuple[list[str], list[str]]:
    """The names of the files and of the folders in a folder elsewhere, hidden ones left out."""
    files, folders = _place(location).listing(".")
    return [name for name in files if name[0] != "."], [name for name in folders if name[0] != "."]


def text_at(location: str) -> str:
    """The text of a file, wherever it lies; an OSError or a TextError says why there is none."""
    path = local_path(location)
    if path is not None:
        return read_text(path)
    for spelled in spellings(location):
        above, _, name = spelled.rpartition("/")
        try:
            return text_in(_place(above).read(name))
        except FileNotFoundError:
            continue
    raise FileNotFoundError(f"{location}: no such file")


def is_file_at(location: Location) -> bool:
    """Whether there is such a file, wherever it lies."""
    place = Place.of(location)
    return on_disk(Path(place.uri)).is_file() if place.is_local else place.size(".") is not None


def _place(location: str) -> Place:
    place = Place.of(location)
    place.trust()  # whoever found the case there has had an answer
    return place


def _fetched(place: Place, name: str, path: Path) -> bool:
    try:
        place.fetch(name, path)
    except FileNotFoundError:
        return False
    if path.is_dir():  # some file systems make a folder of a folder
        path.rmdir()
        return False
    return True
