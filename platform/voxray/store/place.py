"""Place: the folder or bucket of a store, wherever fsspec reaches (a path, ``s3://``, ``memory://``)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from voxray.errors import ConfigError

_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Place:
    """A root and the names below it; it can travel to workers. Make it with `Place.of`."""

    uri: str

    @staticmethod
    def of(uri: str | Path) -> Place:
        """The place of a path or URI; a relative path becomes absolute, as workers have other working folders."""
        text = str(uri)
        try:
            files, root = fsspec.core.url_to_fs(text)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"{text}: cannot be opened as a store ({error}); give a folder, or a URI of a file system that is "
                f"installed, such as s3:// with voxray[s3]."
            ) from None
        return Place(str(root) if isinstance(files, LocalFileSystem) else text.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine or mounted on it."""
        return isinstance(self._files()[0], LocalFileSystem)

    def path(self, name: str) -> str:
        """The name's full path within its file system."""
        return f"{self._files()[1].rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Whether the name is there."""
        return bool(self._files()[0].exists(self.path(name)))

    def size(self, name: str) -> int | None:
        """Bytes of the file, or None where there is none."""
        try:
            return int(self._files()[0].size(self.path(name)))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """The finished files in a folder, by name alone."""
        files = self._files()[0]
        files.invalidate_cache()
        try:
            found = [str(path).rsplit("/", 1)[-1] for path in files.ls(self.path(folder), detail=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if not name.endswith(_UNFINISHED))

    def open(self, name: str) -> IO[bytes]:
        """The file, for reading."""
        opened: IO[bytes] = self._files()[0].open(self.path(name), "rb")
        return opened

    def read(self, name: str) -> bytes:
        """The file's bytes."""
        with self.open(name) as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """The bytes under that name, all of them or nothing."""
        with self.writing(name) as path:
            path.write_bytes(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local file to write to; when the block ends well it appears under `name`, whole."""
        if self.is_local:
            final = Path(self.path(name))
            final.parent.mkdir(parents=True, exist_ok=True)
            path = final.with_name(f".{final.name}.{uuid4().hex[:8]}{_UNFINISHED}")
        else:
            path = Path(tempfile.mkdtemp(prefix="voxray_")) / "file"
        try:
            yield path
            if self.is_local:
                path.replace(final)
            else:
                self._files()[0].put_file(str(path), self.path(name))
        finally:
            path.unlink(missing_ok=True)
            if not self.is_local:
                path.parent.rmdir()

    def remove(self, name: str) -> None:
        """The file goes, if it is there."""
        if self.exists(name):
            self._files()[0].rm_file(self.path(name))

    def sweep(self, folder: str) -> None:
        """Removes what a writer that was killed left unfinished."""
        if self.is_local and Path(self.path(folder)).is_dir():
            for path in Path(self.path(folder)).glob(f".*{_UNFINISHED}"):
                path.unlink(missing_ok=True)

    def _files(self) -> tuple[Any, str]:
        files, root = fsspec.core.url_to_fs(self.uri)
        return files, str(root)
