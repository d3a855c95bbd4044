"""DICOM: a file, or the folder of a series, as a checked `Stored`; headers first, pixels only when all of them agree.

A folder is one scan: its own files, not those of folders within it; `dicom_series` says which of them are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from voxray.core.errors import DataError
from voxray.readers.dicom_frames import frames_of, meaning_warnings
from voxray.readers.dicom_padding import split_padding
from voxray.readers.dicom_pixels import Pixels, decode_pixels
from voxray.readers.dicom_series import one_series
from voxray.readers.dicom_slices import LACKING, DicomFrame, arrange
from voxray.readers.refusals import one_line, refusal
from voxray.readers.stored import AIR_HU, Stored, StoredSlice

_PADDING = f"{{}} pixels of padding (Pixel Padding Value) are read as air, {AIR_HU} HU"
_NO_PADDING = "{} pixels within the image have the Pixel Padding Value, that of a tissue; they are read as they are"
_CUT = (
    "{} pixels have bits above those that are stored (overlays), which are no part of their values and were cut off"
)
_MISPLACED = "High Bit does not say where values lie in {} files; they were read from the bottom of their cells"
_EXCESS = "{} bytes follow the pixels within their files, and were ignored"


def read_dicom(path: Path, series_uid: str | None = None) -> Stored:
    """The checked headers of one CT series, with its pixels behind them."""
    instances, ignored = one_series(path, series_uid)
    try:
        frames, grid = arrange([frame for instance in instances for frame in frames_of(instance)], path)
    except DataError as error:
        raise _with_left_out(error, ignored) from None
    return Stored(
        path=path,
        format="DICOM series" if len(instances) > 1 else "DICOM",
        grid=grid,
        dtype=instances[0].dtype,
        slices=partial(_slices, frames, {instance.path: instance.transfer_syntax for instance in instances}),
        modality="CT",
        series_uid=instances[0].series_uid,
        files=tuple(instance.path for instance in instances),
        warnings=(
            *ignored,
            *meaning_warnings(instances),
            *_thickness_warnings(frames, grid.spacing_mm[2]),
        ),
    )


def _with_left_out(error: DataError, ignored: Sequence[str]) -> DataError:
    """The refusal of a series that lacks slices, with the files that were left out: one of them may be a slice."""
    if error.code not in LACKING or not ignored:
        return error
    message = one_line(f"{error.message} Left out: {'; '.join(ignored)}.")
    return DataError(error.code, message, remedy=error.remedy, facts=error.facts)


def _slices(frames: Sequence[DicomFrame], syntaxes: dict[Path, str]) -> Iterator[StoredSlice]:
    """The slices in order; a file with many frames is decoded once as long as its frames follow each other."""
    held: Path | None = None
    pixels: Pixels | None = None
    for frame in frames:
        noted: dict[str, int] = {}
        if pixels is None or frame.path != held:
            held, pixels = frame.path, decode_pixels(frame.path, syntaxes[frame.path])
            noted = {_CUT: pixels.num_cut, _EXCESS: pixels.num_excess, _MISPLACED: int(pixels.is_misplaced)}
        count, rows, columns = pixels.values.shape
        if (rows, columns) != (frame.rows, frame.columns) or frame.index >= count:
            raise refusal(
                "dicom.bad_pixels",
                frame.path,
                f"decodes to {count} frames of {columns} x {rows} pixels, not to the "
                f"{frame.columns} x {frame.rows} of its header.",
                remedy="Copy or export the file again.",
            )
        yield _slice(pixels, frame, noted)


def _slice(pixels: Pixels, frame: DicomFrame, noted: dict[str, int]) -> StoredSlice:
    values = pixels.values[frame.index]
    if pixels.is_padding is None:
        return StoredSlice(values, frame.slope, frame.intercept, noted=noted)
    is_air, num_kept = split_padding(
        values, pixels.is_padding[frame.index], slope=frame.slope, intercept=frame.intercept
    )
    noted |= {_PADDING: int(np.count_nonzero(is_air)), _NO_PADDING: num_kept}
    return StoredSlice(values, frame.slope, frame.intercept, is_air if is_air.any() else None, noted)


def _thickness_warnings(frames: Sequence[DicomFrame], spacing_mm: float) -> list[str]:
    thickness = frames[0].thickness_mm
    if len(frames) == 1:
        return [f"a single slice; its thickness of {spacing_mm:g} mm is taken as the spacing"]
    if thickness and abs(thickness - spacing_mm) > 0.01 * spacing_mm:
        return [one_line(f"slices are {thickness:g} mm thick and {spacing_mm:g} mm apart; the distance counts")]
    return []
