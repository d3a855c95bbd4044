"""Where studies and jobs lie in the service's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from voxray.serving.intake.study import SOURCE


@dataclass(frozen=True)
class Places:
    """The folders below the service's own."""

    root: Path

    def prepared(self) -> Places:
        """The same, with the folders there, and closed to other users of the machine."""
        for folder in (self.root, self.studies, self.jobs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    @property
    def studies(self) -> Path:
        """A folder a study."""
        return self.root / "studies"

    @property
    def jobs(self) -> Path:
        """A folder a job."""
        return self.root / "jobs"

    @property
    def logs(self) -> Path:
        """Of each process of the service."""
        return self.root / "logs"

    def study(self, study: str) -> Path:
        """The study's folder."""
        return self.studies / study

    def job(self, job: str) -> Path:
        """The job's folder."""
        return self.jobs / job

    def source(self, study: str) -> Path:
        """What was uploaded, under our own names."""
        return self.study(study) / SOURCE

    def answer(self, job: str, study: str) -> Path:
        """The answer's JSON; a label map lies beside it."""
        return self.job(job) / f"{study}.json"

    def labels(self, job: str, study: str) -> Path:
        """The answer's label map."""
        return self.job(job) / f"{study}.nii.gz"
