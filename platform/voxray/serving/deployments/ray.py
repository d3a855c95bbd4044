"""The service on Ray Serve: HTTP, a scheduler, readers of scans, and one deployment for each model.

Scans travel between them as files, or as references into Ray's object store; jobs as identifiers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from voxray.core.errors import VoxrayError
from voxray.distributed.cluster import QUIET
from voxray.distributed.errors import find_raised, is_loss
from voxray.distributed.metrics import record
from voxray.serving.config import Replicas, ServeConfig, ServedModel
from voxray.serving.errors import ProblemError
from voxray.serving.flow import ReplicaHalf
from voxray.serving.http.application import make_app
from voxray.serving.intake.confined import warm_up
from voxray.serving.intake.study import is_small, read_study
from voxray.serving.jobs.scheduler import Scheduler
from voxray.serving.jobs.service import Service
from voxray.serving.jobs.store import JobStore
from voxray.serving.logs import set_up_logs
from voxray.serving.messages import ModelInfo
from voxray.serving.paths import ServicePaths
from voxray.serving.workers import reader
from voxray.serving.workers.protocol import Operation, ReaderContext, Step, WorkerDiedError

if TYPE_CHECKING:
    from voxray.inference.predictor import Prepared

P = ParamSpec("P")
T = TypeVar("T")

DRAIN_S = 3600.0
"""How long a replica that is replaced may take to finish what it has begun."""
_ASK_S = 5.0


class ModelReplica:
    """A warm model."""

    def __init__(self, name: str, model: dict[str, Any], folder: str) -> None:

        from voxray.serving.workers.model import WarmModel

        places = ServicePaths(Path(folder))
        set_up_logs(places.logs, f"model-{name}")
        self._answering = WarmModel(name, ServedModel.model_validate(model), places)

    async def info(self) -> ModelInfo:
        """What it is."""
        return self._answering.info

    async def answer(self, scan: Prepared | None, job: str, study: str) -> AsyncGenerator[Step, None]:
        """Steps, the last with the seconds that the answer took; whoever stops listening stops the work."""

        from voxray.serving.workers.model import answer_steps

        async for step in answer_steps(self._answering, scan, job, study):
            yield step

    async def check_health(self) -> None:
        """A real, tiny answer now and then; Ray Serve replaces a replica that fails at it."""
        await asyncio.to_thread(self._answering.check)


class ReaderReplica:
    """Reads uploads in children of its own, prepares scans, and makes forms of results."""

    def __init__(self, config: dict[str, Any], cards: list[dict[str, Any]]) -> None:
        made = ServeConfig.model_validate(config)
        set_up_logs(ServicePaths(made.root).logs, "scans")
        self._context = ReaderContext(made, ServicePaths(made.root), {card.name: card for card in cards_of(cards)})

    async def reconfigure(self, _user_config: Any) -> None:
        """Makes ready what reads uploads, before the first comes."""
        await warm_up()

    async def call(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The operation in this process."""
        return await operation(self._context, *args, **kwargs)


