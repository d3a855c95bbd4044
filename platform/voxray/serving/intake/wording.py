"""What the readers say, as a log may keep it: no paths, no names of files sent, no UIDs. See also `naming`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from voxray.core.errors import DataError
from voxray.serving.intake.study import series_handle

_UID = re.compile(r"(?<![\w.])(?!1\.2\.840\.10008\.)\d+(?:\.\d+){5,}(?![\w.]*\w)")
"""UIDs but those that the standard itself gives, which name no one's objects."""
_LONGEST = 600
_SEND_BOTH = "Send the header and the data file that it names, or one file (.mha, .nrrd, .nii.gz)."
_OUTSIDE = "{header} names its data file by a path, a list or a pattern; only a bare file name is allowed."
_MISSING = "{header} names the data file scan.raw, which was not sent."
_FILES_OF_SERIES = r"{source}/\S+ and \S+ have ", r"{source}/\S+: "
_BY_OPERATOR = {
    "scan.not_hounsfield": "Send the CT scan in Hounsfield units (if its rescale intercept was lost, convert the "
    "DICOM again); whoever runs the service may accept such values (limits.accept_values).",
}
"""Remedies in place of the readers' own, which name options of the command line."""
_OURS: Mapping[str, tuple[str, str]] = {
    "metaimage.outside_folder": (_OUTSIDE, _SEND_BOTH),
    "nrrd.outside_folder": (_OUTSIDE, _SEND_BOTH),
    "metaimage.missing_data": (_MISSING, _SEND_BOTH),
    "nrrd.missing_data": (_MISSING, _SEND_BOTH),
}
"""Sentences in place of the readers' own, which name the sender's files."""
_QUOTES_FILE = ("dicom.unreadable", "dicom.bad_pixels")
_QUOTES_VALUE = ("dicom.bad_value",)
_QUOTES_SERIES = ("dicom.several_series", "dicom.no_such_series")
"""With descriptions, which may hold anything that someone wrote."""


def for_sender(error: DataError, source: Path) -> DataError:
    """The refusal as its sender may see it; `source` is the folder that was read."""
    if error.code in _OURS:
        message, remedy = _OURS[error.code]
        header = next((path.name for path in sorted(source.iterdir())), "scan")
        return DataError(error.code, message.format(header=header), remedy=remedy)
    message = error.message
    if error.code in _QUOTES_FILE:
        # In brackets is what a library said, which may hold any value of the file.
        message = re.sub(r"\((\w+): .*\)", r"(\1)", message)
    if error.code in _QUOTES_VALUE:
        message = re.sub(r" \(.*\)", "", message)
    if error.code in _QUOTES_SERIES:
        message = re.sub(r", “[^”]*”", "", message)
    remedy = _BY_OPERATOR.get(error.code, plain(error.remedy, source))
    return DataError(error.code, plain(message, source), remedy=remedy, facts=error.facts)


def of_series(error: DataError, source: Path) -> DataError:
    """The refusal of a form, without the paths of the study's files; their names are not known any more."""
    two, one = (re.compile(pattern.format(source=re.escape(str(source)))) for pattern in _FILES_OF_SERIES)
    message = one.sub("A file of the series ", two.sub("Two files of the series have ", error.message))
    message = message.replace(f"{source}: ", "The series ").replace(str(source), "the series")
    return DataError(error.code, message, remedy=error.remedy, facts=error.facts)


def plain(text: str, source: Path) -> str:
    """A sentence of a reader without paths, each UID replaced by its series' handle."""
    text = text.replace(f"{source}: ", "The upload ").replace(f"{source}/", "").replace(str(source), "the upload")
    return _UID.sub(lambda found: series_handle(found.group()), text)[:_LONGEST]
