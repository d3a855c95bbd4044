"""Jobs on a cluster, over HTTP: sent, followed, stopped and looked at, by Ray's own `JobSubmissionClient`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from voxray.core.errors import ConfigError, ResourceError
from voxray.distributed.demand import demand_at

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Where Ray looks for an address; to Ray they come before one that is given."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
KEPT_LINES = 200
_PATIENCE_S = 600.0
_RETRY_S = 2.0
_TOLD_EVERY_S = 30.0
_LOOK_S = 1.0
_STOP_S = 10.0
"""How long leaving waits for the request to stop to be out."""
_PASSWORD = re.compile(r"://[^/@\s]+@")
_CHATTY = (
    *("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk"),
    *("_private.runtime_env.packaging", "_private.runtime_env.working_dir", "_private.runtime_env.py_modules"),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SubmittedJob:
    """A job as the cluster tells of it; times are in seconds since 1970."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    message: str
    exit_code: int | None
    started: float | None
    ended: float | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED


@dataclass
class Watched:
    """What someone who follows a job hears: its output as it comes, and remarks of the one who follows."""

    write: Callable[[str], None]
    say: Callable[[str], None]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    """The last lines of the output."""
    stopping: bool = False
    """Whether Ctrl-C has asked for the job's end."""
    _rest: str = ""

    def take(self, text: str) -> None:
        """Passes output on, and keeps its last lines."""
        self.write(text)
        *whole, self._rest = (self._rest + text).split("\n")
        self.lines.extend(whole)


