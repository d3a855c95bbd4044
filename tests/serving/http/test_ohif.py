"""The real clients of MONAI Label 0.8.5: its OHIF in a browser over a real Orthanc, and its Python client.

Wanted is the folder that the wheel was unpacked into, in $MONAILABEL (`pip download --no-deps monailabel`).
"""

from __future__ import annotations

import importlib.util
import io
import mimetypes
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from email.message import Message
from pathlib import Path
from typing import Any

import pydicom
import pytest

from support.archives import put, real_orthanc
from support.bright_runs import TURNS, register, write_run
from support.bright_scans import sphere_scan
from support.browsers import SLOW_MS, browser, watched
from support.dicom_series import write_volume
from support.listening import listening
from support.small_servers import Page, pages
from voxray.readers import read_label_map, write_nifti
from voxray.serving.jobs.tokens import make_token

STUDY, SERIES = "1.2.826.0.1.1", "1.2.826.0.1.1.1"
CONFIG = """window.config = {
  routerBasename: '/ohif/', extensions: [], modes: [], defaultDataSourceName: 'dicomweb',
  useSharedArrayBuffer: 'FALSE', showLoadingIndicator: true, strictZSpacingForVolumeViewport: true,
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'dicomweb',
    configuration: {
      name: 'Orthanc', wadoUriRoot: '/dicom-web', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web',
      imageRendering: 'wadors', thumbnailRendering: 'wadors', enableStudyLazyLoad: false,
      bulkDataURI: { enabled: true },
    },
  }],
};"""
AGREEMENT = """() => {
  const volumes = window.cornerstone.cache.getVolumes();
  const scan = volumes.find((volume) => volume.volumeId.startsWith('cornerstoneStreamingImageVolume'));
  const shown = scan.voxelManager.getCompleteScalarDataArray();
  return volumes.filter((volume) => volume !== scan).map((labels) => {
    const drawn = labels.voxelManager.getCompleteScalarDataArray();
    let both = 0, either = 0;
    for (let i = 0; i < drawn.length; i++) {
      both += drawn[i] > 0 && shown[i] > 0;
      either += (drawn[i] > 0) + (shown[i] > 0);
    }
    return drawn.length === shown.length ? (2 * both) / either : 0;
  });
}"""
"""Dice of each label map that OHIF shows with what is bright in the scan that it shows, by its own voxels."""


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The unpacked wheel."""
    folder = Path(os.environ.get("MONAILABEL", "/nowhere"))
    if not (folder / "monailabel").is_dir():
        pytest.skip("no MONAI Label here; unpack its wheel, and name the folder in $MONAILABEL")
    return folder / "monailabel"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A segmentation of what is bright."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        write_run(folder / "bright", "segmentation")
        yield {"bright": {"path": str(folder / "bright"), "runtime": "torch"}}


def viewer(ohif: Path, orthanc: str) -> AbstractContextManager[str]:
    """The origin of a site with OHIF's files, and the archive behind the same origin."""

    def page(path: str, headers: Message) -> Page:
        plain = path.split("?")[0]
        if plain.startswith("/dicom-web/"):
            return fetched(f"{orthanc}{path}", headers.get("Accept", "*/*"))
        file = ohif / plain.removeprefix("/ohif/")
        file = file if file.is_file() else ohif / "index.html"
        body = CONFIG.encode() if file.name == "app-config.js" else file.read_bytes()
        return 200, mimetypes.guess_type(file.name)[0] or "application/octet-stream", body

    return pages(page)


