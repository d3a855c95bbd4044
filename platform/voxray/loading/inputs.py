"""What verbs read, file by file, so that nothing of it is written over: scans, datasets, runs and packages."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from voxray.core.addresses import local_path
from voxray.core.apart import Input, keep_apart, keep_out
from voxray.core.errors import ConfigError, DataError
from voxray.core.storage import Place
from voxray.core.written import ANSWERS, PAGE, mark_of
from voxray.dataset import Dataset
from voxray.loading.scans import Scan, stem
from voxray.readers import volume_files

ELSEWHERE = "give another folder with -o"
_HEADERS = (".mhd", ".nhdr")
_RUNS_OWN = ("checkpoints", "candidates", "runtimes")
"""The folders of a run that only its training, and what answers with it, write to."""


def scan_inputs(scans: Iterable[Scan]) -> Iterator[Input]:
    """The files of scans, and those of the same name beside them, such as dcm2niix's JSON; answers are none."""
    yield from _images(scan.path for scan in scans if not scan.address)


def _images(paths: Iterable[Path]) -> Iterator[Input]:
    """The files and folders of scans, and what belongs to them."""
    stems: dict[Path, set[str]] = {}
    for path in paths:
        yield Input(path, "the scan")
        if path.is_dir():
            yield from (Input(one, "a file of the scan") for one in path.iterdir())
        else:
            stems.setdefault(path.parent, set()).add(stem(path))
            yield from (Input(one, "the scan's data file") for one in _data_files(path))
    for folder, names in stems.items():
        for one in folder.iterdir():
            parts = one.name.split(".")
            shorter = {".".join(parts[:count]) for count in range(1, len(parts))}
            if names & shorter and not mark_of(one).startswith(ANSWERS):
                yield Input(one, "a file beside the scan of the same name")


def _data_files(header: Path) -> list[Path]:
    """The files that a header names, whatever their names; of one that cannot be read nothing is known."""
    if not header.name.lower().endswith(_HEADERS):
        return []
    try:
        return [one for one in volume_files(header) if one != header]
    except DataError:
        return []


def run_inputs(run: str | Path) -> Iterator[Input]:
    """The files of a run or package on this machine, but not what was reported of it."""
    folder = local_path(run)
    if folder is None:
        return
    yield Input(folder, "the run's own folder")
    for path in [*folder.glob("*"), *folder.glob("checkpoints/*/*")]:
        if path.is_file() and mark_of(path) != PAGE:
            yield Input(path, "a file of the run")


def dataset_inputs(data: Dataset) -> Iterator[Input]:
    """The dataset's file, its scans, its annotations and whatever else its file names; those on this machine."""
    root = local_path(data.root)
    if data.file is not None and (file := local_path(data.file)) is not None:
        yield Input(file, "the dataset's file")
    named = _named_files(data.model_dump(mode="json", exclude={"file"}))
    for path in (path for name in named if local_path(name) is not None for path in _matching(name)):
        yield Input(path, "a file of the dataset's annotations")
        yield from (Input(one, "a data file of the dataset's annotations") for one in _data_files(path))
        if path.parent != root:
            yield Input(path.parent, "a folder of the dataset's annotations")
    if root is None:
        return
    yield Input(root, "the dataset's folder")
    scans = [path for pattern in data.images.glob for path in root.glob(pattern)]
    yield from _images(scans)
    for folder in {path.parent for path in scans}:
        yield Input(folder, "a folder of the dataset's scans")


def require_no_scan_of(data: Dataset, written: Iterable[Path]) -> None:
    """A ConfigError where an answer would be taken for a scan of the dataset the next time it is read."""
    here = local_path(data.root)
    if here is None:
        return
    root = here.resolve()
    for path in written:
        real = path.resolve()
        if not real.is_relative_to(root):
            continue
        parts = real.relative_to(root).parts
        for pattern in data.images.glob:
            if _matches(parts, Path(pattern).parts):
                raise ConfigError(
                    f"{path}: would be taken for a scan of dataset {data.name}, as its images.glob {pattern} finds "
                    f"files there; {ELSEWHERE}."
                )


def keep_out_of_run(folder: str | Path, run: str | Path) -> None:
    """A ConfigError where the folder is a run's own, or one of those in it that its training writes to."""
    own, place = local_path(run), local_path(folder)
    if own is None or place is None:
        _keep_out_by_name(Place.of(folder).uri, Place.of(run).uri)
        return
    keep_apart([place], [Input(own, "the run's own folder")], instead=ELSEWHERE)
    keep_out(place, [Input(own / name, "a folder of the run") for name in _RUNS_OWN], instead=ELSEWHERE)


def _keep_out_by_name(folder: str, run: str) -> None:
    if folder == run or any(f"{folder}/".startswith(f"{run}/{name}/") for name in _RUNS_OWN):
        raise ConfigError(
            f"{folder}: is the run's own folder, or one in it, which is read, and would be written into; {ELSEWHERE}."
        )


def keep_out_of_store(folder: str | Path, store: str | Path) -> None:
    """A ConfigError where the folder lies in the store that is read: `voxray ingest` makes and removes its files."""
    place, read = local_path(folder), local_path(store)
    if place is not None and read is not None:
        keep_out(place, [Input(read, "the store")], instead=ELSEWHERE)


def _named_files(value: Any, name: str = "") -> Iterator[str]:
    """Every path in the fields of a dataset."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _named_files(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _named_files(item, name)
    elif isinstance(value, str) and name.endswith("file"):
        yield value


def _matching(template: str) -> Iterator[Path]:
    """The files that a path with ``{case}`` and the like stands for."""
    pattern = glob.escape(template)
    for name in ("case", "patient", "class", "fold"):
        pattern = pattern.replace("{" + name + "}", "*")
    return (Path(path) for path in glob.iglob(pattern))  # noqa: PTH207  # a pattern from the root on


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern of `Path.glob`."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
