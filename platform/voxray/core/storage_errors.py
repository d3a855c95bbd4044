"""What libraries of storage raise, as a sentence: most of it is no OSError, and tells a user little.

The libraries need not be installed: their errors are known by name, and by the code that S3 and its like answer with,
which s3fs leaves in the cause of the OSError that it makes of it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Literal

from voxray.core.errors import ResourceError, StorageAwayError

Trouble = Literal[
    "no credentials", "credentials", "clock", "forbidden", "bucket", "region", "space", "replaced", "busy", "away"
]

_BY_CODE: dict[str, Trouble] = {
    "NoSuchBucket": "bucket",
    "InvalidBucketName": "bucket",
    "InvalidAccessKeyId": "credentials",
    "SignatureDoesNotMatch": "credentials",
    "ExpiredToken": "credentials",
    "ExpiredTokenException": "credentials",
    "TokenRefreshRequired": "credentials",
    "InvalidToken": "credentials",
    "InvalidSecurity": "credentials",
    "InvalidClientTokenId": "credentials",
    "RequestTimeTooSkewed": "clock",
    "AccessDenied": "forbidden",
    "AllAccessDisabled": "forbidden",
    "AccountProblem": "forbidden",
    "MethodNotAllowed": "forbidden",
    "401": "credentials",
    "403": "forbidden",
    "PermanentRedirect": "region",
    "TemporaryRedirect": "region",
    "Redirect": "region",
    "301": "region",
    "307": "region",
    "AuthorizationHeaderMalformed": "region",
    "IllegalLocationConstraintException": "region",
    "QuotaExceeded": "space",
    "XMinioStorageFull": "space",
    "507": "space",
    "SlowDown": "busy",
    "ServiceUnavailable": "busy",
    "InternalError": "busy",
    "OperationAborted": "busy",
    "RequestTimeout": "busy",
    "429": "busy",
    "500": "busy",
    "502": "busy",
    "503": "busy",
    "504": "busy",
}
_BY_NAME: dict[str, Trouble] = {
    "NoCredentialsError": "no credentials",
    "PartialCredentialsError": "no credentials",
    "CredentialRetrievalError": "no credentials",
    "ProfileNotFound": "no credentials",
    "TokenRetrievalError": "no credentials",
    "SSOTokenLoadError": "no credentials",
    "UnauthorizedSSOTokenError": "credentials",
    "DefaultCredentialsError": "no credentials",
    "RefreshError": "credentials",
    "NoRegionError": "region",
    "FileExpired": "replaced",
    "EndpointConnectionError": "away",
    "ConnectTimeoutError": "away",
    "ReadTimeoutError": "away",
    "ConnectionClosedError": "away",
    "HTTPClientError": "away",
    "SSLError": "away",
    "ProxyConnectionError": "away",
    "ResponseStreamingError": "away",
    "IncompleteReadError": "away",
    "ResponseParserError": "away",
    "FSTimeoutError": "away",
    "TransportError": "away",
    "ClientConnectionError": "away",
    "ClientPayloadError": "away",
    "ServerTimeoutError": "away",
    "ServiceRequestError": "away",
    "ChecksumError": "replaced",
}
"""Class names of botocore, aiohttp, s3fs, gcsfs, google.auth, azure.core, fsspec."""
_MODULES = ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "azure", "adlfs", "fsspec", "urllib3")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_GONE = (
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ESTALE),
)
_TRANSIENT = ("replaced", "busy", "away")
_LENGTH = 160


def trouble_of(error: BaseException) -> Trouble | None:
    """What is wrong with the storage, by an error or what caused it; None where it is something else."""
    for one in _chain(error):
        code = _code(one)
        if code in _BY_CODE:
            return _BY_CODE[code]
        names = [kind.__name__ for kind in type(one).__mro__ if kind.__module__.startswith(_MODULES)]
        if found := next((_BY_NAME[name] for name in names if name in _BY_NAME), None):
            return found
        if isinstance(one, OSError) and one.errno in (*_FULL, *_GONE):
            return "space" if one.errno in _FULL else "away"
        if isinstance(one, FileNotFoundError) and "bucket does not exist" in str(one):
            return "bucket"
        if isinstance(one, TimeoutError | ConnectionError):
            return "away"
    return None


def is_of_storage(error: BaseException) -> bool:
    """Whether a library of storage raised it, and not the system."""
    return type(error).__module__.startswith(_MODULES)


def refusal_of_storage(error: BaseException, uri: str, done: str) -> ResourceError:
    """The sentence for it, with what could not be `done`; a `StorageAwayError` where asking again may help."""
    trouble, detail = trouble_of(error), _detail(error)
    if trouble is None:
        return ResourceError(f"{uri}: cannot be {done} ({detail}); check access and free space.")
    remedy = _REMEDIES[trouble]
    if trouble in ("no credentials", "credentials") and uri.startswith(("gs:", "gcs:")):
        remedy = "give GOOGLE_APPLICATION_CREDENTIALS, or the node a service account."
    if trouble == "region" and (own := re.search(r"expecting '([\w-]+)'", str(error))):
        remedy = f"set AWS_DEFAULT_REGION={own.group(1)}."
    kind = StorageAwayError if trouble in _TRANSIENT else ResourceError
    return kind(f"{uri}: cannot be {done}: {_WHAT[trouble]} ({detail}); {remedy}")


_WHAT: dict[Trouble, str] = {
    "no credentials": "there are no credentials for it",
    "credentials": "the storage does not accept the credentials",
    "clock": "this machine's clock is wrong",
    "forbidden": "the storage refuses access",
    "bucket": "there is no such bucket",
    "region": "the bucket lies in another region",
    "space": "there is no space left",
    "replaced": "it was replaced meanwhile",
    "busy": "the storage is too busy, or has failed",
    "away": "the storage does not answer",
}
_REMEDIES: dict[Trouble, str] = {
    "no credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the node a role.",
    "credentials": "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE, and that "
    "they have not expired.",
    "clock": "set it, as with NTP: it must be right to a few minutes.",
    "forbidden": "check the credentials, and that they may list, read, write and delete there.",
    "bucket": "make it, or correct its name: voxray makes none.",
    "region": "set AWS_DEFAULT_REGION, or AWS_ENDPOINT_URL_S3, to the bucket's own.",
    "space": "free some, or raise the quota, and run the same command again.",
    "replaced": "see that nothing else writes there, and run the same command again.",
    "busy": "run the same command again in a while.",
    "away": "check the network, the address, and AWS_ENDPOINT_URL_S3 where it is not Amazon's.",
}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was made of, the outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> str:
    """What S3 and its like answered with; empty for all else."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    if not is_of_storage(error):
        return ""
    return str(getattr(error, "status_code", None) or getattr(error, "status", None) or getattr(error, "code", ""))


def _detail(error: BaseException) -> str:
    """The first line of what it says, without the number that Python puts before it, and the code."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    line = re.sub(r"^\[Errno -?\d+\] ", "", text.splitlines()[0])[:_LENGTH].rstrip(".")
    code = next((code for one in _chain(error) if (code := _code(one)) and code not in line), "")
    return f"{code}: {line}" if code else line
