from collections.abc import Sequence
from enum import Enum

class JobStatus(Enum):
    value: str

class JobDetails:
    start_time: int | None
    status: JobStatus

class JobSubmissionClient:
    def __init__(self, address: str) -> None: ...
    def list_jobs(self) -> Sequence[JobDetails]: ...
