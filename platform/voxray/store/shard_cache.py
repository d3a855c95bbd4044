"""Shards of a store elsewhere, kept on the node's disk: fetched once for all workers, the longest unused go first.

A file is kept under its SHA-256 from the manifest, appears whole, and is checked when it is fetched; so a store that
is made anew is fetched anew, and two stores with the same shard share it. Who has a file open keeps it when it goes.

``VOXRAY_CACHE`` names the folder (default: a folder of the user's in the one for temporary files, as a home may be on
a network), ``VOXRAY_CACHE_GIB`` its size; with 0 shards are read by ranges of bytes where they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pyarrow as pa

from voxray.core.errors import ConfigError, ResourceError
from voxray.core.storage import is_unfinished
from voxray.store.shards import is_disk_full

FOLDER, SIZE = "VOXRAY_CACHE", "VOXRAY_CACHE_GIB"
LARGEST_GIB, SHARE = 20.0, 0.25
"""The default size: this, or that share of what is free on the disk where it is less."""

ShardSource = Literal["cache", "storage"]

_SUFFIX = ".parquet"
IN_USE_S = 3600.0
"""What was read since stays. An epoch comes to each shard, so one of a store larger than the cache would push out
another each time, and be fetched whole for a tile; those without room are read by ranges instead."""

_LOCKS = 64
_LEFT_S = 3600.0
"""An unfinished file of that age was left by a process that was killed."""

_tellers: list[Callable[[ShardSource], None]] = []


class ChangedShardError(ValueError):
    """A file is not the one that the manifest names."""


@dataclass(frozen=True)
class ShardCache:
    """The files of one folder, which many processes of a node use at once."""

    folder: Path
    limit_bytes: int

    def open(self, sha256: str, num_bytes: int, fetch: Callable[[Path], None]) -> pa.NativeFile | None:
        """The file with that content, fetched if it is not here; None where it does not fit.

        A `ChangedShardError` where what is fetched has another content; what `fetch` raises passes.
        """
        path = self.folder / f"{sha256}{_SUFFIX}"
        found = _opened(path)
        if found is not None:
            _tell("cache")
            return found
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who tidies temporary files may have removed it
        with _locked(self.folder / f"{int(sha256[:8], 16) % _LOCKS:02d}.lock"):
            found = _opened(path)  # another reader may have fetched it meanwhile
            if found is None and self._make_room(num_bytes):
                found = self._fetched(path, sha256, fetch)
                _tell("storage")
            elif found is not None:
                _tell("cache")
        return found

    def _fetched(self, path: Path, sha256: str, fetch: Callable[[Path], None]) -> pa.NativeFile | None:
        beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.unfinished")
        try:
            fetch(beside)
            with beside.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise ChangedShardError(f"{sha256} is not what was fetched")
            found = pa.OSFile(str(beside), "rb")  # open before others can see it, and remove it
            beside.replace(path)
        except (OSError, ResourceError) as error:
            if is_disk_full(error):
                return None
            raise
        finally:
            beside.unlink(missing_ok=True)
        return found

    def _make_room(self, num_bytes: int) -> bool:
        """Removes what was not used for longest until the file fits; False where that does not make room."""
        if num_bytes > self.limit_bytes:
            return False
        with _locked(self.folder / "room.lock"):
            files = []
            for path in self.folder.iterdir():
                with suppress(FileNotFoundError):
                    about = path.stat()
                    if is_unfinished(path.name) and time.time() - about.st_mtime > _LEFT_S:
                        path.unlink()
                    elif path.name.endswith(_SUFFIX) or is_unfinished(path.name):
                        files.append((about.st_mtime, about.st_size, path))
            held = sum(size for _, size, _ in files)
            for used, size, path in sorted(files):
                if held + num_bytes <= self.limit_bytes:
                    break
                if not is_unfinished(path.name) and time.time() - used > IN_USE_S:
                    path.unlink(missing_ok=True)
                    held -= size
        return held + num_bytes <= self.limit_bytes and shutil.disk_usage(self.folder).free > num_bytes


def node_cache() -> ShardCache | None:
    """This node's cache by the environment; None where none is wanted, or its folder cannot be used."""
    return _cache(os.environ.get(FOLDER, ""), os.environ.get(SIZE, ""))


def tell_opened(tell: Callable[[ShardSource], None]) -> None:
    """From now on `tell` hears where each shard came from that is opened in this process."""
    _tellers.append(tell)


@lru_cache(maxsize=4)
def _cache(folder_text: str, size_text: str) -> ShardCache | None:
    try:
        gib = float(size_text) if size_text else None
    except ValueError:
        gib = -1.0
    if gib is not None and not 0 <= gib < float("inf"):
        raise ConfigError(f"{SIZE}={size_text}: must be a number of GiB from 0, such as 20.")
    if gib == 0:
        return None
    folder = Path(folder_text) if folder_text else Path(tempfile.gettempdir()) / f"voxray-shards-{os.getuid()}"
    if not folder.is_absolute():
        raise ConfigError(f"{FOLDER}={folder_text}: must be a full path, as workers have other working folders.")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not folder_text and folder.stat().st_uid != os.getuid():
            return None  # somebody else's, who could change what is read from it
        held = sum(path.stat().st_size for path in folder.glob(f"*{_SUFFIX}"))
        free = shutil.disk_usage(folder).free
        (folder / "room.lock").touch()
    except OSError as error:
        if folder_text:
            raise ResourceError(f"{FOLDER}={folder_text}: cannot be used ({error.strerror or error}).") from error
        return None
    limit = min(LARGEST_GIB * (1 << 30), SHARE * (free + held)) if gib is None else gib * (1 << 30)
    return ShardCache(folder, int(limit))


def _opened(path: Path) -> pa.NativeFile | None:
    """The file, marked as used just now."""
    try:
        found = pa.OSFile(str(path), "rb")
        os.utime(path)
    except FileNotFoundError:
        return None
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One at a time of all threads and processes of this node."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tell(source: ShardSource) -> None:
    for tell in _tellers:
        tell(source)
