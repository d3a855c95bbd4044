"""Parsing: what was received is read in a confined process, wherever the caller runs."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

from voxray.core.errors import DataError
from voxray.serving.intake.confined import CallBounds, CallEndedError, Reason, call
from voxray.serving.intake.disk import in_thread
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.study import VOLUME, WORK, StudyInfo

_NPY_HEADER = 1 << 12
_SMALLER = "Send a smaller part of the scan, or ask who runs the service for more."
_ENDED: Mapping[Reason, tuple[str, str, str]] = {
    "died": (
        "upload.parse_died",
        "The process that read the upload died of it.",
        "Convert the scan to NIfTI (.nii.gz) and send that.",
    ),
    "too_slow": ("upload.parse_too_slow", "Reading the upload took longer than is allowed.", _SMALLER),
    "too_large": ("upload.parse_too_large", "Reading the upload took more memory than is allowed.", _SMALLER),
}


async def parse(folder: Path, limits: Limits, *, series_uid: str | None = None) -> StudyInfo:
    """Reads what was received into a study's folder: `volume.npy`, `study.json`, and the scan's files in `source`.

    `series_uid` is the UID of the series to read where there are several, or its handle. What cannot be read is
    refused with a DataError, and leaves what was received as it was: `parse` may be called again.
    """
    arguments = {"folder": str(folder.absolute()), "limits": limits.model_dump(), "series": series_uid}
    bounds = CallBounds(
        memory_bytes=limits.parse_memory_bytes,
        seconds=limits.parse_s,
        file_bytes=max(limits.expanded_bytes, 2 * limits.voxels + _NPY_HEADER),
    )
    try:
        return StudyInfo.model_validate(
            await call("voxray.serving.intake.upload_reading.read_received", arguments, bounds)
        )
    except CallEndedError as ended:
        code, message, remedy = _ENDED[ended.reason]
        await in_thread(_tidy, folder)
        raise DataError(code, message, remedy=remedy) from None
    except (DataError, asyncio.CancelledError):
        await in_thread(_tidy, folder)
        raise


def _tidy(folder: Path) -> None:
    """Removes what a reading left that did not end well."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    for path in folder.glob(f".{VOLUME}.*"):
        path.unlink(missing_ok=True)
