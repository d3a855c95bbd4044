"""Archives that speak DICOMweb: a real Orthanc, and a small one that holds one series."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pydicom
import pytest

from support.services import free_port
from support.small_servers import Page, pages

_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@contextlib.contextmanager
def real_orthanc(folder: Path) -> Iterator[str]:
    """The address of an empty Orthanc on loopback, which keeps its files in the folder; skips where there is none."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not _PLUGIN.exists():
        pytest.skip("no Orthanc with its DICOMweb plugin (Debian: orthanc, orthanc-dicomweb)")
    port = free_port()
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(_PLUGIN)],
        "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"],
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while not _answers(f"http://127.0.0.1:{port}/system"):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def small_archive(files: Sequence[bytes]) -> contextlib.AbstractContextManager[str]:
    """The address of an archive with one series, to be found (QIDO-RS) and fetched (WADO-RS) below ``/dicom-web``."""
    first = pydicom.dcmread(io.BytesIO(files[0]))
    study, series = str(first.StudyInstanceUID), str(first.SeriesInstanceUID)
    known = {"0020000D": {"vr": "UI", "Value": [study]}, "0020000E": {"vr": "UI", "Value": [series]}}
    parts = [b"\r\n--B\r\nContent-Type: application/dicom\r\n\r\n" + file for file in files]
    multipart = 'multipart/related; type="application/dicom"; boundary=B'
    answers: dict[str, Page] = {
        "/dicom-web/series": (200, "application/dicom+json", json.dumps([known]).encode()),
        f"/dicom-web/studies/{study}/series/{series}": (200, multipart, b"".join(parts) + b"\r\n--B--"),
    }
    return pages(lambda path, _: answers.get(path.split("?")[0], (404, "text/plain", b"")))


def put(orthanc: str, data: bytes) -> None:
    """Stores a DICOM file."""
    request = urllib.request.Request(f"{orthanc}/instances", data=data, method="POST")
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False
