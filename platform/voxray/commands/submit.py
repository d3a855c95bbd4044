"""Submit: a verb as a job on a cluster, with the code at hand."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import voxray
from voxray.core.errors import ConfigError
from voxray.distributed.submitted_jobs import JobsAddress, SubmittedJob, Watched, last_cause

STOP_WAIT_S = 60
"""How long a job that is stopped may take for its checkpoint and its last words; Ray's own default is 3 s."""


@dataclass(frozen=True)
class JobCode:
    """How a verb is run on a cluster, and the code that goes along."""

    command: tuple[str, ...]
    runtime_env: dict[str, Any]
    folder: Path | None
    """What becomes the job's working folder: the checkout; None where the package goes alone."""


@dataclass(frozen=True)
class SubmitReport:
    """How a job that was followed ended."""

    id: str
    exit_code: int
    """What a program that ran it here would have ended with."""
    text: str
    """One sentence, empty where all is well."""


def code_of(verb: str) -> JobCode:
    """The checkout, as .gitignore has it, where this is one; of an installed voxray the package."""
    package = Path(voxray.__file__).resolve().parent
    root = package.parents[1]
    stop = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
    if package.parent.name == "platform" and (root / "jobs" / f"{verb}.py").is_file():
        return JobCode(("python", f"jobs/{verb}.py"), {"working_dir": str(root), **stop}, root)
    return JobCode(("python", "-m", "voxray", verb), {"py_modules": [str(package)], **stop}, None)


def submit(jobs: JobsAddress, code: JobCode, arguments: Sequence[str], *, cpus: float = 0, gpus: float = 0) -> str:
    """Sends the job; its id. So many CPUs and GPUs are the driver's own, which else runs on the head."""
    if min(cpus, gpus) < 0:
        raise ConfigError(f"the driver's CPUs and GPUs are {cpus:g} and {gpus:g}; none may be below 0.")
    return jobs.submit(shlex.join([*code.command, *arguments]), code.runtime_env, cpus=cpus, gpus=gpus)


def follow(jobs: JobsAddress, job_id: str, watched: Watched) -> SubmitReport:
    """Passes on what the job says until it ends or is left; and how that was."""
    try:
        ended = jobs.follow(job_id, watched)
    except KeyboardInterrupt:
        ended = None
    if ended is None:
        asked = "has been asked to stop and ends by itself" if watched.stopping else "goes on"
        return SubmitReport(
            job_id, 130, f"{job_id} {asked}; `voxray status {job_id} --address {jobs.address}` looks at it."
        )
    return report_of(ended, list(watched.lines), stopped_here=watched.stopping)


def report_of(job: SubmittedJob, lines: list[str], *, stopped_here: bool) -> SubmitReport:
    """The end of a job, as an exit code and a sentence."""
    if job.status == "SUCCEEDED":
        return SubmitReport(job.id, 0, "")
    if job.status == "STOPPED":
        return SubmitReport(job.id, 130 if stopped_here else 143, f"{job.id} was stopped.")
    code = job.exit_code or 1
    code = 128 - code if code < 0 else code
    return SubmitReport(job.id, code, f"{job.id} failed with exit code {code}: {last_cause(lines, job.message)}")
