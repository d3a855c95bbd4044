"""Which files voxray wrote itself: only these may it write over or remove; all others belong to somebody else.

A file says so in its own words where its format has room for them (`mark_of`). Where it has none (LUNA16's CSV,
MONAI's JSON, tables) the folder holds a record, `RECORD`: a line with SHA-256 and name for each
such file, added before the file takes its place, so that whatever stops a writer leaves nothing that the next one
would not know. A file that was changed since is not in the record any more, and no longer voxray's.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from voxray.core.errors import ConfigError
from voxray.core.storage import Place, whole

RECORD = ".voxray.sha256"

LABEL_MAP, IMAGE = "voxray label map", "voxray image"
"""In the `descrip` field of NIfTI files."""
PICTURE, OBJECT, PAGE = "voxray picture", "voxray object", "voxray report"
MARKUPS, CANDIDATES = "voxray-markups/1", "voxray-candidates/"
ANSWERS = ("voxray-findings/", "voxray-labels/", LABEL_MAP, PICTURE, OBJECT, MARKUPS, CANDIDATES)
SCORES = ("voxray-evaluation/", "voxray-luna16/")

_HEAD_BYTES = 16 << 10
_SCHEMA = re.compile(rb'^\s*\{\s*"schema"\s*:\s*"(voxray-[\w./-]+)"')
_GENERATOR = re.compile(rb'<meta name="generator" content="voxray\b')
_MAKER = re.compile(rb"\x08\x00\x70\x00LO..voxray(?: |\x08)", re.DOTALL)
_PNG_TEXT = b"tEXtSoftware\x00voxray"
_LITTER = (".ds_store", "thumbs.db", "desktop.ini")


def mark_of(path: Path) -> str:
    """What the file itself says that voxray wrote, such as ``voxray-findings/1``; empty where it says nothing.

    Only its beginning is read, or the end of a Parquet file.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            if head.startswith(b"PAR1"):
                return _mark_of_parquet(path)
    except OSError:
        return ""
    if head.startswith(b"\x1f\x8b"):
        head = _unpacked(path)
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        text = head[148:228].split(b"\0")[0].decode("latin-1")
        return text if text.startswith("voxray ") else ""
    if head.startswith(b"\x89PNG"):
        return PICTURE if _PNG_TEXT in head else ""
    if head[128:132] == b"DICM":
        return OBJECT if _MAKER.search(head) else ""
    if found := _SCHEMA.match(head):
        return found.group(1).decode()
    return PAGE if _GENERATOR.search(head) else ""


def is_own(path: Path, marks: tuple[str, ...]) -> bool:
    """Whether voxray wrote the file as it is: the folder's record knows it, or it bears one of the marks."""
    known = _recorded(path)
    if known:
        return sha256_of(path) in known
    return bool(marks) and mark_of(path).startswith(marks)


def require_own(paths: Iterable[Path], marks: tuple[str, ...] = (), *, overwrite: bool = False) -> None:
    """A ConfigError where one of the files is there and is not voxray's own, unless it may be written over."""
    there = [path for path in paths if path.exists() or path.is_symlink()]
    if folder := next((path for path in there if path.is_dir()), None):
        raise ConfigError(
            f"{folder}: is a folder, where a file would be written; choose another place, or move it away."
        )
    foreign = [] if overwrite else [path for path in there if not is_own(path, marks)]
    if foreign:
        more = f" ({len(foreign) - 1} more of the files that would be written, too)" if len(foreign) > 1 else ""
        raise ConfigError(
            f"{foreign[0]}: is there already, and is nothing that voxray wrote, or was changed since{more}; choose "
            f"another place, move it away, or have it written over with --overwrite, as is also needed for files of "
            f"voxray's earlier versions."
        )


@contextmanager
def recorded(path: Path, marks: tuple[str, ...] = (), *, overwrite: bool = False) -> Iterator[Path]:
    """A file beside `path` to write to; it takes its place, noted in the folder's record, if that is voxray's own."""
    with whole(path) as beside:
        yield beside
        require_own([path], marks, overwrite=overwrite)
        _note(path, sha256_of(beside))


def remove_own(path: Path, marks: tuple[str, ...] = ()) -> None:
    """The file goes if voxray wrote it; any other stays."""
    if path.is_file() and is_own(path, marks):
        path.unlink(missing_ok=True)


def require_empty(place: Place, kind: str, *, but: tuple[str, ...] = ()) -> None:
    """A ConfigError where the folder holds any file; for a verb that makes a whole folder its own, a `kind`."""
    if place.is_local and Path(place.path("")).exists() and not Path(place.path("")).is_dir():
        raise ConfigError(f"{place.uri}: is a file; give the name of a new folder for the {kind}.")
    found = _first_file(place, ".", but)
    if found is not None:
        raise ConfigError(
            f"{place.uri}: holds files, such as {found}, and is no {kind} that voxray made; give a new or empty "
            f"folder, so that nothing of yours is written over."
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _recorded(path: Path) -> frozenset[str]:
    """Every content that voxray put under that name."""
    try:
        lines = (path.parent / RECORD).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    rows = (line.partition("  ") for line in lines)
    return frozenset(digest for digest, _, name in rows if name == path.name)


def _note(path: Path, digest: str) -> None:
    """Adds a line to the folder's record, also after one that was cut short."""
    with (path.parent / RECORD).open("ab+") as record:
        size = record.seek(0, 2)
        record.seek(max(0, size - 1))
        begin = "" if record.read(1) in (b"", b"\n") else "\n"
        record.write(f"{begin}{digest}  {path.name}\n".encode())


def _unpacked(path: Path) -> bytes:
    """The beginning of what a gzip file holds."""
    try:
        with gzip.open(path, "rb") as stream:
            return stream.read(348)
    except (OSError, EOFError, zlib.error):
        return b""


def _mark_of_parquet(path: Path) -> str:
    """The schema of kept candidates, which stands in the footer."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 8))
        (length,) = struct.unpack("<I", stream.read(4).ljust(4, b"\0"))
        stream.seek(max(0, size - 8 - length))
        footer = stream.read(min(length, size))
    return CANDIDATES if b'"schema":"voxray-candidates/' in footer else ""


def _first_file(place: Place, folder: str, but: tuple[str, ...]) -> str | None:
    """A file in the folder or below, hidden ones and `but` left out."""
    for name in place.names(folder):
        if not name.startswith(".") and name.lower() not in _LITTER and name not in but:
            return name if folder == "." else f"{folder}/{name}"
    for name in place.folders(folder):
        below = name if folder == "." else f"{folder}/{name}"
        if not name.startswith(".") and (found := _first_file(place, below, ())) is not None:
            return found
    return None
