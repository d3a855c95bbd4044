"""Arranging: which of the files that were sent are the scan, each under the name that the readers know it by.

A scan is a set of DICOM files, or one volume file, or one header with the data file that it names. More than one scan
is refused; what belongs to none is left out with a warning.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from voxray.core.errors import DataError
from voxray.core.text import same
from voxray.readers.streams import is_gzip
from voxray.serving.intake.uploaded_files import UploadedFile, digest_of, is_dicom, is_named_dicom, start_of

_MAX_HEADER = 1 << 20
_VOLUMES = (".seg.nrrd", ".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr")
_DATA_FILE = "scan.raw"
_LISTED = 3


class Arranged(NamedTuple):
    """What to read: a folder of DICOM files or one file; and which files were left out."""

    path: Path
    is_dicom: bool
    left_out: tuple[UploadedFile, ...]
    names: Mapping[str, UploadedFile]
    """What was placed, by the names that the readers know it by."""


def arrange(items: Sequence[UploadedFile], places: Sequence[Path], source: Path) -> Arranged:
    """Puts the scan's files into the folder `source`; each item lies in the first of the folders that has it."""
    paths = {item: next(place / item.file for place in places if (place / item.file).exists()) for item in items}
    starts = {item: start_of(path) for item, path in paths.items()}
    # A file that is named DICOM but is none stays, for the reader to refuse: else a slice could go missing unseen.
    slices = [item for item in items if is_dicom(starts[item]) or is_named_dicom(item.suffix)]
    others = sorted(set(items) - set(slices))
    volumes = [item for item in others if _volume_suffix(item, starts[item])]
    if not slices and not volumes and len(items) == 1:
        volumes = [item for item in items if is_gzip(starts[item])]
    if not slices and not volumes:
        raise _unknown(len(items))
    if len(volumes) > 1 or (slices and volumes):
        raise _several(len(slices), volumes)
    if slices:
        for item in slices:
            _place(paths[item], source / f"{item.file}.dcm")
        names = {f"{item.file}.dcm": item for item in slices}
        return Arranged(source, True, tuple(item for item in items if item not in slices), names)
    (volume,) = volumes
    path = source / f"scan{_volume_suffix(volume, starts[volume]) or '.nii.gz'}"
    _place(paths[volume], path)
    data = _with_its_data(volume, path, {item: paths[item] for item in items if item != volume})
    names = {path.name: volume} | ({} if data is None else {_DATA_FILE: data})
    return Arranged(path, False, tuple(item for item in items if item not in names.values()), names)


def _volume_suffix(item: UploadedFile, start: bytes) -> str:
    """The end of a volume file's name: told by its first bytes, else by its own name; empty for other files."""
    if start.startswith(b"NRRD0"):
        return item.suffix if item.suffix in (".seg.nrrd", ".nhdr") else ".nrrd"
    if item.suffix in _VOLUMES:
        return item.suffix
    if start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0":
        return ".nii"
    return ".mha" if re.match(rb"(ObjectType|NDims)\s*=", start) else ""


def _place(path: Path, target: Path) -> None:
    """The file under another name; without copying where the disk can hold one file under two names."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _with_its_data(volume: UploadedFile, header: Path, others: Mapping[UploadedFile, Path]) -> UploadedFile | None:
    """Puts the data file that a header names beside it, and names it there; which it is, None where it names none.

    One that was not sent is an item of no part.
    """
    named = _named(header)
    if named is None:
        return None
    beside = [item for item in others if item.group == volume.group]
    found = [item for item in beside if item.digest == digest_of(named.name)]
    found = found or [item for item in beside if item.alike == digest_of(same(named.name))]
    if len(found) > 1:
        raise DataError(
            "upload.several_scans",
            f"The upload holds {len(found)} files of the name that the header gives its data file.",
            remedy="Send the header and its data file alone.",
        )
    if not found:
        return UploadedFile(_DATA_FILE, "", "", member=named.name)
    # A new file: on the disk the old one may be the very one that was received.
    header.unlink()
    header.write_bytes(named.before + f"{_DATA_FILE}\n".encode() + named.after)
    _place(others[found[0]], header.with_name(_DATA_FILE))
    return found[0]


class _Named(NamedTuple):
    """The name of a data file in a header, and the header's text around it."""

    name: str
    before: bytes
    after: bytes


def _named(header: Path) -> _Named | None:
    """The data file that a header names; None where it names none but itself."""
    separator = b":" if header.suffix in (".nrrd", ".nhdr") else b"="
    if header.suffix not in (".nrrd", ".nhdr", ".mhd", ".mha"):
        return None
    with header.open("rb") as file:
        start = file.read(_MAX_HEADER)
    place = 0
    for line in start.splitlines(keepends=True):
        place += len(line)
        key, found, value = line.partition(separator)
        if separator == b":" and not line.strip():
            return None
        if found and key.strip().replace(b" ", b"").lower() in (b"elementdatafile", b"datafile"):
            name = value.strip().decode("utf-8", "replace")
            before = start[: place - len(line)] + key + separator + b" "
            return None if name.upper() == "LOCAL" else _Named(name, before, start[place:])
    return None


def _several(num_slices: int, volumes: Sequence[UploadedFile]) -> DataError:
    dicom = f"{num_slices} DICOM files and " if num_slices else ""
    named = ", ".join([*(item.file for item in volumes[:_LISTED]), *(["..."] if len(volumes) > _LISTED else [])])
    return DataError(
        "upload.several_scans",
        f"The upload holds {dicom}{len(volumes)} volume files ({named}); one scan is read at a time.",
        remedy="Send one volume file (with its data file, if it has one), or the DICOM files of one series.",
    )


def _unknown(num_files: int) -> DataError:
    if num_files == 0:
        return DataError("upload.empty", "The upload holds no files.", remedy="Send the files of one CT scan.")
    return DataError(
        "upload.unknown_format",
        "The upload holds no file of a known form.",
        remedy="Send DICOM, NIfTI (.nii, .nii.gz), MetaImage (.mhd and its data, .mha) or NRRD, or a zip of it.",
    )
