"""What the numbers come from: a summary, the data, the recipe, and what failed."""

from __future__ import annotations

from collections.abc import Sequence

from voxray.core.evaluation import Evaluation
from voxray.core.text import first_few
from voxray.report.blocks import Block, Code, Facts, Fold, Heading, Listing, Section, Table, Text
from voxray.report.entry import Entry
from voxray.report.numbers import means, with_interval

_HEADLINES = ("mAP", "AP@", "FROC@", "patient_AUC", "dice", "NSD@", "HD95_mm", "volume_error_percent")
"""Of those that begin so the first: the lowest IoU, and the smallest tolerance."""
_WHICH = {"val": "validation cases", "test": "test cases", "all": "all cases", "answered": "answered cases"}
_NUM_WARNINGS = 12
"""So many warnings of cases are shown: a whole dataset may have the same one."""


def summary_section(entries: Sequence[Entry]) -> Section:
    """The figures that a reader looks for first, and how sure they are."""
    blocks: list[Block] = []
    for entry in entries:
        if len(entries) > 1:
            blocks.append(Heading(entry.label))
        evaluation = entry.evaluation
        shown = [next((name for name in means(evaluation) if name.startswith(start)), "") for start in _HEADLINES]
        facts = [("cases", _cases(evaluation))]
        facts += [(name, with_interval(evaluation, name)) for name in shown if name]
        failed = len(evaluation.failed)
        facts.append(("without an answer", f"{failed} of {len(evaluation.cases)} cases" if failed else "none"))
        if lost := len(evaluation.not_judged):
            facts.append(("not judged", f"{lost} of {lost + len(evaluation.cases)} cases"))
        blocks.append(Facts(tuple(facts)))
    blocks.append(Text(_method(entries[0].evaluation)))
    return Section("summary", "Summary", tuple(blocks))


def failures_section(entries: Sequence[Entry]) -> Section:
    """Everything that went wrong or is missing; said too where nothing did."""
    blocks: list[Block] = []
    for entry in entries:
        told, failed, lost = _told(entry), entry.evaluation.failed, entry.evaluation.not_judged
        if len(entries) > 1 and (told or failed or lost):
            blocks.append(Heading(entry.label))
        if told:
            blocks.append(Listing(tuple(told)))
        if failed:
            caption = "Cases without an answer; each counts as an empty one"
            blocks.append(Table(caption, ("case", "why"), tuple(failed.items())))
        if lost:
            caption = "Cases whose answer cannot be compared with their truth; they are in no figure"
            blocks.append(Table(caption, ("case", "why"), tuple(lost.items())))
    return Section("failed", "What failed", tuple(blocks or [Text("Nothing: every case was answered and judged.")]))


def data_section(entries: Sequence[Entry]) -> Section:
    """The dataset, its licence, and which cases had which part."""
    blocks: list[Block] = []
    for entry in entries:
        if len(entries) > 1:
            blocks.append(Heading(entry.label))
        blocks.append(Facts(tuple(_data_facts(entry))))
        training = entry.training
        if training is not None and training.run.train_cases:
            cases = [Text(f"trained: {', '.join(training.run.train_cases)}")]
            cases += [Text(f"validated: {', '.join(training.run.val_cases)}")] if training.run.val_cases else []
            blocks.append(Fold("Cases of this fold", tuple(cases)))
    return Section("data", "Data", tuple(blocks))


def recipe_section(entries: Sequence[Entry]) -> Section:
    """The recipe of each run, every field, and the code that it ran with."""
    blocks: list[Block] = []
    for entry in entries:
        if entry.training is None:
            continue
        if len(entries) > 1:
            blocks.append(Heading(entry.label))
        run = entry.training.run
        facts = (
            ("recipe", str(run.recipe.get("name", ""))),
            ("network", str(run.recipe.get("network", {}).get("kind", ""))),
            ("seed", str(run.seed)),
            ("voxray", run.voxray_version),
            ("commit", run.commit),
        )
        blocks += [Facts(facts), Fold("The whole recipe", (Code(entry.training.recipe),))]
    return Section("recipe", "Recipe", tuple(blocks))


def _cases(evaluation: Evaluation) -> str:
    count, patients = len(evaluation.cases), num_patients(evaluation)
    text = f"{count} {_WHICH.get(evaluation.which, evaluation.which)} of {evaluation.dataset}"
    return text if patients == count else f"{text}, {patients} patients"


def num_patients(evaluation: Evaluation) -> int:
    """How many patients the cases are of."""
    if evaluation.detection is not None:
        return len({case.patient_id for case in evaluation.detection.cases.values()})
    assert evaluation.segmentation is not None
    return len(set(evaluation.segmentation.patients.values()))


def _method(evaluation: Evaluation) -> str:
    how = evaluation.bootstrap
    text = (
        f"Scored on the original scans against the original truth. Intervals of {how.confidence:.0%} come from "
        f"{how.replicates:,} draws of the cases with replacement, those of a patient together."
    ).replace("%", " %")
    return text if evaluation.intervals else f"{text} There are none here: one patient gives no interval."


def _told(entry: Entry) -> list[str]:
    evaluation, training = entry.evaluation, entry.training
    told = [*entry.remarks, *evaluation.notices, *_warnings(evaluation)]
    if evaluation.without_truth:
        told.append(f"Classes that no case has, so without a score: {', '.join(evaluation.without_truth)}.")
    if training is not None:
        skipped = sum(row.get("num_skipped", 0.0) for row in training.history)
        if skipped:
            told.append(f"{skipped:.0f} steps of the training were skipped, as their gradient was not finite.")
        if not training.finished:
            told.append(f"The training has not finished: {training.epochs_done} epochs are done.")
        if training.failure:
            told.append(f"The training's workers stopped: {training.failure}")
    return told


def _warnings(evaluation: Evaluation) -> list[str]:
    """What is worth knowing of cases: the first, and how many more there are."""
    every = [f"{case_id}: {text}" for case_id, texts in evaluation.warnings.items() for text in texts]
    more = len(every) - _NUM_WARNINGS
    return every[:_NUM_WARNINGS] + ([f"{more} more warnings of cases are in evaluation.json."] if more > 0 else [])


def _data_facts(entry: Entry) -> list[tuple[str, str]]:
    evaluation, training, data = entry.evaluation, entry.training, entry.data
    facts = [("scored on", evaluation.dataset), ("cases scored", _cases(evaluation))]
    facts.append(("classes", first_few(evaluation.classes, 20)))
    if data is not None:
        facts += [("licence", data.licence), ("folds", data.folds)]
        facts.append(("cases of the dataset", f"{data.num_cases} of {data.num_patients} patients"))
        facts += [("about", data.about)] if data.about else []
    if training is not None:
        run = training.run
        facts += [("trained on", f"{run.dataset}, licence {run.licence}")]
        facts.append(("fold", "none: all cases train" if run.fold is None else str(run.fold)))
        facts.append(("cases that trained", str(len(run.train_cases)) if run.train_cases else "unknown"))
        facts.append(("cases that validated", str(len(run.val_cases)) if run.val_cases else "none"))
    return facts
