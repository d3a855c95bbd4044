"""Whose DICOM files these are: one patient, one study, and the one CT series that is meant.

This is the one place where the patient's id is looked at, to compare it; it is neither kept nor shown.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from voxray.core.errors import DataError
from voxray.readers.dicom_file import read_header, text_of, value_of
from voxray.readers.dicom_frames import TAGS, Instance, has_place, is_localizer
from voxray.serving.intake.study import series_handle
from voxray.serving.intake.uploaded_files import is_dicom, start_of

_TAGS = (*TAGS, "PatientID", "StudyInstanceUID")
_LISTED = 8
"""In the sentence; programs are told of more."""
_TOLD = 1000


class _Header(NamedTuple):
    patient: str
    study: str
    series: str
    number: str
    is_image: bool
    has_place: bool


_Series = Mapping[str, Sequence[_Header]]


def series_of(paths: Sequence[Path], wanted: str | None) -> str | None:
    """The UID of the CT series to read, `wanted` being a UID or its handle; None where there is only one or none.

    Files of several patients are refused whatever is wanted, those of several studies where no series is named.
    """
    headers = [header for path in paths if (header := _header(path)) is not None]
    series: dict[str, list[_Header]] = defaultdict(list)
    placed = any(header.has_place for header in headers)
    for header in headers:
        # Screen saves and dose reports are no slices where there are any.
        if header.has_place if placed else header.is_image:
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
        found = read_header(path, _TAGS)
        one = Instance(path, found.dataset, found.transfer_syntax, None)
        patient, study, number = (
            text_of(value_of(found.dataset, name)) for name in ("PatientID", "StudyInstanceUID", "SeriesNumber")
        )
        is_image = one.modality == "CT" and not is_localizer(one)
        return _Header(
            patient,
            study,
            one.series_uid,
            number if re.fullmatch(r"\d{1,9}", number) else "?",
            is_image,
            is_image and has_place(one),
        )
    except Exception:
        # pydicom raises anything that damaged bytes happen to cause.
        return None
