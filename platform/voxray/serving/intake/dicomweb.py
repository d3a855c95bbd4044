"""DICOMweb: a series fetched from an archive (WADO-RS), objects stored to one (STOW-RS).

Only archives that the service's owner has named are spoken to, redirects are not followed, and what an archive says
is read in a confined process: an archive is trusted no more than an upload.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, PositiveFloat, field_validator, model_validator

from voxray.core.config import Config
from voxray.core.errors import DataError
from voxray.serving.intake.confined import CallBounds, CallEndedError, Reason, call
from voxray.serving.intake.disk import in_thread, remove
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.receive import Received
from voxray.serving.intake.study import RECEIVED

_PORTS = {"http": 80, "https": 443}
_UID = re.compile(r"[0-9.]{1,64}")
_ENDED: Mapping[Reason, tuple[str, str]] = {
    "too_slow": ("dicomweb.too_slow", "The archive took longer than is allowed."),
    "too_large": ("upload.parse_too_large", "What the archive sent took more memory than is allowed."),
    "died": ("upload.parse_died", "The process that spoke to the archive died of what it sent."),
}


class Access(Config):
    """Which archives may be spoken to, and how."""

    allowed: tuple[str, ...] = ()
    """Origins: scheme, host and port, such as ``https://pacs.example.org:8443``; nothing else is connected to."""
    tokens: dict[str, str] = Field(default_factory=dict, repr=False)
    """A bearer token by origin; it is sent to that origin alone."""
    ca_file: Path | None = None
    """Certificates to trust, where the archive's is signed by a private authority."""
    archive: str = ""
    """The DICOMweb root of an allowed origin where MONAI Label's routes look for series it has not, as OHIF asks."""
    connect_s: PositiveFloat = 10.0
    """To wait for a connection."""
    silence_s: PositiveFloat = 60.0
    """To wait for the next byte."""

    @field_validator("allowed")
    @classmethod
    def _are_origins(cls, allowed: tuple[str, ...]) -> tuple[str, ...]:
        for origin in allowed:
            if _origin(urlsplit(origin)) is None or urlsplit(origin).path not in ("", "/"):
                raise ValueError(f"must be origins such as https://pacs.example.org:8443, got {origin!r}")
        return allowed

    @model_validator(mode="after")
    def _archive_is_allowed(self) -> Access:
        if self.archive:
            try:
                peer(self.archive, self)
            except DataError:
                raise ValueError(
                    f"archive: must be the root of a DICOMweb service whose origin is allowed, got {self.archive!r}"
                ) from None
        return self


async def fetch(
    url: str, *, study_uid: str, series_uid: str, folder: Path, limits: Limits, access: Access
) -> Received:
    """Fetches a series into a study's folder, for `parse`; on refusal or cancellation that folder goes.

    `url` is the archive's root for WADO-RS, below which ``/studies`` lies; without a study's UID it is asked for the
    series' study first (QIDO-RS).
    """
    assert not (folder / RECEIVED).exists(), "a study's folder takes one upload"
    if not (study_uid == "" or _UID.fullmatch(study_uid)) or not _UID.fullmatch(series_uid):
        raise DataError(
            "dicomweb.bad_address",
            "A study or series UID must be at most 64 digits and dots.",
            remedy="Copy both UIDs from the archive.",
        )
    arguments = {
        "peer": peer(url, access),
        "study_uid": study_uid,
        "series_uid": series_uid,
        "folder": str((folder / RECEIVED).absolute()),
        "limits": limits.model_dump(),
    }
    try:
        await in_thread((folder / RECEIVED).mkdir, parents=True, mode=0o700)
        return Received(*await _call("fetch_series", arguments, limits))
    except BaseException:
        await remove(folder)
        raise


async def store(url: str, files: Sequence[Path], *, limits: Limits, access: Access) -> None:
    """Stores DICOM files in an archive; all of them are there when this returns, else it raises.

    `url` is the archive's root for STOW-RS, below which ``/studies`` lies.
    """
    arguments = {"peer": peer(url, access), "files": [str(path.absolute()) for path in files]}
    await _call("store_files", arguments, limits)


async def _call(name: str, arguments: Mapping[str, Any], limits: Limits) -> Any:
    bounds = CallBounds(limits.parse_memory_bytes, limits.fetch_s, file_bytes=limits.upload_bytes)
    try:
        return await call(f"voxray.serving.intake.archive.{name}", arguments, bounds)
    except CallEndedError as ended:
        code, message = _ENDED[ended.reason]
        raise DataError(code, message, remedy="Try again later, or send the files themselves.") from None


def peer(url: str, access: Access) -> dict[str, Any]:
    """How to speak to the archive at a URL, where that is allowed."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    origin = _origin(parts)
    if (
        origin is None
        or parts.query
        or parts.fragment
        or ".." in parts.path.split("/")
        or not parts.path.isprintable()
    ):
        raise DataError(
            "dicomweb.bad_address",
            "The archive's address must be http or https, a host, and a path at most.",
            remedy="Give the root of the archive's DICOMweb service, such as https://host/dicom-web.",
        )
    if origin not in {_origin(urlsplit(allowed)) for allowed in access.allowed}:
        raise DataError(
            "dicomweb.not_allowed",
            "This service may not speak to that archive.",
            remedy="Ask who runs the service to allow its origin, or send the files themselves.",
        )
    tokens = {_origin(urlsplit(where)): token for where, token in access.tokens.items()}
    return {
        "url": f"{origin}{parts.path.rstrip('/')}",
        "token": tokens.get(origin),
        "ca_file": str(access.ca_file) if access.ca_file else None,
        "timeouts": [access.connect_s, access.silence_s],
    }


def _origin(parts: SplitResult) -> str | None:
    """Scheme, host and port; None of what is no such address, or holds a user's name."""
    try:
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    if port is None or parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"
