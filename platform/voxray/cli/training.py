"""The verbs that train, tune and cross-validate.

Heavy imports wait inside the verbs, so that help is quick.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from voxray.cli import terminal
from voxray.cli.options import (
    AcceptChangedDataOption,
    CheckpointMinutesOption,
    DeviceOption,
    GpusOption,
    RecipeArgument,
    RootOption,
    SetOption,
    WaitNodesOption,
    WorkersOption,
)
from voxray.core.errors import ConfigError


def train(  # noqa: PLR0913
    data: Annotated[str, typer.Argument(metavar="DATASET|STORE", help="A dataset's file, or a store of one.")],
    recipe_name: RecipeArgument,
    out: Annotated[str, typer.Option("--out", "-o", metavar="RUN", help="The run's folder, or an s3:// address.")],
    fold: Annotated[str, typer.Option(help="The fold that validates, or none: all cases train.")] = "0",
    set_: SetOption = None,
    workers: Annotated[
        str, typer.Option(metavar="N|MIN:MAX", help="Ray workers, or from how many to how many; 0: in this process.")
    ] = "1",
    gpus: GpusOption = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    accept_changed_data: AcceptChangedDataOption = False,
    checkpoint_minutes: CheckpointMinutesOption = 10.0,
    _wait_nodes: WaitNodesOption = None,
) -> None:
    """Train a recipe on a dataset or a store; the same command again resumes."""
    from voxray.commands.train import train as run_train
    from voxray.distributed.training import TrainOptions
    from voxray.recipes import read_recipe

    if fold != "none" and not fold.isdecimal():
        raise ConfigError(f"--fold {fold}: must be a number from 0, or none.")
    chosen = None if fold == "none" else int(fold)
    recipe = read_recipe(recipe_name, set_ or ())
    fewest, most = terminal.workers(workers)
    options = TrainOptions(
        fold=chosen,
        workers=most,
        min_workers=fewest,
        gpus=terminal.gpus(gpus),
        seed=seed,
        accept_changed_data=accept_changed_data,
        checkpoint_minutes=checkpoint_minutes,
    )
    report = run_train(data, recipe, out, options, progress=terminal.progress())
    typer.echo(str(report))


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
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="DIR", help="Default: RUN/sweeps/SPACE.")] = None,
    _wait_nodes: WaitNodesOption = None,
) -> None:
    """Find the settings that score best, on kept candidates or by training, and their worth on unseen cases."""
    from voxray.commands.sweep import sweep as run_sweep
    from voxray.scoring.summary import parse_ious
    from voxray.sweeping.sweep_report import SweepOptions

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
    report = run_sweep(runs, space, out, options, progress=terminal.progress())
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
    gpus: GpusOption = "auto",
    at_once: Annotated[int | None, typer.Option(min=1, help="Folds side by side; default: as many as fit.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    accept_changed_data: AcceptChangedDataOption = False,
    checkpoint_minutes: CheckpointMinutesOption = 10.0,
    _wait_nodes: WaitNodesOption = None,
) -> None:
    """Train every fold of a dataset and score all held-out answers together; the same command goes on."""
    from voxray.commands.crossval import CrossvalOptions
    from voxray.commands.crossval import crossval as run_crossval
    from voxray.recipes import read_recipe

    chosen = terminal.numbers("--only", only) if only else None
    options = CrossvalOptions(
        num_folds=folds,
        only=chosen,
        workers=workers,
        gpus=terminal.gpus(gpus),
        at_once=at_once,
        seed=seed,
        accept_changed_data=accept_changed_data,
        checkpoint_minutes=checkpoint_minutes,
    )
    report = run_crossval(data, read_recipe(recipe_name, set_ or ()), out, options, progress=terminal.progress())
    terminal.show(terminal.table(("", "cases", report.metric), report.rows()))
    if report.unfinished:
        typer.echo(f"not finished: {', '.join(f'fold {fold}' for fold in report.unfinished)}")
    typer.echo(report.output)
    terminal.end({**report.evaluation.failed, **report.evaluation.not_judged})
