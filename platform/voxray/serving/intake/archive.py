"""Speaking to a DICOMweb archive. Runs in the confined process, nowhere else."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.web import DICOMwebClient

from voxray.core.errors import DataError
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.receive import too_many_files
from voxray.serving.intake.uploaded_files import own_name, uploaded_file, write_list

_CHUNK = 1 << 20
_ANSWER_BYTES = 16 << 20
"""No archive has more to say about what it stored."""
_ANY_SYNTAX = (("application/dicom", "*"),)
_UID = re.compile(r"[0-9.]{1,64}")
_LATER = "Try again later, or ask who runs the archive."


def fetch_series(
    *, peer: Mapping[str, Any], study_uid: str, series_uid: str, folder: str, limits: Mapping[str, Any]
) -> list[int]:
    """Writes the files of a series under our own names; how many there were, and how many bytes.

    Where the study's UID is empty the archive is asked for it.
    """
    bounds, into = Limits.model_validate(dict(limits)), Path(folder)
    count = total = 0
    with _speaking(), _client(peer, bounds.upload_bytes) as client:
        study = study_uid or _study_of(client, series_uid)
        for dataset in client.iter_series(study, series_uid, media_types=_ANY_SYNTAX):
            count += 1
            if count > bounds.entries:
                raise too_many_files(bounds)
            path = into / own_name(count)
            dataset.save_as(path)
            total += path.stat().st_size
    if count == 0:
        raise _not_found()
    write_list(into, [uploaded_file(number, "slice.dcm") for number in range(1, count + 1)])
    return [count, total]


def store_files(*, peer: Mapping[str, Any], files: Sequence[str]) -> int:
    """Stores DICOM files; how many were stored, which is all of them."""
    datasets = [pydicom.dcmread(path) for path in files]
    with _speaking(), _client(peer, _ANSWER_BYTES) as client:
        answer = client.store_instances(datasets)
        stored = {str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence") or []}
    missing = {str(dataset.SOPInstanceUID) for dataset in datasets} - stored
    if missing:
        raise DataError(
            "dicomweb.not_stored", f"The archive took {len(stored)} of {len(datasets)} objects.", remedy=_LATER
        )
    return len(stored)


def _study_of(client: DICOMwebClient, series_uid: str) -> str:
    """The UID of a series' study; an archive may say more than it was asked."""
    found = client.search_for_series(search_filters={"SeriesInstanceUID": series_uid})
    series = (pydicom.Dataset.from_json(entry) for entry in found)
    studies = {str(each.StudyInstanceUID) for each in series if each.SeriesInstanceUID == series_uid}
    if len(studies) != 1:
        raise _not_found()
    (study,) = studies
    if not _UID.fullmatch(study):
        raise ValueError("no UID")
    return study


@contextmanager
def _client(peer: Mapping[str, Any], most: int) -> Iterator[DICOMwebClient]:
    """A client that follows no redirect, heeds no proxy of the environment, and reads so many bytes at most."""
    with requests.Session() as session:
        session.trust_env = False
        session.max_redirects = 0
        session.headers["Accept-Encoding"] = "identity"
        if peer["token"] is not None:
            session.headers["Authorization"] = f"Bearer {peer['token']}"
        if peer["ca_file"] is not None:
            session.verify = peer["ca_file"]
        session.hooks["response"].append(_counted(most))
        client = DICOMwebClient(peer["url"], session=session, chunk_size=_CHUNK, timeout=tuple(peer["timeouts"]))
        client.set_http_retry_params(retry=False)
        yield client


def _counted(most: int) -> Callable[..., None]:
    """A hook that counts the bytes of each answer while they are read."""

    def hook(response: requests.Response, **_: Any) -> None:
        plain: Callable[..., Iterator[bytes]] = response.iter_content

        def counted(*args: Any, **kwargs: Any) -> Iterator[bytes]:
            total = 0
            for chunk in plain(*args, **kwargs):
                total += len(chunk)
                if total > most:
                    raise DataError(
                        "upload.too_large",
                        f"The archive sends more than {most} bytes.",
                        remedy="Name a smaller series, or ask who runs the service for more.",
                    )
                yield chunk

        response.iter_content = counted  # type: ignore[method-assign]

    return hook


@contextmanager
def _speaking() -> Iterator[None]:
    """Turns what goes wrong with an archive into a refusal, which holds nothing that the archive said."""
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DataError, MemoryError):
        raise
    except requests.TooManyRedirects:
        raise DataError(
            "dicomweb.refused",
            "The archive redirects elsewhere, which is not followed.",
            remedy="Give its own address.",
        ) from None
    except requests.HTTPError as error:
        raise _answered(error.response.status_code if error.response is not None else 0) from None
    except (requests.ConnectionError, requests.Timeout) as error:
        raise DataError(
            "dicomweb.unreachable", f"The archive does not answer ({type(error).__name__}).", remedy=_LATER
        ) from None
    except Exception as error:
        # The client and pydicom raise anything that an unexpected answer happens to cause.
        raise DataError(
            "dicomweb.bad_answer", f"The archive's answer cannot be read ({type(error).__name__}).", remedy=_LATER
        ) from None


def _answered(status: int) -> DataError:
    if status in (401, 403):
        return DataError(
            "dicomweb.refused",
            f"The archive refuses this service (status {status}).",
            remedy="Ask who runs the service to give it a token that the archive takes.",
        )
    if status == 404:
        return _not_found()
    return DataError("dicomweb.bad_answer", f"The archive answers with status {status}.", remedy=_LATER)


def _not_found() -> DataError:
    return DataError("dicomweb.not_found", "The archive has no such series.", remedy="Check both UIDs.")
