"""Status: how far a run or a job is, from anywhere that reaches its folder or its cluster."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

from voxray.core.addresses import local_path
from voxray.core.errors import ConfigError, ResourceError, VoxrayError
from voxray.core.storage import Place
from voxray.distributed.run_follower import epoch_line
from voxray.distributed.submitted_jobs import JobsAddress, SubmittedJob, last_cause, without_colours
from voxray.distributed.watchdog import SAY_EVERY_S
from voxray.training.checkpoint import RunState, find_state, read_run
from voxray.training.run_files import HISTORY, TICKER, WAITS, read_failure, read_progress_file

Rows = Sequence[tuple[str, str]]
"""What is known, as names and texts."""

SILENT_S = 300.0
"""A training writes every few seconds but for validations, which may take minutes."""
_SIGNS = (TICKER, HISTORY, "state.json", "run.json")
_SHOWN = 5
_WAIT_S = 4 * SAY_EVERY_S


def is_run(target: str) -> bool:
    """Whether it is a run's place rather than a job's id: an address, a path, or a folder that is here."""
    path = local_path(target)
    return path is None or len(path.parts) > 1 or path.exists()


def status_of_run(location: str, *, now: float | None = None) -> Rows:
    """State, epochs, steps, last numbers and last sign of life of a run's folder."""
    place, now = Place.of(location), time.time() if now is None else now
    if not place.exists("run.json") and not place.exists("state.json"):
        raise ConfigError(
            f"{place.uri}: no run here (it has no run.json); give the folder that `voxray train -o` made."
        )
    state, tick = find_state(place.uri), read_progress_file(place.uri, TICKER)
    history = read_progress_file(place.uri, HISTORY) or []
    rows = [("run", place.uri)]
    if place.exists("run.json"):
        run = read_run(place.uri)
        # As it was written: the network may be none that is known here.
        epochs = run.recipe.get("optim", {}).get("epochs", "?")
        rows.append(("recipe", f"{run.recipe.get('name', '?')} on {run.dataset}"))
        rows.append(("epochs", f"{state.epochs_done if state else 0} of {epochs}"))
    seen = last_sign(place)
    rows.append(("state", _state_text(place, state, seen, now)))
    if tick and not (state and state.finished):
        rows.append(("step", _step_text(tick)))
    if state and (saved := place.modified("state.json")) is not None:
        rows.append(("last checkpoint", f"{ago(now - saved)} ago"))
    if history:
        rows += [("last epoch", epoch_line(history[-1]).partition(": ")[2]), *_validated(history)]
    if state and state.best_value is not None:
        rows.append(("best", f"{state.metric} {state.best_value:.3f} at {state.best.replace('_', ' ')}"))
    return rows


def status_of_job(jobs: JobsAddress, job_id: str) -> Rows:
    """State, command, times, what is waited for, the last line, and the run that it writes where that is in reach."""
    job = jobs.look(job_id)
    lines = [] if job.status == "PENDING" else jobs.logs(job_id).splitlines()
    rows = [("job", job.id), ("state", _job_state(job)), ("command", job.command), ("took", _took(job))]
    if job.status == "FAILED":
        rows.append(("because", last_cause(lines, job.message)))
    elif not job.has_ended:
        rows += _waits(jobs, job)
    if lines and job.status != "FAILED":
        rows.append(("last line", without_colours(lines[-1])))
    return [*rows, *_run_of(job)]


def run_in(command: str) -> str:
    """The run that a ``train`` job writes, by its command; an empty text for other jobs."""
    words = shlex.split(command)
    if not any(word == "train" or word.endswith("/train.py") for word in words):
        return ""
    for at, word in enumerate(words):
        if word in ("-o", "--out") and at + 1 < len(words):
            return words[at + 1]
        if word.startswith("--out="):
            return word.partition("=")[2]
    return ""


def last_sign(place: Place) -> float | None:
    """When the run's folder was last written to, in seconds since 1970; None where that cannot be known."""
    times = [when for name in _SIGNS if (when := place.modified(name)) is not None]
    return max(times, default=None)


def ago(seconds: float) -> str:
    """``12 s``, ``5 min``, ``3.2 h`` or ``4 days``."""
    for limit, unit, text in ((120, 1, "{:.0f} s"), (7200, 60, "{:.0f} min"), (172800, 3600, "{:.1f} h")):
        if seconds < limit:
            return text.format(max(seconds, 0) / unit)
    return f"{seconds / 86400:.0f} days"


def _step_text(tick: Mapping[str, float]) -> str:
    text = f"{tick['steps_done']}, loss {tick['loss']:.4g}, {tick['samples_per_s']:.1f} patches/s"
    return f"{text}, {tick['wait_share']:.0%} waiting".replace("%", " %") if "wait_share" in tick else text


def _wait_of(place: Place, seen: float | None, now: float) -> str | None:
    """What the driver said last that it waits for, if nothing went on since."""
    said = place.modified(WAITS)
    if said is None or now - said > _WAIT_S or (seen is not None and seen > said):
        return None
    found = read_progress_file(place.uri, WAITS)
    return f"{found['text']}; said {ago(now - said)} ago" if found else None


def _state_text(place: Place, state: RunState | None, seen: float | None, now: float) -> str:
    since = "" if seen is None else f"last sign of life {ago(now - seen)} ago"
    if state is not None and state.finished:
        return f"finished{f'; {since}' if since else ''}"
    failure = read_failure(place.uri)
    if failure is not None:
        return f"failed: {failure}"
    if (waits := _wait_of(place, seen, now)) is not None:
        return waits
    if seen is None:
        return "unfinished"
    if now - seen <= SILENT_S:
        return f"at work; {since}"
    return f"silent; {since}: stopped, lost, waiting for nodes or in a long validation"


def _validated(history: Sequence[Mapping[str, float]]) -> Rows:
    """The numbers of the last validation, if the last epoch had none."""
    rows = [row for row in history if any(name.startswith("val/") for name in row)]
    if not rows or rows[-1] is history[-1]:
        return []
    named = {name.removeprefix("val/"): value for name, value in rows[-1].items() if name.startswith("val/")}
    shown = [f"{name} {value:.3f}" for name, value in named.items() if "/" not in name and math.isfinite(value)]
    return [("last validation", f"epoch {rows[-1]['epoch']:.0f}: {', '.join(shown[:_SHOWN])}")]


def _job_state(job: SubmittedJob) -> str:
    text = job.status.lower()
    return text if job.exit_code in (None, 0) else f"{text} with exit code {job.exit_code}"


def _took(job: SubmittedJob) -> str:
    if job.started is None:
        return "not begun"
    begin = datetime.fromtimestamp(job.started).strftime("%Y-%m-%d %H:%M")
    return f"{ago((job.ended or time.time()) - job.started)}, begun {begin}"


def _waits(jobs: JobsAddress, job: SubmittedJob) -> Rows:
    """What is waited for: by the job itself before it begins, and by all that the cluster has been asked for."""
    rows = [("waits", job.message)] if job.status == "PENDING" and job.message else []
    try:
        asked = jobs.pending()
    except Exception as error:  # Ray's account of its state is a help, and no more
        return [*rows, ("cluster", f"does not say what it waits for ({type(error).__name__})")]
    return [*rows, ("cluster has no room yet for", asked)] if asked else rows


def _run_of(job: SubmittedJob) -> Rows:
    location = run_in(job.command)
    if not location:
        return []
    try:
        return [row for row in status_of_run(location) if row[0] != "state" or not job.has_ended]
    except (VoxrayError, ResourceError, ImportError) as error:
        return [("run", f"{location} (not to be seen from here: {error})")]
