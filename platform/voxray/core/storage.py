"""Place: a folder or bucket with files, wherever fsspec reaches (a path, ``s3://``, ``memory://``).

Every file appears whole or not at all, and what goes wrong is said in a sentence with the place's name.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, TypeVar
from uuid import uuid4

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from voxray.core.addresses import Location as Location
from voxray.core.addresses import local_path, require_address
from voxray.core.errors import ConfigError, ResourceError, VoxrayError
from voxray.core.patience import patiently, trust
from voxray.core.storage_errors import is_of_storage, refusal_of_storage, trouble_of

_UNFINISHED = ".unfinished"
_AT_ONCE = 8
_BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "r2")
"""Kinds of storage that have no folders: to make one there makes the bucket that it names."""

T = TypeVar("T")


def is_unfinished(name: str) -> bool:
    """Whether a file of that name is still being written, or was when its writer was killed."""
    return name.endswith(_UNFINISHED)


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
    """A root and the names below it, which use ``/``; it can travel to workers. Make it with `Place.of`.

    Storage elsewhere that answered before and does not answer now is asked again for ten minutes (`core.patience`).
    """

    uri: str
    tries_once: bool = False

    @staticmethod
    def of(location: Location) -> Place:
        """The place of a path or URI; a relative path becomes absolute, as workers have other working folders."""
        require_address(location)
        path, text = local_path(location), str(location)
        if path is not None:  # as it is: to fsspec `a::b` and `file:a` would be something else
            return Place(str(path.absolute()))
        try:
            fsspec.core.url_to_fs(text)
        except Exception as error:
            if trouble_of(error) is not None:
                raise refusal_of_storage(error, text, "opened") from error
            if not isinstance(error, ValueError | ImportError) and not is_of_storage(error):
                raise
            raise ConfigError(
                f"{text}: cannot be opened ({error}); give a folder, or a URI of a file system that is installed, "
                f"such as s3:// with voxray[s3] or gs:// with voxray[gs]."
            ) from None
        return Place(text.rstrip("/"))

    def below(self, folder: str) -> Place:
        """The place of a folder within this one."""
        return replace(self, uri=f"{self.uri}/{folder}")

    def once(self) -> Place:
        """The same place, where nothing is asked twice: for what may be lost."""
        return replace(self, tries_once=True)

    def trust(self) -> None:
        """Its storage has answered whoever started this process: it is waited for from the first."""
        if not self.is_local:
            trust(self._storage)

    @cached_property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine or mounted on it."""
        return local_path(self.uri) is not None

    @property
    def name(self) -> str:
        """The last part of where it is."""
        return self.uri.rstrip("/").rpartition("/")[2]

    def path(self, name: str) -> str:
        """The name's full path within its file system."""
        return self._root if name == "." else f"{self._root}/{name}"  # to S3 a dot is a name like any other

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""

        def look() -> bool:
            self._files.invalidate_cache()
            return bool(self._files.exists(self.path(name)))

        return self._done("looked at", look)

    def size(self, name: str) -> int | None:
        """Bytes of the file, or None where there is none."""
        try:
            return int(self._done("looked at", lambda: self._files.size(self.path(name)), but=FileNotFoundError))
        except FileNotFoundError:
            return None

    def modified(self, name: str) -> float | None:
        """When the file was last written, in seconds since 1970; None where there is none, or nobody knows."""
        with self._explained("looked at", but=FileNotFoundError):
            try:
                self._files.invalidate_cache()
                return float(self._files.modified(self.path(name)).timestamp())
            except (FileNotFoundError, NotImplementedError):
                return None

    def names(self, folder: str) -> list[str]:
        """The finished files in a folder, by name alone; none where it does not exist."""
        return self.listing(folder)[0]

    def folders(self, folder: str) -> list[str]:
        """The folders in a folder, by name alone; none where it does not exist."""
        return self.listing(folder)[1]

    def listing(self, folder: str) -> tuple[list[str], list[str]]:
        """The finished files and the folders in a folder, by name alone, with one request."""
        found = self._listed(folder)
        files = [name for name, kind in found if kind == "file" and not name.endswith(_UNFINISHED)]
        return files, [name for name, kind in found if kind == "directory"]

    def open(self, name: str) -> IO[bytes]:
        """The file, for reading here and there: each read asks for its own bytes, and for none ahead.

        FileNotFoundError where there is none. What reads of it raise is the library's.
        """
        opened: IO[bytes] = self._done(
            "read", lambda: self._files.open(self.path(name), "rb", cache_type="none"), but=FileNotFoundError
        )
        return opened

    def read(self, name: str) -> bytes:
        """The file's bytes; FileNotFoundError where there is none.

        A small file comes in one piece: where it is replaced meanwhile, as the old one or as the new one.
        """
        return bytes(self._done("read", lambda: self._files.cat_file(self.path(name)), but=FileNotFoundError))

    def reading(self, name: str, make: Callable[[IO[bytes]], T]) -> T:
        """What `make` reads of the file; a file that is replaced meanwhile is read again."""

        def read() -> T:
            with self._files.open(self.path(name), "rb") as file:
                return make(file)

        return self.insist(read)

    def insist(self, action: Callable[[], T]) -> T:
        """What the action gives, which reads here in its own way; where the storage does not answer, again.

        What it raises of other things stays as it is.
        """

        def explained() -> T:
            try:
                return action()
            except Exception as error:
                if isinstance(error, VoxrayError) or trouble_of(error) is None:
                    raise
                raise refusal_of_storage(error, self.uri, "read") from error

        return action() if self.is_local else patiently(explained, self._storage)

    def fetch(self, name: str, path: Path) -> None:
        """A copy of the file at a local path; FileNotFoundError where there is none."""
        self._done("read", lambda: self._files.get_file(self.path(name), str(path)), but=FileNotFoundError)

    def write(self, name: str, data: bytes) -> None:
        """The bytes under that name, all of them or nothing; on a disk they have reached it when this returns."""
        with self._explained("written"), self.writing(name) as path, path.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    def offer(self, name: str, data: bytes) -> bool:
        """Writes what may be lost, such as how far a training is; whether it could be."""
        try:
            self.once().write(name, data)
        except ResourceError:
            return False
        return True

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
            self._done("written", partial(self._put, f"{folder}/file", name))

    def put(self, name: str, path: Path) -> None:
        """The local file appears under `name`, whole."""
        if self.is_local:
            with self._explained("written"), self.writing(name) as beside:
                shutil.copyfile(path, beside)
            return
        self._done("written", partial(self._put, str(path), name))

    def require_writable(self) -> None:
        """A ResourceError, before any work, where nothing can be written; for storage elsewhere."""
        if self.is_local:
            return
        name = f".voxray-{uuid4().hex[:8]}{_UNFINISHED}"
        self.write(name, b"")
        with suppress(ResourceError):  # the right to remove is not always given, and seldom needed
            self.once().remove(name)

    def remove(self, name: str) -> None:
        """The file goes, or the folder with what it holds, if it is there."""
        if self.exists(name):
            self._done("removed", lambda: self._remove(self.path(name)), but=FileNotFoundError)

    def clear(self) -> None:
        """The place itself goes, with what it holds, if it is there."""

        def clear() -> None:
            self._files.invalidate_cache()
            if self._files.exists(self._root):
                self._remove(self._root)

        self._done("removed", clear)

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

    def _put(self, path: str, name: str) -> None:
        if not self.uri.rpartition("://")[0].rpartition("::")[2].startswith(_BUCKETS):
            self._files.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
        self._files.put_file(path, self.path(name))

    def _listed(self, folder: str) -> list[tuple[str, str]]:
        """(name, type) of what a folder holds."""

        def listed() -> Any:
            self._files.invalidate_cache()
            return self._files.ls(self.path(folder), detail=True)

        try:
            found = self._done("listed", listed, but=FileNotFoundError)
        except FileNotFoundError:
            return []
        # Of a file some list the file, and of a folder S3 lists the mark that its console puts there.
        own = self.path(folder).strip("/")
        inside = [(str(item["name"]).rstrip("/"), str(item["type"])) for item in found]
        return sorted((name.rpartition("/")[2], kind) for name, kind in inside if name.strip("/") != own)

    @property
    def _storage(self) -> str:
        """What answers or does not: the scheme and the bucket or host."""
        scheme, _, rest = self.uri.rpartition("://")
        return f"{scheme}://{rest.partition('/')[0]}"

    def _done(self, done: str, action: Callable[[], T], *, but: type[OSError] | tuple[()] = ()) -> T:
        """What the action gives, asked again where its storage does not answer just now."""

        def explained() -> T:
            with self._explained(done, but=but):
                return action()

        return explained() if self.is_local or self.tries_once else patiently(explained, self._storage)

    @contextmanager
    def _explained(self, done: str, *, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
        try:
            yield
        except VoxrayError:
            raise
        except Exception as error:
            if but and isinstance(error, but) and trouble_of(error) is None:
                raise
            if not isinstance(error, OSError) and not is_of_storage(error):
                raise
            if self.is_local:
                text = getattr(error, "strerror", None) or str(error)
                raise ResourceError(f"{self.uri}: cannot be {done} ({text}); check access and free space.") from error
            raise refusal_of_storage(error, self.uri, done) from error
