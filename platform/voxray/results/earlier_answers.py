"""Answers that are there before the work: the answer to this very scan, an older one, or one to another scan.

An answer is that of a scan where it records the same content, and the same model gave it with the same settings;
names and times say nothing. Of what else may be there:

* the answer to the same scan by another model or setting, or one that is damaged, is made anew;
* the answer to the same path, whose files have other content now, is made anew, and that is said;
* the answer to another scan that lies elsewhere stays, and the scan of its name is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from voxray.core.addresses import Location
from voxray.core.answer_json import LabelsFile, ModelStamp, ScanStamp, find_answer_file
from voxray.core.errors import DataError
from voxray.loading.at_hand import scan_at_hand
from voxray.loading.scans import Scan
from voxray.readers import volume_content

_AT_ONCE = 4


@dataclass(frozen=True)
class ScanToAnswer:
    """A scan to answer, and what is known of an answer of its name."""

    scan: Scan
    content: str = ""
    """Of the scan; empty where there was nothing to compare it with, or it cannot be read."""
    is_answered: bool = False
    """Whether its answer is there: of this scan, by this model."""
    other_scan: str = ""
    """Where the other scan lay whose answer is there instead."""
    remark: str = ""
    """Why an answer that is there is made anew, where a user would wonder."""

    def stamp(self) -> ScanStamp:
        """What its answer records of the scan, which is read for it where that was not done yet.

        It is to be asked for before the scan is read: what changes in between is then found by the next run.
        """
        return ScanStamp(sha256=self.content or content_of_scan(self.scan), path=place_of(self.scan))


def place_of(scan: Scan) -> str:
    """Where a scan lies, as answers record it; a series that was named is a place of its own in its folder."""
    return (scan.address or str(scan.path.resolve())) + (f" (series {scan.series_uid})" if scan.series_uid else "")


def content_of_scan(scan: Scan) -> str:
    """The content of all files that the scan consists of."""
    with scan_at_hand(scan) as here:
        return volume_content(here.path, series_uid=scan.series_uid)


def find_earlier_answers(scans: Sequence[Scan], output: Path, mark: ModelStamp) -> list[ScanToAnswer]:
    """The scans, each with what is known of the answer of its name in `output`; scans without one are not read."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(partial(find_earlier_answer, output=output, mark=mark), scans))


def find_earlier_answer(scan: Scan, output: Path, mark: ModelStamp) -> ScanToAnswer:
    """The scan, with what is known of the answer of its name in `output`."""
    path = output / f"{scan.name}.json"
    if not path.exists():
        return ScanToAnswer(scan)
    try:
        content = content_of_scan(scan)
    except DataError:
        return ScanToAnswer(scan)  # whoever reads it says why it cannot be
    file = find_answer_file(path)
    if file is None:
        return ScanToAnswer(scan, content, remark=f"{path} is no answer that can be read")
    if file.scan is None:
        return ScanToAnswer(scan, content, remark=f"{path} does not say which scan it answers")
    if file.scan.sha256 != content:
        if file.scan.path != place_of(scan):
            return ScanToAnswer(scan, content, other_scan=file.scan.path or "(unknown)")
        return ScanToAnswer(scan, content, remark="its files have changed since it was answered")
    if isinstance(file, LabelsFile) and not file.map_is_unchanged(output):
        return ScanToAnswer(scan, content, remark=f"{output / file.file} is not the label map that was written")
    return ScanToAnswer(scan, content, is_answered=file.model == mark)


def name_taken(asked: ScanToAnswer, output: Location) -> str:
    """The sentence for a scan whose name another scan's answer has."""
    name = asked.scan.name
    return (
        f"{asked.scan.location}: {output}/{name}.json answers another scan of that name, {asked.other_scan}; "
        f"give another folder with -o, or rename the scan."
    )
