"""Requests that wait for a job: of the real service, with nobody at the desk, so that jobs stay queued."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.types import Message

from support.small_runs import write_small_run
from voxray.serving.app import check
from voxray.serving.config import ServeConfig
from voxray.serving.deployments.local import LocalWorkers
from voxray.serving.errors import ProblemError
from voxray.serving.intake.study import StudyInfo
from voxray.serving.jobs.service import Service
from voxray.serving.jobs.store import JobStore
from voxray.serving.messages import Job, JobRequest
from voxray.serving.paths import ServicePaths

STUDY = "a" * 32


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service with a study, and no desk."""
    model = {"path": str(write_small_run(tmp_path / "run", "unet")), "runtime": "torch"}
    config = ServeConfig.model_validate({"models": {"organs": model}, "folder": str(tmp_path / "service")})
    places = ServicePaths(config.root).prepared()
    store = JobStore(config.database_url)
    info = StudyInfo(
        format="NIfTI-1",
        shape=(8, 8, 8),
        spacing_mm=(1.0, 1.0, 1.0),
        origin_mm=(0.0, 0.0, 0.0),
        direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0),
        orientation="LPS",
        num_files=1,
        modality=None,
        is_dicom=False,
        series=None,
        warnings=(),
    )
    store.add_study(STUDY, "me", info.model_dump_json(), hours=1)
    yield Service(config, store, LocalWorkers(config, places), places, check(config))
    store.close()


def request(*, left: bool) -> Request:
    """A request whose body was read, of a client that is there or has gone."""

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


async def ask(service: Service, *, left: bool) -> Job:
    """An answer that is waited for."""
    return await service.answer(
        "me", JobRequest(study_id=STUDY, model="organs"), is_gone=request(left=left).is_disconnected
    )


async def meanwhile(service: Service) -> str:
    """The job that is waited for, once it is there."""
    while not (rows := service.store.jobs("me")):
        await asyncio.sleep(0.01)
    return str(rows[0].id)


def test_a_client_that_goes_away_takes_its_job_with_it(service: Service) -> None:
    with pytest.raises(ProblemError, match=r"request\.left"):
        asyncio.run(ask(service, left=True))
    assert service.store.jobs("me") == []


def test_a_request_that_is_ended_takes_its_job_with_it(service: Service) -> None:
    async def ended() -> None:
        task = asyncio.create_task(ask(service, left=False))
        await meanwhile(service)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ended())
    assert service.store.jobs("me") == []


def test_how_a_job_ends_is_how_the_request_ends(service: Service) -> None:
    async def ended(*, fail: bool) -> None:
        task = asyncio.create_task(ask(service, left=False))
        job = await meanwhile(service)
        if fail:
            assert service.store.claim("desk", "organs", limit=1, lease_s=10)
            error = ProblemError(
                413, "grid.too_large", "The scan is too large.", remedy="Give a smaller one."
            ).details()
            assert service.store.fail(job, "desk", error=error.model_dump_json())
        else:
            assert service.store.cancel(job)
        try:
            await task
        finally:
            service.store.remove_job(job)

    begin = time.monotonic()
    with pytest.raises(ProblemError, match=r"grid\.too_large.*too large.*smaller"):
        asyncio.run(ended(fail=True))
    with pytest.raises(ProblemError, match=r"job\.cancelled"):
        asyncio.run(ended(fail=False))
    assert time.monotonic() - begin < 60
