"""Items: files that were sent, under names of our own; of the sender's names only a suffix and a digest are kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from voxray.core.errors import DataError
from voxray.core.storage import whole
from voxray.core.text import same
from voxray.readers.dicom_file import START_BYTES, starts_dicom

_LIST = "list.json"
SENT = "sent"
"""The fact of a refusal that says which of the files that were sent it names."""

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_FOREIGN_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
SUFFIXES = (
    *(".seg.nrrd", ".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr"),
    *(".zip", *_DICOM_SUFFIXES, *_FOREIGN_SUFFIXES),
)
_FOREIGN_STARTS = (b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


class UploadedFile(NamedTuple):
    """One file that was sent or unpacked."""

    file: str
    """Its name on our disk."""
    suffix: str
    """The end of its own name where that says what it is (one of `SUFFIXES`), else empty."""
    digest: str
    """Of its own bare name, so that a header can be matched with the data file that it names."""
    group: str = ""
    """Tells files of one folder in one archive from others."""
    alike: str = ""
    """Of its name as names are compared: accents may be encoded otherwise than a header has them."""
    part: int = 0
    """Which part of the upload it is, or lies in, from 1."""
    member: str = ""
    """Its full name in an archive; in memory alone, and empty on the disk."""


def own_name(number: int) -> str:
    """The name on our disk of the number-th file, from 1."""
    return f"{number:06d}"


def uploaded_file(number: int, name: str) -> UploadedFile:
    """The item of the number-th part, which was sent under some name; folders in the name count for nothing."""
    return _item(number, name, group="", part=number, member="")


def archive_member(archive: UploadedFile, number: int, name: str, *, group: str) -> UploadedFile:
    """The item of a file that was unpacked, as the number-th of all."""
    return _item(number, name, group=group, part=archive.part, member=name)


def _item(number: int, name: str, *, group: str, part: int, member: str) -> UploadedFile:
    bare = re.split(r"[\\/]", name)[-1]
    lower = bare.lower()
    suffix = next((end for end in SUFFIXES if lower.endswith(end)), "")
    return UploadedFile(own_name(number), suffix, digest_of(bare), group, digest_of(same(bare)), part, member)


def digest_of(name: str) -> str:
    """What stands for a file's name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()


def facts_of(items: Mapping[str, UploadedFile]) -> dict[str, object]:
    """What a refusal says beside its sentence of the files in it, by the names that they have there; see `naming`."""
    return {SENT: {name: [item.part, item.member] for name, item in items.items()}}


def write_list(folder: Path, items: Sequence[UploadedFile]) -> None:
    """Writes down beside the files what they are."""
    assert not any(item.member for item in items), "members' names are for memory alone"
    with whole(folder / _LIST) as path:
        path.write_text(json.dumps([list(item) for item in items]))


def read_list(folder: Path) -> list[UploadedFile]:
    """What `write_list` wrote."""
    return [UploadedFile(*fields) for fields in json.loads((folder / _LIST).read_text())]


def start_of(path: Path) -> bytes:
    """The file's first bytes, as many as tell what it is."""
    with path.open("rb") as file:
        return file.read(START_BYTES)


def is_dicom(start: bytes) -> bool:
    """Whether a file that starts like this is DICOM."""
    return starts_dicom(start)


def is_zip(start: bytes) -> bool:
    """Whether it is a zip archive, an empty or split one included; a DICOM file may have anything in its preamble."""
    return start[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08") and not is_dicom(start)


def is_named_dicom(suffix: str) -> bool:
    """Whether a name's end says DICOM."""
    return suffix in _DICOM_SUFFIXES


def is_foreign_archive(start: bytes, suffix: str) -> bool:
    """Whether it is an archive of a kind that is not unpacked: tar (packed or not), 7z, rar, xz, zstd."""
    if is_dicom(start):
        return False
    return suffix in _FOREIGN_SUFFIXES or start[257:262] == b"ustar" or start.startswith(_FOREIGN_STARTS)


def is_no_nifti(start: bytes, suffix: str) -> bool:
    """Whether a file that is named NIfTI can be none, nor anything else that is read; `start` is whole."""
    if suffix not in (".nii", ".nii.gz") or is_dicom(start) or is_zip(start):
        return False
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    return not (sizes & {348, 540} or start.startswith((b"\x1f\x8b", b"NRRD0")))


def not_nifti(item: UploadedFile) -> DataError:
    """The refusal of a file that is named NIfTI, before all of it has come."""
    text = f"{item.file} is named .nii or .nii.gz, and does not start with a NIfTI header."
    return DataError(
        "nifti.not_nifti", text, remedy="Copy or download the file again.", facts=facts_of({item.file: item})
    )


def not_zip(item: UploadedFile) -> DataError:
    """The refusal of an archive that is not unpacked."""
    return DataError(
        "upload.not_zip",
        f"{item.file} is an archive of a kind that is not unpacked (tar, 7z, rar, xz or zstd).",
        remedy="Send the files as they are, or in one zip.",
        facts=facts_of({item.file: item}),
    )
