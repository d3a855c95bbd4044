"""What a verb writes is none of what it reads, whatever the names say: files are told apart by the file system.

Two paths are one file where the system says so (device and number), which covers links of both kinds, ``..``,
relative paths, and file systems that do not tell capital letters from small ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from voxray.core.errors import ConfigError


@dataclass(frozen=True)
class Input:
    """A file that is read, and what it is, in words such as ``the scan``."""

    path: Path
    what: str


def keep_apart(written: Iterable[Path], read: Iterable[Input], *, instead: str) -> None:
    """A ConfigError where a file that would be written is one that is read; `instead` says what to do."""
    there = {key: path for path in written if (key := _key(path)) is not None}
    if not there:
        return  # what is not there yet is nothing that could be read
    for one in read:
        path = there.get(_key(one.path) or (-1, -1))
        if path is not None:
            same = "" if os.path.abspath(path) == os.path.abspath(one.path) else f" {one.path} under another name"  # noqa: PTH100
            raise ConfigError(f"{path}: is {one.what}{same}, which is read, and would be written over; {instead}.")


def keep_out(folder: Path, read: Iterable[Input], *, instead: str) -> None:
    """A ConfigError where the folder that would be written to is one of the folders that are read, or lies in it."""
    above = [_key(path) or path for path in _with_parents(folder)]
    for one in read:
        key = _key(one.path) or Path(os.path.realpath(one.path))
        if key in above:
            where = "is" if key == above[0] else f"lies in {one.path},"
            raise ConfigError(f"{folder}: {where} {one.what}, which is read, and would be written into; {instead}.")


def require_folder(folder: Path, option: str) -> None:
    """A ConfigError where the place of a folder, or of one above it, is taken by a file."""
    for path in _with_parents(folder):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{option} {folder}: {path} is a file; give the name of a folder.")


def _with_parents(path: Path) -> list[Path]:
    """The path as the system finds it, and every folder above it."""
    real = Path(os.path.realpath(path))
    return [real, *real.parents]


def _key(path: Path) -> tuple[int, int] | None:
    """What the file system knows a file by; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
