"""The verbs that answer scans, score answers and report scores.

Heavy imports wait inside the verbs, so that help is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxray.cli import terminal
from voxray.cli.options import (
    AcceptValuesOption,
    AgainstOption,
    DeviceOption,
    FastOption,
    OverwriteOption,
    RootOption,
    RunArgument,
    SameAsTruthOption,
    SaveOption,
    SeriesManyOption,
    SetOption,
    SkipUnsupportedOption,
    TrustPickleOption,
    WaitNodesOption,
    WorkersOption,
)
from voxray.core.errors import ConfigError


def predict(  # noqa: PLR0913
    run: RunArgument,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Scans, DICOM series, folders or .txt lists of them.")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Where the answers are written: a folder or an address.")
    ],
    set_: SetOption = None,
    device: DeviceOption = "auto",
    runtime: Annotated[
        str, typer.Option(help="auto: this machine's best; torch, torch-compiled, onnxruntime, openvino, tensorrt.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16, bf16, or int8 of a package.")] = "auto",
    fast: FastOption = False,
    mirrors: Annotated[
        bool, typer.Option("--mirrors", help="Answer each window mirrored on x, y and z, too.")
    ] = False,
    save: SaveOption = "",
    overwrite: OverwriteOption = False,
    skip_unsupported: SkipUnsupportedOption = False,
    keep_candidates: Annotated[
        bool, typer.Option("--keep-candidates", help="Also write what the network said before the merge, for sweeps.")
    ] = False,
    keep_classes: Annotated[
        str, typer.Option(metavar="NAMES", help="Segmentation: of which classes, with commas; default: up to 7, all.")
    ] = "",
    series: SeriesManyOption = None,
    accept_values: AcceptValuesOption = False,
    workers: WorkersOption = 1,
    _wait_nodes: WaitNodesOption = None,
) -> None:
    """Answer scans with a run or a package: findings as JSON, label maps as NIfTI on each scan's own grid."""
    from voxray.commands.predict import AnswerOptions
    from voxray.commands.predict import predict as run_predict

    shorthands = [
        *(["inference.plan='fast'"] if fast else []),
        *(["inference.mirrors=[[0],[1],[2]]"] if mirrors else []),
    ]
    options = AnswerOptions(
        overrides=(*shorthands, *(set_ or ())),
        device=device,
        runtime=runtime,
        precision=precision,
        save=save,
        skip_unsupported=skip_unsupported,
        series=series or (),
        accept_values=accept_values,
        workers=workers,
        keep_candidates=keep_candidates,
        keep_classes=terminal.names(keep_classes),
        overwrite=overwrite,
    )
    report = run_predict(run, inputs, out, options, progress=terminal.progress())
    typer.echo(str(report))
    for line in report.waived:
        typer.echo(line)
    terminal.end(report.missing)


def evaluate(  # noqa: PLR0913
    answers: Annotated[
        str, typer.Argument(metavar="RUN|ANSWERS", help="A run or package, or answers in a file or folder.")
    ],
    truth: Annotated[
        str | None, typer.Argument(metavar="[TRUTH]", help="A dataset's file, or a folder or file of truth.")
    ] = None,
    root: RootOption = None,
    cases: Annotated[
        str | None, typer.Option(help="Of a run: val (default), test or all; of files: all (default) or answered.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="DIR", help="Default: RUN/evaluation.")] = None,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="The result as JSON.")] = None,
    rules: Annotated[str | None, typer.Option(help="iou, or luna16 for its official FROC.")] = None,
    ious: Annotated[str, typer.Option(help="Thresholds of IoU: first:last:step, or a list.")] = "0.1:0.5:0.05",
    against: AgainstOption = None,
    dataset: SameAsTruthOption = None,
    trust_pickle: TrustPickleOption = False,
    values: Annotated[
        str | None,
        typer.Option(
            metavar="N=NAME,...",
            help="What label values, or MONAI's and nnDetection's class numbers, are, where no file says so.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = 1,
    _wait_nodes: WaitNodesOption = None,
) -> None:
    """Score a run on original scans, or answers that anything else wrote, against the original truth."""
    from voxray.commands.evaluate_files import FileOptions, evaluate_anything
    from voxray.core.evaluation import Evaluation

    options = FileOptions(
        which=cases,
        root=root,
        output=out,
        json_file=json_file,
        rules=rules,
        ious=ious,
        against=against,
        trust_pickle=trust_pickle,
        overwrite=overwrite,
        workers=workers,
        values=values,
    )
    report = evaluate_anything(answers, _one_truth(truth, dataset), options, progress=terminal.progress())
    for line in report.lines:
        typer.echo(line)
    for table in report.tables:
        terminal.show(terminal.table(table.header, table.rows))
    for line in report.ending:
        typer.echo(line)
    for text in report.lost:
        terminal.complain(text)
    judged = report.result.not_judged if isinstance(report.result, Evaluation) else {}
    terminal.end({**report.result.failed, **judged})
    if report.lost:
        raise typer.Exit(1)


def _one_truth(truth: str | None, dataset: str | None) -> str | None:
    if truth is not None and dataset is not None:
        raise ConfigError(f"TRUTH {truth} and --dataset {dataset} say the same thing; give one of them.")
    return truth or dataset


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Evaluated runs, or folders with an evaluation.json.")
    ],
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Default: report.html in the first.")
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

    options = ReportOptions(dataset=dataset, root=root, scans=scans, workers=workers, overwrite=overwrite)
    made = run_report(runs, out, options, progress=terminal.progress())
    for remark in made.remarks:
        if remark not in made.lacking:
            typer.echo(remark)
    if made.tracked:
        typer.echo(f"in MLflow too: {', '.join(made.tracked)}")
    for text in made.lacking:
        terminal.complain(text)
    typer.echo(f"{made.place}: {len(made.lacking)} scans or pictures missing" if made.lacking else made.place)
    if made.lacking:
        raise typer.Exit(1)
