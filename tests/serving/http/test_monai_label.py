"""MONAI Label's routes, asked as the plugins of 3D Slicer and OHIF ask them, of the real service."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
import SimpleITK

from support.archives import put, real_orthanc
from support.bright_runs import TURNS, register, write_run
from support.bright_scans import sphere_scan
from support.dicom_series import write_volume
from support.listening import Listening, listening
from support.viewer_plugins import KIND, RefusedError, Slicer, ohif_infer, ohif_read, ohif_segments, slicer_segments
from voxray.core.volume import Volume
from voxray.readers import read_label_map, read_volume, write_nifti
from voxray.serving.jobs.tokens import make_token

NAME = "Doe^Jane 1950-01-02 Thorax/Abdomen"
"""What a user may call a scan."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A detector and a segmentation of what is bright."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        write_run(folder / "balls", "detection")
        write_run(folder / "bright", "segmentation")
        yield {name: {"path": str(folder / name), "runtime": "torch"} for name in ("balls", "bright")}


@pytest.fixture(scope="module")
def served(runs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """The service."""
    with listening(tmp_path_factory.mktemp("monai"), runs, quota={"uploads_per_minute": 10_000}) as service:
        yield service


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[str]:
    """An archive with nothing in it."""
    (tmp_path / "archive").mkdir()
    with real_orthanc(tmp_path / "archive") as address:
        yield address


@pytest.fixture
def slicer(served: Listening, tmp_path: Path) -> Iterator[Slicer]:
    """The plugin, and a service with nothing in it when it is gone."""
    yield Slicer(served.host, tmp_path)
    for study in httpx.get(f"{served.url}/datastore/?output=all", timeout=60).json()["objects"]:
        assert httpx.delete(f"{served.url}/datastore/?id={study}&type=image", timeout=60).status_code == 200
    assert not list(served.service.places.studies.iterdir())
    assert not list(served.service.places.jobs.iterdir())


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, Volume, Any]:
    """A bright sphere in an oblique scan: its file, itself, and the sphere's centre in LPS mm."""
    volume, centre = sphere_scan(TURNS[2], angles_deg=(5.0, 0.0, -8.0))
    path = tmp_path / "tmp8mcd2k5g.nii.gz"
    write_nifti(volume, path)
    return path, volume, centre


def bright(volume: Volume, path: Path) -> float:
    """How well a label map of the scan agrees with what is bright in it (Dice)."""
    mask = read_label_map(path)
    assert mask.grid.is_close(volume.grid)
    truth, found = volume.voxels > 0, mask.voxels > 0
    return float(2 * (truth & found).sum() / (truth.sum() + found.sum()))


def test_what_is_told_fits_both_plugins(slicer: Slicer) -> None:
    info = slicer.get("/info/")
    assert {name: model["type"] for name, model in info["models"].items()} == {
        "balls": "detection",
        "bright": "segmentation",
    }
    assert "config" not in info  # the plugin takes that for a server that is too old
    assert info["labels"] == ["background", "bright"]  # older OHIF drops the first
    assert ohif_segments(info, "bright") == {1: "bright"}
    assert info["trainers"] == {}
    assert info["datastore"]["total"] == 0
    assert slicer.get("/auth/")["enabled"] is False
    with pytest.raises(RefusedError, match="404"):
        slicer.get("/train/?check_if_running=true")


def test_slicer_uploads_a_volume_and_segments_it(slicer: Slicer, scan: tuple[Path, Volume, Any]) -> None:
    path, volume, _ = scan
    assert slicer.upload(NAME, path) == {"image": NAME}
    file, params = slicer.infer("bright", NAME)
    assert file.name == "label.nrrd"
    assert slicer_segments(params["label_names"]) == {1: "bright"}
    assert bright(volume, file) > 0.9
    image: Any = SimpleITK.ReadImage(str(file))
    assert image.GetPixelID() == SimpleITK.sitkUInt8
    file, _ = slicer.infer("bright", NAME, result_extension=".nii.gz", result_dtype="uint16")
    assert file.name == "label.nii.gz"
    assert bright(volume, file) > 0.9


