"""What takes seconds to make from a network's weights is kept: beside the run, or else in the user's cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from voxray.core.storage import whole


def cached(name: str, make: Callable[[], bytes], *, folder: Path | None) -> bytes:
    """The bytes that were kept under the name, or those that `make` gives, kept for the next time.

    The name must tell everything that the bytes depend on. Where neither folder can be written nothing is kept.
    """
    places = [place for place in (folder, cache_folder()) if place is not None]
    for place in places:
        try:
            return (place / name).read_bytes()
        except OSError:
            continue
    data = make()
    for place in places:
        if write_whole(place / name, data):
            break
    return data


def cache_folder() -> Path:
    """The user's cache: ``$XDG_CACHE_HOME/voxray``, by default ``~/.cache/voxray``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "voxray"


def write_whole(path: Path, data: bytes) -> bool:
    """Puts the file in place as a whole; False where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as beside:
            beside.write_bytes(data)
    except OSError:
        return False
    return True
