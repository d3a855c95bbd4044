"""The files of one case or scan at hand: those on this machine as they are, those elsewhere as copies.

The copies are gone when the block ends. Within a block the case is on this machine, so that blocks within it copy
nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from voxray.core.addresses import local_path
from voxray.core.staging import Staging, listed, staging
from voxray.dataset import CaseSource, Dataset, MapTruth
from voxray.loading.map_files import fitting
from voxray.loading.scans import Scan
from voxray.readers import data_file_name, is_file_name


@dataclass(frozen=True)
class CaseAtHand:
    """A case whose files are on this machine, and the words for where they are."""

    source: CaseSource
    named: Callable[[str], str] = str
    """A text with addresses in place of the paths of copies."""


@contextmanager
def case_at_hand(dataset: Dataset, source: CaseSource) -> Iterator[CaseAtHand]:
    """The case with its image and its label maps; what is not there is not brought, as readers say what they miss."""
    if all(local_path(location) is not None for location in _locations(source)):
        yield CaseAtHand(source)
        return
    with staging() as staged:
        image = bring_volume(staged, source.image)
        maps = None if source.maps is None else _bring_maps(staged, source.maps, dataset.classes)
        yield CaseAtHand(replace(source, image=str(image), maps=maps), staged.named)


@contextmanager
def volume_at_hand(location: str) -> Iterator[Path]:
    """The file or folder of a scan or label map."""
    here = local_path(location)
    if here is not None:
        yield here
        return
    with staging() as staged:
        yield bring_volume(staged, location)


@contextmanager
def scan_at_hand(scan: Scan) -> Iterator[Scan]:
    """The scan with its files on this machine."""
    if not scan.address or scan.path.is_absolute():
        yield scan
        return
    with volume_at_hand(scan.address) as path:
        yield replace(scan, path=path)


def bring_volume(staged: Staging, location: str) -> Path:
    """A copy of a scan or label map: its file, with the data file that a header names; or the folder of a series."""
    if local_path(location) is not None:
        return staged.path(location)
    path = staged.bring(location) if is_file_name(location) else staged.bring_folder(location)
    if not path.exists():
        path = staged.bring_folder(location) if is_file_name(location) else staged.bring(location)
    if path.is_file() and (beside := data_file_name(path)) is not None:
        staged.bring(f"{location.rpartition('/')[0]}/{beside}")
    return path


def _locations(source: CaseSource) -> Iterator[str]:
    yield source.image
    if source.maps is not None:
        yield source.maps.file
        if source.maps.classes_file is not None:
            yield source.maps.classes_file


def _bring_maps(staged: Staging, maps: MapTruth, classes: tuple[str, ...]) -> MapTruth:
    if "{class}" in maps.file and local_path(maps.file) is None:
        folder, _, template = maps.file.rpartition("/")
        masks = fitting(template, map(Path, listed(folder)[0]))
        for name, file in masks.items():
            if name in classes:
                bring_volume(staged, f"{folder}/{file}")
            else:  # it is never read, but that it is there may be a fault
                staged.leave_empty(f"{folder}/{file}")
    else:
        bring_volume(staged, maps.file)
    classes_file = None if maps.classes_file is None else str(staged.bring(maps.classes_file))
    return replace(maps, file=str(staged.path(maps.file)), classes_file=classes_file)
