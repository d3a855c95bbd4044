"""The verbs for a cluster's jobs; `cli` registers them. Heavy imports wait inside them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from voxray.cli import terminal
from voxray.cli.job_paths import refuse_passwords, refuse_relative
from voxray.core.errors import ConfigError

Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS."),
]

NO_JOBS = frozenset(("status", "submit", "token"))
"""Verbs that are no jobs: the first two look at jobs from anywhere, and a token is a secret, while output is kept."""


def submit(
    ctx: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="VERB ARGS...", help="A verb, with its own arguments and options.")
    ],
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show its output until it ends.")] = True,
    driver_cpus: Annotated[
        float, typer.Option(min=0, help="CPUs of the driver's own, on any node; default: it runs on the head.")
    ] = 0,
    driver_gpus: Annotated[
        float, typer.Option(min=0, help="GPUs of the driver's own, for verbs without --workers.")
    ] = 0,
) -> None:
    """Run a verb as a job on a cluster, with the code at hand: follow it, Ctrl-C stops it, its exit code is returned.

    A second Ctrl-C leaves it to itself.
    """
    name, *arguments = words
    command = _command(ctx, name)
    refuse_passwords(arguments)
    from voxray.commands import submit as jobs_of
    from voxray.distributed.submitted_jobs import Watched, open_jobs

    code = jobs_of.code_of(name)
    refuse_relative(_function(command), _parsed(command, name, arguments), folder=code.folder)
    if ctx.find_root().params.get("debug"):
        arguments.append("--debug")
    jobs = open_jobs(address)
    job_id = jobs_of.submit(jobs, code, arguments, cpus=driver_cpus, gpus=driver_gpus)
    typer.echo(f"{job_id} submitted to {jobs.address}")
    if not follow:
        return
    ended = jobs_of.follow(jobs, job_id, Watched(write=_write, say=terminal.complain))
    if ended.text:
        terminal.complain(ended.text)
    if ended.exit_code:
        raise typer.Exit(ended.exit_code)


def status(
    target: Annotated[str, typer.Argument(metavar="RUN|JOB", help="A run's folder or address, or a job's id.")],
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Say how far a run or a job is: state, epochs, numbers, what it waits for, its last sign of life."""
    import json

    from voxray.commands.status import is_run, status_of_job, status_of_run

    if is_run(target):
        rows = status_of_run(target)
    else:
        from voxray.distributed.submitted_jobs import open_jobs

        rows = status_of_job(open_jobs(address), target)
    if as_json:
        print(json.dumps(dict(rows), indent=2))
    else:
        terminal.show(terminal.table(("", ""), rows))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _command(ctx: typer.Context, name: str) -> Any:
    """The verb of that name, if it can be a job."""
    verbs: dict[str, Any] = ctx.find_root().command.commands  # type: ignore[attr-defined]
    if name in NO_JOBS or name not in verbs:
        allowed = ", ".join(sorted(verbs.keys() - NO_JOBS))
        raise ConfigError(f"submit {name}: is no verb that runs as a job; allowed are {allowed}.")
    return verbs[name]


def _parsed(command: Any, name: str, arguments: list[str]) -> dict[str, Any]:
    """The values that the verb would get; a ConfigError where it would refuse them."""
    try:
        values: dict[str, Any] = command.make_context(name, list(arguments)).params
    except Exception as error:
        told = getattr(error, "format_message", None)
        if told is None:
            raise
        raise ConfigError(f"submit {name}: {told()}") from None
    return values


def _function(command: Any) -> Callable[..., None]:
    function: Callable[..., None] = command.callback
    return function
