"""The verbs that make models of runs and of weights.

Heavy imports wait inside the verbs, so that help is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxray.cli import terminal
from voxray.cli.options import DeviceOption, RunArgument, SetOption
from voxray.core.errors import ConfigError


def consolidate(
    sources: Annotated[list[str], typer.Argument(metavar="RUN...", help="A cross-validation's folder, or runs.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="MODEL", help="The package's folder, or an address.")],
    setting: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What a sweep left (sweep.json): its choice becomes the merge."),
    ] = None,
) -> None:
    """Make one package of several runs, which answer together; predict, evaluate and export take it."""
    from voxray.commands.consolidate import consolidate as run_consolidate

    report = run_consolidate(sources, out, setting=setting, progress=terminal.progress())
    for name, why in report.left_out.items():
        typer.echo(f"left out: {name}: {why}")
    typer.echo(f"{len(report.members)} networks: {report.output}")


def export(  # noqa: PLR0913
    run: RunArgument,
    out: Annotated[str, typer.Option("--out", "-o", metavar="MODEL", help="The package's folder, or an address.")],
    runtime: Annotated[str, typer.Option(help="onnx, openvino or tensorrt.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, or int8 with openvino.")] = "fp32",
    batch: Annotated[str, typer.Option(help="One size, or the smallest, the usual and the largest.")] = "1,4,8",
    window: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="Voxels; default: the recipe's.")] = None,
    scan: Annotated[
        Path | None, typer.Option(help="For the comparison; without the dataset also for int8's ranges.")
    ] = None,
    device: DeviceOption = "auto",
    as_: Annotated[str, typer.Option("--as", help="package, or monai-bundle for MONAI's tools.")] = "package",
) -> None:
    """Make a package of a run or an ensemble: engines, weights, checksums, card; answers are held against torch's."""
    from voxray.commands.export import ExportOptions, export_bundle
    from voxray.commands.export import export as run_export

    if as_ not in ("package", "monai-bundle"):
        raise ConfigError(f"--as {as_}: no such form; allowed are package, monai-bundle.")
    options = ExportOptions(
        runtime=runtime,
        precision=precision,
        batches=terminal.numbers("--batch", batch),
        window_vox=None if window is None else terminal.numbers("--window", window),
        scan=scan,
        device=device,
    )
    if as_ == "monai-bundle":
        export_bundle(run, out, options, progress=terminal.progress())
        typer.echo(f"{out}: a MONAI bundle; its docs/README.md says how to run it")
        return
    report = run_export(run, out, options, progress=terminal.progress())
    parity, speed = report.parity, report.speed
    typer.echo(
        f"{out}: {parity.runtime} at {parity.precision}, compared on {parity.num_patches} patches of {parity.patches}"
    )
    rows = [(row.output, f"{row.max_difference:.3g}", f"{row.tolerance:.3g}") for row in parity.outputs]
    terminal.show(terminal.table(("output", "largest difference from torch", "allowed"), rows))
    if parity.agreement is not None and parity.agreement.value is not None:
        typer.echo(f"{parity.agreement.measure} of torch and {parity.runtime}: {parity.agreement.value:.4f}")
    times = (speed.torch_fp32, speed.torch_amp, speed.engine_fp32, speed.engine_half)
    names = (
        "ms for a patch: torch fp32",
        f"torch amp {speed.amp}",
        f"{speed.runtime} fp32",
        f"{speed.runtime} {speed.half}",
    )
    terminal.show(terminal.table(names, [tuple("-" if time is None else f"{time:g}" for time in times)]))


def import_weights(
    weights: Annotated[str, typer.Argument(metavar="MODEL", help="A state dict, such as a MONAI bundle's model.pt.")],
    recipe_name: Annotated[
        str, typer.Argument(metavar="RECIPE", help="The recipe of its network: a name or a file.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="RUN", help="The run's folder, or an address.")],
    classes: Annotated[str | None, typer.Option(help="Foreground names, with commas, in the outputs' order.")] = None,
    dataset: Annotated[str, typer.Option(help="The name of the dataset it was trained on.")] = "unknown",
    licence: Annotated[str, typer.Option(help="That dataset's licence.")] = "unknown",
    set_: SetOption = None,
) -> None:
    """Make a run of published weights, ready to predict and evaluate.

    Without --classes the weights are taken for the published ones of the recipe: its classes, licence and settings.
    """
    from voxray.core.working_copy import local_file
    from voxray.recipes import read_recipe
    from voxray.training.weights import import_published
    from voxray.training.weights import import_weights as run_import

    overrides = list(set_ or ())
    with local_file(weights) as path:
        if classes is None:
            names = import_published(path, recipe_name, out, overrides=overrides).classes
        else:
            names = tuple(name.strip() for name in classes.split(","))
            run_import(path, read_recipe(recipe_name, overrides), names, out, dataset=dataset, licence=licence)
    typer.echo(f"{out}: answers {len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")