def test_slicer_is_given_boxes_as_markups(slicer: Slicer, scan: tuple[Path, Volume, Any]) -> None:
    path, _, centre = scan
    slicer.upload("CT chest", path)
    file, params = slicer.infer("balls", "CT chest")
    assert file.name.endswith(".json")  # by which the plugin knows that it is no volume
    (markup,) = json.loads(file.read_text())["markups"]
    assert (markup["type"], markup["coordinateSystem"], markup["coordinateUnits"]) == ("ROI", "LPS", "mm")
    np.testing.assert_allclose(markup["center"], centre, atol=0.5)
    np.testing.assert_allclose(params["findings"][0]["center_mm"], markup["center"], atol=1e-3)
    np.testing.assert_allclose(params["findings"][0]["size_mm"], markup["size"], atol=1e-3)


def test_a_scan_without_findings_is_still_a_file(slicer: Slicer, tmp_path: Path) -> None:
    volume, _ = sphere_scan(TURNS[0], angles_deg=(0.0, 0.0, 0.0))
    write_nifti(Volume(np.full_like(volume.voxels, -1000), volume.grid), tmp_path / "air.nii.gz")
    slicer.upload("air", tmp_path / "air.nii.gz")
    file, params = slicer.infer("balls", "air")
    (markup,) = json.loads(file.read_text())["markups"]
    assert (markup["type"], markup["controlPoints"], markup["name"]) == ("Fiducial", [], "no findings")
    assert params["findings"] == []


def test_slicer_segments_in_a_session(slicer: Slicer, scan: tuple[Path, Volume, Any]) -> None:
    path, volume, _ = scan
    begun = slicer.session(path)
    session = begun["session_id"]
    assert slicer.get(f"/session/{session}") == begun["session_info"]
    assert begun["session_info"]["expiry"] > 0
    file, _ = slicer.infer("bright", "whatever it is called", session=session)
    assert bright(volume, file) > 0.9
    image, headers = slicer.send("GET", f"/session/{session}?image=true")
    assert image[:2] == b"\x1f\x8b"
    assert headers["content-disposition"].endswith(f'filename="{session}.nii.gz"')
    assert slicer.get(f"/session/{session}") == begun["session_info"]
    slicer.send("DELETE", f"/session/{session}")
    for attempt in ("GET", "DELETE"):
        with pytest.raises(RefusedError, match=r"404.*session\.unknown"):
            slicer.send(attempt, f"/session/{session}")
    with pytest.raises(RefusedError, match="404"):
        slicer.infer("bright", "x", session=session)


def test_a_file_in_the_request_is_kept_no_longer(
    slicer: Slicer, served: Listening, scan: tuple[Path, Volume, Any]
) -> None:
    path, volume, _ = scan
    for _ in range(2):
        file, _ = slicer.infer("bright", file=path)
        assert bright(volume, file) > 0.9
    with pytest.raises(RefusedError, match=r"400.*infer\.params"):
        slicer.infer("bright", file=path, result_extension=".dcm")
    sent = {"file": (path.name, path.read_bytes())}
    reply = httpx.post(f"{served.url}/infer/bright?output=dicom_seg", files=sent, timeout=120)
    assert (reply.status_code, reply.json()["code"]) == (404, "result.not_this_form")
    assert slicer.get("/datastore/")["total"] == 0
    assert not list(served.service.places.studies.iterdir())


