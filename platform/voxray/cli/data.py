"""The verbs of scans, datasets, recipes and stores.

Heavy imports wait inside the verbs, so that help is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxray.cli import terminal
from voxray.cli.options import DatasetArgument, RecipeArgument, RootOption, SeriesOption, SetOption, WaitNodesOption
from voxray.core.errors import ConfigError


def info(
    path: Annotated[Path, typer.Argument(help="A scan: a volume file, or a folder of DICOM slices.")],
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Read the voxels too: checks them, gives the range.")
    ] = False,
    series: SeriesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Say what a scan is, from its headers: its grid, and what is worth knowing about it."""
    import json

    from voxray.readers import describe

    found = describe(path, pixels=pixels, series_uid=series).to_dict()
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        terminal.show(
            terminal.table(
                ("", ""), [(key, terminal.as_text(value)) for key, value in found.items() if value not in (None, [])]
            )
        )


def check(
    dataset: DatasetArgument,
    root: RootOption = None,
    recipe_name: Annotated[
        str | None,
        typer.Option("--recipe", help="Check for it: what its grid loses; objects only where it detects."),
    ] = None,
    set_: SetOption = None,
    _wait_nodes: WaitNodesOption = None,
) -> None:
    """Read every scan and annotation of a dataset, and list every problem with what to do."""
    from voxray.commands.check import check as run_check
    from voxray.dataset import read_dataset
    from voxray.recipes import read_recipe

    if set_ and recipe_name is None:
        raise ConfigError(f"--set {set_[0]}: changes a field of a recipe; say which with --recipe.")
    recipe = None if recipe_name is None else read_recipe(recipe_name, set_ or ())
    report = run_check(read_dataset(dataset, root=root), recipe=recipe, progress=terminal.progress())
    for problem in report.problems:
        where = f"case {problem.case_id}: " if problem.case_id else ""
        terminal.complain(f"{where}[{problem.code}] {problem.message} {problem.remedy}")
    for warning in report.warnings:
        where = f"case {warning.case_id}: " if warning.case_id else ""
        terminal.warn(f"{where}{warning.message}")
    objects, cases = report.objects_of_class, report.cases_of_class
    rows = [(name, str(cases[name]), str(objects[name])) for name in report.classes]
    terminal.show(terminal.table(("class", "cases", "objects"), rows))
    typer.echo(
        f"{report.dataset}: {report.num_cases} cases of {report.num_patients} patients, {len(report.cases)} can be "
        f"used, {report.num_empty} of them hold nothing; {len(report.problems)} problems, "
        f"{len(report.warnings)} warnings."
    )
    if report.problems:
        raise typer.Exit(1)


def recipe(name: RecipeArgument, set_: SetOption = None) -> None:
    """Print a recipe as TOML, every field, to start one's own from; those that are unset as comments."""
    from voxray.core.config import to_full_toml
    from voxray.recipes import read_recipe

    print(to_full_toml(read_recipe(name, set_ or ())), end="")


def ingest(
    dataset: DatasetArgument,
    recipe_name: RecipeArgument,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="STORE", help="The store: a folder or an s3:// address.")
    ],
    root: RootOption = None,
    set_: SetOption = None,
    _wait_nodes: WaitNodesOption = None,
) -> None:
    """Preprocess a dataset once into shards that training streams."""
    from voxray.commands.ingest import ingest as run_ingest
    from voxray.dataset import read_dataset
    from voxray.recipes import read_recipe

    data, recipe = read_dataset(dataset, root=root), read_recipe(recipe_name, set_ or ())
    report = run_ingest(data, recipe, out, progress=terminal.progress())
    typer.echo(str(report))
    if report.failed:
        raise typer.Exit(1)
