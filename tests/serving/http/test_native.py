"""The native API of the real service, in one process."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import highdicom
import httpx
import numpy as np
import pydicom
import pytest

from serving.intake.conftest import series_files
from support.odd_scans import DISAGREE, contradict
from support.services import in_process, small_models, small_scan, upload
from voxray.commands.predict import AnswerOptions, predict
from voxray.core.progress import SilentProgress
from voxray.readers import read_label_map, read_volume


def problem(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The reply's body, which must be that refusal."""
    assert (reply.status_code, reply.json().get("code")) == (status, code), reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["remedy"]
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    body: dict[str, Any] = reply.json()
    return body


async def ask(client: httpx.AsyncClient, study: str, model: str, **more: Any) -> dict[str, Any]:
    """The job, at its end."""
    reply = await client.post("/v1/jobs?wait=60", json={"study_id": study, "model": model, **more})
    assert reply.status_code == 200, reply.text
    job: dict[str, Any] = reply.json()
    return job


def test_answers_are_those_of_predict(tmp_path: Path) -> None:
    models = small_models(tmp_path / "runs")
    scan = small_scan(tmp_path / "scan.nii.gz")
    contradict(scan)
    for name, model in models.items():
        predict(
            model["path"],
            [scan],
            tmp_path / name,
            AnswerOptions(runtime="torch", overrides=model.get("overrides", ())),
            progress=SilentProgress(),
        )

    async def served() -> None:
        async with in_process(tmp_path, models=models) as client:
            study = await upload(client, scan)
            assert (study["shape"], study["orientation"]) == ([40, 44, 32], "LPS")
            job = await ask(client, study["study_id"], "nodules")
            assert job["state"] == "done"
            assert job["timing_s"]["total"] >= job["timing_s"]["answer"] > 0
            want = json.loads((tmp_path / "nodules" / "scan.json").read_text())
            assert job["result"]["findings"] == want["findings"] != []
            assert job["result"]["model"] == want["model"]
            assert job["result"]["warnings"] == want["warnings"] == study["warnings"] == [DISAGREE]

            job = await ask(client, study["study_id"], "organs")
            reply = await client.get(f"/v1/jobs/{job['job_id']}/results/nifti")
            (tmp_path / "mask.nii.gz").write_bytes(reply.content)
            mask = read_label_map(tmp_path / "mask.nii.gz")
            want_mask = read_label_map(tmp_path / "organs" / "scan.nii.gz")
            assert mask.grid == want_mask.grid
            np.testing.assert_array_equal(mask.voxels, want_mask.voxels)

            (tmp_path / "again.nii.gz").write_bytes(
                (await client.get(f"/v1/studies/{study['study_id']}/volume")).content
            )
            np.testing.assert_array_equal(read_volume(tmp_path / "again.nii.gz").voxels, read_volume(scan).voxels)

    asyncio.run(served())


def test_one_request_has_an_answer_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    scan = small_scan(tmp_path / "scan.nii.gz")
    body, dicom = scan.read_bytes(), series_files(16, FrameOfReferenceUID="1.2.3.4.5.6.7.1.8")

    async def served() -> None:
        async with in_process(tmp_path) as client:

            async def send(query: str, content: bytes = body) -> httpx.Response:
                return await client.post(f"/v1/answers?{query}", content=content)

            study = (await upload(client, scan))["study_id"]
            for model, form in (("nodules", "json"), ("nodules", "luna16"), ("organs", "nifti"), ("organs", "json")):
                job = await ask(client, study, model)
                want = await client.get(f"/v1/jobs/{job['job_id']}/results/{form}")
                had = await send(f"model={model}&form={form}")
                assert had.status_code == 200, had.text
                assert had.headers["content-type"] == want.headers["content-type"]
                assert meant(had, form) == meant(want, form)
            await client.delete(f"/v1/studies/{study}")

            files = [("file", file) for file in dicom.items()]
            for spelling in ("seg", "dicom-seg"):  # the service's own, and the command line's
                drawn = await client.post(f"/v1/answers?model=organs&form={spelling}", files=files)
                assert drawn.status_code == 200, drawn.text
                assert pydicom.dcmread(io.BytesIO(drawn.content)).Modality == "SEG"
                assert drawn.headers["content-disposition"].endswith('.dcm"')

            unknown = await send("model=heart")
            assert "nodules, organs" in problem(unknown, 404, "model.unknown")["remedy"]
            problem(await send("model=organs&form=seg"), 422, "job.not_this_form")
            problem(await send("model=organs&form=tiff"), 422, "request.invalid")
            problem(await send(""), 422, "request.invalid")
            assert (await send("model=organs", b"no scan")).status_code in (415, 422)
            assert (await client.get("/v1/jobs")).json() == {"jobs": []}
            for kind in ("studies", "jobs"):
                assert not list((tmp_path / "service" / kind).iterdir())

    asyncio.run(served())


