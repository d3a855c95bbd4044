"""The codes that an intake refuses with, beside those of the readers, and the HTTP status of each."""

from __future__ import annotations

from collections.abc import Mapping

UNPROCESSABLE = 422
"""What every code has that is not listed: the content was understood, and cannot be used."""

STATUS: Mapping[str, int] = {
    "upload.empty": 422,
    "upload.stalled": 408,
    "upload.too_large": 413,
    "upload.too_many_files": 413,
    "upload.too_many_voxels": 413,
    "upload.expands_too_far": 413,
    "upload.not_zip": 415,
    "upload.unknown_format": 415,
    "upload.bad_zip": 422,
    "upload.encrypted": 422,
    "upload.nested_archive": 422,
    "upload.unsafe_entry": 422,
    "upload.several_scans": 422,
    "upload.parse_died": 422,
    "upload.parse_too_large": 413,
    "upload.parse_too_slow": 422,
    "dicom.several_patients": 422,
    "dicom.several_studies": 422,
    "dicom.several_series": 422,
    "dicom.no_such_series": 422,
    "dicomweb.bad_address": 422,
    "dicomweb.not_allowed": 403,
    "dicomweb.unreachable": 502,
    "dicomweb.refused": 502,
    "dicomweb.not_found": 422,
    "dicomweb.bad_answer": 502,
    "dicomweb.not_stored": 502,
    "dicomweb.too_slow": 504,
    # Of the readers: a size that is refused whatever the limits are, and forms that no reader knows.
    "grid.too_large": 413,
    "path.unknown_format": 415,
    "dicom.transfer_syntax": 415,
    "metaimage.text_data": 415,
    "nrrd.encoding": 415,
    "nrrd.version": 415,
}


def status_of(code: str) -> int:
    """The HTTP status that a refusal with this code is answered with."""
    return STATUS.get(code, UNPROCESSABLE)
