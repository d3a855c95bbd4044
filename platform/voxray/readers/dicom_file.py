"""DICOM files: which files are DICOM, their datasets, and values whatever their representation.

A file is DICOM by its mark (DICM after 128 bytes). A file without preamble and mark is DICOM as well where it starts
with elements of group 0002 or 0008 in ascending order that come to a UID or a modality, which nothing else does.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_partial

START_BYTES = 512
"""As many bytes of a file's start tell whether it is DICOM."""

_MARK = b"DICM"
_PIXEL_DATA = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_GROUPS = (0x0002, 0x0008)
_UIDS = (0x00020002, 0x00020003, 0x00020010, 0x00080016, 0x00080018)
_MODALITY = 0x00080060
_UID = re.compile(rb"\d+(\.\d+)+[\0 ]?")
_CODE = re.compile(rb"[A-Z]{2,16} ?")
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Value representations whose explicit length takes four bytes, after two that are reserved."""
_BINARY = ("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT", "SQ")
_BY_ENCODING = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
"""Whether representations are implicit, and whether numbers are little endian -> the native transfer syntax."""
_DIRECTORY = "1.2.840.10008.1.3.10"


class Header(NamedTuple):
    """A file's dataset without its pixels, how it is encoded, and how many bytes follow it."""

    dataset: pydicom.Dataset
    transfer_syntax: str
    """As the file says, else the native one that it is written in."""
    num_bytes_left: int
    """Of a deflated file it tells nothing."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a DICOMDIR, which lists files and holds no image."""
        return str(self.dataset.file_meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, with a preamble or without."""
    with path.open("rb") as file:
        return starts_dicom(file.read(START_BYTES))


def starts_dicom(start: bytes) -> bool:
    """Whether a file that starts with these bytes is DICOM."""
    if start[128:132] == _MARK:
        return True
    place = len(_MARK) if start.startswith(_MARK) else 0
    encodings = (("<", True), ("<", False), (">", True))
    return any(_is_told(_elements(start, place, order, explicit=explicit)) for order, explicit in encodings)


def read_header(path: Path, tags: Sequence[str]) -> Header:
    """The named elements of a file, up to its pixels; raises anything that damaged bytes happen to cause."""
    with _opened(path) as file:
        dataset: Any = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags), force=True)
        left = _left(file)
    return Header(dataset, _syntax(dataset), left)


def read_with_pixels(path: Path) -> pydicom.Dataset:
    """A file's dataset up to its pixels and with them; whatever follows the pixels is not looked at."""
    past = False

    def is_past(tag: Any, _vr: Any, _length: Any) -> bool:
        nonlocal past
        ends, past = past, past or int(tag) in _PIXEL_DATA
        return ends

    with _opened(path) as file:
        dataset: Any = read_partial(file, stop_when=is_past, force=True)
    dataset.file_meta.TransferSyntaxUID = _syntax(dataset)
    found: pydicom.Dataset = dataset
    return found


def value_of(dataset: pydicom.Dataset, name: str) -> Any:
    """An element's value; where its representation is not the one that its bytes are in, those as text.

    None where the element is absent or empty. What cannot be understood at all raises what pydicom raises.
    """
    try:
        value = dataset.get(name)
    except Exception:
        raw = dataset.get_item(name)
        if not isinstance(raw, RawDataElement) or not isinstance(raw.value, bytes) or raw.VR in _BINARY:
            raise
        value = raw.value
    return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value


def parts_of(value: Any) -> list[Any]:
    """The values of an element, one by one: text of any representation is split where DICOM splits it."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        return [part.strip(" \0\t\r\n") for part in value.strip(" \0").split("\\")]
    if isinstance(value, Iterable):
        return [part for one in value for part in parts_of(one)]
    return [value]


def text_of(value: Any) -> str:
    """An element's value as text, the first where there are several; empty for None."""
    return "" if value is None else str(next(iter(parts_of(value)), "")).strip()


def _is_told(elements: Iterable[tuple[int, bytes]]) -> bool:
    for tag, value in elements:
        if tag in _UIDS:
            return len(value) <= 64 and _UID.fullmatch(value) is not None
        if tag == _MODALITY:
            return _CODE.fullmatch(value) is not None
    return False


def _elements(start: bytes, place: int, order: str, *, explicit: bool) -> Iterator[tuple[int, bytes]]:
    """The elements of groups 0002 and 0008 as far as they are whole and ascend."""
    last = 0
    while place + 8 <= len(start):
        group, element = struct.unpack_from(f"{order}HH", start, place)
        vr, tag, size = start[place + 4 : place + 6], group << 16 | element, 8
        if group not in _GROUPS or tag <= last:
            return
        if not explicit:
            (length,) = struct.unpack_from(f"{order}I", start, place + 4)
        elif not (vr.isalpha() and vr.isupper()):
            return
        elif vr in _LONG:
            if place + 12 > len(start):
                return
            (length,), size = struct.unpack_from(f"{order}I", start, place + 8), 12
        else:
            (length,) = struct.unpack_from(f"{order}H", start, place + 6)
        end = place + size + length
        if end > len(start):
            return
        yield tag, start[place + size : end]
        place, last = end, tag


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")
        if file.read(len(_MARK)) == _MARK:
            # A mark without the 128 bytes before it.
            yield io.BytesIO(file.read())
        else:
            file.seek(0)
            yield file


def _left(file: BinaryIO) -> int:
    place = file.tell()
    return file.seek(0, io.SEEK_END) - place


def _syntax(dataset: Any) -> str:
    given = str(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else ""
    return given or _BY_ENCODING[dataset.original_encoding]
