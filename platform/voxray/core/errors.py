"""The errors that voxray raises for what a user can mend.

    VoxrayError            one clear sentence: where, what came, what is allowed, what to do
    ├── ConfigError        what a user wrote: a recipe, a dataset file, an option
    ├── DataError          what a file holds; carries a stable code such as ``dicom.missing_slice``
    └── ResourceError      what the machine or cluster lacks: CPUs, disk, a reachable server
        └── StorageAwayError   storage that does not answer just now: to ask again may help

Our own mistakes are ``assert``s, never these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_Facts = Mapping[str, Any]


class VoxrayError(Exception):
    """The root: its text is shown to the user as it is, without a traceback."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, as of ``ray job stop``: to be ended like Ctrl-C does, with what was done kept."""


class ConfigError(VoxrayError):
    """Something that a user wrote is not allowed."""


class ResourceError(VoxrayError):
    """The machine or the cluster lacks something that the work needs."""


class StorageAwayError(ResourceError):
    """Storage does not answer, is too busy, or replaced what was read: the same may succeed in a while."""


class DataError(VoxrayError):
    """A file holds something that cannot be used as it is.

    ``code`` is stable (``nifti.truncated``), ``remedy`` says what to do, ``case_id`` names the case
    once it is known (readers know only paths; whoever knows the case adds it with `of_case`). ``facts`` is JSON for
    programs: what the message names, such as the series that there are.
    """

    def __init__(
        self, code: str, message: str, *, remedy: str, case_id: str | None = None, facts: _Facts | None = None
    ) -> None:
        self.code, self.message, self.remedy, self.case_id = code, message, remedy, case_id
        self.facts: _Facts = facts or {}
        super().__init__(str(self))

    def __str__(self) -> str:
        case = f"case {self.case_id}: " if self.case_id else ""
        return f"{case}[{self.code}] {self.message} {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        return _restore_data_error, (self.code, self.message, self.remedy, self.case_id, self.facts)

    def of_case(self, case_id: str) -> DataError:
        """The same error with its case named."""
        return DataError(self.code, self.message, remedy=self.remedy, case_id=case_id, facts=self.facts)


def _restore_data_error(code: str, message: str, remedy: str, case_id: str | None, facts: _Facts) -> DataError:
    return DataError(code, message, remedy=remedy, case_id=case_id, facts=facts)
