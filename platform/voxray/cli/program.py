"""The command line: one verb per pipeline. Heavy imports wait inside the verbs, so that help is quick.

Exit codes: 0 all well; 1 a file, the machine or some cases failed; 2 something written is not allowed; 3 a fault of
voxray itself; 130 stopped by Ctrl-C; 141 nobody reads its output any more, as after `| head`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from voxray.cli import first as first_verbs
from voxray.cli import serve as serve_verbs
from voxray.cli import study as study_verbs
from voxray.cli import terminal
from voxray.cli.options import (
    AcceptChangedDataOption,
    AcceptValuesOption,
    DeviceOption,
    OverwriteOption,
    RecipeArgument,
    RootOption,
    RunArgument,
    SaveOption,
    SeriesManyOption,
    SeriesOption,
    SetOption,
    SkipUnsupportedOption,
    WorkersOption,
)
from voxray.core.addresses import at_home
from voxray.core.errors import ConfigError

app = typer.Typer(
    name="voxray",
    help="Train, tune and serve 3D CT detection and segmentation on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

P = ParamSpec("P")

_state = {"debug": False}


def main(*verb: str) -> None:
    """The program; `verb` goes before the process's own arguments, as in ``main("train")``."""
    arguments = [*verb, *sys.argv[1:]]
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = ["--debug"] if "--debug" in own else []
    with terminal.readers_may_leave():
        app(debug + [text for text in own if text != "--debug"] + arguments[len(own) :])


def verb(name: str, *, resume: str = "") -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Registers a verb; what it raises becomes a sentence and an exit code. `resume` is said after Ctrl-C."""

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **{name: at_home(value) for name, value in kwargs.items()})  # type: ignore[arg-type]
            except typer.Exit:
                raise
            except KeyboardInterrupt:
                terminal.complain(f"stopped. {resume}".strip())
                raise typer.Exit(130) from None
            except Exception as error:
                if _state["debug"] or (isinstance(error, BrokenPipeError) and terminal.reader_is_gone()):
                    raise
                raise typer.Exit(terminal.explain(error)) from None

        app.command(name)(guarded)
        return guarded

    return register


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    _state["debug"] = debug
    terminal.log_faults(debug=debug)


@verb("info")
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


@verb("check")
def check(
    dataset: Annotated[Path, typer.Argument(help="A dataset's file.")],
    root: RootOption = None,
    recipe_name: Annotated[
        str | None,
        typer.Option("--recipe", help="Check for it: what its grid loses; objects only where it detects."),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Read every scan and annotation of a dataset, and list every problem with what to do."""
    from voxray.commands.check import check as run_check
    from voxray.dataset import read_dataset
    from voxray.recipes import read_recipe

    if set_ and recipe_name is None:
        raise ConfigError(f"--set {set_[0]}: changes a field of a recipe; say which with --recipe.")
    recipe = None if recipe_name is None else read_recipe(recipe_name, set_ or ())
    report = run_check(read_dataset(dataset, root=root), recipe=recipe, progress=_progress())
    for problem in report.problems:
        where = f"case {problem.case_id}: " if problem.case_id else ""
        terminal.complain(f"{where}[{problem.code}] {problem.message} {problem.remedy}")
    for warning in report.warnings:
        where = f"case {warning.case_id}: " if warning.case_id else ""
        terminal.warn(f"{where}{warning.message}")
    objects, cases = report.objects_of_class, report.cases_of_class
    rows = [(name, str(cases[name]), str(objects[name])) for name in report.classes]
    terminal.show(terminal.table(("class", "cases", "objects"), rows))
    _say(
        f"{report.dataset}: {report.num_cases} cases of {report.num_patients} patients, {len(report.cases)} can be "
        f"used, {report.num_empty} of them hold nothing; {len(report.problems)} problems, "
        f"{len(report.warnings)} warnings."
    )
    if report.problems:
        raise typer.Exit(1)


verb("toy", resume="Run the same command again to go on with the next scan.")(first_verbs.toy)


@verb("recipe")
def recipe(name: RecipeArgument, set_: SetOption = None) -> None:
    """Print a recipe as TOML, every field, to start one's own from; those that are unset as comments."""
    from voxray.core.config import to_full_toml
    from voxray.recipes import read_recipe

    print(to_full_toml(read_recipe(name, set_ or ())), end="")


