"""Place: a folder or bucket with files, wherever fsspec reaches (a path, ``s3://``, ``memory://``).

Every file appears whole or not at all, and what goes wrong is said in a sentence with the place's name.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from voxray.core.addresses import Location as Location
from voxray.core.addresses import local_path
from voxray.core.errors import ConfigError, ResourceError

_UNFINISHED = ".unfinished"
_AT_ONCE = 8


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names, are on the disk when this returns: a power cut does not lose them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """The same of all that a folder holds, and of its own name; many side by side, as a disk writes many at once."""
    paths = [path for path in (*folder.rglob("*"), folder, folder.parent) if not path.is_symlink()]
    if len(paths) <= _AT_ONCE:  # threads would take longer to start than the disk takes
        for path in paths:
            sync(path)
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(paths))) as pool:
        for _ in pool.map(sync, paths):
            pass


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when the block ends well: never half a file."""
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}{_UNFINISHED}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Place:
    """A root and the names below it, which use ``/``; it can travel to workers. Make it with `Place.of`."""

    uri: str

    @staticmethod
    def of(location: Location) -> Place:
        """The place of a path or URI; a relative path becomes absolute, as workers have other working folders."""
        path, text = local_path(location), str(location)
        if path is not None:  # as it is: to fsspec `a::b` and `file:a` would be something else
            return Place(str(path.absolute()))
        try:
            fsspec.core.url_to_fs(text)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"{text}: cannot be opened ({error}); give a folder, or a URI of a file system that is installed, "
                f"such as s3:// with voxray[s3]."
            ) from None
        return Place(text.rstrip("/"))

    def below(self, folder: str) -> Place:
        """The place of a folder within this one."""
        return Place(f"{self.uri}/{folder}")

    @cached_property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine or mounted on it."""
        return local_path(self.uri) is not None

    def path(self, name: str) -> str:
        """The name's full path within its file system."""
        return f"{self._root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        with self._explained("looked at"):
            self._files.invalidate_cache()
            return bool(self._files.exists(self.path(name)))

    def size(self, name: str) -> int | None:
        """Bytes of the file, or None where there is none."""
        try:
            return int(self._files.size(self.path(name)))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """The finished files in a folder, by name alone; none where it does not exist."""
        found = self._listed(folder)
        return [name for name, kind in found if kind == "file" and not name.endswith(_UNFINISHED)]

    def folders(self, folder: str) -> list[str]:
        """The folders in a folder, by name alone; none where it does not exist."""
        return [name for name, kind in self._listed(folder) if kind == "directory"]

    def open(self, name: str) -> IO[bytes]:
        """The file, for reading."""
        opened: IO[bytes] = self._files.open(self.path(name), "rb")
        return opened

    def read(self, name: str) -> bytes:
        """The file's bytes; FileNotFoundError where there is none."""
        with self._explained("read", but=FileNotFoundError), self.open(name) as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """The bytes under that name, all of them or nothing; on a disk they have reached it when this returns."""
        with self._explained("written"), self.writing(name) as path, path.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local file to write to; when the block ends well it appears under `name`, whole."""
        if self.is_local:
            Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
            with whole(Path(self.path(name))) as path:
                yield path
            return
        with tempfile.TemporaryDirectory(prefix="voxray_") as folder:
            yield Path(folder) / "file"
            self._files.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
            self._files.put_file(f"{folder}/file", self.path(name))

    def remove(self, name: str) -> None:
        """The file goes, or the folder with what it holds, if it is there."""
        with self._explained("removed"):
            if self.exists(name):
                self._remove(self.path(name))

    def clear(self) -> None:
        """The place itself goes, with what it holds, if it is there."""
        with self._explained("removed"):
            self._files.invalidate_cache()
            if self._files.exists(self._root):
                self._remove(self._root)

    def sweep(self, folder: str) -> None:
        """Removes what a writer that was killed left unfinished."""
        if self.is_local and Path(self.path(folder)).is_dir():
            for path in Path(self.path(folder)).glob(f".*{_UNFINISHED}"):
                path.unlink(missing_ok=True)

    def arrow(self) -> tuple[str, Any]:
        """The place as a path and a pyarrow file system."""
        from pyarrow import fs

        return self._root, fs.LocalFileSystem() if self.is_local else fs.PyFileSystem(fs.FSSpecHandler(self._files))

    @property
    def _files(self) -> Any:
        return LocalFileSystem() if self.is_local else fsspec.core.url_to_fs(self.uri)[0]

    @cached_property
    def _root(self) -> str:
        return (self.uri if self.is_local else str(fsspec.core.url_to_fs(self.uri)[1])).rstrip("/")

    def _remove(self, path: str) -> None:
        """The one file or folder of that name: elsewhere than on a disk, fsspec takes it for a pattern."""
        self._files.rm(path if self.is_local else glob.escape(path), recursive=True)

    def _listed(self, folder: str) -> list[tuple[str, str]]:
        """(name, type) of what a folder holds."""
        with self._explained("listed"):
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self.path(folder), detail=True)
            except FileNotFoundError:
                return []
        return sorted((str(item["name"]).rstrip("/").rpartition("/")[2], str(item["type"])) for item in found)

    @contextmanager
    def _explained(self, done: str, *, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
        try:
            yield
        except but:
            raise
        except OSError as error:
            text = error.strerror or str(error)
            raise ResourceError(f"{self.uri}: cannot be {done} ({text}); check access and free space.") from error
