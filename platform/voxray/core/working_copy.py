"""Working copies: what libraries and code that know only paths do to a folder elsewhere, they do to a copy of it.

A local place is its own working copy, by the path that was given, so that nothing is copied there. Of a place
elsewhere what is asked for is fetched. When the block ends, well or not, what was removed is removed there, and what
is new or changed is written there, file by file, in the order in which it was written here: what says that the rest
is complete comes last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from voxray.core.addresses import local_path, require_address
from voxray.core.errors import ConfigError, DataError, ResourceError, VoxrayError
from voxray.core.storage import Location, Place, is_unfinished

_AT_ONCE = 8
_FEW = 16
"""So many names are asked for one by one; of more the folders are listed first."""

E = TypeVar("E", bound=VoxrayError)

_Seen = dict[str, tuple[int, int]]


@contextmanager
def working_copy(location: Location, only: Iterable[str] | None = None) -> Iterator[Path]:
    """A folder on this machine with the files of the place (or `only` those names of it), to read and to change.

    What is refused meanwhile names the place, and not the copy.
    """
    require_address(location)
    if (path := local_path(location)) is not None:
        yield path
        return
    place = Place.of(location)
    with tempfile.TemporaryDirectory(prefix="voxray_") as scratch:
        folder = Path(scratch) / (place.name or "files")
        folder.mkdir()
        _fetch(place, folder, None if only is None else list(only))
        with _Publishing(place, folder):
            yield folder


@contextmanager
def local_file(location: Location) -> Iterator[Path]:
    """The file as one on this machine, to read."""
    require_address(location)
    if (path := local_path(location)) is not None:
        yield path
        return
    place = Place.of(location)
    above, _, name = place.uri.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="voxray_") as scratch:
        path = Path(scratch) / name
        try:
            Place.of(above).fetch(name, path)
        except FileNotFoundError:
            raise ConfigError(f"{place.uri}: no such file.") from None
        with _Naming(str(path), place.uri):
            yield path


def named(text: str, folder: Path, location: Location) -> str:
    """The text with the place in place of its working copy."""
    return text.replace(str(folder), Place.of(location).uri)


def renamed(error: E, named: Callable[[str], str]) -> E:
    """The error with other names in its sentences; itself where they are none of it."""
    if named(str(error)) == str(error):
        return error
    if isinstance(error, DataError):
        message, remedy = named(error.message), named(error.remedy)
        return type(error)(error.code, message, remedy=remedy, case_id=error.case_id, facts=error.facts)
    return type(error)(named(str(error)))


class _Naming:
    """What is refused names the place, and not the copy."""

    def __init__(self, copy: str, uri: str) -> None:
        self._copy, self._uri = copy, uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, VoxrayError):
            return
        told = renamed(error, lambda text: text.replace(self._copy, self._uri))
        if told is not error:
            raise told.with_traceback(trace) from error


class _Publishing(_Naming):
    """At its end the place has what the copy has."""

    def __init__(self, place: Place, folder: Path) -> None:
        super().__init__(str(folder), place.uri)
        self._place, self._folder, self._before = place, folder, _seen(folder)

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._publish()
        except ResourceError:
            if error is None:
                raise
        super().__exit__(kind, error, trace)

    def _publish(self) -> None:
        now = _seen(self._folder)
        for name in sorted(self._before.keys() - now.keys(), key=_indexes_last, reverse=True):
            self._place.remove(name)
        changed = [name for name, what in now.items() if self._before.get(name) != what]
        for name in sorted(changed, key=lambda name: (now[name][0], _indexes_last(name))):
            self._place.put(name, self._folder / name)
        self._before = now


def _indexes_last(name: str) -> tuple[bool, str]:
    return name.endswith(".json"), name


def _seen(folder: Path) -> _Seen:
    """Every finished file: when it was written, and its size."""
    found: _Seen = {}
    for path in folder.rglob("*"):
        if path.is_file() and not is_unfinished(path.name):
            about = path.stat()
            found[path.relative_to(folder).as_posix()] = about.st_mtime_ns, about.st_size
    return found


def _fetch(place: Place, folder: Path, only: list[str] | None) -> None:
    if only is None:
        names = list(_all_names(place, "."))
    elif len(only) > _FEW:
        there = {within: set(place.names(within)) for within in {_parent(name) for name in only}}
        names = [name for name in only if name.rpartition("/")[2] in there[_parent(name)]]
    else:
        names = only

    def fetch(name: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.fetch(name, path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(fetch, names):
            pass


def _parent(name: str) -> str:
    return name.rpartition("/")[0] or "."


def _all_names(place: Place, within: str) -> Iterator[str]:
    before = "" if within == "." else f"{within}/"
    yield from (f"{before}{name}" for name in place.names(within))
    for name in place.folders(within):
        yield from _all_names(place, f"{before}{name}")