def meant(reply: httpx.Response, form: str) -> Any:
    """What a result says, but for the ids, times and compression that are of one job."""
    if form == "nifti":
        return gzip.decompress(reply.content)
    if form == "json":
        said = reply.json()
        return {key: said[key] for key in said if key in ("findings", "labels", "model")}
    return [line.split(b",")[1:] for line in reply.content.splitlines()]


def test_every_form_that_a_job_names_can_be_had(tmp_path: Path) -> None:
    async def served() -> None:
        async with in_process(tmp_path) as client:
            study = await upload(client, small_scan(tmp_path / "scan.nii.gz"))
            for model in ("nodules", "organs"):
                job = await ask(client, study["study_id"], model, outputs=["preview"])
                for form in job["outputs"]:
                    reply = await client.get(f"/v1/jobs/{job['job_id']}/results/{form}")
                    assert reply.status_code == 200, (form, reply.text)
                    assert reply.content
                left = {"json", "nifti", "seg", "sr", "rtstruct", "luna16", "markups"} - set(job["outputs"])
                for form in left:
                    reply = await client.get(f"/v1/jobs/{job['job_id']}/results/{form}")
                    problem(reply, 404, "result.not_this_form")

    asyncio.run(served())


def test_an_anonymised_class_of_images_costs_the_dicom_forms_alone(tmp_path: Path) -> None:
    dicom = series_files(16, SOPClassUID="2.25.3841015643452503209109170649121759", FrameOfReferenceUID="1.2.3.4.5")
    files = [("file", file) for file in dicom.items()]

    async def served() -> None:
        async with in_process(tmp_path) as client:
            study = (await client.post("/v1/studies", files=files)).json()
            for model in ("nodules", "organs"):
                wanted = ["sr"] if model == "nodules" else ["seg", "sr", "rtstruct"]
                job = await ask(client, study["study_id"], model, outputs=wanted)
                assert job["state"] == "done", job
                assert sorted(job["refused"]) == sorted(wanted)
                assert {one["code"] for one in job["refused"].values()} == {"source.sop_class"}
                for form in job["outputs"]:
                    reply = await client.get(f"/v1/jobs/{job['job_id']}/results/{form}")
                    assert reply.status_code == 200, (form, reply.text)
                for form in wanted:
                    reply = await client.get(f"/v1/jobs/{job['job_id']}/results/{form}")
                    detail = problem(reply, 422, "source.sop_class")["detail"]
                    assert detail.startswith("A file of the series has the SOP Class UID 2.25.3841")
                    assert job["refused"][form]["detail"] == detail
                    assert str(tmp_path) not in reply.text + str(job)
            at_once = await client.post("/v1/answers?model=organs&form=seg", files=files)
            problem(at_once, 422, "source.sop_class")
            assert str(tmp_path) not in at_once.text

    asyncio.run(served())