@verb("ingest", resume="Run the same command again: cases that are in the store are not done again.")
def ingest(
    dataset: Annotated[Path, typer.Argument(help="A dataset's file.")],
    recipe_name: RecipeArgument,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="STORE", help="The store: a folder or an s3:// address.")
    ],
    root: RootOption = None,
    set_: SetOption = None,
) -> None:
    """Preprocess a dataset once into shards that training streams."""
    from voxray.commands.ingest import ingest as run_ingest
    from voxray.dataset import read_dataset
    from voxray.recipes import read_recipe

    data, recipe = read_dataset(dataset, root=root), read_recipe(recipe_name, set_ or ())
    report = run_ingest(data, recipe, out, progress=_progress())
    _say(str(report))
    if report.failed:
        raise typer.Exit(1)


@verb("train", resume="Run the same command again to go on from the last checkpoint.")
def train(  # noqa: PLR0913
    data: Annotated[str, typer.Argument(metavar="DATASET|STORE", help="A dataset's file, or a store of one.")],
    recipe_name: RecipeArgument,
    out: Annotated[str, typer.Option("--out", "-o", metavar="RUN", help="The run's folder, or an s3:// address.")],
    fold: Annotated[str, typer.Option(help="The fold that validates, or none: all cases train.")] = "0",
    set_: SetOption = None,
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0 trains in this process.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    accept_changed_data: AcceptChangedDataOption = False,
) -> None:
    """Train a recipe on a dataset or a store; the same command again resumes."""
    if fold != "none" and not fold.isdecimal():
        raise ConfigError(f"--fold {fold}: must be a number from 0, or none.")
    from voxray.commands.train import train as run_train
    from voxray.dataset import read_dataset, split
    from voxray.distributed.training import TrainOptions
    from voxray.loading import list_cases
    from voxray.recipes import read_recipe

    chosen = None if fold == "none" else int(fold)
    recipe = read_recipe(recipe_name, set_ or ())
    if Path(data).suffix in (".toml", ".json"):
        # Said now, not after the hours that preprocessing may take.
        dataset = read_dataset(data).for_task(recipe.task)
        split(list_cases(dataset), dataset.folds, chosen)
    options = TrainOptions(fold=chosen, workers=workers, seed=seed, accept_changed_data=accept_changed_data)
    report = run_train(data, recipe, out, options, progress=_progress())
    _say(str(report))


@verb("predict", resume="Run the same command again: scans that are answered are not answered again.")
def predict(  # noqa: PLR0913
    run: RunArgument,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Scans, DICOM series, folders or .txt lists of them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the answers are written.")],
    set_: SetOption = None,
    device: DeviceOption = "auto",
    runtime: Annotated[
        str, typer.Option(help="auto: this machine's best; torch, torch-compiled, onnxruntime, openvino, tensorrt.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16, bf16, or int8 of a package.")] = "auto",
    fast: Annotated[
        bool, typer.Option("--fast", help="Fewer, larger windows, in half precision where that pays.")
    ] = False,
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
    report = run_predict(run, inputs, out, options, progress=_progress())
    _say(str(report))
    for line in report.waived:
        _say(line)
    terminal.end(report.missing)


@verb("export")
def export(  # noqa: PLR0913
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="MODEL", help="The package's folder.")],
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
        export_bundle(run, out, options, progress=_progress())
        _say(f"{out}: a MONAI bundle; its docs/README.md says how to run it")
        return
    report = run_export(run, out, options, progress=_progress())
    parity, speed = report.parity, report.speed
    _say(
        f"{out}: {parity.runtime} at {parity.precision}, compared on {parity.num_patches} patches of {parity.patches}"
    )
    rows = [(row.output, f"{row.max_difference:.3g}", f"{row.tolerance:.3g}") for row in parity.outputs]
    terminal.show(terminal.table(("output", "largest difference from torch", "allowed"), rows))
    if parity.agreement is not None and parity.agreement.value is not None:
        _say(f"{parity.agreement.measure} of torch and {parity.runtime}: {parity.agreement.value:.4f}")
    times = (speed.torch_fp32, speed.torch_amp, speed.engine_fp32, speed.engine_half)
    names = (
        "ms for a patch: torch fp32",
        f"torch amp {speed.amp}",
        f"{speed.runtime} fp32",
        f"{speed.runtime} {speed.half}",
    )
    terminal.show(terminal.table(names, [tuple("-" if time is None else f"{time:g}" for time in times)]))


