"""The verbs that look at many settings or runs at once; `cli` registers them. Heavy imports wait inside them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from voxray.cli import terminal
from voxray.cli.options import (
    AcceptChangedDataOption,
    DeviceOption,
    OverwriteOption,
    RecipeArgument,
    RootOption,
    SetOption,
    WorkersOption,
)


def sweep(  # noqa: PLR0913
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="A run, or the runs of several folds.")],
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A search space: fields of the recipe with ranges.")],
    trials: Annotated[int | None, typer.Option(min=1, help="For each study; default: what the space says.")] = None,
    sampler: Annotated[str, typer.Option(help="tpe, random, grid, or greedy: one field after another.")] = "tpe",
    executor: Annotated[str, typer.Option(help="ask: Ray tasks in batches; tune: Ray Tune.")] = "ask",
    same_cases: Annotated[
        bool, typer.Option("--same-cases", help="Tune and report on the same cases: the figure is too good.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    dataset: Annotated[Path | None, typer.Option(help="Another dataset's file than the run's own.")] = None,
    root: RootOption = None,
    data: Annotated[
        str | None, typer.Option(metavar="STORE", help="A space that trains: the store; default: RUN-store.")
    ] = None,
    ious: Annotated[
        str, typer.Option(help="What a detection's mAP is tuned for: first:last:step, or a list.")
    ] = "0.1:0.5:0.05",
    keep_classes: Annotated[
        str, typer.Option(metavar="NAMES", help="Segmentation: the classes that are swept; default: up to 7, all.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Default: RUN/sweeps/SPACE.")] = None,
) -> None:
    """Find the settings that score best, on kept candidates or by training, and their worth on unseen cases."""
    from voxray.commands.sweep import sweep as run_sweep
    from voxray.core.progress import open_progress
    from voxray.scoring.summary import parse_ious
    from voxray.sweeping.report import SweepOptions

    options = SweepOptions(
        trials=trials,
        sampler=sampler,
        executor=executor,
        same_cases=same_cases,
        seed=seed,
        workers=workers,
        device=device,
        dataset=dataset,
        root=root,
        data=data,
        classes=terminal.names(keep_classes),
        ious=parse_ious(ious),
    )
    report = run_sweep(runs, space, out, options, progress=open_progress())
    named = (("tuned on these cases", report.seen), ("unseen cases", report.unseen))
    rows = [(name, str(one.cases), f"{one.own:.4f}", f"{one.tuned:.4f}") for name, one in named if one is not None]
    terminal.show(terminal.table((report.aim, "cases", "recipe's own setting", "tuned setting"), rows))
    if not report.setting:
        typer.echo("no setting of the space beats the recipe's own")
    elif report.unseen is not None and report.unseen.tuned <= report.unseen.own:
        typer.echo("the tuned setting is no better on unseen cases: keep the recipe's own")
    if report.setting:
        typer.echo(" ".join(["best setting:", *(f"--set {shlex.quote(text)}" for text in report.overrides)]))
    typer.echo(f"{report.trials} trials, {report.pruned} given up early, {report.seconds:.0f} s; {report.output}")
    for case, why in report.failed.items():
        terminal.complain(f"case {case} had no part in it: {why}")
    if report.failed:
        raise typer.Exit(1)


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Evaluated runs, or folders with an evaluation.json.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: report.html in the first.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="The dataset's file; default: the one that trained.")] = None,
    root: RootOption = None,
    scans: Annotated[bool, typer.Option("--scans/--no-scans", help="Read scans, for pictures and sizes.")] = True,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = 1,
) -> None:
    """Make one HTML file of evaluated runs: curves, intervals, pictures, cases, recipe; several side by side."""
    from voxray.commands.report import ReportOptions
    from voxray.commands.report import report as run_report
    from voxray.core.progress import open_progress

    options = ReportOptions(dataset=dataset, root=root, scans=scans, workers=workers, overwrite=overwrite)
    made = run_report(runs, out, options, progress=open_progress())
    for remark in made.remarks:
        if remark not in made.lacking:
            typer.echo(remark)
    if made.tracked:
        typer.echo(f"in MLflow too: {', '.join(made.tracked)}")
    for text in made.lacking:
        terminal.complain(text)
    typer.echo(f"{made.path}: {len(made.lacking)} scans or pictures missing" if made.lacking else str(made.path))
    if made.lacking:
        raise typer.Exit(1)


def crossval(  # noqa: PLR0913
    data: Annotated[str, typer.Argument(metavar="DATASET|STORE", help="A dataset's file, or a store of one.")],
    recipe_name: RecipeArgument,
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="The folds' runs, as DIR/fold_N.")],
    set_: SetOption = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="So many random folds; default: those of the dataset's file.")
    ] = None,
    only: Annotated[str, typer.Option(metavar="N,N", help="Train these folds only.")] = "",
    workers: Annotated[int, typer.Option(min=0, help="Ray workers of each fold; 0 trains in this process.")] = 1,
    at_once: Annotated[int | None, typer.Option(min=1, help="Folds side by side; default: as many as fit.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    accept_changed_data: AcceptChangedDataOption = False,
) -> None:
    """Train every fold of a dataset and score all held-out answers together; the same command goes on."""
    from voxray.commands.crossval import CrossvalOptions
    from voxray.commands.crossval import crossval as run_crossval
    from voxray.core.progress import open_progress
    from voxray.recipes import read_recipe

    chosen = terminal.numbers("--only", only) if only else None
    options = CrossvalOptions(
        num_folds=folds,
        only=chosen,
        workers=workers,
        at_once=at_once,
        seed=seed,
        accept_changed_data=accept_changed_data,
    )
    report = run_crossval(data, read_recipe(recipe_name, set_ or ()), out, options, progress=open_progress())
    terminal.show(terminal.table(("", "cases", report.metric), report.rows()))
    if report.unfinished:
        typer.echo(f"not finished: {', '.join(f'fold {fold}' for fold in report.unfinished)}")
    typer.echo(report.output)
    terminal.end({**report.evaluation.failed, **report.evaluation.not_judged})


def consolidate(
    sources: Annotated[list[str], typer.Argument(metavar="RUN...", help="A cross-validation's folder, or runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="MODEL", help="The package's folder.")],
    setting: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What a sweep left (sweep.json): its choice becomes the merge."),
    ] = None,
) -> None:
    """Make one package of several runs, which answer together; predict, evaluate and export take it."""
    from voxray.commands.consolidate import consolidate as run_consolidate
    from voxray.core.progress import open_progress

    report = run_consolidate(sources, out, setting=setting, progress=open_progress())
    for name, why in report.left_out.items():
        typer.echo(f"left out: {name}: {why}")
    typer.echo(f"{len(report.members)} networks: {report.output}")
