"""The verbs to begin with: a dataset to try, everything on generated scans, what this machine has.

Heavy imports wait inside the verbs, so that help is quick.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from voxray.cli import terminal
from voxray.cli.options import WorkersOption
from voxray.core.addresses import sqlite_url
from voxray.core.errors import ConfigError


def toy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the dataset is written.")],
    kind: Annotated[str, typer.Option(help="thorax, abdomen or cubes.")] = "thorax",
    cases: Annotated[int, typer.Option(help="How many scans.")] = 12,
    size: Annotated[str, typer.Option(help="small, or large for scans of clinical size.")] = "small",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Generate a small dataset of phantoms to try everything on."""
    from voxray.phantoms import write_toy

    with terminal.progress().track("toy", total=cases, unit="scans") as advance:
        path = write_toy(folder, kind=kind, num_cases=cases, seed=seed, size=size, progress=advance)
    typer.echo(str(path))


def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where everything is written.")],
    cases: Annotated[int, typer.Option(min=6, help="Scans of each kind.")] = 24,
    workers: WorkersOption = 2,
) -> None:
    """Walk the whole road on generated scans, for all three recipes, and show what was learnt."""
    from voxray.commands.demo import demo as run_demo
    from voxray.commands.demo import headline

    report = run_demo(folder, num_cases=cases, workers=workers, progress=terminal.progress())
    rows = [
        (outcome.recipe, name, f"{untrained:.3f}", f"{trained:.3f}")
        for outcome in report.outcomes
        for name, trained, untrained in headline(outcome)
    ]
    terminal.show(terminal.table(("recipe", "metric", "untrained", "trained"), rows))
    steps = ("phantoms", "check", "ingest", "train", "evaluate")
    costs = [
        (
            outcome.recipe,
            f"{outcome.num_train}+{outcome.num_val}",
            *(f"{outcome.seconds[step]:.0f} s" for step in steps),
            f"{outcome.peak_memory_bytes / 2**30:.1f} GiB",
        )
        for outcome in report.outcomes
    ]
    terminal.show(terminal.table(("recipe", "cases", *steps, "peak"), costs))
    typer.echo(
        f"took {report.seconds / 60:.1f} minutes; stores, runs, answers, pictures and summary.json: {report.folder}"
    )
    tables = shlex.quote(sqlite_url(folder / "runs" / "mlflow.db"))
    typer.echo(f"curves and pictures: mlflow ui --backend-store-uri {tables}")


def doctor(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at every node of the cluster of RAY_ADDRESS.")
    ] = False,
    storage: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="With --cluster: a place that every node must read and write; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Say what this machine or each node of a cluster has, what is wrong there and what to mend."""
    if storage and not cluster:
        raise ConfigError("--storage: is looked at from every node; say --cluster, too.")
    if cluster:
        _doctor_cluster(storage or [], as_json=as_json)
        return
    from voxray.commands.doctor import doctor as run_doctor

    findings = run_doctor()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)
    rows = [(finding.name, finding.found, "ok" if finding.ok else finding.remedy) for finding in findings]
    terminal.show(terminal.table(("", "found", ""), rows))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _doctor_cluster(storage: list[str], *, as_json: bool) -> None:
    from voxray.commands.doctor_cluster import COLUMNS, doctor_cluster

    health = doctor_cluster(storage, progress=terminal.progress())
    if as_json:
        print(json.dumps(health.to_dict(), indent=2))
    else:
        terminal.show(terminal.table(COLUMNS, health.rows()))
        for finding in health.findings:
            typer.echo(str(finding))
        if not health.findings:
            typer.echo(f"{len(health.nodes)} nodes, and nothing to mend")
    if not health.ok:
        raise typer.Exit(1)
