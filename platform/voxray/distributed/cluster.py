"""Joining a Ray cluster, or starting a quiet one on this machine.

The most frequent failure on Ray is a silent hang: training workers hold all logical CPUs and the tasks that feed them
wait for one for ever. `placement` leaves room for those, and says so where there can be none.

Ray is imported inside the functions: some of its settings are read from the environment when it is imported.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxray.core.bulkhead import DEBUG
from voxray.core.errors import ResourceError
from voxray.distributed.chatter import CHATTER, level_unsaid
from voxray.distributed.termination import own_termination
from voxray.distributed.worker_code import worker_environment

if TYPE_CHECKING:
    from ray.data import DataContext

QUIET = {
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "120",
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": "2",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Defaults for Ray's environment, here and in its workers; what the user has set stays.

The last is torch's: threads that wait for each other busily take the cores that reading tasks need, and training on
CPUs then takes twice as long.
"""

MIN_LOCAL_CPUS = 4
"""Logical CPUs of a local Ray at the least: they are shares of a schedule, and feeding tasks need some too."""

BLOCK_BYTES = 32 << 20
"""Ray Data's blocks: at the default of 128 MiB an object store of a few hundred MB spills to disk."""

START_ATTEMPTS = 3
"""How often a local Ray is started: it gives itself 30 s, too few where all cores are busy."""

_CONNECT_S = 10.0
_MAX_TEMP_PATH = 45
"""Ray appends up to 60 characters for its sockets, and a socket's path has at most 107."""


@dataclass(frozen=True)
class Cluster:
    """What was joined or started: whether it is this process's own, and its totals at that time."""

    local: bool
    num_nodes: int
    num_cpus: float
    num_gpus: float


@contextmanager
def connect(*, num_cpus: float | None = None) -> Iterator[Cluster]:
    """A Ray to work on: this process's if it has one, that of ``RAY_ADDRESS``, or a new local one.

    A local Ray gets `num_cpus` logical CPUs (by default the cores, at least four), no dashboard and no logs on the
    terminal, and is shut down at the end; a joined one is left running.
    """
    for name, value in (QUIET if DEBUG in os.environ else QUIET | CHATTER).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        configure_data()
        yield _totals(local=False)
        return
    local = not os.environ.get("RAY_ADDRESS")
    with _guard_chosen(local), own_termination() as keep:
        with level_unsaid():
            if local:
                _start(num_cpus)
            else:
                _join()
        keep()
        try:
            configure_data()
            yield _totals(local=local)
        finally:
            ray.shutdown()


def configure_data() -> DataContext:
    """Sets Ray Data in this process as voxray uses it, and returns its context; a training worker calls it too.

    The listing actor of the newer data sources costs seconds an epoch and loses the order.
    """
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.use_datasource_v2 = False
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = float(os.environ.get("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", "120"))
    return context


@contextmanager
def _guard_chosen(local: bool) -> Iterator[None]:
    """This process's own Ray asks for no token unless the user wants one; a program started later may want it."""
    if not local or "RAY_AUTH_MODE" in os.environ:
        yield
        return
    os.environ["RAY_AUTH_MODE"] = "disabled"
    try:
        yield
    finally:
        os.environ.pop("RAY_AUTH_MODE", None)


def _start(num_cpus: float | None) -> None:
    import ray

    folder = os.environ.get("RAY_TMPDIR", "")
    if len(folder) > _MAX_TEMP_PATH:
        raise ResourceError(
            f"RAY_TMPDIR={folder}: is too long a path for Ray's sockets; set it to a folder of at most "
            f"{_MAX_TEMP_PATH} characters, or unset it."
        )
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus or max(MIN_LOCAL_CPUS, os.cpu_count() or 1),
                object_store_memory=_object_store_bytes(),
                include_dashboard=False,
                logging_level="ERROR",
                log_to_driver=DEBUG in os.environ,
            )
            return
        except Exception as error:  # a busy machine is Ray's bare Exception
            ray.shutdown()
            if attempt + 1 == START_ATTEMPTS:
                raise ResourceError(
                    f"Ray did not start on this machine ({str(error).splitlines()[0]}); free memory, disk and cores, "
                    f"or set RAY_ADDRESS to a cluster."
                ) from error


def _join() -> None:
    import ray

    address = os.environ["RAY_ADDRESS"]
    try:
        require_listener(address, timeout_s=_CONNECT_S)
        ray.init(runtime_env=worker_environment(), logging_level="ERROR", log_to_driver=DEBUG in os.environ)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); start it with `ray start --head`, use "
            f"the cluster's RAY_AUTH_MODE and token, or unset RAY_ADDRESS to work on this machine alone."
        ) from error


def require_listener(address: str, *, timeout_s: float) -> None:
    """An OSError where nothing listens at ``host:port``; Ray itself would try for two minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()


def _object_store_bytes() -> int:
    """At most 2 GiB: voxray's blocks are small and short-lived; less where shared memory is small."""
    shared_memory = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 2 << 30  # noqa: PTH112
    return max(100 << 20, min(2 << 30, int(shared_memory * 0.8)))


def _totals(*, local: bool) -> Cluster:
    import ray

    total = ray.cluster_resources()
    return Cluster(local, len(ray.nodes()), float(total.get("CPU", 0.0)), float(total.get("GPU", 0.0)))
