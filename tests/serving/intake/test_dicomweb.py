"""DICOMweb against a real Orthanc, and against archives that mean no good."""

from __future__ import annotations

import asyncio
import http.server
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from serving.intake.conftest import PLANTED, series_files, slice_file
from support.archives import put, real_orthanc
from support.services import free_port
from support.small_servers import Answer, serving
from voxray.core.errors import ConfigError, DataError
from voxray.readers import read_volume
from voxray.serving.intake.dicomweb import Access, fetch, store
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.parse import parse
from voxray.serving.intake.receive import Received
from voxray.serving.intake.study import StudyInfo, series_handle

STUDY, SERIES = "1.2.3.4.5.6.7.1", "1.2.3.4.5.6.7.1.1"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty Orthanc on loopback; skips where it is not installed."""
    with real_orthanc(tmp_path_factory.mktemp("orthanc")) as address:
        yield address


def found_by_qido(orthanc: str, query: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"{orthanc}/dicom-web/{query}", headers={"Accept": "application/dicom+json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        found: list[dict[str, Any]] = json.loads(response.read())
    return found


def got(
    url: str,
    folder: Path,
    access: Access,
    limits: Limits | None = None,
    *,
    study_uid: str = STUDY,
    series_uid: str = SERIES,
) -> Received:
    bounds = limits or Limits()
    return asyncio.run(
        fetch(url, study_uid=study_uid, series_uid=series_uid, folder=folder, limits=bounds, access=access)
    )


def refused(
    url: str,
    folder: Path,
    access: Access,
    limits: Limits | None = None,
    *,
    study_uid: str = STUDY,
    series_uid: str = SERIES,
) -> str:
    with pytest.raises(DataError) as raised:
        got(url, folder, access, limits, study_uid=study_uid, series_uid=series_uid)
    assert not folder.exists()
    assert PLANTED not in str(raised.value)
    assert STUDY not in str(raised.value)
    return raised.value.code


@pytest.mark.data
def test_a_real_series_is_fetched_and_an_object_is_stored(orthanc: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom"
    paths = sorted(source.glob("*.dcm"))
    for path in paths:
        put(orthanc, path.read_bytes())
    first = pydicom.dcmread(paths[0])
    study, series = str(first.StudyInstanceUID), str(first.SeriesInstanceUID)
    access = Access(allowed=(orthanc,))
    received = got(f"{orthanc}/dicom-web", tmp_path / "study", access, study_uid=study, series_uid=series)
    assert received.num_files == 16
    info: StudyInfo = asyncio.run(parse(tmp_path / "study", Limits(), series_uid=series))
    assert info.series == series_handle(series)
    assert (np.load(tmp_path / "study" / "volume.npy") == read_volume(source).voxels).all()

    made = pydicom.dcmread(paths[0])
    made.SeriesInstanceUID, made.SOPInstanceUID = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.SeriesDescription = "stored back"
    made.save_as(tmp_path / "made.dcm")
    asyncio.run(store(f"{orthanc}/dicom-web/", [tmp_path / "made.dcm"], limits=Limits(), access=access))
    (entry,) = found_by_qido(orthanc, f"studies/{study}/series/{made.SeriesInstanceUID}/instances")
    assert entry["00080018"]["Value"] == [made.SOPInstanceUID]


@pytest.fixture(scope="module")
def filled(orthanc: str) -> str:
    """The same, with a series of 12 slices."""
    for data in series_files(12).values():
        put(orthanc, data)
    return orthanc


def test_limits_hold_for_archives_too(filled: str, tmp_path: Path) -> None:
    root, access = f"{filled}/dicom-web", Access(allowed=(filled,))
    assert got(root, tmp_path / "all", access).num_files == 12
    assert refused(root, tmp_path / "a", access, Limits(entries=11)) == "upload.too_many_files"
    assert refused(root, tmp_path / "b", access, Limits(upload_bytes=5000)) == "upload.too_large"
    assert refused(root, tmp_path / "c", access, series_uid="1.2.3.4") == "dicomweb.not_found"
    assert refused(filled, tmp_path / "d", access) == "dicomweb.not_found"


def test_an_archive_is_asked_for_a_series_study(filled: str, tmp_path: Path) -> None:
    root, access = f"{filled}/dicom-web", Access(allowed=(filled,))
    assert got(root, tmp_path / "all", access, study_uid="").num_files == 12
    assert refused(root, tmp_path / "a", access, study_uid="", series_uid="1.2.3.4") == "dicomweb.not_found"
    assert refused(root, tmp_path / "b", access, study_uid="", series_uid="") == "dicomweb.bad_address"
    assert refused(filled, tmp_path / "c", access, study_uid="") == "dicomweb.bad_answer"  # of Orthanc's own API


def test_only_allowed_origins_are_spoken_to(tmp_path: Path) -> None:
    access = Access(allowed=("https://pacs.example.org", "http://127.0.0.1:8042/"))
    for number, url in enumerate(
        [
            "http://pacs.example.org/dicom-web",
            "https://pacs.example.org:8443/dicom-web",
            "https://pacs.example.org.evil.net/dicom-web",
            "http://127.0.0.1/dicom-web",
            "http://localhost:8042/dicom-web",
            "http://169.254.169.254/latest",
        ]
    ):
        assert refused(url, tmp_path / f"a{number}", access) == "dicomweb.not_allowed"
    for number, url in enumerate(
        [
            "https://pacs.example.org@evil.net/",
            "https://user:word@pacs.example.org/",
            "file:///etc/passwd",
            "https://pacs.example.org/a/../b",
            "https://pacs.example.org/?x=1",
            "https://pacs.example.org:99999/",
            "",
        ]
    ):
        assert refused(url, tmp_path / f"b{number}", access) == "dicomweb.bad_address"
    assert refused("https://pacs.example.org", tmp_path / "c", access, study_uid="1.2/../3") == "dicomweb.bad_address"


def test_an_origin_must_be_one() -> None:
    from voxray.core.config import parse as parse_config

    for wrong in ("pacs.example.org", "https://pacs.example.org/dicom-web", "ftp://pacs.example.org"):
        with pytest.raises(ConfigError, match="must be origins"):
            parse_config(Access, {"allowed": [wrong]}, where="service")
    for wrong in ("http://b/dicom-web", "dicom-web", "http://a/?x=1"):
        with pytest.raises(
            ConfigError, match="archive: must be the root of a DICOMweb service whose origin is allowed"
        ):
            parse_config(Access, {"allowed": ["http://a"], "archive": wrong}, where="service")
    assert "word" not in repr(Access(allowed=("http://a",), tokens={"http://a": "word"}))


def says(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


MULTIPART = 'multipart/related; type="application/dicom"; boundary=B'


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (says(500, PLANTED.encode()), "dicomweb.bad_answer"),
        (says(401), "dicomweb.refused"),
        (says(404), "dicomweb.not_found"),
        (says(200, b"<html>hello</html>", Content_Type="text/html"), "dicomweb.bad_answer"),
        (says(200, b"\r\n--B\r\n\r\njunk\r\n--B--", Content_Type=MULTIPART), "dicomweb.bad_answer"),
        (says(200, b"\r\n--B--", Content_Type=MULTIPART), "dicomweb.not_found"),
    ],
)
def test_answers_that_are_none(tmp_path: Path, answer: Answer, code: str) -> None:
    with serving(answer) as address:
        assert refused(address, tmp_path / "study", Access(allowed=(address,))) == code


def one_series(study: str, series: str) -> dict[str, Any]:
    """What an archive says of a series."""
    return {"0020000D": {"vr": "UI", "Value": [study]}, "0020000E": {"vr": "UI", "Value": [series]}}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([], "dicomweb.not_found"),
        ([one_series(STUDY, "1.2.3")], "dicomweb.not_found"),
        ([one_series(STUDY, SERIES), one_series("1.2.3", SERIES)], "dicomweb.not_found"),
        ([one_series("../../admin", SERIES)], "dicomweb.bad_answer"),
        ([{"0020000D": 5}], "dicomweb.bad_answer"),
        ({"error": PLANTED}, "dicomweb.bad_answer"),
    ],
)
def test_what_an_archive_says_of_a_series_is_not_trusted(tmp_path: Path, said: object, code: str) -> None:
    asked: list[str] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        says(200, json.dumps(said).encode(), Content_Type="application/dicom+json")(handler)

    with serving(answer) as address:
        assert refused(address, tmp_path / "study", Access(allowed=(address,)), study_uid="") == code
    assert [path.split("?")[0] for path in asked] == ["/series"]


def test_redirects_are_not_followed(tmp_path: Path) -> None:
    reached: list[object] = []
    with serving(reached.append) as secret, serving(says(302, Location=f"{secret}/meta")) as address:
        access = Access(allowed=(address,))
        assert refused(address, tmp_path / "study", access) == "dicomweb.refused"
        (tmp_path / "made.dcm").write_bytes(slice_file())
        with pytest.raises(DataError) as raised:
            asyncio.run(store(address, [tmp_path / "made.dcm"], limits=Limits(), access=access))
    assert raised.value.code == "dicomweb.refused"
    assert not reached


def test_a_token_goes_to_its_own_origin_alone(tmp_path: Path) -> None:
    seen: dict[str, str | None] = {}

    def note(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen[handler.path.split("/")[1]] = handler.headers.get("Authorization")
        says(404)(handler)

    with serving(note) as one, serving(note) as other:
        access = Access(allowed=(one, other), tokens={one: "word"})
        refused(f"{one}/one", tmp_path / "a", access)
        refused(f"{other}/other", tmp_path / "b", access)
    assert seen == {"one": "Bearer word", "other": None}


def test_an_archive_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", MULTIPART)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(1 << 16))

    with serving(endless) as address:
        limits = Limits(upload_bytes=8 << 20)
        assert refused(address, tmp_path / "study", Access(allowed=(address,)), limits) == "upload.too_large"


def test_an_archive_that_falls_silent_or_is_not_there(tmp_path: Path) -> None:
    def silent(_: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(20)

    with serving(silent) as address:
        access = Access(allowed=(address,), silence_s=0.2)
        assert refused(address, tmp_path / "a", access) == "dicomweb.unreachable"
        patient = Access(allowed=(address,))
        assert refused(address, tmp_path / "b", patient, Limits(fetch_s=1.0)) == "dicomweb.too_slow"
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert refused(nowhere, tmp_path / "c", Access(allowed=(nowhere,))) == "dicomweb.unreachable"


def test_an_object_that_was_not_taken_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "made.dcm").write_bytes(slice_file())
    deaf = says(200, b"{}", Content_Type="application/dicom+json")
    with serving(deaf) as address, pytest.raises(DataError, match="took 0 of 1 objects") as raised:
        asyncio.run(store(address, [tmp_path / "made.dcm"], limits=Limits(), access=Access(allowed=(address,))))
    assert raised.value.code == "dicomweb.not_stored"
