"""Naming: what a refusal says of files, under the names that their sender gave them. For the sender's reply alone.

On our disk, in the database and in logs files have numbers, since a name may hold a patient's. A refusal that names
files says, beside its sentence, which part of the upload each of them is (`facts`, which nobody keeps). Whoever
answers the sender has the names in memory, and puts them in.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from voxray.core.errors import DataError
from voxray.readers.dicom_slices import LACKING
from voxray.serving.intake.receive import UploadPart
from voxray.serving.intake.uploaded_files import SENT, UploadedFile, facts_of

_LONGEST = 100
_LISTED = 5
_PRINTED = ("L", "M", "N", "P", "S", "Zs")
"""Unicode's kinds of characters but for controls, marks of direction, line breaks and halves of characters."""


async def noting(parts: AsyncIterator[UploadPart], names: list[str]) -> AsyncIterator[UploadPart]:
    """The parts as they come, their names put down in memory."""
    async for part in parts:
        names.append(part.name)
        yield part


def about(error: DataError, items: Mapping[str, UploadedFile]) -> DataError:
    """The refusal, with what is known of the files that it names; `items` by the names that they have here."""
    named = {name: item for name, item in items.items() if _pattern(name).search(error.message)}
    if not named:
        return error
    return DataError(error.code, error.message, remedy=error.remedy, facts={**error.facts, **facts_of(named)})


def left_out(error: DataError, items: Sequence[UploadedFile]) -> DataError:
    """The refusal of a series that lacks slices, with the files that were left out: one of them may be a slice."""
    if error.code not in LACKING or not items:
        return error
    named = ", ".join([*(item.file for item in items[:_LISTED]), *(["..."] if len(items) > _LISTED else [])])
    message = f"{error.message} Left out, as they do not start as DICOM files do: {named}."
    return DataError(error.code, message, remedy=error.remedy, facts=error.facts)


def as_sent(error: DataError, names: Sequence[str]) -> DataError:
    """The refusal as the sender of the parts of these names reads it."""
    named = error.facts.get(SENT)
    if not named:
        return error
    theirs = {ours: _called(int(part), str(member), names) for ours, (part, member) in named.items()}
    # All at once, so that no name of theirs is taken for one of ours.
    pieces = re.split("|".join(f"({_pattern(ours).pattern})" for ours in theirs), error.message)
    message = "".join(theirs.get(piece, piece) for piece in pieces if piece)
    facts = {key: value for key, value in error.facts.items() if key != SENT}
    return DataError(error.code, message, remedy=error.remedy, facts=facts)


def numbered(text: str, items: Mapping[str, UploadedFile]) -> str:
    """What is kept of a scan names files by where they come in what was sent, as their sender can count them."""
    for name, item in items.items():
        if _pattern(name).search(text):
            text = _pattern(name).sub(_place(item, items.values()), text)
    return text


def _place(item: UploadedFile, among: Iterable[UploadedFile]) -> str:
    if not item.member:
        return f"file {item.part} of the upload"
    inside = sorted({one.file for one in among if one.part == item.part and one.member})
    return f"file {inside.index(item.file) + 1} of the archive"


def shown(name: str) -> str:
    """A name in quotation marks, without what a screen would not show as it is, and no longer than a line."""
    printed = (one if unicodedata.category(one).startswith(_PRINTED) else "\ufffd" for one in name)
    clean = "".join(printed)
    if len(clean) > _LONGEST:
        clean = f"{clean[: _LONGEST // 2]}…{clean[-_LONGEST // 2 + 1 :]}"
    return f"“{clean}”"


def _called(part: int, member: str, names: Sequence[str]) -> str:
    """What the sender calls a file: a part's name, that of a member of an archive, or one that a header names."""
    if part == 0:
        return shown(member)
    name = names[part - 1] if part <= len(names) else ""
    sent = shown(name) if name else f"file {part}"
    if not member:
        return sent
    return shown(member) if len(names) == 1 else f"{shown(member)} in {sent}"


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w./-]){re.escape(name)}(?![\w-]|\.\w)")
