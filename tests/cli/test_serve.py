"""`voxray serve` as users type it: its options reach the service, and what is wrong with them is one sentence."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import pydicom
import pytest
from typer.testing import CliRunner

from serving.intake.conftest import series_files
from support.archives import small_archive
from support.services import on_ray, small_models
from support.viewer_plugins import ohif_infer
from voxray import cli
from voxray.serving.config import models_from

SITE = "https://ohif.example.org"
ARCHIVE = "https://pacs.example.org/dicom-web"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--archive", ARCHIVE], "archive: must be the root of a DICOMweb service whose origin is allowed"),
        (["--dicomweb", "https://pacs.example.org", "--archive", "pacs.example.org/dicom-web"], "archive: must be"),
        (["--dicomweb", "https://pacs.example.org", "--archive", f"{ARCHIVE}?all=1"], "archive: must be"),
        (["--dicomweb", "pacs.example.org"], "allowed: must be origins"),
        (["--cors", "ohif.example.org"], "cors: must be origins"),
        (["--cors", f"{SITE}/viewer"], "cors: must be origins"),
        (["--cors", SITE, "--cors", f"{SITE}/"], "cors: must be origins"),
        (["--cors", "*"], "cors: must be origins"),
    ],
)
def test_malformed_addresses_are_refused(options: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app, ["serve", str(tmp_path / "model"), "--folder", str(tmp_path / "s"), *options]
    )
    assert result.exit_code == 2
    assert said in result.stderr.replace("\n", " ")
    assert result.stderr.strip().count("\n") == 0
    assert "Traceback" not in result.output
    assert not (tmp_path / "s").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_archive_and_cors_reach_the_service(tmp_path: Path) -> None:
    """OHIF's page asks for a series by its UID, which is fetched from the archive; other sites' pages may not ask."""
    models = {"organs": small_models(tmp_path / "runs")["organs"]}
    files = list(series_files(6).values())
    series = str(pydicom.dcmread(io.BytesIO(files[0])).SeriesInstanceUID)
    with small_archive(files) as archive:
        more = ["--dicomweb", archive, "--archive", f"{archive}/dicom-web", "--cors", SITE, "--cors", f"{SITE}:8443"]
        with on_ray(tmp_path / "service", models, more=more) as served:
            host = served.address.removeprefix("http://")
            reply = ohif_infer(host, "organs", series, origin=SITE)
            assert reply.status_code == 200, reply.text
            assert reply.headers["access-control-allow-origin"] == SITE
            assert reply.content.startswith(b"NRRD")
            assert ohif_infer(host, "organs", "1.2.3", origin=f"{SITE}:8443").status_code == 404
            assert ohif_infer(host, "organs", series, origin="https://other.example.org").status_code == 403
            asked = {"origin": SITE, "access-control-request-method": "POST"}
            assert httpx.options(f"{served.address}/infer/organs", headers=asked).is_success


def test_a_models_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    odd = tmp_path / "a=b" / "Model C"
    assert models_from([str(odd)]) == {"model-c": str(odd)}
    assert models_from([f"lung={odd}", odd.as_uri()]) == {"lung": str(odd), "model-c": str(odd)}