@pytest.mark.parametrize(
    ("error", "status", "code"), [(KeyError, 422, "form.fault"), (MemoryError, 503, "service.lacks")]
)
def test_a_form_that_a_library_fails_on_is_no_fault_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], status: int, code: str
) -> None:
    def fails(**named: object) -> None:
        raise error(f"2.25.38 of {len(named)}")

    monkeypatch.setattr(highdicom.sr, "Comprehensive3DSR", fails)
    files = [("file", file) for file in series_files(16, FrameOfReferenceUID="1.2.3.4.5").items()]

    async def served() -> None:
        async with in_process(tmp_path) as client:
            study = (await client.post("/v1/studies", files=files)).json()
            job = await ask(client, study["study_id"], "organs", outputs=["sr", "seg"])
            assert job["state"] == "done"
            problem(await client.get(f"/v1/jobs/{job['job_id']}/results/sr"), status, code)
            assert set(job["refused"]) == ({"sr"} if status == 422 else set())  # what a machine lacks may come back
            for form in ("seg", "nifti", "rtstruct"):
                assert (await client.get(f"/v1/jobs/{job['job_id']}/results/{form}")).status_code == 200

    asyncio.run(served())


def test_a_key_stands_for_one_job(tmp_path: Path) -> None:
    async def served() -> None:
        async with in_process(tmp_path) as client:
            study = (await upload(client, small_scan(tmp_path / "scan.nii.gz")))["study_id"]
            body, headers = {"study_id": study, "model": "organs"}, {"Idempotency-Key": "one"}
            posts = [client.post("/v1/jobs", json=body, headers=headers) for _ in range(8)]
            found = {reply.json()["job_id"] for reply in await asyncio.gather(*posts)}
            assert len(found) == 1
            other = await client.post("/v1/jobs", json={**body, "model": "nodules"}, headers=headers)
            problem(other, 409, "job.key_reused")

    asyncio.run(served())


def test_what_is_cancelled_or_deleted_is_gone(tmp_path: Path) -> None:
    async def served() -> None:
        async with in_process(tmp_path) as client:
            study = (await upload(client, small_scan(tmp_path / "scan.nii.gz")))["study_id"]
            body = {"study_id": study, "model": "nodules"}
            jobs = [(await client.post("/v1/jobs", json=body)).json()["job_id"] for _ in range(6)]
            last = (await client.post(f"/v1/jobs/{jobs[-1]}/cancel")).json()
            assert last["state"] == "cancelled"
            problem(await client.get(f"/v1/jobs/{jobs[-1]}/results/json"), 409, "job.not_done")
            ended = [(await client.get(f"/v1/jobs/{job}?wait=60")).json()["state"] for job in jobs]
            assert ended == ["done"] * 5 + ["cancelled"]
            assert (await client.delete(f"/v1/jobs/{jobs[0]}")).status_code == 204
            problem(await client.get(f"/v1/jobs/{jobs[0]}"), 404, "job.unknown")
            assert (await client.delete(f"/v1/studies/{study}")).status_code == 204
            assert (await client.get("/v1/jobs")).json() == {"jobs": []}
            problem(await client.get(f"/v1/studies/{study}"), 404, "study.unknown")
            assert not list((tmp_path / "service" / "studies").iterdir())
            assert not list((tmp_path / "service" / "jobs").iterdir())

    asyncio.run(served())


