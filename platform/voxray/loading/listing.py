"""Names below a folder elsewhere that fit patterns, as `Path.glob` finds them on a disk.

Folders are listed level by level and side by side, and only those that a pattern leads to: what lies within the
folders of DICOM series, or beside the images, is not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from voxray.core.errors import ConfigError
from voxray.core.storage import Place
from voxray.core.text import same

_AT_ONCE = 16


def names_matching(folder: str, patterns: Sequence[str]) -> list[str]:
    """The files and folders below it that one of the patterns fits, relative and sorted; hidden ones are left out."""
    place = Place.of(folder)
    wanted = [PurePosixPath(pattern).parts for pattern in patterns]
    if any(not parts or parts[0] == "/" or ".." in parts for parts in wanted):
        raise ConfigError(f"images.glob: {', '.join(patterns)}: give patterns relative to root.")
    found: set[str] = set()
    open_: dict[str, set[tuple[str, ...]]] = {"": set(wanted)}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while open_:
            below = list(open_)
            listings = list(pool.map(lambda name: place.listing(name or "."), below))
            deeper: dict[str, set[tuple[str, ...]]] = {}
            for name, (files, folders) in zip(below, listings, strict=True):
                for child in (*files, *folders):
                    if child.startswith("."):
                        continue
                    path = f"{name}/{child}" if name else child
                    rest = set().union(*(_after(pattern, child) for pattern in open_[name]))
                    if () in rest or (("**",) in rest and child in folders):
                        found.add(path)
                    if child in folders and (rest := rest - {()}):
                        deeper[path] = rest
            open_ = deeper
    return sorted(found, key=lambda name: PurePosixPath(name).parts)


def _after(pattern: tuple[str, ...], name: str) -> set[tuple[str, ...]]:
    """What is left of a pattern below a file or folder of that name; empty where the pattern does not fit it."""
    first, *rest = pattern
    if first == "**":
        return {pattern, *(_after(tuple(rest), name) if rest else ())}
    return {tuple(rest)} if fnmatchcase(same(name), same(first)) else set()
