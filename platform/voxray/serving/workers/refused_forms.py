"""Forms that cannot be made of an answer: one refusal for whatever they fail from, kept beside the answer.

A job's folder says which forms were asked for in vain, so that the job says it too; what only the machine lacks is
not kept, since the next attempt may succeed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from voxray.core.bulkhead import lacks_memory, log_fault
from voxray.core.errors import DataError, ResourceError, VoxrayError
from voxray.core.storage import whole
from voxray.results.formats import FAULT, SERVED, FormatName
from voxray.serving.errors import ProblemDetails, ProblemError, problem_of
from voxray.serving.intake.wording import of_series

_ENDING = ".refused.json"


@contextlib.contextmanager
def refusing(what: str, source: Path) -> Iterator[None]:
    """Whatever fails within as one refusal: of the answer (422), or of the machine (503); no path is in it.

    `what` is made; `source` is the folder of the study's files.
    """
    try:
        yield
    except DataError as error:
        raise of_series(error, source) from None
    except (VoxrayError, ProblemError):
        raise
    except FileNotFoundError:
        text = "The job's answer is not there any more."
        raise ProblemError(404, "result.gone", text, remedy="Ask the model again.") from None
    except Exception as error:
        log_fault(error)
        if lacks_memory(error):
            raise ResourceError(f"{what}: there is not enough memory to make it.") from None
        if isinstance(error, OSError):
            raise ResourceError(f"{what}: the service's disk fails ({error.strerror}).") from None
        raise DataError(
            FAULT,
            f"{what}: cannot be made of this answer ({type(error).__name__}).",
            remedy="Take another form; the service's log has more.",
        ) from None


@contextlib.contextmanager
def recording_refusal(folder: Path, form: FormatName) -> Iterator[None]:
    """Writes into a job's folder why a form cannot be made of its answer; an earlier reason goes."""
    try:
        yield
    except DataError as error:
        with contextlib.suppress(FileNotFoundError), whole(folder / f"{form}{_ENDING}") as path:  # the job is gone
            path.write_text(problem_of(error).details().model_dump_json(), encoding="utf-8")
        raise
    (folder / f"{form}{_ENDING}").unlink(missing_ok=True)


def refused_forms(folder: Path) -> Mapping[FormatName, ProblemDetails]:
    """The forms that could not be made of a job's answer, and why."""
    found: dict[FormatName, ProblemDetails] = {}
    for form in SERVED:
        with contextlib.suppress(OSError, json.JSONDecodeError, ValidationError):
            found[form] = ProblemDetails.model_validate_json((folder / f"{form}{_ENDING}").read_bytes())
    return found
