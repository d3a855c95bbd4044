"""The verbs of the service.

Heavy imports wait inside the verbs, so that help is quick.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from voxray.cli import terminal
from voxray.cli.options import AcceptValuesOption, DeviceOption
from voxray.core.errors import ConfigError

FolderOption = Annotated[Path, typer.Option(metavar="DIR", help="Where studies, results, jobs and tokens lie.")]
DatabaseOption = Annotated[
    str, typer.Option(metavar="URL", help="Of PostgreSQL or SQLite; default: SQLite in the folder.")
]
FOLDER = Path("voxray-service")


class TokenAction(StrEnum):
    """What is done with a token."""

    ADD = "add"
    LIST = "list"
    REMOVE = "remove"


def serve(  # noqa: PLR0913
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Packages or runs, as PATH or NAME=PATH.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on, default 127.0.0.1; any but loopback needs a token.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=f"Where studies, results, jobs and tokens lie; default {FOLDER}."),
    ] = None,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="Of PostgreSQL or SQLite; default: SQLite in the folder.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Limits, quotas, replicas: TOML or JSON with what serve/config.yaml's args have."
        ),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="auto, torch, torch-compiled, onnxruntime, openvino, tensorrt.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16, or int8 of a package.")] = "auto",
    device: DeviceOption = "auto",
    replicas: Annotated[
        str, typer.Option(metavar="MIN,MAX", help="Of each model; Ray Serve scales between.")
    ] = "1,1",
    dicomweb: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A DICOMweb server that may be used; repeatable.")
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The DICOMweb root, of such a server, that holds the series OHIF names."),
    ] = None,
    accept_values: AcceptValuesOption = False,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A site whose pages may call, as OHIF's; repeatable.")
    ] = None,
) -> None:
    """Serve models over HTTP: the API, a page for people, MONAI Label, KServe and DICOMweb."""
    from voxray.core.config import parse, read_mapping
    from voxray.serving.app import run
    from voxray.serving.config import ServeConfig, models_from

    bounds = _bounds(replicas)
    data = {} if config is None else read_mapping(config)
    shared = {"runtime": runtime, "precision": precision, "device": device, "replicas": bounds}
    if models:
        data["models"] = {name: {"path": path, **shared} for name, path in models_from(models).items()}
    elif "models" not in data:
        raise ConfigError("serve: no model; give packages or runs as MODEL..., or a --config that names them.")
    data |= _given(host=host, folder=None if folder is None else str(folder), database=database, cors=cors or None)
    access = _given(allowed=dicomweb or None, archive=archive)
    groups = {"limits": _given(accept_values=accept_values or None), "dicomweb": access}
    data |= {name: {**data.get(name, {}), **given} for name, given in groups.items() if given}
    made = parse(ServeConfig, data, where="serve" if config is None else str(config))
    run(made.model_copy(update={"folder": str(made.root)}), port=port, progress=terminal.progress())


def _given(**options: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _bounds(replicas: str) -> dict[str, int]:
    """``MIN,MAX`` as a configuration has it."""
    counts = terminal.numbers("--replicas", replicas)
    if len(counts) != 2 or not 0 <= counts[0] <= counts[1] or counts[1] < 1:
        raise ConfigError(f"--replicas {replicas}: must be MIN,MAX with 0 <= MIN <= MAX and MAX >= 1, such as 1,4.")
    return {"min": counts[0], "max": counts[1]}


def token(
    action: Annotated[TokenAction, typer.Argument(help="add, list or remove.")],
    name: Annotated[str, typer.Argument(help="Whom the token is for.")] = "",
    folder: FolderOption = FOLDER,
    database: DatabaseOption = "",
) -> None:
    """Make, list or remove the tokens of a service; a token is shown once, and only its digest is kept."""
    from voxray.serving.config import database_url
    from voxray.serving.jobs.store import JobStore
    from voxray.serving.jobs.tokens import make_token
    from voxray.serving.paths import ServicePaths

    if not database:
        ServicePaths(folder.expanduser().absolute()).require_own()
    store = JobStore(database_url(folder, database))
    if action is TokenAction.LIST:
        rows = [(row.name, terminal.date(row.created)) for row in store.tokens()]
        terminal.show(terminal.table(("name", "made"), rows))
    elif action is TokenAction.ADD:
        typer.echo(make_token(store, name))
    elif not store.remove_token(name):
        raise ConfigError(f"token {name}: there is none of that name in {folder}.")