def test_wrong_requests(tmp_path: Path) -> None:
    async def served() -> None:
        async with in_process(tmp_path) as client:
            study = (await upload(client, small_scan(tmp_path / "scan.nii.gz")))["study_id"]
            unknown = await client.post("/v1/jobs", json={"study_id": study, "model": "heart"})
            assert "nodules, organs" in problem(unknown, 404, "model.unknown")["remedy"]
            no_study = await client.post("/v1/jobs", json={"study_id": "0" * 32, "model": "organs"})
            problem(no_study, 404, "study.unknown")
            no_form = await client.post("/v1/jobs", json={"study_id": study, "model": "organs", "outputs": ["seg"]})
            problem(no_form, 422, "job.not_this_form")
            for spelling in ("luna16", "csv-luna16"):
                job = await ask(client, study, "nodules", outputs=[spelling])
                table = await client.get(f"/v1/jobs/{job['job_id']}/results/{spelling}")
                assert table.text.startswith("seriesuid,coordX"), table.text
            problem(
                await client.post("/v1/jobs", json={"study_id": "../etc", "model": "organs"}), 422, "request.invalid"
            )
            problem(
                await client.post("/v1/jobs", content=b"{", headers={"content-type": "application/json"}),
                400,
                "request.malformed",
            )
            problem(await client.get("/v1/nothing"), 404, "route.unknown")
            problem(await client.put("/v1/jobs"), 405, "route.method")
            elsewhere = {"dicomweb": {"url": "http://10.0.0.1/dicom", "study_uid": "1.2", "series_uid": "1.3"}}
            problem(await client.post("/v1/studies", json=elsewhere), 403, "dicomweb.not_allowed")
            problem(await client.get("/livez", headers={"origin": "https://evil.example"}), 403, "request.origin")
            problem(await client.get("/livez", headers={"host": "evil.example"}), 403, "request.host")

    asyncio.run(served())


def test_tokens(tmp_path: Path) -> None:
    from voxray.serving.config import database_url
    from voxray.serving.jobs.store import JobStore
    from voxray.serving.jobs.tokens import make_token

    store = JobStore(database_url(tmp_path / "service"))
    ann, bob = make_token(store, "ann"), make_token(store, "bob")
    assert all(token not in str(store.tokens()) for token in (ann, bob))

    async def served() -> None:
        async with in_process(tmp_path) as client:
            assert (await client.get("/livez")).status_code == 200
            for path in ("/readyz", "/metrics", "/openapi.json", "/v1/models", "/v1/jobs", "/nowhere"):
                problem(await client.get(path), 401, "token.missing")
                wrong = await client.get(path, headers={"authorization": "Bearer vx_wrong"})
                problem(wrong, 401, "token.wrong")
            of_ann = {"authorization": f"Bearer {ann}"}
            study = (await upload(client, small_scan(tmp_path / "scan.nii.gz"), **of_ann))["study_id"]
            assert (await client.get(f"/v1/studies/{study}", headers=of_ann)).status_code == 200
            of_bob = {"authorization": f"Bearer {bob}"}
            problem(await client.get(f"/v1/studies/{study}", headers=of_bob), 404, "study.unknown")
            stolen = await client.post("/v1/jobs", json={"study_id": study, "model": "organs"}, headers=of_bob)
            problem(stolen, 404, "study.unknown")
            problem(await client.post("/v1/session", json={"token": "vx_wrong"}), 401, "token.wrong")
            signed = await client.post("/v1/session", json={"token": ann})
            cookie = signed.headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "samesite=strict" in cookie.lower()
            assert (await client.get("/v1/models")).status_code == 200  # the client keeps the cookie

    asyncio.run(served())


@pytest.mark.parametrize(
    ("quota", "code"), [({"open_jobs": 1}, "quota.open_jobs"), ({"studies": 1}, "quota.studies")]
)
def test_quotas(tmp_path: Path, quota: dict[str, int], code: str) -> None:
    async def served() -> None:
        async with in_process(tmp_path, quota=quota) as client:
            scan = small_scan(tmp_path / "scan.nii.gz")
            study = (await upload(client, scan))["study_id"]
            body = {"study_id": study, "model": "nodules"}
            if code == "quota.studies":
                reply = await client.post("/v1/studies", files={"file": ("a.nii.gz", scan.read_bytes())})
            else:
                replies = await asyncio.gather(*(client.post("/v1/jobs", json=body) for _ in range(4)))
                reply = next(one for one in replies if one.status_code != 202)
            problem(reply, 429, code)
            assert int(reply.headers["retry-after"]) > 0

    asyncio.run(served())


def test_rates(tmp_path: Path) -> None:
    async def served() -> None:
        async with in_process(tmp_path, quota={"requests_per_minute": 5}) as client:
            replies = [await client.get("/v1/jobs") for _ in range(6)]
            assert [reply.status_code for reply in replies] == [200] * 5 + [429]
            problem(replies[-1], 429, "quota.rate")
            assert 0 < int(replies[-1].headers["retry-after"]) <= 61

    asyncio.run(served())


