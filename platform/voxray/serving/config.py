"""What a service is: its models, where it keeps things, and its limits. `serve/config.yaml` holds one as `args`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from voxray.core.addresses import sqlite_url
from voxray.core.config import Config
from voxray.core.errors import ConfigError
from voxray.core.storage import Place
from voxray.serving.intake.dicomweb import Access
from voxray.serving.intake.limits import Limits

_NAME = re.compile(r"^[a-z0-9][a-z0-9_.-]{0,63}$")
_ORIGIN = re.compile(r"^https?://[a-z0-9.\-\[\]:]+$")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Replicas(Config):
    """Between how many copies Ray Serve scales a part of the service."""

    min: NonNegativeInt = 1
    max: PositiveInt = 1

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; give max at least as many")
        return self


class ServedModel(Config):
    """A run or a package, and what each of its replicas gets."""

    path: str
    """A package's or a run's folder."""
    runtime: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    overrides: tuple[str, ...] = ()
    """Of ``merge.`` and ``inference.`` fields, such as ``merge.score_floor=0.2``."""
    replicas: Replicas = Replicas()
    num_cpus: NonNegativeFloat = 0
    """Logical CPUs of a replica in Ray's schedule; 0 shares the machine."""
    num_gpus: NonNegativeFloat = 0
    """A replica's share of a GPU, such as 0.5."""
    resources: Mapping[str, NonNegativeFloat] = {}
    """Ray's custom resources of a replica, such as those of the nodes that are meant for a service."""
    threads: NonNegativeInt = 0
    """Of a replica's network; 0: as many as the machine has cores."""
    window_batch: PositiveInt = 1
    """Up to so many windows of different scans are answered together; see `together`."""
    at_once: PositiveInt = 2
    """Jobs under way in a replica: while one is answered, the next is prepared and the last is written."""
    prepared_here_vox: NonNegativeInt = 1 << 22
    """A scan of no more voxels, stored and prepared, is prepared by the replica: sooner than it is handed on."""


class Quota(Config):
    """What each token's owner may ask for."""

    requests_per_minute: PositiveInt = 600
    uploads_per_minute: PositiveInt = 60
    open_jobs: PositiveInt = 100
    """Queued or under way."""
    studies: PositiveInt = 1000


class Retention(Config):
    """How long things are kept."""

    study_hours: PositiveFloat = 24
    job_hours: PositiveFloat = 24


class ServeConfig(Config):
    """A service."""

    models: Annotated[Mapping[str, ServedModel], Field(min_length=1)]
    """Name -> model; names are lower-case letters, digits, and ``. _ -``."""
    folder: str = "voxray-service"
    """Where studies and results lie; on a cluster a folder that every node reaches at this path."""
    database: str = ""
    """A URL of PostgreSQL or SQLite for jobs and tokens; empty: ``service.db`` in the folder (one machine)."""
    host: str = "127.0.0.1"
    """The address that the service listens on; any but loopback needs tokens."""
    require_token: bool | None = None
    """None: wherever a token was made, and always beyond loopback."""
    limits: Limits = Limits()
    quota: Quota = Quota()
    keep: Retention = Retention()
    max_queue: PositiveInt = 1000
    """Jobs that may wait in all."""
    dicomweb: Access = Access()
    """The archives that studies may be fetched from and results sent to."""
    cors: tuple[str, ...] = ()
    """Origins of other pages that may call the service, as browsers name them; none by default."""
    doors: Replicas = Replicas()
    scans: Replicas = Replicas()

    @field_validator("cors")
    @classmethod
    def _are_origins(cls, cors: tuple[str, ...]) -> tuple[str, ...]:
        for origin in cors:
            if not _ORIGIN.match(origin):  # any other would never be what a browser says
                raise ValueError(f"must be origins such as https://ohif.example.org, without a path, got {origin!r}")
        return cors

    @model_validator(mode="after")
    def _named(self) -> ServeConfig:
        for name in self.models:
            if not _NAME.match(name):
                raise ValueError(f"models.{name}: a name has 1 to 64 of a-z, 0-9, . _ - and starts with a-z or 0-9")
        return self

    @property
    def root(self) -> Path:
        """The folder of studies and results."""
        return Path(self.folder).expanduser().absolute()

    @property
    def database_url(self) -> str:
        """Where jobs and tokens are kept."""
        return database_url(self.root, self.database)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the service."""
        return self.host in LOOPBACK


def database_url(folder: Path, database: str = "") -> str:
    """Where the jobs and tokens of a service in this folder are kept."""
    return database or sqlite_url(folder.expanduser() / "service.db")


def models_from(paths: Sequence[str]) -> dict[str, str]:
    """``MODEL`` or ``NAME=MODEL`` of the command line as name -> path, named by their folders."""
    found: dict[str, str] = {}
    for text in paths:
        name, given, path = text.partition("=")
        if not given or "/" in name:  # a path may hold an = of its own
            name, given, path = "", "", text
        path = Place.of(path).uri
        name = name if given else re.sub(r"[^a-z0-9_.-]+", "-", path.rpartition("/")[2].lower())
        if name in found:
            raise ConfigError(f"{text}: a second model named {name}; give names as NAME=MODEL.")
        found[name] = path
    return found
