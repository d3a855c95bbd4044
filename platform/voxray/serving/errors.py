"""Problems: what a client is told when a request cannot be granted (RFC 9457), with a stable code and a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voxray.core.config import Config
from voxray.core.errors import ConfigError, DataError, ResourceError, VoxrayError
from voxray.serving.intake.refusal_codes import status_of
from voxray.serving.intake.study import SeriesChoice

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(Config):
    """The body of an error's reply."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    """Stable: ``upload.too_large``, ``dicom.missing_slice``, ``job.unknown``."""
    detail: str
    remedy: str
    request_id: str | None = None
    series: tuple[SeriesChoice, ...] = ()
    """Where one of several series is to be named: what there is. Left out where it is empty."""


class ProblemError(Exception):  # RFC 9457's word
    """A request that is refused."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        remedy: str,
        headers: Mapping[str, str] | None = None,
        series: Sequence[SeriesChoice] = (),
    ) -> None:
        super().__init__(f"[{code}] {detail} {remedy}")
        self.status, self.code, self.detail, self.remedy = status, code, detail, remedy
        self.headers, self.series = dict(headers or {}), tuple(series)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.status, self.code, self.detail, self.remedy, self.headers, self.series)

    def details(self, request_id: str | None = None) -> ProblemDetails:
        """What the client reads."""
        return ProblemDetails(
            title=TITLES.get(self.status, "Refused"),
            status=self.status,
            code=self.code,
            detail=self.detail,
            remedy=self.remedy,
            request_id=request_id,
            series=self.series,
        )


def problem_of(error: VoxrayError) -> ProblemError:
    """A refusal of voxray's as a client is told of it."""
    if isinstance(error, DataError):
        series = [SeriesChoice.model_validate(one) for one in error.facts.get("series", ())]
        return ProblemError(status_of(error.code), error.code, error.message, remedy=error.remedy, series=series)
    if isinstance(error, ResourceError):
        return ProblemError(
            503, "service.lacks", str(error), remedy="Give a smaller scan, or ask who runs the service."
        )
    assert isinstance(error, ConfigError)
    return ProblemError(422, "request.refused", str(error), remedy="Mend the request.")


def fault() -> ProblemError:
    """What a client is told of our own mistakes: nothing but where to look."""
    return ProblemError(
        500, "service.fault", "The service failed.", remedy="Tell whoever runs it the job or request id."
    )


def no_database() -> ProblemError:
    """What a client is told while the database is away."""
    return ProblemError(
        503,
        "service.database",
        "The service's database does not answer.",
        remedy="Try again later.",
        headers={"Retry-After": "5"},
    )


def _again(status: int, code: str, *said: Any) -> ProblemError:
    detail, remedy, headers, series = said
    return ProblemError(status, code, detail, remedy=remedy, headers=headers, series=series)


TITLES = {
    400: "Bad request",
    401: "Not signed in",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported format",
    422: "Cannot be used",
    429: "Too many requests",
    500: "A fault of the service",
    501: "Not offered",
    502: "The archive did not answer as it should",
    503: "Not available",
    504: "The archive took too long",
    507: "No space",
}