def test_what_comes_too_large_is_refused_as_it_comes(tmp_path: Path) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b"x" * 65536

    async def served() -> None:
        async with in_process(tmp_path, limits={"upload_bytes": 1 << 20}) as client:
            said = await client.post("/v1/studies?name=a.nii", content=b"x" * (3 << 20))
            problem(said, 413, "upload.too_large")
            problem(await client.post("/v1/studies?name=a.raw", content=endless()), 413, "upload.too_large")
            problem(await client.post("/v1/jobs", content=b" " * (2 << 20)), 413, "upload.too_large")
            assert not list((tmp_path / "service" / "studies").iterdir())

    asyncio.run(served())


def test_metrics_count_requests_and_jobs(tmp_path: Path) -> None:
    async def served() -> None:
        async with in_process(tmp_path) as client:
            study = (await upload(client, small_scan(tmp_path / "scan.nii.gz")))["study_id"]
            await ask(client, study, "organs")
            text = (await client.get("/metrics")).text
            assert 'voxray_requests_total{method="POST",route="/v1/studies",status="201"} 1.0' in text
            assert 'voxray_jobs{model="organs",state="done"} 1.0' in text
            assert 'voxray_model_ready{model="nodules"} 1.0' in text
            assert study not in text

    asyncio.run(served())


def test_what_is_old_goes(tmp_path: Path) -> None:
    async def served() -> None:
        keep = {"study_hours": 2 / 3600, "job_hours": 2 / 3600}
        async with in_process(tmp_path, keep=keep, times={"tidy_s": 0.3}) as client:
            study = (await upload(client, small_scan(tmp_path / "scan.nii.gz")))["study_id"]
            job = await ask(client, study, "organs")
            for _ in range(60):
                await asyncio.sleep(0.2)
                if (await client.get(f"/v1/studies/{study}")).status_code == 404:
                    break
            problem(await client.get(f"/v1/studies/{study}"), 404, "study.unknown")
            problem(await client.get(f"/v1/jobs/{job['job_id']}"), 404, "job.unknown")
            assert not list((tmp_path / "service" / "studies").iterdir())
            assert not list((tmp_path / "service" / "jobs").iterdir())

    asyncio.run(served())


