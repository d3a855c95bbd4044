"""The service started: by ``voxray serve`` on a laptop, by ``serve run serve/config.yaml`` on a cluster."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxray.core.config import parse
from voxray.core.errors import ConfigError, ResourceError
from voxray.core.progress import Progress
from voxray.core.storage import Place
from voxray.distributed.capacity import cluster_capacity
from voxray.distributed.cluster import connect
from voxray.serving.cards import card
from voxray.serving.config import LOOPBACK, ServeConfig
from voxray.serving.flow import PROXY_HALF, PROXY_SETTING
from voxray.serving.jobs.store import JobStore
from voxray.serving.messages import ModelInfo
from voxray.serving.paths import ServicePaths
from voxray.serving.stopping import Stop, nothing_said

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "voxray"
_LOOK_S = 5.0
_PROMPT = ("RAY_worker_niceness", "0")
"""Ray starts its workers as what can wait for all else on the machine (15); who asks a service waits for them."""
START_S = 600.0
"""How long models may take to load, convert and answer for the first time."""


def build(args: dict[str, Any]) -> Application:
    """The application that ``import_path: voxray.serving.app:build`` names; `args` are a `ServeConfig`."""
    config = absolute(parse(ServeConfig, args, where="args"))
    require_same_host(config, _listening_on())
    cards = check(config)
    _require_gpus(config)
    from voxray.serving.deployments.ray import application

    return application(config, cards)


def absolute(config: ServeConfig) -> ServeConfig:
    """With full paths: replicas may have other working folders."""
    models = {
        name: model.model_copy(update={"path": Place.of(model.path).uri}) for name, model in config.models.items()
    }
    return config.model_copy(update={"folder": str(config.root), "models": models})


def check(config: ServeConfig) -> list[ModelInfo]:
    """What is served; a sentence for what cannot work, before anything is started."""
    cards = [card(name, model) for name, model in config.models.items()]
    places = ServicePaths(config.root)
    places.require_own(model.path for model in config.models.values())
    places.prepared()
    store = JobStore(config.database_url)
    known = store.tokens()
    store.close()
    if not config.is_loopback and not known:
        database = " --database URL" if config.database else ""
        raise ConfigError(
            f"host {config.host}: the service would be reached from other machines, and there is no token; make "
            f"one with `voxray token add NAME --folder {config.folder}{database}`, or listen on 127.0.0.1."
        )
    return cards


def _listening_on() -> str | None:
    """The address that this cluster's Ray Serve listens on; None where it does not run yet."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else str(client.http_config.host)


def require_same_host(config: ServeConfig, listening: str | None) -> None:
    """Tokens are asked for where `host` says that others reach the service: it must not say less."""
    if listening is not None and listening not in LOOPBACK and config.is_loopback:
        raise ConfigError(
            f"args.host is {config.host}, and Ray Serve listens on {listening}; set http_options.host to 127.0.0.1, "
            f"or args.host to {listening}, which wants tokens."
        )


def _require_gpus(config: ServeConfig) -> None:
    """A sentence where replicas would wait for ever for a GPU."""
    found = cluster_capacity()
    largest = max((node.gpus for node in found.nodes), default=0.0)
    for name, model in config.models.items():
        if found.is_known and model.num_gpus and largest < model.num_gpus:
            raise ResourceError(
                f"models.{name}: each replica wants num_gpus {model.num_gpus:g}, and no node of the cluster can have "
                f"more than {largest:g} ({found}); add a node with a GPU, or set num_gpus to 0."
            )


def run(config: ServeConfig, *, port: int, progress: Progress, ready: Callable[[str], None] | None = None) -> None:
    """Serves until it is told to stop; what is under way is finished by the next service over the same folder."""
    if os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":  # the dashboard is off, Ray's ports want a token
        progress.say(
            "RAY_AUTH_MODE is not `token`: whoever reaches Ray's ports runs code here; unset it to close them"
        )
    os.environ.setdefault(PROXY_SETTING, PROXY_HALF)
    os.environ.setdefault(*_PROMPT)
    check(config)
    _require_free(config.host, port)
    stop = Stop()
    with ExitStack() as last, stop.heeded(), connect(num_cpus=None) as cluster:
        _close_token_file()
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        options = {"host": config.host, "port": port, "request_timeout_s": None}
        try:
            serve.start(http_options=options, logging_config={"enable_access_log": False, "log_level": "ERROR"})
            with progress.track("start", total=None, unit=""):
                _deploy(build(config.model_dump(mode="json")))
            address = f"http://{config.host if ':' not in config.host else f'[{config.host}]'}:{port}/"
            (ready or progress.say)(f"serving {', '.join(config.models)} at {address}")
            stop.serves()
            _wait(stop)
            progress.say("stopping")
        finally:
            last.enter_context(nothing_said())
            if stop.is_told or not cluster.local:  # else the end of Ray is the end of all
                serve.shutdown()


def _deploy(application: Application) -> None:
    """Starts the application; what a replica cannot start from is said in its own sentence."""
    from ray import serve

    try:
        serve.run(application, name=NAME, route_prefix="/", blocking=False)
    except RuntimeError as error:
        deployments = serve.status().applications[NAME].deployments
        for name, one in deployments.items():
            said = [line.strip() for line in one.message.splitlines() if "Error: " in line]
            if one.status in ("DEPLOY_FAILED", "UNHEALTHY", "UPDATING") and said:
                kind, _, text = said[-1].rpartition("Error: ")
                raise (ConfigError if kind.endswith("Config") else ResourceError)(f"{name}: {text}") from error
        raise


def _close_token_file() -> None:
    """Ray writes its token so that every user of the machine may read it."""
    path = Path.home() / ".ray" / "auth_token"
    if path.exists():
        path.chmod(0o600)


def _wait(stop: Stop) -> None:
    """Until told to stop, or the service fails for good."""
    from ray import serve

    failed_at: float | None = None
    while not stop.wait(_LOOK_S):
        state = serve.status().applications[NAME].status
        failed_at = (failed_at or time.monotonic()) if state in ("DEPLOY_FAILED", "UNHEALTHY") else None
        if failed_at is not None and time.monotonic() - failed_at > START_S:
            raise ResourceError("the service does not get well again; its log says why.")


def _require_free(host: str, port: int) -> None:
    """A sentence where the port is taken, which Ray Serve finds out late."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"{host}:{port}: cannot be listened on ({error.strerror}); give another with --port, or end what "
                "listens there."
            ) from None
