"""Report: one HTML file of evaluations, what they were trained with and the scans that they were scored on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voxray.commands.evaluation_files import Brought, bringing
from voxray.commands.report_scans import ScoredScans, find_scored_scans, read_scored_scans
from voxray.core.addresses import local_path
from voxray.core.apart import Input, keep_apart, require_folder
from voxray.core.config import to_toml
from voxray.core.errors import ConfigError, ResourceError
from voxray.core.evaluation import EVALUATION, Evaluation, read_evaluation
from voxray.core.progress import Progress
from voxray.core.storage import Location, Place, whole
from voxray.core.written import PAGE, mark_of, require_own
from voxray.distributed.mlflow_run import REMEMBERED, open_tracking
from voxray.inference.package import is_package, read_package
from voxray.inference.trained_model import weights_digest
from voxray.loading.inputs import dataset_inputs, run_inputs
from voxray.metrics.bootstrap import Difference
from voxray.metrics.record import compare
from voxray.report import Comparisons, Entry, Training, compose
from voxray.training.checkpoint import find_state, load_model, read_run, recipe_of
from voxray.training.run_files import HISTORY, read_failure, read_progress_file

REPORT = "report.html"


@dataclass(frozen=True)
class ReportOptions:
    """Where the scans are, and who reads them."""

    dataset: Path | None = None
    """The file of the dataset; None: the one that the run was trained on."""
    root: Location | None = None
    scans: bool = True
    """Whether scans are read at all: without them there are no pictures, and no intensities."""
    workers: int = 1
    overwrite: bool = False
    """Whether a file in the way that voxray did not write may be written over."""


@dataclass(frozen=True)
class Reported:
    """Where the report is, and what it lacks."""

    path: Path
    """On this machine; of a report elsewhere that of a copy which is gone."""
    place: str
    """The path or address that it was written to."""
    remarks: tuple[str, ...]
    tracked: tuple[str, ...]
    """The runs whose MLflow run has it too."""
    lacking: tuple[str, ...] = ()
    """Those of the remarks that say which case could not be measured or pictured, though its dataset is in reach."""


@dataclass(frozen=True)
class Given:
    """What one argument names: an evaluation, and the run or package that it is of, where it lies in one."""

    name: str
    evaluation: Evaluation
    answers: Path
    """The folder of the evaluation."""
    run: Path | None
    place: str | None = None
    """Where the run is, if it is elsewhere and `run` a copy of what is read of it."""


def report(
    runs: Sequence[str], output: Location | None = None, options: ReportOptions | None = None, *, progress: Progress
) -> Reported:
    """Writes the report of evaluated runs, or of folders that an evaluation was written to, side by side."""
    options = options or ReportOptions()
    with bringing() as brought:
        found = [find_evaluation(run, brought) for run in runs]
        return _report(found, brought.result_file(output), options, brought, progress=progress)


def _report(
    found: Sequence[Given], output: Path | None, options: ReportOptions, brought: Brought, *, progress: Progress
) -> Reported:
    _must_fit(found)
    labels = _labels(found)
    path = output or (found[0].run or found[0].answers)
    path = path / REPORT if path.is_dir() else path
    _require_free(path, found, options)
    made = [_entry(one, label, options, progress) for one, label in zip(found, labels, strict=True)]
    entries = [entry for entry, _ in made]
    page = compose(entries, _compared(entries)).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as beside:
        beside.write_bytes(page)
    pairs = zip(found, entries, strict=True)
    tracked = [
        entry.label for one, entry in pairs if _track(one.place or one.run, entry.training, path.name, page, progress)
    ]
    remarks = [brought.told(f"{entry.label}: {text}") for entry in entries for text in entry.remarks]
    lacking = tuple(brought.told(f"{entry.label}: {text}") for entry, texts in made for text in texts)
    return Reported(path, brought.told(str(path)), tuple(remarks), tuple(tracked), lacking)


def _require_free(path: Path, found: Sequence[Given], options: ReportOptions) -> None:
    """A ConfigError, before any work, where the page would be written over what is read or what is not voxray's."""
    require_folder(path.parent, "-o")
    keep_apart([path], _inputs(found, options), instead="give another file with -o")
    require_own([path], (PAGE,), overwrite=options.overwrite)


def _inputs(found: Sequence[Given], options: ReportOptions) -> Iterator[Input]:
    for one in found:
        yield from (
            Input(file, "a file of the evaluation") for file in one.answers.glob("*") if mark_of(file) != PAGE
        )
        yield from () if one.run is None else run_inputs(one.run)
        training = None if one.run is None else read_training(one.run).run
        place = find_scored_scans(one.evaluation, training, options.dataset, options.root)
        if isinstance(place, ScoredScans):
            yield from dataset_inputs(place.dataset)


def find_evaluation(name: str, brought: Brought | None = None) -> Given:
    """The evaluation of a run or package, or the one in a folder or file; of one elsewhere what was brought of it."""
    path = local_path(name)
    if path is None:
        assert brought is not None, "of an address something must be brought"
        given = find_evaluation(str(brought.evaluated(name)))
        return replace(given, name=name, place=None if given.run is None else _place_of_run(name))
    if not path.exists():
        raise ConfigError(f"{name}: no such file or folder; give a run, or a folder with its {EVALUATION}.")
    if path.is_dir() and not (path / EVALUATION).exists():
        if not (path / "evaluation" / EVALUATION).exists():
            raise ConfigError(f"{name}: has no {EVALUATION}; make it with `voxray evaluate {name}`.")
        path = path / "evaluation"
    folder = path if path.is_dir() else path.parent
    parent = folder.resolve().parent
    of_run = is_package(parent) or find_state(parent) is not None
    return Given(name, read_evaluation(path), folder, parent if of_run else None)


