"""Text that a user wrote: how its bytes are read, how its names are compared and listed, and which file it names.

Editors write UTF-8 with or without a mark at the start (a BOM); other encodings are refused by name. Systems spell an
accented letter in one character (NFC) or in two (NFD, as macOS does on its disks): both are one name.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from voxray.core.errors import DataError

_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_SAVE = "save it as UTF-8"


class TextError(ValueError):
    """Bytes that are no UTF-8 text; its words say why a file cannot be read."""


def text_in(data: bytes) -> str:
    """The text of a file's bytes: UTF-8, a mark at its start left out, every end of a line as a line feed."""
    for mark, name in _OTHER_MARKS:
        if data.startswith(mark):
            raise TextError(f"it is {name} text; {_SAVE}")
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise TextError(f"line {line} holds the byte 0x{byte:02x}, which is no UTF-8; {_SAVE}") from None
    if "\0" in text:
        raise TextError(f"it holds zero bytes, as UTF-16 text without a mark does; {_SAVE}")
    return text


def read_text(path: Path) -> str:
    """The text of the file that `path` names; an OSError or a TextError says why there is none."""
    return text_in(on_disk(path).read_bytes())


def same(name: str) -> str:
    """A name as it is compared: one spelling for all that differ in nothing but their normal form."""
    return unicodedata.normalize("NFC", name)


def spellings(name: str) -> tuple[str, ...]:
    """A name as it stands, and in the normal forms that systems write it in."""
    return tuple(dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))))


def first_few(names: Sequence[str], most: int = 3, *, separator: str = ", ") -> str:
    """The first names of a list, and how many more there are: ``a, b, c and 4 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def on_disk(path: Path) -> Path:
    """The path as the disk spells it: as it stands where that exists, else by names that are the `same`.

    What is on no disk either way comes back as it is; several names that are alike are refused.
    """
    if str(path).isascii():
        return path
    if path.exists():
        return path
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        found = _one_alike(found, part)
    return found if found.exists() else path


def _one_alike(folder: Path, name: str) -> Path:
    exact = folder / name
    if name.isascii() or exact.exists() or not folder.is_dir():
        return exact
    alike = [path for path in folder.iterdir() if same(path.name) == same(name)]
    if len(alike) > 1:
        raise DataError(
            "path.ambiguous",
            f"{exact}: {len(alike)} names in its folder differ from it in nothing but how accents are encoded.",
            remedy="Rename all but one of them.",
        )
    return alike[0] if alike else exact