def fetched(url: str, accept: str) -> Page:
    """What the archive answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=60) as reply:
            return reply.status, reply.headers.get("Content-Type", ""), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, "text/plain", error.read()


def fill(orthanc: str, folder: Path) -> None:
    """Puts an oblique scan of a bright sphere into the archive."""
    volume, _ = sphere_scan(TURNS[2], angles_deg=(5.0, 0.0, -8.0))
    for number, path in enumerate(sorted(write_volume(folder, volume).iterdir()), start=1):
        dataset: Any = pydicom.dcmread(path)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.{number}"
        dataset.InstanceNumber, dataset.Modality = number, "CT"
        written = io.BytesIO()
        dataset.save_as(written)
        put(orthanc, written.getvalue())


def test_ohif_segments_what_it_shows(wheel: Path, runs: dict[str, Any], tmp_path: Path) -> None:
    ohif = wheel / "endpoints" / "static" / "ohif"
    with real_orthanc(tmp_path) as orthanc, viewer(ohif, orthanc) as origin:
        fill(orthanc, tmp_path / "series")
        access = {"allowed": [orthanc], "archive": f"{orthanc}/dicom-web"}
        with (
            listening(tmp_path, runs, cors=(origin,), dicomweb=access) as served,
            browser() as opened,
            watched(opened, origin, path=f"/ohif/monai-label?StudyInstanceUIDs={STUDY}") as seen,
        ):
            seen.page.locator("#monailabelServerURL").fill(f"{served.url}/")
            streamed = "volume.volumeId.startsWith('cornerstoneStreamingImageVolume') && volume.loadStatus.loaded"
            seen.until(f"Boolean(window.cornerstone?.cache.getVolumes().some((volume) => {streamed}))")
            seen.page.locator(".settingsTable button").click()
            run = seen.page.locator(".modelSelector button:visible").first
            run.wait_for()
            seen.until("window.cornerstone.cache.getVolumes().length > 1")  # the labels' volume, still empty
            seen.page.wait_for_timeout(2000)  # which the panel takes a second to set up
            assert max(seen.js(AGREEMENT)) == 0
            with seen.page.expect_response(lambda reply: "/infer/" in reply.url, timeout=SLOW_MS) as reply:
                run.click()
            assert reply.value.status == 200, reply.value.text()
            seen.until(f"({AGREEMENT})().some((dice) => dice > 0.9)")
            if pictures := os.environ.get("PICTURES"):
                seen.page.screenshot(path=Path(pictures) / "ohif.png")


@pytest.mark.parametrize("with_token", [False, True])
def test_the_python_client(wheel: Path, runs: dict[str, Any], tmp_path: Path, with_token: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of cgi
        spec = importlib.util.spec_from_file_location("monailabel_client", wheel / "client" / "client.py")
        assert spec is not None
        assert spec.loader is not None
        theirs: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(theirs)
    volume, _ = sphere_scan(TURNS[2], angles_deg=(5.0, 0.0, -8.0))
    scan = tmp_path / "scan one.nii.gz"
    write_nifti(volume, scan)
    with listening(tmp_path, runs, require_token=with_token) as served:
        token = make_token(served.service.store, "me") if with_token else ""

        def client() -> Any:
            """A new one, as Slicer makes: with a token an old one sends its last form's headers, to /session/ too."""
            made = theirs.MONAILabelClient(served.url, str(tmp_path), client_id="user-xyz")
            assert made.auth_enabled() is with_token
            if with_token:
                made.update_auth(made.auth_token("jane", token))
            assert made.auth_valid_token()
            return made

        def good(path: str) -> bool:
            mask, truth = read_label_map(Path(path)).voxels > 0, volume.voxels > 0
            return bool(2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9)

        session = client().create_session(str(scan))["session_id"]
        one = client()
        assert list(one.info()["models"]) == ["bright"]
        assert one.upload_image(str(scan), "scan one") == {"image": "scan one"}
        for image, more in (("scan one", {}), ("", {"file": str(scan)}), ("", {"session_id": session})):
            label, told = one.infer("bright", image, {"result_extension": ".nrrd"}, **more)
            assert good(label)
            assert told["label_names"] == {"bright": 1}
        assert one.save_label("scan one", label, params={"label_info": []})["image"] == "scan one"
        assert good(one.download_label("scan one", "final"))
        assert len(one.datastore()["objects"]) == 2
        assert one.next_sample("first", {})["id"] == session
        assert one.train_status(check_if_running=True) is False
        assert one.get_session(session)["name"] == session
        one.remove_session(session)
        with pytest.raises(theirs.MONAILabelClientException):
            one.get_session(session)
        with pytest.raises(theirs.MONAILabelClientException):
            one.infer("bright", "another", {})