@verb("evaluate", resume="Run the same command again: cases that are answered are not answered again.")
def evaluate(  # noqa: PLR0913
    answers: Annotated[
        str, typer.Argument(metavar="RUN|ANSWERS", help="A run or package, or answers in a file or folder.")
    ],
    truth: Annotated[
        Path | None, typer.Argument(metavar="[TRUTH]", help="A dataset's file, or a folder or file of truth.")
    ] = None,
    root: RootOption = None,
    cases: Annotated[
        str | None, typer.Option(help="Of a run: val (default), test or all; of files: all (default) or answered.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Default: RUN/evaluation.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="The result as JSON.")] = None,
    rules: Annotated[str | None, typer.Option(help="iou, or luna16 for its official FROC.")] = None,
    ious: Annotated[str, typer.Option(help="Thresholds of IoU: first:last:step, or a list.")] = "0.1:0.5:0.05",
    against: Annotated[Path | None, typer.Option(help="Another's evaluation.json, compared case by case.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="The same as TRUTH.")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Read pickles, which can run any code: only from those you trust.")
    ] = False,
    values: Annotated[
        str | None,
        typer.Option(
            metavar="N=NAME,...",
            help="What label values, or MONAI's and nnDetection's class numbers, are, where no file says so.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = 1,
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
    report = evaluate_anything(answers, _one_truth(truth, dataset), options, progress=_progress())
    for line in report.lines:
        _say(line)
    for table in report.tables:
        terminal.show(terminal.table(table.header, table.rows))
    for line in report.ending:
        _say(line)
    for text in report.lost:
        terminal.complain(text)
    judged = report.result.not_judged if isinstance(report.result, Evaluation) else {}
    terminal.end({**report.result.failed, **judged})
    if report.lost:
        raise typer.Exit(1)


verb("sweep", resume="Run the same command again to go on with the next trial.")(study_verbs.sweep)
verb("report")(study_verbs.report)
verb("crossval", resume="Run the same command again: each fold goes on after its last finished epoch.")(
    study_verbs.crossval
)
verb("consolidate")(study_verbs.consolidate)


verb("serve", resume="Run the same command again: jobs that were accepted are brought to their end.")(
    serve_verbs.serve
)
verb("token")(serve_verbs.token)


@verb("import-weights")
def import_weights(
    weights: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A state dict, such as a MONAI bundle's model.pt.")
    ],
    recipe_name: Annotated[
        str, typer.Argument(metavar="RECIPE", help="The recipe of its network: a name or a file.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The run's folder.")],
    classes: Annotated[str | None, typer.Option(help="Foreground names, with commas, in the outputs' order.")] = None,
    dataset: Annotated[str, typer.Option(help="The name of the dataset it was trained on.")] = "unknown",
    licence: Annotated[str, typer.Option(help="That dataset's licence.")] = "unknown",
    set_: SetOption = None,
) -> None:
    """Make a run of published weights, ready to predict and evaluate.

    Without --classes the weights are taken for the published ones of the recipe: its classes, licence and settings.
    """
    from voxray.recipes import read_recipe
    from voxray.training.weights import import_published
    from voxray.training.weights import import_weights as run_import

    overrides = list(set_ or ())
    if classes is None:
        names = import_published(weights, recipe_name, out, overrides=overrides).classes
    else:
        names = tuple(name.strip() for name in classes.split(","))
        run_import(weights, read_recipe(recipe_name, overrides), names, out, dataset=dataset, licence=licence)
    _say(f"{out}: answers {len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")


verb("demo", resume="Run the same command again: what is finished is not done again.")(first_verbs.demo)
verb("doctor")(first_verbs.doctor)


def _one_truth(truth: Path | None, dataset: Path | None) -> Path | None:
    if truth is not None and dataset is not None:
        raise ConfigError(f"TRUTH {truth} and --dataset {dataset} say the same thing; give one of them.")
    return truth or dataset


def _say(text: str) -> None:
    typer.echo(text)


def _progress() -> Any:
    from voxray.core.progress import open_progress

    return open_progress()
