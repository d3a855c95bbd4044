"""Which scans an input names: a file, a DICOM series folder, a folder of either, or a list of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxray.core.addresses import local_path
from voxray.core.errors import ConfigError
from voxray.core.text import TextError, first_few, on_disk, read_text, same
from voxray.core.written import LABEL_MAP, OBJECT, mark_of
from voxray.readers import READERS, series_in
from voxray.readers.dicom import read_dicom
from voxray.readers.dicom_file import is_dicom
from voxray.readers.dicom_series import other_modalities

SUFFIXES = tuple(suffix for suffix, reader in READERS.items() if reader is not read_dicom)
"""Volume files, by the end of their names; DICOM slices make a scan with their folder."""
LIST_SUFFIX = ".txt"
"""A list of scans: a file or folder on each line, relative to the list; lines with ``#`` are notes."""
_NO_SCAN = ".seg.nrrd"
_OBJECTS = (".seg.dcm", ".sr.dcm", ".rtstruct.dcm")
"""How the DICOM objects of an answer are named."""
_DIRECTORY = "DICOMDIR"


@dataclass(frozen=True)
class Scan:
    """One scan to answer, and the name that its answer gets."""

    name: str
    path: Path
    series_uid: str | None = None
    """Which series of a folder is meant, where one was named."""
    address: str = ""
    """Where it lies elsewhere; `path` is then that of its copy, or nothing but its name."""

    @staticmethod
    def at(name: str, location: str, *, series_uid: str | None = None) -> Scan:
        """The scan at a path or an address."""
        here = local_path(location)
        return Scan(name, here or Path(location.rpartition("/")[2]), series_uid, "" if here else location)

    @property
    def location(self) -> str:
        """Its path or address."""
        return self.address or str(self.path)


def find_scans(
    inputs: Sequence[Path], *, series: Sequence[str] = (), say: Callable[[str], object] = lambda _: None
) -> list[Scan]:
    """Every scan that the inputs name, each under a name of its own; an input without any is refused.

    With `series`, UIDs of CT series, these are the scans, and all else among the inputs is left out. Label maps and
    DICOM objects that voxray wrote are no scans: an answers folder may lie within a folder of scans.
    """
    found: list[tuple[Path, Path]] = []
    for root, given, where in _unlisted(inputs):
        if not given.exists():
            raise ConfigError(
                f"{where}{given}: no such file or folder; give scans, DICOM series folders, folders of them, "
                f"or a {LIST_SUFFIX} file with one of these on each line."
            )
        answers: list[Path] = []
        paths = sorted(_scans_under(given, answers)) if given.is_dir() else [given]
        if answers:
            left_out = first_few([path.name for path in answers])
            say(f"{given}: answers that voxray wrote are left out, as they are no scans: {left_out}")
        paths = _with_ct(given, paths, say)
        if not paths:
            raise ConfigError(
                f"{given}: holds no scan; expected files ending in {', '.join(SUFFIXES)}, or folders of DICOM slices."
            )
        found.extend((root, path) for path in paths)
    distinct = list({path.resolve(): (given, path) for given, path in found}.values())
    return _of_series(_named(distinct), series, say) if series else _named(distinct)


def _of_series(scans: Sequence[Scan], wanted: Sequence[str], say: Callable[[str], object]) -> list[Scan]:
    """The scans that hold a wanted series, with it named; each wanted series is in exactly one of them."""
    held = {scan: series_in(scan.path) for scan in scans}
    chosen: dict[str, Scan] = {}
    for uid in wanted:
        holding = [scan for scan, found in held.items() if uid in found]
        if not holding:
            there = "; ".join(text for found in held.values() for text in found.values())
            raise ConfigError(f"--series {uid}: is no CT series of the inputs; {there or 'there is none'}.")
        if len(holding) > 1 or holding[0].path in [scan.path for scan in chosen.values()]:
            places = ", ".join(str(scan.path) for scan in holding)
            raise ConfigError(f"--series {uid}: {places}: give one folder for each series, and one series of each.")
        chosen[uid] = replace(holding[0], series_uid=uid)
    rest = [scan.path for scan in scans if scan.path not in [one.path for one in chosen.values()]]
    if rest:
        left_out = first_few([path.name for path in rest])
        say(f"{len(rest)} scans are left out, as --series names none of theirs: {left_out}")
    return list(chosen.values())