class RayWorkers:
    """The deployments, as the service and the scheduler see them."""

    def __init__(
        self,
        config: ServeConfig,
        cards: Sequence[ModelInfo],
        readers: DeploymentHandle[Any],
        models: Mapping[str, DeploymentHandle[Any]],
        scheduler: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._config, self._grids = config, {card.name: card.grid for card in cards}
        self._readers, self._models, self._scheduler = readers, models, scheduler

    async def call(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The operation in one of the readers."""
        with _deaths():
            answer: T = await self._readers.call.remote(operation, *args, **kwargs)
        return answer

    async def answer(self, job: str, study: str, model: str) -> AsyncGenerator[Step, None]:
        """The model's steps; a large scan goes, prepared, from its reader to the model by reference."""
        begin, prepare_s = time.monotonic(), None
        info = await asyncio.to_thread(read_study, ServicePaths(self._config.root).study(study))
        small = is_small(info, self._grids[model].spacing_mm, self._config.models[model].prepared_here_vox)
        prepared = None if small else self._readers.call.remote(reader.prepare, study, model)
        steps: Any = self._models[model].options(stream=True).answer.remote(prepared, job, study)
        try:
            with _deaths():
                async for step in steps:
                    prepare_s = prepare_s if prepare_s is not None else time.monotonic() - begin
                    yield step if small else replace(step, prepare_s=prepare_s)
        finally:
            for one in (steps,) if prepared is None else (prepared, steps):
                with contextlib.suppress(Exception):
                    one.cancel()

    async def models(self) -> dict[str, ModelInfo]:
        """Those that say so within seconds."""

        async def ask(handle: DeploymentHandle[Any]) -> ModelInfo | None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_ASK_S):
                    found: ModelInfo = await handle.info.remote()
                    return found
            return None

        found = await asyncio.gather(*(ask(handle) for handle in self._models.values()))
        return {name: info for name, info in zip(self._models, found, strict=True) if info is not None}

    def poke(self) -> None:
        """Tells the scheduler's replica, and does not wait for it."""
        if self._scheduler is not None:
            self._scheduler.poke.remote()

    async def news(self, seen: int) -> int:
        """Of the scheduler's replica."""
        if self._scheduler is None:
            raise WorkerDiedError("no scheduler")
        with _deaths():
            found: int = await self._scheduler.news.remote(seen)
        return found


class SchedulerReplica:
    """The scheduler; one, though two may overlap while one replaces the other."""

    def __init__(
        self,
        config: dict[str, Any],
        cards: list[dict[str, Any]],
        readers: DeploymentHandle[Any],
        models: dict[str, DeploymentHandle[Any]],
    ) -> None:
        made = ServeConfig.model_validate(config)
        set_up_logs(ServicePaths(made.root).logs, "desk")
        workers = RayWorkers(made, cards_of(cards), readers, models)
        widths = {name: model.replicas.max * model.at_once for name, model in made.models.items()}
        self._scheduler = Scheduler(
            JobStore(made.database_url), workers, ServicePaths(made.root).prepared(), widths, tell_states=_JobStates()
        )
        self._task: asyncio.Task[None] | None = None

    async def reconfigure(self, _user_config: Any) -> None:
        """Begins to work; Ray Serve calls it on the replica's own loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._scheduler.run())

    async def poke(self) -> None:
        """There is something to do."""
        self._scheduler.poke()

    async def news(self, seen: int) -> int:
        """Waits for jobs that end; see `Scheduler.news`."""
        return await self._scheduler.news(seen)

    async def check_health(self) -> None:
        """Fails where the loop has ended."""
        if self._task is not None and self._task.done():
            raise RuntimeError("the scheduler has stopped")

    async def __del__(self) -> None:
        """Lets what is under way end, when another scheduler takes over."""
        await self._scheduler.stop()


class HttpReplica:
    """HTTP."""

    def __init__(
        self,
        config: dict[str, Any],
        cards: list[dict[str, Any]],
        readers: DeploymentHandle[Any],
        models: dict[str, DeploymentHandle[Any]],
        scheduler: DeploymentHandle[Any],
    ) -> None:
        made = ServeConfig.model_validate(config)
        set_up_logs(ServicePaths(made.root).logs, "door")
        shown = cards_of(cards)
        workers = RayWorkers(made, shown, readers, models, scheduler)
        self._service = Service(made, JobStore(made.database_url), workers, ServicePaths(made.root).prepared(), shown)

    def __serve_build_asgi_app__(self) -> FastAPI:  # the name is Ray Serve's
        """The application that Ray Serve puts behind its proxy."""
        app = make_app(self._service)
        app.add_middleware(ReplicaHalf)
        return app


class _JobStates:
    """Records how many jobs are in which state; states that nobody is in any more are told once, as 0."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def __call__(self, states: Sequence[tuple[str, str, int]]) -> None:
        now = {(model, state): number for model, state, number in states}
        for model, state in self._told | now.keys():
            record("voxray_service_jobs", now.get((model, state), 0), model=model, state=state)
        self._told = set(now)


def cards_of(cards: Sequence[dict[str, Any]]) -> list[ModelInfo]:
    """The models as they travelled."""
    return [ModelInfo.model_validate(card) for card in cards]


@contextlib.contextmanager
def _deaths() -> Iterator[None]:
    """What Ray raises as what it means: the worker's own refusal, its death, or a fault of ours."""
    try:
        yield
    except RayTaskError as error:
        cause = find_raised(error, VoxrayError, ProblemError)
        if cause is not None:
            raise cause from None
        if is_loss(error):
            raise WorkerDiedError(type(error).__name__) from None
        raise
    except (RayError, RayServeException) as error:
        raise WorkerDiedError(type(error).__name__) from None


def application(config: ServeConfig, cards: Sequence[ModelInfo]) -> serve.Application:
    """The service as Ray Serve runs it."""
    plain, shown = config.model_dump(mode="json"), [card.model_dump(mode="json") for card in cards]
    readers = _deployment(ReaderReplica, "scans", config.scans, at_once=8, user_config={}).bind(plain, shown)
    models = {
        name: _deployment(
            ModelReplica,
            f"model-{name}",
            model.replicas,
            at_once=model.at_once,
            actor=_actor(model.num_cpus, model.num_gpus, **_awake()) | {"resources": dict(model.resources)},
        ).bind(name, plain["models"][name], str(config.root))
        for name, model in config.models.items()
    }
    scheduler = _deployment(SchedulerReplica, "desk", Replicas(), at_once=1000, user_config={}).bind(
        plain, shown, readers, models
    )
    door = serve.ingress()(HttpReplica)
    made: serve.Application = _deployment(door, "door", config.doors, at_once=200).bind(
        plain, shown, readers, models, scheduler
    )
    return made


def _deployment(
    kind: Any,
    name: str,
    replicas: Replicas,
    *,
    at_once: int,
    user_config: Any = None,
    actor: dict[str, Any] | None = None,
) -> Any:
    scaling: dict[str, Any] = {"num_replicas": replicas.min}
    if replicas.max > replicas.min:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas.min,
                "max_replicas": replicas.max,
                "initial_replicas": replicas.min,
                "target_ongoing_requests": at_once,
                "upscale_delay_s": 5,
                "downscale_delay_s": 120,
            }
        }
    made: Any = serve.deployment(kind)
    return made.options(
        name=name,
        max_ongoing_requests=at_once,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=60,
        ray_actor_options=actor or _actor(0, 0),
        logging_config={"enable_access_log": False, "log_level": "ERROR"},
        **({"user_config": user_config} if user_config is not None else {}),
        **scaling,
    )


def _actor(cpus: float, gpus: float, **environment: str) -> dict[str, Any]:
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": {**_environment(), **environment}}}


def _environment() -> dict[str, str]:
    """Threads wait passively, and as many as there are cores: a replica without reserved CPUs gets one otherwise."""
    return {**QUIET, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))}


def _awake() -> dict[str, str]:
    """A network's threads look out for work for 3 ms before they sleep, as torch's do by default: 10 % of an answer.

    All others sleep at once, lest they take the cores that the networks need; what the user has set stays.
    """
    name = "OMP_WAIT_POLICY"
    if os.environ.get(name, QUIET[name]) != QUIET[name]:
        return {}
    return {name: "ACTIVE", "GOMP_SPINCOUNT": "300000"}