def _place_of_run(name: str) -> str:
    """The run's place, of an argument that names it, or its folder ``evaluation``, or the file there."""
    return Place.of(name).uri.removesuffix(f"/{EVALUATION}").removesuffix("/evaluation")


def read_training(run: Path) -> Training:
    """What a run's folder, or a package, says of how it came to be."""
    if is_package(run):
        package, recipe = read_package(run)
        return Training(package.run, to_toml(recipe))
    state = find_state(run)
    assert state is not None
    about = read_run(run, f"checkpoints/{state.best}/run.json")
    chosen = f"{state.best} answers"
    if state.metric is not None and state.best_value is not None:
        chosen += f", chosen by its {state.metric} of {state.best_value:.3f} on the validation cases"
    failure = read_failure(run)
    return Training(
        run=about,
        recipe=to_toml(recipe_of(about)),
        history=tuple(_rows(read_progress_file(run, HISTORY))),
        epochs_done=state.epochs_done,
        finished=state.finished,
        best=chosen,
        failure="" if failure is None else str(failure),
    )


def weights_of(run: Path) -> str:
    """The digest of the weights that answer, as answers and scores record it."""
    if is_package(run):
        return read_package(run)[0].provenance.weights_sha256
    return weights_digest(load_model(run)[2])


def _rows(history: Any) -> list[Mapping[str, float]]:
    """The history's rows, numbers only: a row may hold null where a value was not finite."""
    return [{name: float(value) for name, value in row.items() if value is not None} for row in history or ()]


def _entry(given: Given, label: str, options: ReportOptions, progress: Progress) -> tuple[Entry, tuple[str, ...]]:
    """What the report says of one evaluation, and what could not be had of its scans."""
    training = None if given.run is None else read_training(given.run)
    remarks = [] if training else ["Its training is not known: no curves of the training, and no recipe."]
    if given.run is not None and given.evaluation.weights_sha256 not in ((), (weights_of(given.run),)):
        remarks.append("It was trained on after it was scored: the score is that of other weights than it holds now.")
    found = find_scored_scans(
        given.evaluation, None if training is None else training.run, options.dataset, options.root
    )
    data = scans = None
    lacking: tuple[str, ...] = ()
    if isinstance(found, ScoredScans):
        data = found.data
        if options.scans:
            looked = read_scored_scans(
                given.evaluation, found, given.answers, workers=options.workers, progress=progress
            )
            scans, lacking = looked.scans, looked.lacking
            remarks += [*lacking, *looked.odd]
    else:
        remarks.append(
            f"The scans are not in reach, so there are no pictures, and no sizes and intensities of objects: {found}"
        )
    if not options.scans:
        remarks.append("The scans were not read, as asked, so there are no pictures, and no sizes and intensities.")
    return Entry(label, given.evaluation, training, data, scans, tuple(remarks)), lacking


def _must_fit(found: Sequence[Given]) -> None:
    if not found:
        raise ConfigError("no run given; give one or several evaluated runs.")
    tasks = {one.evaluation.task: one.name for one in found}
    if len(tasks) > 1:
        (task, name), (other_task, other) = tasks.items()
        raise ConfigError(f"{name} is a {task} and {other} a {other_task}; make a report of each.")


def _labels(found: Sequence[Given]) -> list[str]:
    """The names of the runs, or what the user wrote where two have one name."""
    often = Counter(one.evaluation.run for one in found)
    names = [one.evaluation.run if often[one.evaluation.run] == 1 else one.name for one in found]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"{twice[0]}: is given twice; give each run once.")
    return names


def _compared(entries: Sequence[Entry]) -> Comparisons:
    """Each entry but the first against the first, or why it cannot be."""
    first = entries[0].evaluation
    result: dict[str, Mapping[str, Difference] | str] = {}
    for entry in entries[1:]:
        other = entry.evaluation
        if other.dataset != first.dataset:
            result[entry.label] = (
                f"{entry.label} and {entries[0].label} cannot be compared case by case: they were scored on "
                f"{other.dataset} and {first.dataset}."
            )
            continue
        try:
            result[entry.label] = compare(first, other)
        except ConfigError as error:
            result[entry.label] = str(error)
    return result


def _track(run: Location | None, training: Training | None, name: str, page: bytes, progress: Progress) -> bool:
    """Whether the MLflow run of the training has the report now; a server that does not answer costs only that."""
    if run is None or training is None or not Place.of(run).exists(REMEMBERED):
        return False
    try:
        tracking = open_tracking(training.run, run, say=progress.say)
    except ResourceError as error:
        progress.say(f"not in MLflow: {error}")
        return False
    tracking.log_file(f"report/{name}", page)
    # Opening it said that it is running: what it was before is said again.
    tracking.end("FINISHED" if training.finished else "KILLED")
    return True