@pytest.mark.data
def test_nothing_of_the_patient_comes_out(
    tmp_path: Path, shared_data: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A name is planted in every header, file name and folder; only DICOM objects, which must, carry it on."""
    canary = "CANARY"
    files = []
    for number, path in enumerate(sorted((shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom").rglob("*.dcm"))):
        header = pydicom.dcmread(path)
        header.PatientName, header.PatientID, header.AccessionNumber = f"{canary}^A", f"{canary}1", f"{canary}2"
        header.save_as(tmp_path / f"{canary}_{number}.dcm")
        files.append(tmp_path / f"{canary}_{number}.dcm")

    async def served() -> None:
        async with in_process(tmp_path) as client:
            study = await upload(client, *files)
            assert study["is_dicom"]
            said = [str(study)]
            for model in ("nodules", "organs"):
                job = await ask(client, study["study_id"], model)
                said.append(str(job))
                for form in set(job["outputs"]) - {"seg", "sr", "rtstruct"}:
                    reply = await client.get(f"/v1/jobs/{job['job_id']}/results/{form}")
                    said += [reply.content.decode("latin-1"), str(reply.headers)]
            broken = [("file", (path.name, path.read_bytes()[:3000])) for path in files]
            reply = await client.post("/v1/studies", files=broken)
            assert reply.status_code in (415, 422)
            gap = [("file", (path.name, path.read_bytes())) for path in (*files[:5], *files[7:])]
            missing = await client.post("/v1/studies", files=gap)
            problem(missing, 422, "dicom.missing_slice")
            for refusal in (reply, missing):  # which name the files to their sender, and nothing of what they hold
                assert f"{canary}_" in refusal.text
                said.append(re.sub(rf"{canary}_\d+\.dcm", "", refusal.text))
            said += [(await client.get("/metrics")).text, (await client.get("/v1/jobs")).text]
            assert not [text[:200] for text in said if canary in text]

    asyncio.run(served())
    out = capfd.readouterr()
    assert canary not in out.out + out.err + caplog.text
    names = [path.name for path in (tmp_path / "service").rglob("*")]
    assert not [name for name in names if canary in name]
    kept = [tmp_path / "service" / f"service.db{end}" for end in ("", "-wal", "-shm")]
    kept += (tmp_path / "service" / "logs").rglob("*.*")
    assert not [path for path in kept if path.exists() and canary.encode() in path.read_bytes()]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe{}", b"[" * 100_000, b""])
def test_what_is_no_json_is_said_to_be_none(tmp_path: Path, body: bytes) -> None:
    async def served() -> None:
        async with in_process(tmp_path) as client:
            for path in ("/v1/jobs", "/v1/studies"):
                reply = await client.post(path, content=body, headers={"content-type": "application/json"})
                assert reply.status_code in (400, 422), reply.text
                assert reply.json()["code"] in ("request.malformed", "request.invalid")
                assert not reply.json()["detail"].startswith((":", "body."))

    asyncio.run(served())


def test_what_is_deleted_while_it_is_fetched_is_gone_and_no_fault(tmp_path: Path) -> None:
    scan = small_scan(tmp_path / "scan.nii.gz", side=64)

    async def served() -> None:
        quota = {"requests_per_minute": 10_000, "uploads_per_minute": 1000}
        async with in_process(tmp_path, quota=quota) as client:
            for _ in range(12):
                study = (await upload(client, scan))["study_id"]
                volume, gone = await asyncio.gather(
                    client.get(f"/v1/studies/{study}/volume"), client.delete(f"/v1/studies/{study}")
                )
                assert gone.status_code == 204
                assert volume.status_code in (200, 404), volume.text

    asyncio.run(served())


def test_series_of_an_upload_are_told_to_programs(tmp_path: Path) -> None:
    first = series_files(4, prefix="A", SeriesNumber=12)
    second = series_files(3, prefix="B", SeriesNumber=5, SeriesInstanceUID="1.2.3.4.5.6.7.1.9")

    async def served() -> None:
        async with in_process(tmp_path) as client:
            files = [("file", (name, data)) for name, data in (first | second).items()]
            told = problem(await client.post("/v1/studies", files=files), 422, "dicom.several_series")["series"]
            assert [(one["number"], one["num_files"]) for one in told] == [("5", 3), ("12", 4)]
            reply = await client.post(f"/v1/studies?series={told[0]['handle']}", files=files)
            assert (reply.status_code, reply.json()["shape"]) == (201, [8, 6, 3])
            assert "series" not in problem(await client.get("/v1/jobs/" + "0" * 32), 404, "job.unknown")

    asyncio.run(served())


def test_a_refusal_names_files_to_their_sender_and_nothing_else_keeps_their_names(tmp_path: Path) -> None:
    files = {f"DOE^JANE/IM{z}.dcm": data for z, data in enumerate(series_files(6).values())}
    files["DOE^JANE/again.dcm"] = files["DOE^JANE/IM2.dcm"]

    async def served() -> None:
        async with in_process(tmp_path) as client:
            reply = await client.post("/v1/studies", files=[("file", pair) for pair in files.items()])
            detail = problem(reply, 422, "dicom.doubled_position")["detail"]
            assert "“DOE^JANE/IM2.dcm” and “DOE^JANE/again.dcm” lie at the same one" in detail
            raw = await client.post("/v1/studies?name=Jane.nii", content=b"x" * 2000)
            assert "“Jane.nii” is named .nii" in problem(raw, 422, "nifti.not_nifti")["detail"]

    asyncio.run(served())
    kept = [path for path in (tmp_path / "service").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if b"JANE" in path.read_bytes().upper()]
