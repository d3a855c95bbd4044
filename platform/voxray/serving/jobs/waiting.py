"""A job that its request waits for, and a study that is there for that request alone."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.requests import Request

from voxray.serving.errors import ProblemError
from voxray.serving.jobs.service import Service
from voxray.serving.messages import ENDED, Job, JobRequest, Study

_LOOK_S = 5.0
"""As often it is looked whether the client still waits."""


async def answer(service: Service, owner: str, asked: JobRequest, request: Request) -> Job:
    """The job when it is done; ended where the client goes away, and a Problem where it fails."""
    begun = asyncio.ensure_future(service.new_job(owner, asked))
    try:
        job = await asyncio.shield(begun)
        while job.state not in ENDED:
            if await request.is_disconnected():
                raise ProblemError(400, "request.left", "The client went away.", remedy="Wait for the answer.")
            job = await service.job(owner, job.job_id, wait_s=_LOOK_S)
    except BaseException:
        with contextlib.suppress(ProblemError):  # where it was refused, or is gone already
            await asyncio.shield(service.delete_job(owner, (await begun).job_id))
        raise
    if job.state == "done":
        return job
    if job.error is None:
        raise ProblemError(
            409, "job.cancelled", "The job was cancelled while it was waited for.", remedy="Ask again."
        )
    raise ProblemError(job.error.status, job.error.code, job.error.detail, remedy=job.error.remedy)


async def forget(service: Service, owner: str, study: Study) -> None:
    """Deletes a study that came with a request, and its jobs, where it is not gone already."""
    with contextlib.suppress(ProblemError):
        await service.delete_study(owner, study.study_id)
