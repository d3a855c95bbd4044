"""Unpacking zip archives: entry by entry under names of our own, counted while they are read.

No entry's name is ever used as a path. Archives within archives, encrypted entries, links and devices are refused,
and so are names that lead out of the archive, though nothing follows them: who sends such a thing means no scan.
"""

from __future__ import annotations

import errno
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from voxray.core.errors import DataError
from voxray.core.text import same
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.receive import too_many_files
from voxray.serving.intake.uploaded_files import UploadedFile, archive_member, is_foreign_archive, is_zip, start_of

_PIECE = 1 << 20
_UTF8 = 0x800
"""The bit of an entry whose name is said to be UTF-8."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_AGAIN = "Make the zip again, or send the files as they are."
_BAD = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError)


def unpack(
    items: Sequence[UploadedFile], received: Path, into: Path, limits: Limits, known: dict[str, UploadedFile]
) -> list[UploadedFile]:
    """The items with each zip archive among them unpacked into a folder; what is no archive stays where it is.

    Each is `known` by its name on our disk as soon as it is there.
    """
    found: list[UploadedFile] = []
    budget = _Budget(limits, packed=sum((received / item.file).stat().st_size for item in items))
    number = len(items)
    for index, item in enumerate(items):
        if not is_zip(start_of(received / item.file)):
            found.append(item)
            continue
        for entry in _unpacked(_Archive(item, received / item.file, f"{index}/", known), number, into, budget):
            found.append(entry)
            number += 1
            if len(found) > limits.entries:
                raise too_many_files(limits)
    return found


class _Budget:
    """How many bytes may still be unpacked."""

    def __init__(self, limits: Limits, *, packed: int) -> None:
        self.limits, self.packed, self.spent = limits, packed, 0

    def spend(self, num_bytes: int) -> None:
        """Counts bytes; refuses the upload where they are too many."""
        self.spent += num_bytes
        check_expansion(self.packed, self.spent, self.limits)


def check_expansion(packed: int, unpacked: int, limits: Limits) -> None:
    """Refuses what unpacks to too many bytes, altogether or for its size."""
    if unpacked > limits.expanded_bytes:
        raise DataError(
            "upload.expands_too_far",
            f"The upload unpacks to more than {limits.expanded_bytes} bytes.",
            remedy="Send one series alone.",
        )
    if unpacked > limits.expansion_free_bytes and unpacked > packed * limits.expansion_ratio:
        raise DataError(
            "upload.expands_too_far",
            f"The upload unpacks to more than {limits.expansion_ratio:g} times its size, as no CT scan does.",
            remedy="Send the scan with less compression, or none.",
        )


class _Archive(NamedTuple):
    """A zip archive that was sent."""

    item: UploadedFile
    path: Path
    prefix: str
    """Of the groups of its files."""
    known: dict[str, UploadedFile]


def _unpacked(archive: _Archive, number: int, into: Path, budget: _Budget) -> Iterator[UploadedFile]:
    try:
        with zipfile.ZipFile(archive.path) as opened:
            entries = opened.infolist()
            if len(entries) > budget.limits.entries:
                raise too_many_files(budget.limits)
            for entry in entries:
                _check(entry, archive.item)
            for entry in filter(_is_wanted, entries):
                number += 1
                name = _name_of(entry)
                group, _, _ = name.rpartition("/")
                item = archive_member(archive.item, number, name, group=same(archive.prefix + group))
                archive.known[item.file] = item
                with opened.open(entry) as stream:
                    _write(stream, into / item.file, budget)
                _check_not_archive(into / item.file, item)
                yield item
    except OSError as error:
        # What a directory's wrong offsets make of reading; whatever else ails the disk is not the archive's fault.
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(error, archive.item) from None
    except _BAD as error:
        raise _damaged(error, archive.item) from None


def _damaged(error: Exception, archive: UploadedFile) -> DataError:
    text = f"The zip archive {archive.file} is damaged or cannot be read ({type(error).__name__})."
    return DataError("upload.bad_zip", text, remedy=_AGAIN)


def _write(stream: IO[bytes], path: Path, budget: _Budget) -> None:
    with path.open("xb") as file:
        while piece := stream.read(_PIECE):
            budget.spend(len(piece))
            file.write(piece)


def _check(entry: zipfile.ZipInfo, archive: UploadedFile) -> None:
    """Refuses an entry that no scan needs, from what the archive's directory says."""
    which = f"The zip archive {archive.file}"
    if entry.flag_bits & 0x1:
        raise DataError("upload.encrypted", f"{which} is encrypted.", remedy="Send it without a password.")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(
            "upload.unsafe_entry",
            f"{which} holds a link or a device, which is never followed.",
            remedy="Make the zip of plain files and folders.",
        )
    name = entry.filename
    if (
        "\0" in name
        or name.startswith(("/", "\\"))
        or re.match(r"[A-Za-z]:", name)
        or ".." in re.split(r"[\\/]", name)
    ):
        raise DataError(
            "upload.unsafe_entry",
            f"{which} holds a name that leads out of it (an absolute path, or one with '..').",
            remedy="Make the zip again from within the scan's folder.",
        )
    if entry.compress_type not in _METHODS:
        raise DataError(
            "upload.bad_zip",
            f"{which} is compressed by method {entry.compress_type}; stored and deflated are read.",
            remedy="Make the zip with the usual compression (deflate).",
        )


def _name_of(entry: zipfile.ZipInfo) -> str:
    """The entry's name; macOS writes UTF-8 without saying so, which is read as code page 437."""
    if entry.flag_bits & _UTF8:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is a file, and none that an operating system leaves behind."""
    *folders, bare = entry.filename.split("/")
    return not (entry.is_dir() or bare.startswith(".") or bare == "Thumbs.db" or "__MACOSX" in folders)


def _check_not_archive(path: Path, item: UploadedFile) -> None:
    start = start_of(path)
    if is_zip(start) or is_foreign_archive(start, item.suffix):
        raise DataError(
            "upload.nested_archive",
            f"The zip archive holds another archive, {item.file}.",
            remedy="Send the files in one zip, without archives within.",
        )
