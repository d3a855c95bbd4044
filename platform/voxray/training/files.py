"""Files in a folder, local or on object storage (``s3://bucket/run``); each is written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from voxray.errors import ConfigError, ResourceError

Location = str | Path
"""A folder: a path, or an address with a scheme that fsspec knows."""


class Folder:
    """A folder on some file system; names inside it are relative and use ``/``."""

    def __init__(self, location: Location) -> None:
        self.location = str(location).rstrip("/")
        try:
            self._system, root = fsspec.core.url_to_fs(self.location)
        except ImportError as error:
            raise ConfigError(f"{self.location}: {error}; `pip install voxray[s3]` adds s3:// addresses.") from None
        except ValueError as error:
            raise ConfigError(f"{self.location}: not an address that can be opened ({error}).") from None
        self._root: str = root.rstrip("/")
        self._local = "file" in _protocols(self._system)

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        with self._explained("looked at"):
            self._system.invalidate_cache()
            return bool(self._system.exists(self._path(name)))

    def read(self, name: str) -> bytes:
        """The file's bytes; FileNotFoundError where there is none."""
        with self._explained("read"):
            return bytes(self._system.cat_file(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Puts the file in place as a whole: a reader sees the old bytes or the new ones, never a part."""
        with self._explained("written"):
            if self._local:
                _replace(Path(self._path(name)), data)
            else:
                self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
                self._system.pipe_file(self._path(name), data)

    def folders(self, name: str) -> list[str]:
        """The names of the folders in a folder; none where it does not exist."""
        with self._explained("listed"):
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self._path(name), detail=True)
            except FileNotFoundError:
                return []
        return sorted(item["name"].rstrip("/").rpartition("/")[2] for item in found if item["type"] == "directory")

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with what it holds."""
        with self._explained("removed"):
            self._system.rm(self._path(name), recursive=True)

    def clear(self) -> None:
        """Removes the folder itself with what it holds, if it is there."""
        with self._explained("removed"):
            self._system.invalidate_cache()
            if self._system.exists(self._root):
                self._system.rm(self._root, recursive=True)

    def arrow(self) -> tuple[str, Any]:
        """The folder as a path and a pyarrow file system."""
        from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

        return self._root, LocalFileSystem() if self._local else PyFileSystem(FSSpecHandler(self._system))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            text = error.strerror or str(error)
            raise ResourceError(
                f"{self.location}: cannot be {done} ({text}); check access and free space."
            ) from error


def _replace(path: Path, data: bytes) -> None:
    """The file in its final place only after its bytes have reached the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)
