"""Out-of-fold answers: each held-out case of a cross-validation, answered by the run that was not trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from voxray.commands.evaluate import Scorer, cases_to_score, choose_cases, lost_case, track
from voxray.core.errors import ConfigError
from voxray.core.evaluation import EVALUATION, Evaluation, write_evaluation
from voxray.core.progress import Progress, tell_warnings
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.core.text import first_few
from voxray.core.working_copy import working_copy
from voxray.dataset import CaseSource, Dataset, split
from voxray.dataset.folds import Folds
from voxray.distributed.parallel import WorkerPool, pool_map
from voxray.inference.trained_model import TrainedModel, open_model
from voxray.loading import list_cases
from voxray.results.answers import folder_names
from voxray.scoring.summary import CaseScore, summarise
from voxray.store import Store
from voxray.training.checkpoint import read_run
from voxray.training.crossval_folder import ANSWERS, CrossvalFile, fold_folder


@dataclass(frozen=True)
class Pooled:
    """Every fold's score on its own held-out cases, and that of all cases together."""

    evaluation: Evaluation
    folds: Mapping[int, Evaluation]


def score_out_of_fold(
    location: str,
    record: CrossvalFile,
    data: Dataset,
    finished: Sequence[int],
    *,
    store: Store,
    pool: WorkerPool,
    progress: Progress,
) -> Pooled:
    """Answers what is not answered yet, and scores all cases of the finished folds at once."""
    data = data.for_task(record.task)
    sources = list_cases(data)
    scores: list[CaseScore] = []
    folds: dict[int, Evaluation] = {}
    output = Place.of(location).below(ANSWERS)
    runs = {fold: read_run(fold_folder(location, fold)) for fold in finished}
    chosen = {fold: held_out(run, data, sources, record.rule, scored=record.scored) for fold, run in runs.items()}
    total = sum(map(len, chosen.values()))
    with progress.track("answer held-out cases", total=total, unit="cases") as advance:
        for fold in finished:
            model = open_model(fold_folder(location, fold), device=pool.device)
            found = []
            names = folder_names(source.case_id for source in chosen[fold])
            with working_copy(output.uri, names) as folder:
                folder.mkdir(parents=True, exist_ok=True)
                asked = cases_to_score(chosen[fold], folder, model, progress=progress, is_own=True)
            for score in pool_map(partial(Scorer, model, data, output), asked, pool, lost=lost_case):
                found.append(score)
                tell_warnings(progress, f"case {score.case_id}", score.warnings)
                advance(1)
            folds[fold] = _fold_score(found, model, data, location, record.scored, progress)
            scores += found
    name = location.rpartition("/")[2]
    task = folds[finished[0]].task
    pooled = summarise(scores, data.classes, task=task, run=name, dataset=data.name, which=record.scored)
    left_out = _left_out(sources, record, [score.case_id for score in scores], finished, store)
    weights = tuple(digest for one in folds.values() for digest in one.weights_sha256)
    pooled = pooled.model_copy(update={"output": output.uri, "notices": left_out, "weights_sha256": weights})
    with working_copy(location, [EVALUATION]) as folder:
        write_evaluation(pooled, folder / EVALUATION)
    return Pooled(pooled, folds)


def held_out(
    run: Run, data: Dataset, sources: Sequence[CaseSource], folds: Folds, *, scored: str
) -> list[CaseSource]:
    """The cases of the run's fold that it is scored on, of which it has seen none."""
    if scored == "val":
        return choose_cases(run, data, "val")
    chosen = list(split(sources, folds, run.fold).test)
    seen = {*run.train_cases, *run.val_cases}
    for case in chosen:
        if case.case_id in seen:
            raise ConfigError(
                f"{data.name}: its cases or folds have changed: case {case.case_id} now tests fold {run.fold}, whose "
                f"run {run.name} has seen it; give another folder with -o, to train anew."
            )
    return chosen


def _fold_score(
    scores: Sequence[CaseScore], model: TrainedModel, data: Dataset, location: str, scored: str, progress: Progress
) -> Evaluation:
    """One fold's score, left beside its run and in the MLflow run of its training."""
    run = model.run
    assert run.fold is not None
    folder = fold_folder(location, run.fold)
    found = summarise(scores, data.classes, task=model.recipe.task, run=run.name, dataset=data.name, which=scored)
    found = found.model_copy(update={"weights_sha256": (model.stamp.sha256,)})
    with working_copy(f"{folder}/evaluation", [EVALUATION]) as beside:
        path = write_evaluation(found, beside / EVALUATION)
        track(found, run, folder, path, progress=progress)
    return found


def _left_out(
    sources: Sequence[CaseSource], record: CrossvalFile, scored: Sequence[str], finished: Sequence[int], store: Store
) -> tuple[str, ...]:
    """What a reader of the score should know: folds that are not in it, and cases that no store holds."""
    notices: list[str] = []
    absent = [fold for fold in range(record.num_folds) if fold not in finished]
    if absent:
        notices.append(f"without fold {', '.join(map(str, absent))}, which has not been trained to its end")
    expected = [
        case.case_id for fold in finished for case in getattr(split(sources, record.rule, fold), record.scored)
    ]
    lost = sorted(set(expected) - set(scored))
    added, aside = (
        tuple(case for case in lost if (case in store.manifest.cases) is there) for there in (True, False)
    )
    if added:
        notices.append(f"without {first_few(added, 5)}, added to the store after their fold was begun")
    if aside:
        notices.append(f"without {first_few(aside, 5)}, set aside when the store was made")
    return tuple(notices)
