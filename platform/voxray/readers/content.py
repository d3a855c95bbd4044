"""Content: what a file, or all files of a volume, hold, as one SHA-256.

Names, folders and times have no part in it: a copy is the same, a rewritten file is another, whatever its size and
date say. The content of one file is the SHA-256 that `sha256sum` prints; that of several is the SHA-256 of their
sorted digests, so the order of slices means nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_AT_ONCE = 4
"""Files read side by side; each takes a buffer of 256 KiB."""


def content_of(files: Sequence[Path]) -> str:
    """The content of files that belong together, as 64 hexadecimal digits; an OSError where one cannot be read."""
    assert files, "content of no file"
    if len(files) == 1:
        return _digest(files[0])
    with ThreadPoolExecutor(min(_AT_ONCE, len(files))) as pool:
        digests = sorted(pool.map(_digest, files))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