def test_slicer_labels_one_image_after_another(
    slicer: Slicer, scan: tuple[Path, Volume, Any], tmp_path: Path
) -> None:
    path, volume, _ = scan
    for name in ("first", "second"):
        slicer.upload(name, path)
    assert slicer.get("/datastore/?output=stats")["total"] == 2
    sample = slicer.post("/activelearning/first")
    image, headers = slicer.send("GET", f"/datastore/image?image={sample['id']}")
    assert headers["content-type"] == "application/gzip"
    (tmp_path / sample["name"]).write_bytes(image)
    assert read_volume(tmp_path / sample["name"]).grid.is_close(volume.grid)
    assert slicer.send("HEAD", f"/datastore/image?image={sample['id']}")[0] == b""

    drawn = tmp_path / "tmpdrawn.nii.gz"
    write_nifti(Volume((volume.voxels > 0).astype(np.uint8), volume.grid), drawn)
    segments = [{"name": "bright", "idx": 1}]
    assert slicer.save_label(sample["id"], drawn, label_info=segments) == {
        "image": sample["id"],
        "label": sample["id"],
    }
    stats = slicer.get("/info/")["datastore"]
    assert (stats["total"], stats["completed"], stats["label_tags"]) == (2, 1, {"final": 1})
    assert slicer.get("/datastore/?output=train") == [{"image": sample["id"], "label": sample["id"]}]
    again = slicer.post("/activelearning/random")
    assert again["id"] != sample["id"]
    label, headers = slicer.send("GET", f"/datastore/label?label={sample['id']}&tag=final")
    assert label == drawn.read_bytes()
    assert headers["content-disposition"].endswith('.nii.gz"')
    listed = slicer.get("/datastore/?output=all")["objects"]
    assert listed[sample["id"]]["labels"]["final"]["info"]["params"]["label_info"] == segments
    slicer.save_label(again["id"], drawn)
    assert slicer.post("/activelearning/first") == {}

    seg = tmp_path / "drawn.seg.nrrd"
    shutil.copy(drawn, seg)
    slicer.save_label(sample["id"], seg)
    _, headers = slicer.send("GET", f"/datastore/label?label={sample['id']}&tag=")
    assert headers["content-disposition"].endswith('.seg.nrrd"')
    slicer.send("DELETE", f"/datastore/?id={sample['id']}&type=label")
    with pytest.raises(RefusedError, match=r"404.*label\.unknown"):
        slicer.send("GET", f"/datastore/label?label={sample['id']}&tag=final")
    assert slicer.get("/info/")["datastore"]["completed"] == 1


def test_an_answer_may_be_kept_as_the_first_label(slicer: Slicer, scan: tuple[Path, Volume, Any]) -> None:
    path, volume, _ = scan
    slicer.upload("one", path)
    slicer.infer("bright", "one", save_label=True)
    sample = slicer.post("/activelearning/first")
    label, _ = slicer.send("GET", f"/datastore/label?label={sample['id']}&tag=original")
    (slicer.folder / "original.nrrd").write_bytes(label)
    assert bright(volume, slicer.folder / "original.nrrd") > 0.9
    labels = slicer.get("/datastore/?output=all")["objects"][sample["id"]]["labels"]
    assert slicer_segments(labels["original"]["info"]["params"]["label_names"]) == {1: "bright"}


def test_names_are_the_owners_and_can_be_given_again(
    slicer: Slicer, scan: tuple[Path, Volume, Any], tmp_path: Path
) -> None:
    path, volume, _ = scan
    air = tmp_path / "air.nii.gz"
    write_nifti(Volume(np.full_like(volume.voxels, -1000), volume.grid), air)
    slicer.upload(NAME, air)
    slicer.upload(NAME, path)
    _, params = slicer.infer("balls", NAME)
    assert len(params["findings"]) == 1
    with pytest.raises(RefusedError, match=r"404.*image\.unknown"):
        slicer.infer("balls", NAME.lower())


