"""Formats of answers saved beside the answers, in a folder: of each case, and of all cases together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxray.core.answer_json import FindingsFile, read_file
from voxray.core.bulkhead import sentence_of
from voxray.core.errors import ConfigError, DataError
from voxray.core.written import ANSWERS, is_own, recorded, remove_own, require_own
from voxray.loading.scans import Scan, is_volume_file
from voxray.results.case_answer import CaseAnswer
from voxray.results.formats import FAULT, FORMATS, ResultFormat, format_named, write_format


@dataclass(frozen=True)
class NotMade:
    """A format that was asked for and could not be made."""

    form: str
    """As ``--save`` names it."""
    why: str
    is_unsupported: bool
    """Whether the scan or its answer has no such form, as a NIfTI file no DICOM SEG; all else is a failure."""

    def __str__(self) -> str:
        return f"{self.form}: {self.why}"


def chosen_formats(text: str, task: str) -> tuple[ResultFormat, ...]:
    """The formats of a list such as ``json,preview``, checked against what the task has."""
    allowed = [one for one in FORMATS.values() if task in one.tasks]
    chosen = []
    for name in (part.strip() for part in text.split(",")):
        found = format_named(name)
        if found in allowed:
            chosen.append(found)
        elif name:
            options = ", ".join(one.option for one in allowed)
            raise ConfigError(f"--save {name}: not a form of a {task}'s answers; allowed are {options}.")
    if task == "segmentation" and FORMATS["sr"] in chosen and FORMATS["seg"] not in chosen:
        chosen.append(FORMATS["seg"])  # the report refers to it
    return tuple(chosen)


def case_files(formats: Sequence[ResultFormat], output: Path, case: str) -> list[Path]:
    """Where the chosen formats of a case lie; those that each case has a file of."""
    return [output / f"{case}{one.suffix}" for one in formats if one.is_by_case]


def gathered_files(formats: Sequence[ResultFormat], output: Path) -> list[Path]:
    """Where the chosen formats of all cases together lie."""
    return [output / one.file for one in formats if one.gather]


def save_formats(
    formats: Sequence[ResultFormat], answer: CaseAnswer, output: Path, *, overwrite: bool = False
) -> tuple[NotMade, ...]:
    """Writes the chosen formats that each case has a file of, each for itself; those that could not be made.

    Nothing is written over that voxray did not write.
    """
    not_made = []
    by_case = [one for one in formats if one.is_by_case]
    for one, path in zip(by_case, case_files(by_case, output, answer.case), strict=True):
        try:
            require_own([path], ANSWERS, overwrite=overwrite)
            write_format(one.name, answer, path)
        except Exception as error:
            is_unsupported = isinstance(error, DataError) and error.code != FAULT
            not_made.append(NotMade(one.option, sentence_of(error), is_unsupported))
    return tuple(not_made)


def are_saved(formats: Sequence[ResultFormat], output: Path, case: str) -> bool:
    """Whether the chosen formats of a case are there, as voxray wrote them."""
    return all(is_own(path, ANSWERS) for path in case_files(formats, output, case))


def drop_answer(output: Path, case: str) -> None:
    """Removes what says that a case is answered, and then the formats of that answer: none may outlive it.

    Files of these names that others wrote stay.
    """
    for path in (output / f"{case}.json", *case_files(tuple(FORMATS.values()), output, case)):
        remove_own(path, ANSWERS)


def lacking_dicom(
    formats: Sequence[ResultFormat], scans: Sequence[Scan]
) -> tuple[tuple[ResultFormat, ...], tuple[Scan, ...]]:
    """The chosen formats that belong to a DICOM series, and the scans that are plainly none; no voxel is read."""
    of_dicom = tuple(one for one in formats if one.of_dicom)
    return of_dicom, tuple(scan for scan in scans if of_dicom and is_volume_file(scan.path))


def gather(
    formats: Sequence[ResultFormat],
    scans: Sequence[Scan],
    output: Path,
    classes: Sequence[str],
    *,
    overwrite: bool = False,
) -> Mapping[str, tuple[NotMade, ...]]:
    """Writes the formats of all scans that have an answer in `output`; what is not in them, by scan or file.

    An answer that cannot be read costs its own rows, and a format that cannot be written costs itself.
    """
    wanted = [one for one in formats if one.gather]
    answers: list[tuple[Scan, FindingsFile]] = []
    lacking: dict[str, tuple[NotMade, ...]] = {}
    for scan in scans if wanted else ():
        path = output / f"{scan.name}.json"
        try:
            answers += [(scan, read_file(FindingsFile, path))] if path.exists() else []
        except Exception as error:
            why = sentence_of(error)
            lacking[scan.name] = tuple(NotMade(one.option, why, is_unsupported=False) for one in wanted)
    for one in wanted:
        assert one.gather is not None
        try:
            with recorded(output / one.file, overwrite=overwrite) as beside:
                beside.write_text(one.gather(answers, classes), encoding="utf-8")
        except Exception as error:
            lacking[one.file] = (NotMade(one.option, sentence_of(error), is_unsupported=False),)
    return lacking
