"""Whose DICOM files these are: one patient, one study, and the one CT series that is meant.

This is the one place where the patient's id is looked at, to compare it; it is neither kept nor shown.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydicom.filereader import read_partial

from voxray.errors import DataError
from voxray.serving.intake.items import is_dicom, start_of
from voxray.serving.intake.study import series_handle

_SERIES_NUMBER = 0x00200011
_TAGS = (0x00080008, 0x00080060, 0x00100020, 0x0020000D, 0x0020000E, _SERIES_NUMBER)
_LISTED = 8
"""In the sentence; programs are told of more."""
_TOLD = 1000


class _Header(NamedTuple):
    patient: str
    study: str
    series: str
    number: str
    is_slice: bool


_Series = Mapping[str, Sequence[_Header]]


def series_of(paths: Sequence[Path], wanted: str | None) -> str | None:
    """The UID of the CT series to read, `wanted` being a UID or its handle; None where there is only one or none.

    Files of several patients are refused whatever is wanted, those of several studies where no series is named.
    """
    headers = [header for path in paths if (header := _header(path)) is not None]
    series: dict[str, list[_Header]] = defaultdict(list)
    for header in headers:
        if header.is_slice:
            series[header.series].append(header)
    series = dict(sorted(series.items(), key=lambda one: _place_of(one[1][0].number)))
    _check_patients(headers)
    _check_studies(headers, series, wanted)
    if wanted is None:
        if len(series) > 1:
            raise DataError(
                "dicom.several_series",
                f"The upload holds {len(series)} CT series: {_listed(series)}.",
                remedy="Name one of them as the series to read, or send it alone.",
                facts=_choices(series),
            )
        return None
    found = [uid for uid in series if wanted in (uid, series_handle(uid))]
    if not found:
        raise DataError(
            "dicom.no_such_series",
            f"The upload holds no CT series of that name; it holds {_listed(series) or 'none'}.",
            remedy="Name one of these.",
            facts=_choices(series),
        )
    return found[0]


def _check_patients(headers: Sequence[_Header]) -> None:
    patients = {header.patient for header in headers} - {""}
    if len(patients) > 1:
        raise DataError(
            "dicom.several_patients",
            f"The upload holds files of {len(patients)} patients.",
            remedy="Send the files of one patient alone.",
        )


def _check_studies(headers: Sequence[_Header], series: _Series, wanted: str | None) -> None:
    studies = {header.study for header in headers} - {""}
    if len(studies) > 1 and wanted is None:
        raise DataError(
            "dicom.several_studies",
            f"The upload holds files of {len(studies)} studies; their CT series: {_listed(series) or 'none'}.",
            remedy="Send one study alone, or name the series to read.",
            facts=_choices(series),
        )


def _place_of(number: str) -> float:
    """Series are listed by their numbers, as viewers list them."""
    return float(number) if number.isdigit() else float("inf")


def _choices(series: _Series) -> dict[str, Any]:
    """The series as `SeriesChoice`s, as JSON."""
    return {
        "series": [
            {"handle": series_handle(uid), "num_files": len(headers), "number": headers[0].number}
            for uid, headers in list(series.items())[:_TOLD]
        ]
    }


def _listed(series: _Series) -> str:
    """The first few series by their handles, with what helps to choose one and tells nothing of the patient."""
    texts = [
        f"{series_handle(uid)} ({len(headers)} files, number {headers[0].number})" for uid, headers in series.items()
    ]
    more = len(texts) - _LISTED
    return "; ".join([*texts[:_LISTED], *([f"and {more} more"] if more > 0 else [])])


def _header(path: Path) -> _Header | None:
    """What a DICOM file says of itself; None where it cannot be read, which its reader then says better."""
    if not is_dicom(start_of(path)):
        return None
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            dataset = read_partial(file, stop_when=_is_past, specific_tags=list(_TAGS), force=False)
            patient, study, series, modality, number = (
                str(dataset.get(name) or "").strip()
                for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber")
            )
            kinds = [str(kind).strip().upper() for kind in dataset.get("ImageType") or []]
    except Exception:
        # pydicom raises anything that damaged bytes happen to cause.
        return None
    is_slice = modality == "CT" and "LOCALIZER" not in kinds
    return _Header(patient, study, series, number if re.fullmatch(r"\d{1,9}", number) else "?", is_slice)


def _is_past(tag: Any, _value_representation: Any, _length: Any) -> bool:
    return int(tag) > _SERIES_NUMBER