def _with_ct(given: Path, paths: Sequence[Path], say: Callable[[str], object]) -> list[Path]:
    """The scans without folders within `given` of other modalities alone, such as dose reports; these are told."""
    others = {path: other_modalities(path) for path in paths if path.is_dir() and path != given}
    left_out = {path: found for path, found in others.items() if found}
    if not left_out or len(left_out) == len(paths):
        return list(paths)
    for path, found in left_out.items():
        say(f"{path}: holds no CT ({', '.join(found)}), and is left out")
    return [path for path in paths if path not in left_out]


def _unlisted(inputs: Sequence[Path]) -> Iterator[tuple[Path, Path, str]]:
    """For each input the folder that names are told apart within, the input, and where it stands in a list."""
    for given in map(on_disk, inputs):
        if given.suffix.lower() != LIST_SUFFIX or not given.is_file():
            yield given, given, ""
            continue
        lines = [line.strip() for line in _lines(given)]
        named = {
            number: on_disk((given.parent / line).absolute())
            for number, line in enumerate(lines, start=1)
            if line and not line.startswith("#")
        }
        if not named:
            raise ConfigError(f"{given}: names no scan; write a file or a folder on each line.")
        root = Path(os.path.commonpath([path.parent for path in named.values()]))
        yield from ((root, path, f"{given}, line {number}: ") for number, path in named.items())


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path).splitlines()
    except TextError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error}); a list names a scan on each line.") from None


def is_volume_file(path: Path) -> bool:
    """Whether it is a file of a format that is not DICOM, by its name."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """A file's name without the suffix of its format, or the folder's name."""
    name = path.resolve().name
    if path.is_dir():
        return name
    ending = next((suffix for suffix in READERS if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(ending)]


def _scans_under(folder: Path, answers: list[Path]) -> Iterator[Path]:
    """The scans in the folder and below; what is voxray's own answer goes to `answers` instead."""
    if holds_dicom(folder):
        yield folder
    for path in sorted(_visible(folder)):
        name = path.name.lower()
        if path.is_dir():
            yield from _scans_under(path, answers)
        elif name.endswith(SUFFIXES) and not name.endswith(_NO_SCAN):
            if mark_of(path) == LABEL_MAP:
                answers.append(path)
            else:
                yield path
        elif name.endswith(_OBJECTS) and mark_of(path) == OBJECT:
            answers.append(path)


def holds_dicom(folder: Path) -> bool:
    """Whether a file directly in the folder is DICOM, and neither an answer nor a directory of files further down."""
    files = (path for path in _visible(folder) if path.is_file() and path.name.upper() != _DIRECTORY)
    return any(is_dicom(path) and mark_of(path) != OBJECT for path in files)


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _named(found: Sequence[tuple[Path, Path]]) -> list[Scan]:
    """The shortest names that differ: the stem, or with the folders on the way to it, or with the suffix too."""
    scans = [Scan(stem(path), path) for _, path in found]
    for longer in (_with_folders, _with_suffix):
        often = Counter(_on_any_disk(scan.name) for scan in scans)
        pairs = zip(scans, found, strict=True)
        scans = [
            Scan(longer(*where), scan.path) if often[_on_any_disk(scan.name)] > 1 else scan for scan, where in pairs
        ]
    often = Counter(_on_any_disk(scan.name) for scan in scans)
    if twice := next((scan for scan in scans if often[_on_any_disk(scan.name)] > 1), None):
        alike = [scan.path for scan in scans if _on_any_disk(scan.name) == _on_any_disk(twice.name)]
        places = " and ".join(map(str, alike))
        raise ConfigError(f"{places} would both be written as '{twice.name}'; predict them into separate folders.")
    return scans


def _on_any_disk(name: str) -> str:
    """A name as the least careful file system keeps it: neither capitals nor normal forms tell two apart."""
    return same(name).casefold()


def _with_folders(given: Path, path: Path) -> str:
    folders = path.relative_to(given).parent.parts if path != given else ()
    return "_".join([*folders, stem(path)])


def _with_suffix(given: Path, path: Path) -> str:
    name = path.resolve().name
    return "_".join([_with_folders(given, path), *name[len(stem(path)) :].split(".")[1:]])