class JobsAddress:
    """The jobs of one cluster; make it with `open_jobs`."""

    def __init__(self, client: Any, url: str) -> None:
        self._client, self._url = client, url
        self.address = without_password(url)
        """As it may be shown."""

    def submit(self, command: str, runtime_env: Mapping[str, Any], *, cpus: float = 0, gpus: float = 0) -> str:
        """Sends a job with its files; its id."""
        with explained(self.address):
            return str(
                self._client.submit_job(
                    entrypoint=command,
                    runtime_env=dict(runtime_env),
                    entrypoint_num_cpus=cpus or None,
                    entrypoint_num_gpus=gpus or None,
                )
            )

    def look(self, job_id: str) -> SubmittedJob:
        """What the cluster knows of a job."""
        with explained(self.address, job_id):
            found = self._client.get_job_info(job_id)
        return SubmittedJob(
            id=job_id,
            status=str(found.status.value),
            command=str(found.entrypoint),
            message=str(found.message or ""),
            exit_code=found.driver_exit_code,
            started=None if found.start_time is None else found.start_time / 1000,
            ended=None if not found.end_time else found.end_time / 1000,
        )

    def logs(self, job_id: str) -> str:
        """All that a job has printed."""
        with explained(self.address, job_id):
            return str(self._client.get_job_logs(job_id))

    def pending(self) -> str:
        """What the whole cluster has been asked for and has no room for yet; empty where nothing waits."""
        with _named_alone(self._url):
            return demand_at(self._url).requests

    def stop(self, job_id: str) -> None:
        """Asks for a job's end; it gets SIGTERM, and some time."""
        with explained(self.address, job_id):
            self._client.stop_job(job_id)

    def follow(self, job_id: str, watched: Watched) -> SubmittedJob | None:
        """Passes a job's output on until it has ended; None where a second Ctrl-C left it to itself."""
        return asyncio.run(self._follow(job_id, watched))

    async def _follow(self, job_id: str, watched: Watched) -> SubmittedJob | None:
        left = asyncio.Event()
        loop = asyncio.get_running_loop()

        def interrupted() -> None:
            if watched.stopping:
                left.set()
                return
            watched.stopping = True
            watched.say(f"stopping {job_id}; Ctrl-C again leaves it to itself.")
            stops.append(loop.create_task(self._ask_for_end(job_id, watched)))

        stops: list[asyncio.Task[None]] = []
        loop.add_signal_handler(signal.SIGINT, interrupted)
        following, leaving = loop.create_task(self._tail(job_id, watched)), loop.create_task(left.wait())
        try:
            await asyncio.wait({following, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                return following.result()
            return None
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            following.cancel()
            leaving.cancel()
            await asyncio.wait({following, leaving, *stops}, timeout=_STOP_S)

    async def _ask_for_end(self, job_id: str, watched: Watched) -> None:
        try:
            await asyncio.to_thread(self.stop, job_id)
        except (ConfigError, ResourceError) as error:
            watched.say(f"{job_id} was not stopped: {error}")

    async def _tail(self, job_id: str, watched: Watched) -> SubmittedJob:
        """Follows the output; where the stream breaks, or a proxy lets none through, by asking again and again."""
        telling = asyncio.create_task(self._tell_waiting(job_id, watched))
        shown, heard = 0, time.monotonic()
        try:
            while True:
                came = 0
                try:
                    async for text in self._client.tail_job_logs(job_id):
                        watched.take(text[max(0, shown - came) :])
                        came += len(text)
                        shown, heard = max(shown, came), time.monotonic()
                    return await self._ended(job_id)
                except Exception as error:  # whatever the stream fails from, the job goes on
                    _log.debug("the stream of %s broke: %s", job_id, error)
                try:
                    output, found = await asyncio.to_thread(lambda: (self.logs(job_id), self.look(job_id)))
                except ResourceError as error:
                    self._lose_patience(job_id, time.monotonic() - heard, error)
                else:
                    watched.take(output[shown:])
                    shown, heard = max(shown, len(output)), time.monotonic()
                    if found.has_ended:
                        return found
                await asyncio.sleep(_RETRY_S)
        finally:
            telling.cancel()

    def _lose_patience(self, job_id: str, silent_s: float, error: ResourceError) -> None:
        if silent_s > _PATIENCE_S:
            raise ResourceError(
                f"{error} It has been silent for {silent_s / 60:.0f} minutes; {job_id} goes on without a follower."
            ) from error

    async def _ended(self, job_id: str) -> SubmittedJob:
        while not (found := await asyncio.to_thread(self.look, job_id)).has_ended:
            await asyncio.sleep(_LOOK_S)
        return found

    async def _tell_waiting(self, job_id: str, watched: Watched) -> None:
        """Says what a job waits for that has not begun."""
        while True:
            await asyncio.sleep(_TOLD_EVERY_S)
            with contextlib.suppress(ResourceError, ConfigError):
                found = await asyncio.to_thread(self.look, job_id)
                if found.status != "PENDING":
                    return
                watched.say(f"{job_id} has not begun: {found.message}")


def open_jobs(address: str | None) -> JobsAddress:
    """The jobs of the cluster at an address, or at that of the environment, with the token of Ray's environment."""
    given = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if given is None:
        raise ConfigError(
            "no cluster was named: give --address http://HEAD:8265, where its dashboard listens, or set "
            "RAY_API_SERVER_ADDRESS."
        )
    if address is not None and "://" not in address:
        given = f"http://{address}"
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY:
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    with explained(without_password(given)), _named_alone(given):
        return JobsAddress(JobSubmissionClient(given), given)


def without_password(url: str) -> str:
    """An address as it may be shown."""
    return _PASSWORD.sub("://...@", url)


@contextlib.contextmanager
def _named_alone(address: str) -> Iterator[None]:
    """The address stands where Ray looks first, while the client is made."""
    before = {name: os.environ.pop(name, None) for name in ADDRESSES}
    os.environ[ADDRESSES[0]] = address
    try:
        yield
    finally:
        del os.environ[ADDRESSES[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextlib.contextmanager
def explained(address: str, job_id: str = "") -> Iterator[None]:
    """What Ray's client and `requests` raise, as a sentence."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError as error:
        raise ResourceError(
            f"{address}: wants a token, or another one; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or "
            f"RAY_AUTH_TOKEN) to the cluster's."
        ) from error
    except (RequestException, ConnectionError) as error:
        raise ResourceError(
            f"{address}: no Ray dashboard answers there ({_first_line(error)}); see that the head is up, and that "
            f"the address is its dashboard's (`ray dashboard cluster.yaml` forwards it to http://localhost:8265)."
        ) from error
    except (RuntimeError, ValueError) as error:
        if job_id and "404" in str(error):
            raise ConfigError(f"{job_id}: there is no such job at {address}; `ray job list` lists them.") from error
        raise ResourceError(f"{address}: {_first_line(error)}") from error


def last_cause(lines: list[str], message: str) -> str:
    """Why a job failed, by the last that it said: voxray's own sentence, or the last line of whatever ended it."""
    plain = [without_colours(line) for line in lines]
    own = [line for line in plain if line.startswith("voxray: ") and not line.startswith("voxray: warning: ")]
    said = own or [line for line in (*message.splitlines(), *plain) if line.strip()]
    return said[-1].removeprefix("voxray: ").strip() if said else "it printed nothing"


def without_colours(line: str) -> str:
    """A line of output as text alone."""
    return re.sub(r"\x1b\[[0-9;]*m", "", line).strip()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
