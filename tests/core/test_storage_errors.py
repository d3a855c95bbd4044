"""What goes wrong with object storage is one sentence, whichever library raised it; what passes is waited for."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from support.buckets import Buckets, Refusal, buckets, forget, refusing
from voxray.core import patience
from voxray.core.bulkhead import refusal_in
from voxray.core.errors import ConfigError, ResourceError, StorageAwayError
from voxray.core.patience import Clock, patiently
from voxray.core.storage import Place
from voxray.core.storage_errors import refusal_of_storage


@pytest.fixture(scope="module")
def s3() -> Iterator[Buckets]:
    """A small S3 over HTTP."""
    with buckets() as server:
        yield server


@pytest.fixture(scope="module")
def refuser() -> Iterator[Refusal]:
    """One that refuses everything."""
    with refusing() as said:
        yield said


def test_a_place_on_s3_is_like_any_other(s3: Buckets, tmp_path: Path) -> None:
    place = Place.of(f"s3://{s3.make()}/run")
    place.require_writable()
    assert place.names(".") == []
    assert not place.exists("a/one")
    assert place.size("a/one") is None
    place.write("a/one", b"first")
    place.write("a/one", b"second")
    assert place.read("a/one") == b"second"
    assert place.names("a") == ["one"]
    assert place.folders(".") == ["a"]
    place.fetch("a/one", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"second"
    place.remove("a/one")
    assert not place.exists("a/one")
    with pytest.raises(FileNotFoundError):
        place.read("a/one")


def test_a_bucket_that_is_not_there_is_an_error_and_is_not_made(s3: Buckets) -> None:
    place = Place.of("s3://no-such-bucket/run")
    for ask in (
        place.require_writable,
        lambda: place.write("one", b""),
        lambda: place.names("."),
        lambda: place.read("one"),
    ):
        with pytest.raises(
            ResourceError, match=r"s3://no-such-bucket/run: .*there is no such bucket .*NoSuchBucket.*make it"
        ):
            ask()
    assert "no-such-bucket" not in s3.names()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "there are no credentials for it .*AWS_PROFILE"),
        ({"AWS_PROFILE": "nosuch"}, "there are no credentials for it .*nosuch"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the storage does not answer .*AWS_ENDPOINT_URL_S3"),
    ],
)
def test_without_credentials_or_a_server_that_is_said_at_once(
    s3: Buckets, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    del s3
    for name, value in environment.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    forget()
    try:
        with pytest.raises(ResourceError, match=f"^s3://else/run: cannot be looked at: {said}"):
            Place.of("s3://else/run").exists("one")
    finally:
        forget()


def test_storage_that_answered_before_is_waited_for_and_that_is_said(
    s3: Buckets, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place.of(f"s3://{s3.make()}/run")
    place.write("state.json", b"1")
    s3.close()
    assert not place.offer("ticker.json", b"0")  # what may be lost is lost at once

    class Back(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            del record
            s3.open()

    handler = Back()
    logging.getLogger(patience.__name__).addHandler(handler)
    try:
        with caplog.at_level(logging.WARNING):
            place.write("state.json", b"2")
    finally:
        logging.getLogger(patience.__name__).removeHandler(handler)
        s3.open()
    assert place.read("state.json") == b"2"
    assert not place.exists("ticker.json")
    assert "the storage is too busy, or has failed (ServiceUnavailable: come again)" in caplog.text
    assert "Asked again in 1 s" in caplog.text


def test_an_object_that_is_replaced_while_it_is_read_is_the_old_one_or_the_new(s3: Buckets) -> None:
    place = Place.of(f"s3://{s3.make()}/run")
    place.write("history.json", b"[]")
    stop = threading.Event()

    def replace() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            place.write("history.json", b"[" + b"1," * (number % 50) + b"1]")

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(50):
            assert place.once().read("history.json").endswith(b"]")
    finally:
        stop.set()
        thread.join()


def test_a_file_that_is_replaced_between_opening_and_reading_is_opened_again(s3: Buckets) -> None:
    place, opened = Place.of(f"s3://{s3.make()}/store"), list[int]()
    place.write("shard", b"old" * 1000)

    def read(file: IO[bytes]) -> bytes:
        opened.append(1)
        if len(opened) == 1:
            place.write("shard", b"new" * 1000)  # s3fs: FileExpired
        return file.read()

    assert place.reading("shard", read) == b"new" * 1000
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "InvalidAccessKeyId", "the storage does not accept the credentials .*AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "the storage does not accept the credentials .*AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", "the storage does not accept the credentials .*have not expired"),
        (403, "AccessDenied", "the storage refuses access .*may list, read, write and delete"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong"),
        (400, "AuthorizationHeaderMalformed", "the bucket lies in another region .*AWS_DEFAULT_REGION=eu-west-1"),
        (400, "IllegalLocationConstraintException", "the bucket lies in another region"),
        (507, "XMinioStorageFull", "there is no space left"),
        (500, "InternalError", "the storage is too busy, or has failed"),
    ],
)
def test_what_s3_refuses_is_said_in_a_sentence(refuser: Refusal, status: int, code: str, said: str) -> None:
    refuser.status, refuser.code, refuser.message = status, code, "wrong; expecting 'eu-west-1'"
    with pytest.raises(ResourceError, match=said) as caught:
        Place.of("s3://bucket/run").write("one", b"1")
    text = str(caught.value)
    assert text.startswith("s3://bucket/run: cannot be written: ")
    assert text.endswith(".")
    assert "\n" not in text
    assert isinstance(caught.value, StorageAwayError) == (status == 500)


def test_it_is_asked_again_with_longer_pauses_for_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(patience.LIMIT, raising=False)
    now, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    def fail() -> None:
        raise StorageAwayError("s3://b/run: cannot be read: the storage does not answer (refused).")

    clock = Clock(lambda: now[0], sleep)
    with pytest.raises(StorageAwayError, match=r"refused\)\.$"):
        patiently(fail, "s3://never-answered", clock=clock)
    assert pauses == []
    patience.trust("s3://answered")
    with pytest.raises(StorageAwayError, match=r"It was asked again for 10 minutes\.$"):
        patiently(fail, "s3://answered", clock=clock)
    assert pauses[:6] == [1, 2, 4, 8, 16, 30]
    assert sum(pauses) == 600


def test_how_long_is_the_users_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise StorageAwayError("away.")

    patience.trust("s3://patience")
    monkeypatch.setenv(patience.LIMIT, "0")
    with pytest.raises(StorageAwayError, match=r"^away\.$"):
        patiently(fail, "s3://patience")
    monkeypatch.setenv(patience.LIMIT, "soon")
    with pytest.raises(ConfigError, match="VOXRAY_STORAGE_PATIENCE_S=soon: must be a number"):
        patiently(fail, "s3://patience")


def _made(module: str, name: str, *bases: type[BaseException], **fields: object) -> BaseException:
    """An error as a library that is not installed raises it."""
    error: BaseException = type(name, bases or (Exception,), {"__module__": module})("it says why")
    for field, value in fields.items():
        setattr(error, field, value)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_made("gcsfs.retry", "HttpError", code=403), "refuses access"),
        (_made("gcsfs.retry", "HttpError", code=503), "too busy"),
        (_made("gcsfs.retry", "ChecksumError"), "replaced meanwhile"),
        (
            _made("google.auth.exceptions", "DefaultCredentialsError"),
            "no credentials .*GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (_made("google.auth.exceptions", "RefreshError"), "does not accept the credentials .*GOOGLE_APPLICATION"),
        (_made("google.auth.exceptions", "TransportError"), "does not answer"),
        (_made("aiohttp.client_exceptions", "ClientPayloadError"), "does not answer"),
        (_made("s3fs.utils", "FileExpired", OSError), "replaced meanwhile"),
        (OSError(errno.ENOSPC, "No space left on device"), "there is no space left"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "does not answer"),
        (FileNotFoundError("The specified bucket does not exist."), "no such bucket"),
        (OSError(errno.EIO, "odd"), r" \(odd\); check access"),
    ],
)
def test_other_libraries_errors_too(error: BaseException, said: str) -> None:
    with pytest.raises(ResourceError, match=f"^gs://bucket/run: cannot be read.*{said}"):
        raise refusal_of_storage(error, "gs://bucket/run", "read")


def test_what_a_library_raises_elsewhere_is_no_fault_of_voxrays() -> None:
    """Ray and Arrow read through the same libraries, and their errors arrive as they are."""
    known = refusal_in(_made("botocore.exceptions", "EndpointConnectionError"))
    assert isinstance(known, StorageAwayError)
    assert "the storage does not answer (it says why)" in str(known)
