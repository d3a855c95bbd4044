"""A wait on the cluster: what it is for is said every half minute, and ended where it has lasted too long."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from voxray.core.errors import ConfigError, ResourceError
from voxray.core.progress import Progress
from voxray.distributed.demand import Demand, cluster_demand
from voxray.distributed.metrics import count_wait

WAIT_NODES = "VOXRAY_WAIT_NODES"
"""Environment variable, set by ``--wait-nodes``: how long to wait for nodes that a cluster lacks."""

SAY_EVERY_S = 30.0
"""How often a wait says what it is for."""


def listener(progress: Progress | None) -> Progress | None:
    """Who is told what a wait is for: nobody on a Ray of this process's own, whose nodes are this machine."""
    return progress if os.environ.get("RAY_ADDRESS") else None


def has_living_actors() -> bool:
    """Whether any actor of this job runs."""
    import ray
    from ray._private.state import actors

    job_id = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return bool(actors(job_id=job_id, actor_state_name="ALIVE"))


def wait_limit_s() -> float:
    """How long a verb waits for nodes, by ``VOXRAY_WAIT_NODES``: a quarter of an hour unless it says otherwise."""
    return seconds_of(os.environ.get(WAIT_NODES, "15m"), where=WAIT_NODES)


def seconds_of(text: str, *, where: str) -> float:
    """The seconds of ``90s``, ``15m`` or ``2h``; a ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None:
        raise ConfigError(f"{where}: must be a time such as 90s, 15m or 2h, got {text!r}.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


@contextmanager
def watched(
    progress: Progress | None,
    state: Callable[[], float],
    *,
    limit_s: float | None = None,
    stop: Callable[[], None] = lambda: None,
    works: Callable[[], bool] = lambda: False,
    demand: Callable[[], Demand] = cluster_demand,
    every_s: float | None = None,
) -> Iterator[None]:
    """Says every half minute of the block what the cluster lacks, while `state()` stays what it was.

    Where nothing has changed or worked (`works`) for `limit_s`, and something was lacking all that time, `stop` is
    called, and the block's end is a ResourceError that names it. Without a `progress` nothing is watched.
    """
    if progress is None:
        yield
        return
    watch = _Watch(progress.say, state, limit_s, stop, works, demand, every_s or SAY_EVERY_S)
    thread = threading.Thread(target=watch.run, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if watch.gave_up is not None and not isinstance(error, ResourceError):
            raise watch.gave_up from error
        raise
    finally:
        watch.over.set()
        thread.join()
    if watch.gave_up is not None:
        raise watch.gave_up


class _Watch:
    def __init__(
        self,
        say: Callable[[str], None],
        state: Callable[[], float],
        limit_s: float | None,
        stop: Callable[[], None],
        works: Callable[[], bool],
        demand: Callable[[], Demand],
        every_s: float,
    ) -> None:
        self._say, self._state, self._works, self._demand = say, state, works, demand
        self._limit_s, self._stop, self._every_s = limit_s, stop, every_s
        self.over = threading.Event()
        self.gave_up: ResourceError | None = None

    def run(self) -> None:
        """Looks until the block is over, or has waited too long."""
        last, since = self._state(), time.monotonic()
        looked = since
        while not self.over.wait(self._next_look(since)):
            found, works = Demand({}), False
            with suppress(Exception):  # a head that restarts, or an older Ray's answer: the work itself will tell
                found, works = self._demand(), self._works()
            now, was, looked = self._state(), looked, time.monotonic()
            if found and now == last and not works:
                count_wait(looked - was)
            if now != last or works or not found:
                said = bool(found) and now == last
                last, since = now, time.monotonic()
                if said:
                    self._say(f"waiting for {found}")
                continue
            waited = time.monotonic() - since
            if self._limit_s is not None and waited >= self._limit_s:
                self.gave_up = ResourceError(
                    f"the cluster has lacked {found} for {waited:.0f} s, and nothing went on meanwhile. Add nodes, "
                    f"ask for less, or wait longer with --wait-nodes."
                )
                self._stop()
                return
            self._say(f"waiting for {found}")

    def _next_look(self, since: float) -> float:
        if self._limit_s is None:
            return self._every_s
        return min(self._every_s, max(0.01, since + self._limit_s - time.monotonic()))