def test_nothing_that_is_kept_names_the_patient(
    slicer: Slicer, served: Listening, scan: tuple[Path, Volume, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    path, _, _ = scan
    named = path.with_name("Doe_Jane.nii.gz")
    path.rename(named)
    slicer.upload(NAME, named)
    slicer.infer("balls", NAME)
    slicer.session(named)
    bodies = [json.dumps(slicer.get(where)) for where in ("/info/", "/datastore/", "/datastore/?output=all")]
    with pytest.raises(RefusedError) as refused:
        slicer.infer("balls", NAME + " again")
    kept = [file.read_bytes() for file in served.service.places.root.rglob("*") if file.is_file()]
    names = [str(file) for file in served.service.places.root.rglob("*")]
    logs = "".join(capfd.readouterr())
    for place in (*kept, *(text.encode() for text in (*bodies, *names, str(refused.value), logs))):
        assert b"Doe" not in place
        assert b"Jane" not in place


@pytest.mark.data
def test_ohif_asks_for_a_series_that_was_fetched_before(slicer: Slicer, served: Listening, shared_data: Path) -> None:
    folder = shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom"
    files = sorted(folder.glob("*.dcm"))
    series = str(pydicom.dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)
    sent = [("file", (path.name, path.read_bytes())) for path in files]
    study = httpx.post(f"{served.url}/v1/studies", files=sent, timeout=120).json()
    reply = ohif_infer(served.host, "bright", series, output="all", dtype="uint16")
    assert reply.status_code == 200, reply.text
    params, nrrd = ohif_read(reply)
    path = slicer.folder / "ohif.nrrd"
    path.write_bytes(nrrd)
    image: Any = SimpleITK.ReadImage(str(path))
    assert list(image.GetSize()) == study["shape"]
    assert image.GetPixelID() == SimpleITK.sitkUInt16
    assert len(nrrd) - nrrd.index(b"\n\n") - 2 == 2 * int(np.prod(study["shape"]))  # unpacked: OHIF takes it as it is
    values = np.unique(SimpleITK.GetArrayViewFromImage(image))
    assert {value for value in values if value} == {int(one[0]) for one in params["centroids"].values()}
    alone = ohif_infer(served.host, "bright", series)
    assert alone.content[:4] == b"NRRD"
    assert len(alone.content) - alone.content.index(b"\n\n") - 2 == int(np.prod(study["shape"]))  # bytes, as asked
    assert alone.headers["content-type"] == "application/octet-stream"
    seg = ohif_infer(served.host, "bright", series, output="dicom_seg")
    assert seg.headers["content-type"] == "application/dicom"
    assert seg.content[128:132] == b"DICM"


def test_ohif_names_a_series_that_only_the_archive_has(runs: dict[str, Any], tmp_path: Path, orthanc: str) -> None:
    volume, _ = sphere_scan(TURNS[2], angles_deg=(5.0, 0.0, -8.0))
    folder = write_volume(tmp_path / "series", volume)
    for path in sorted(folder.iterdir()):
        put(orthanc, path.read_bytes())
    series = str(pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID)
    with listening(tmp_path, runs, dicomweb={"allowed": [orthanc], "archive": f"{orthanc}/dicom-web"}) as served:
        for _ in range(2):
            reply = ohif_infer(served.host, "bright", series)
            assert reply.status_code == 200, reply.text
            (tmp_path / "ohif.nrrd").write_bytes(reply.content)
            assert bright(volume, tmp_path / "ohif.nrrd") > 0.9
        assert httpx.get(f"{served.url}/datastore/", timeout=60).json()["total"] == 1  # fetched once
        for unknown in ("1.2.3.4", "1.2.3.4\n", "nobody", "9" * 65):
            reply = ohif_infer(served.host, "bright", unknown)
            assert (reply.status_code, reply.json()["code"]) == (404, "image.unknown")
        assert len(list(served.service.places.studies.iterdir())) == 1
    with listening(tmp_path / "without", runs, dicomweb={"allowed": [orthanc]}) as served:
        reply = ohif_infer(served.host, "bright", series)
        assert (reply.status_code, reply.json()["code"]) == (404, "image.unknown")


def test_pages_of_named_origins_may_ask(runs: dict[str, Any], scan: tuple[Path, Volume, Any], tmp_path: Path) -> None:
    page, allowed = "http://viewer.example", "access-control-allow-origin"
    asks = {
        "origin": page,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    with listening(tmp_path, runs, cors=(page,), require_token=True) as served:
        where, token = f"{served.url}/infer/bright?image=x", make_token(served.service.store, "me")
        Slicer(served.host, tmp_path, token=token).upload("x", scan[0])
        first = httpx.options(where, headers=asks, timeout=60)  # a browser sends no token with it
        assert (first.status_code, first.headers[allowed]) == (200, page)
        assert first.headers["access-control-allow-headers"] == "authorization"
        missing = ohif_infer(served.host, "bright", "x", origin=page)
        assert (missing.status_code, missing.headers[allowed]) == (401, page)  # or the page could not read why
        found = httpx.post(where, headers={"origin": page, "authorization": f"Bearer {token}"}, timeout=120)
        assert (found.status_code, found.headers[allowed]) == (200, page)
        for refused in (
            httpx.options(where, headers=asks | {"origin": "http://evil.example"}, timeout=60),
            ohif_infer(served.host, "bright", "x", origin="http://evil.example"),
        ):
            assert (refused.status_code, refused.json()["code"]) == (403, "request.origin")
            assert allowed not in refused.headers
        plain = httpx.options(where, timeout=60)
        assert (plain.status_code, plain.json()["code"]) == (401, "token.missing")


def test_ohif_submits_bare_voxels(slicer: Slicer, scan: tuple[Path, Volume, Any]) -> None:
    path, volume, _ = scan
    slicer.upload("1.2.3", path)
    drawn = (volume.voxels > 0).astype("<u2")
    bare = slicer.folder / "label.bin"
    bare.write_bytes(drawn.tobytes(order="F"))
    slicer.save_label("1.2.3", bare)
    label, _ = slicer.send("GET", "/datastore/label?label=1.2.3&tag=final")
    (slicer.folder / "label.nii.gz").write_bytes(label)
    kept = read_label_map(slicer.folder / "label.nii.gz")
    np.testing.assert_array_equal(kept.voxels, drawn)
    assert kept.grid.is_close(volume.grid)
    bare.write_bytes(drawn.tobytes()[:-1])
    with pytest.raises(RefusedError, match=r"label\.wrong_size"):
        slicer.save_label("1.2.3", bare)
    assert slicer.send("GET", "/datastore/label?label=1.2.3&tag=final")[0] == label


def test_what_is_wrong_or_not_offered_is_said(
    slicer: Slicer, served: Listening, scan: tuple[Path, Volume, Any]
) -> None:
    path = scan[0]
    slicer.upload("x", path)
    wrong: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("POST", "/infer/nobody?image=x", {}, 404, "model.unknown"),
        ("POST", "/infer/balls", {}, 422, "infer.no_image"),
        ("POST", "/infer/balls?image=y", {}, 404, "image.unknown"),
        ("POST", "/infer/balls?image=x&output=pdf", {}, 422, "request.invalid"),
        ("POST", "/infer/balls?image=x", {"files": {"params": (None, "{")}}, 400, "infer.params"),
        ("POST", "/infer/balls?image=x", {"files": {"params": (None, "[1]")}}, 400, "infer.params"),
        ("POST", "/infer/balls?image=x", {"data": {"params": '{"result_dtype": 5}'}}, 400, "infer.params"),
        ("POST", "/infer/balls?image=x", {"files": {"label": ("l.nii.gz", b"x")}}, 422, "infer.label"),
        ("POST", "/infer/balls", {"files": {"file": ("l.nii.gz", b"")}}, 422, "upload.empty"),
        ("PUT", "/datastore/?image=z", {"content": b"raw"}, 415, "form.wanted"),
        ("PUT", "/datastore/?image=z", {"files": {"other": ("a.nii.gz", b"x")}}, 422, "upload.empty"),
        ("PUT", "/datastore/?image=" + 600 * "z", {"files": {"file": ("a", b"x")}}, 422, "request.invalid"),
        ("PUT", "/datastore/label?image=x", {"files": {"label": ("a.exe", b"x")}}, 415, "label.unknown_format"),
        ("PUT", "/datastore/label?image=x&tag=../../a", {"files": {"label": ("a.nii", b"x")}}, 422, "label.tag"),
        ("PUT", "/datastore/label?image=x", {"files": {"label": ("a.nii", b"")}}, 422, "upload.empty"),
        ("PUT", "/datastore/label?image=x", {"files": {"params": (None, "{}")}}, 422, "upload.empty"),
        *(
            (
                "PUT",
                "/datastore/label?image=x",
                {"data": {"params": told}, "files": {"label": ("a.nii", b"x")}},
                400,
                "label.params",
            )
            for told in ('{"a": NaN}', '{"a": -Infinity}', '{"a": "\\ud800"}', "[]")
        ),
        ("PUT", "/session/", {"files": {"files": ("a.nii.gz", b"no scan")}}, 422, ""),
        ("POST", "/activelearning/best", {}, 404, "strategy.unknown"),
        ("GET", "/datastore/image?image=y", {}, 404, "image.unknown"),
        ("GET", "/train/", {}, 404, "train.none"),
        ("POST", "/train/balls", {}, 501, "route.not_offered"),
        ("GET", "/batch/infer", {}, 501, "route.not_offered"),
        ("GET", "/logs/", {}, 501, "route.not_offered"),
        ("GET", "/proxy/dicom/studies", {}, 501, "route.not_offered"),
    ]
    for method, where, more, status, code in wrong:
        reply = httpx.request(method, served.url + where, timeout=60, **more)
        assert (reply.status_code, reply.json()["code"].startswith(code)) == (status, True), (where, reply.text)
        assert reply.json()["remedy"]
    assert slicer.get("/datastore/")["total"] == 1
    assert slicer.get("/datastore/?output=all")["objects"]


def test_a_label_that_a_library_cannot_write_is_one_problem(
    slicer: Slicer, served: Listening, scan: tuple[Path, Volume, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("of a library")

    monkeypatch.setattr(SimpleITK, "WriteImage", fails)
    slicer.upload("x", scan[0])
    where = f"{served.url}/infer/bright?image=x&output=image"
    reply = httpx.post(where, data={"params": '{"result_extension": ".nrrd"}'}, timeout=60)
    assert (reply.status_code, reply.json()["code"]) == (422, "form.fault"), reply.text
    reply = httpx.post(where, data={"params": '{"result_extension": ".nii.gz"}'}, timeout=60)
    assert reply.status_code == 200


def test_the_plugin_signs_in_with_a_token(
    runs: dict[str, Any], scan: tuple[Path, Volume, Any], tmp_path: Path
) -> None:
    with listening(tmp_path, runs) as served:
        stranger = Slicer(served.host, tmp_path)
        mine, other = (make_token(served.service.store, name) for name in ("me", "another"))
        while not stranger.get("/auth/")["enabled"]:
            pass  # tokens are looked up every two seconds
        with pytest.raises(RefusedError, match=r"401.*token\.missing"):
            stranger.get("/info/")
        kind = "application/x-www-form-urlencoded"
        with pytest.raises(RefusedError, match=r"401.*token\.wrong"):
            stranger.send("POST", "/auth/token", b"username=jane&password=guess", kind)
        told = json.loads(stranger.send("POST", "/auth/token", f"username=jane&password={mine}".encode(), kind)[0])
        assert told == {"access_token": mine, "token_type": "Bearer"}
        slicer = Slicer(served.host, tmp_path, token=told["access_token"])
        assert slicer.get("/auth/token/valid")["roles"] == ["*"]
        slicer.upload("x", scan[0])
        _, params = slicer.infer("balls", "x")
        assert len(params["findings"]) == 1
        stale = {"Authorization": f"Bearer {mine}", "content-type": KIND, "content-length": "5000"}
        connection = http.client.HTTPConnection(served.host, timeout=60)
        connection.request("GET", "/info/", headers=stale)  # the plugin, after a form
        assert connection.getresponse().status == 200
        connection.close()
        foreign = Slicer(served.host, tmp_path, token=other)
        assert foreign.get("/datastore/")["total"] == 0
        study = slicer.post("/activelearning/first")["id"]
        for name in ("x", study):
            with pytest.raises(RefusedError, match=r"404.*image\.unknown"):
                foreign.infer("balls", name)
        with pytest.raises(RefusedError, match="404"):
            foreign.send("DELETE", f"/session/{study}")
