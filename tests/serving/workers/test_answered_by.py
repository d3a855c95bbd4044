"""Results outlive their model: all of their forms, when it is no longer served and when another has its name."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.dicom_series import write_series
from support.services import in_process, small_models, upload

FORMS = {
    "nodules": ("json", "preview", "luna16", "markups", "sr"),
    "organs": ("json", "nifti", "preview", "seg", "sr", "rtstruct"),
}


async def answered(client: httpx.AsyncClient, study: str, model: str) -> dict[str, Any]:
    """A job that is done."""
    reply = await client.post("/v1/jobs?wait=300", json={"study_id": study, "model": model})
    job: dict[str, Any] = reply.json()
    assert job["state"] == "done", job
    return job


async def every_form(client: httpx.AsyncClient, job: dict[str, Any], forms: tuple[str, ...]) -> dict[str, bytes]:
    """Each form's bytes; a Segmentation of nothing may be refused, in a sentence."""
    found = {}
    for form in forms:
        reply = await client.get(f"/v1/jobs/{job['job_id']}/results/{form}")
        assert reply.status_code == 200 or (form in ("seg", "rtstruct") and reply.status_code == 422), (
            form,
            reply.text,
        )
        found[form] = reply.content
    return found


@pytest.mark.slow
def test_every_form_of_an_answer_is_there_when_its_model_is_not(tmp_path: Path) -> None:
    models = small_models(tmp_path / "runs")

    async def served() -> None:
        slices = sorted(write_series(tmp_path / "series").glob("*"))
        async with in_process(tmp_path, models=models) as client:
            study = (await upload(client, *slices))["study_id"]
            jobs = {name: await answered(client, study, name) for name in models}
            before = {name: await every_form(client, jobs[name], ("json",)) for name in models}
            assert all(job["is_served"] for job in jobs.values())
        for gone, left in (("nodules", "organs"), ("organs", "nodules")):
            async with in_process(tmp_path, models={left: models[left]}) as client:
                job = (await client.get(f"/v1/jobs/{jobs[gone]['job_id']}")).json()
                assert not job["is_served"]
                assert set(job["outputs"]) == set(FORMS[gone])
                assert before[gone]["json"] == (await every_form(client, job, FORMS[gone]))["json"]
                told = (await client.get(f"/v1/jobs/{job['job_id']}?wait=1")).json()["result"]
                assert told == json.loads(before[gone]["json"])
                again = await client.post("/v1/jobs", json={"study_id": study, "model": gone})
                assert (again.status_code, again.json()["code"]) == (404, "model.unknown")
        for name in models:  # made anew, with the other model under the name
            for path in (tmp_path / "service" / "jobs" / jobs[name]["job_id"]).glob("*.*"):
                if path.stem in FORMS[name] or path.name.startswith(("preview", "markups", "luna16")):
                    path.unlink()
        swapped = {"nodules": models["organs"], "organs": models["nodules"]}
        async with in_process(tmp_path, models=swapped) as client:
            for name in models:
                job = (await client.get(f"/v1/jobs/{jobs[name]['job_id']}")).json()
                assert set(job["outputs"]) == set(FORMS[name])
                await every_form(client, job, FORMS[name])

    asyncio.run(served())
