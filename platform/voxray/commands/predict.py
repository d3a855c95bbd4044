"""Predict: scans in, findings or label maps out, one file set per scan. A rerun answers only what is missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

from voxray.core.answer_json import ScanStamp
from voxray.core.apart import Input
from voxray.core.bulkhead import attempt, sentence_of
from voxray.core.progress import Progress, tell_warnings
from voxray.core.storage import Location, Place
from voxray.core.volume import Volume
from voxray.core.working_copy import named, working_copy
from voxray.distributed.metrics import count_case
from voxray.distributed.parallel import WorkerPool, open_pool, pool_map
from voxray.inference.candidates.folder import FOLDER, CandidateFolder
from voxray.inference.predictor import Prediction
from voxray.inference.trained_model import TrainedModel, open_model, task_of
from voxray.loading.inputs import keep_out_of_run, run_inputs, scan_inputs
from voxray.loading.scans import Scan, find_scans
from voxray.readers import read_volume
from voxray.results.answers import (
    AnswerFiles,
    answer_names,
    folder_names,
    gathered_names,
    read_answer,
    warnings_of,
    write_answer,
)
from voxray.results.case_answer import CaseAnswer
from voxray.results.earlier_answers import ScanToAnswer, find_earlier_answers, name_taken
from voxray.results.formats import ResultFormat
from voxray.results.saving import (
    NotMade,
    are_saved,
    chosen_formats,
    drop_answer,
    gather,
    lacking_dicom,
    save_formats,
)

AT_ONCE = 2
"""Scans under way in each worker: while one is answered, the next is read and the last is written."""


@dataclass(frozen=True)
class PredictReport:
    """What became of every scan."""

    output: Location
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    """The same scan, answered earlier by the same model with the same settings."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Name -> what went wrong, in a sentence."""
    without: Mapping[str, tuple[NotMade, ...]] = field(default_factory=dict)
    """Name of a scan or a gathered file -> the forms that could not be made; the answer is there all the same."""
    skip_unsupported: bool = False
    """Whether forms that a scan cannot have were waived."""
    warnings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> what is worth knowing of the scan; of those that were answered before, too."""
    seconds: float = 0.0

    @property
    def not_made(self) -> int:
        """How many forms that were asked for are not there."""
        return sum(map(len, self.without.values()))

    @property
    def waived(self) -> tuple[str, ...]:
        """A sentence for each form that is not there as no such form can be, where that was accepted."""
        return tuple(f"{name}: without {one}" for name, one in self._forms if self._is_waived(one))

    @property
    def missing(self) -> Mapping[str, str]:
        """What was asked for and is not there, neither as an answer nor as a form, with the reason."""
        forms = {f"{name}: without {one.form}": one.why for name, one in self._forms if not self._is_waived(one)}
        return {**self.failed, **forms}

    @property
    def _forms(self) -> list[tuple[str, NotMade]]:
        return [(name, one) for name, some in self.without.items() for one in some]

    def _is_waived(self, one: NotMade) -> bool:
        return self.skip_unsupported and one.is_unsupported

    def __str__(self) -> str:
        forms = f", {self.not_made} form{'s'[: self.not_made != 1]} not made" if self.not_made else ""
        return (
            f"{len(self.done)} answered, {len(self.skipped)} answered before, {len(self.failed)} failed{forms}: "
            f"{self.output}"
        )


@dataclass(frozen=True)
class ScanOutcome:
    """What became of one scan; `error` is empty where it has its answer."""

    name: str
    error: str = ""
    without: tuple[NotMade, ...] = ()
    """The forms that could not be made of the answer."""
    warnings: tuple[str, ...] = ()
    """What is worth knowing of the scan."""


@dataclass(frozen=True)
class AnswerOptions:
    """How scans are answered, and what is saved of the answers."""

    overrides: Sequence[str] = ()
    """Of ``merge.`` and ``inference.`` fields."""
    device: str = "auto"
    runtime: str = "auto"
    """One of `runtimes.RUNTIMES`; ``auto``: the best of this machine, or what a package was made for."""
    precision: str = "auto"
    save: str = ""
    """Further forms, as ``preview,csv-luna16,dicom-sr``."""
    skip_unsupported: bool = False
    """Whether a form that a scan cannot have is no failure."""
    workers: int = 1
    series: Sequence[str] = ()
    """UIDs of the CT series that are answered; none stands for every scan of the inputs."""
    keep_candidates: bool = False
    """Whether what the network said before the merge is written to ``candidates/``, one file a scan."""
    accept_values: bool = False
    """Whether scans whose values can be no Hounsfield units are taken, with a warning."""
    keep_classes: Sequence[str] = ()
    """Segmentation: the classes whose probabilities are kept."""
    overwrite: bool = False
    """Whether files in the way that voxray did not write may be written over."""


def predict(
    run: str | Path,
    inputs: Sequence[Path],
    output: Location,
    options: AnswerOptions | None = None,
    *,
    progress: Progress,
) -> PredictReport:
    """The run's or package's answers to every scan among the inputs; one bad scan does not stop the rest.

    With more than one worker the scans are spread over Ray; inputs and output must then be in reach of every node.
    """
    begin, options, place = time.monotonic(), options or AnswerOptions(), Place.of(output)
    scans = find_scans(inputs, series=options.series, say=progress.say)
    formats = chosen_formats(options.save, task_of(run))
    keep_out_of_run(output, run)
    place.require_writable()
    names = folder_names(scan.name for scan in scans)
    with (
        working_copy(place.uri, names) as folder,
        open_pool(options.workers, device=options.device, progress=progress) as pool,
    ):
        _require_free(run, scans, inputs, folder, formats=formats, options=options)
        _say_unsupported(formats, scans, progress)
        model = open_model(
            run, overrides=options.overrides, device=pool.device, runtime=options.runtime, precision=options.precision
        )
        candidates = _candidates(model, output, options)
        if model.choice is not None:
            progress.say(model.choice.why)
        folder.mkdir(parents=True, exist_ok=True)
        earlier = find_earlier_answers(scans, folder, model.stamp)
        refused = {one.scan.name: name_taken(one, output) for one in earlier if one.other_scan}
        free = [one for one in earlier if not one.other_scan]
        skipped = [one.scan for one in free if is_saved(one, folder, model, formats, candidates)]
        todo = [one for one in free if one.scan not in skipped]
        warnings = {scan.name: warnings_of(folder, case=scan.name) for scan in skipped}
        for name, texts in warnings.items():
            tell_warnings(progress, name, texts)
        for one in todo:
            if one.remark:
                progress.say(f"{one.scan.name}: {named(one.remark, folder, output)}; it is answered anew")
        how = {"overwrite": options.overwrite, "accept_values": options.accept_values}
        answerer = partial(Answerer, model, place, formats, candidates, **how)
        outcomes = _outcomes(answerer, todo, pool, progress)
    warnings |= {outcome.name: outcome.warnings for outcome in outcomes}
    failed = refused | {outcome.name: outcome.error for outcome in outcomes if outcome.error}
    answered = [scan for scan in scans if scan.name not in failed]
    gathered = _gathered(place, formats, answered, model, options)
    without = {outcome.name: outcome.without for outcome in outcomes if outcome.without}
    return PredictReport(
        output=output,
        done=tuple(outcome.name for outcome in outcomes if not outcome.error),
        skipped=tuple(scan.name for scan in skipped),
        failed=failed,
        without={name: (*without.get(name, ()), *gathered.get(name, ())) for name in [*without, *gathered]},
        skip_unsupported=options.skip_unsupported,
        warnings={name: texts for name, texts in sorted(warnings.items()) if texts},
        seconds=time.monotonic() - begin,
    )


def _gathered(
    place: Place,
    formats: Sequence[ResultFormat],
    answered: Sequence[Scan],
    model: TrainedModel,
    options: AnswerOptions,
) -> Mapping[str, tuple[NotMade, ...]]:
    """Writes the files that hold the answers to all scans; what is not in them."""
    with working_copy(place.uri, gathered_names(formats, [scan.name for scan in answered])) as folder:
        return gather(formats, answered, folder, model.run.classes, overwrite=options.overwrite)


def _outcomes(
    answerer: Callable[[], Answerer], todo: Sequence[ScanToAnswer], pool: WorkerPool, progress: Progress
) -> list[ScanOutcome]:
    """What becomes of each scan, told as it is known."""
    found: list[ScanOutcome] = []
    with progress.track("predict", total=len(todo), unit="scans") as advance:
        for outcome in pool_map(answerer, todo, pool, at_once=AT_ONCE, lost=_died):
            found.append(outcome)
            count_case(done=not outcome.error)
            tell_warnings(progress, outcome.name, outcome.warnings)
            advance(1)
    return found


def _died(asked: ScanToAnswer, story: str) -> ScanOutcome:
    return ScanOutcome(asked.scan.name, story)


class Answerer:
    """Reads, answers and writes scans; what fails becomes a sentence, not an end.

    It may be called for several scans at once: they are read and written side by side, and answered one by one.
    """

    def __init__(
        self,
        model: TrainedModel,
        output: Place,
        formats: Sequence[ResultFormat] = (),
        candidates: CandidateFolder | None = None,
        *,
        overwrite: bool = False,
        accept_values: bool = False,
    ) -> None:
        self._overwrite, self._accept_values = overwrite, accept_values
        self._model, self._output, self._formats, self._candidates = model, output, formats, candidates
        self._predictor, self._busy = model.predictor(), threading.Lock()
        output.trust()

    def __call__(self, asked: ScanToAnswer) -> ScanOutcome:
        """What became of the scan."""
        scan, volume = asked.scan, None
        try:
            stamp = asked.stamp()  # before the scan is read, so that a later change is noticed by the next run
            volume = read_volume(scan.path, series_uid=scan.series_uid, accept_values=self._accept_values)
            return ScanOutcome(scan.name, "", tuple(self._answer(asked, stamp, volume)), volume.warnings)
        except Exception as error:
            return ScanOutcome(scan.name, sentence_of(error), (), volume.warnings if volume is not None else ())

    def _answer(self, asked: ScanToAnswer, stamp: ScanStamp, volume: Volume) -> list[NotMade]:
        """Writes the answer and its forms; the forms that could not be made."""
        with working_copy(self._output.uri, answer_names(asked.scan.name)) as output:
            not_made = self._answer_in(output, asked, stamp, volume)
            return [replace(one, why=named(one.why, output, self._output.uri)) for one in not_made]

    def _answer_in(self, output: Path, asked: ScanToAnswer, stamp: ScanStamp, volume: Volume) -> list[NotMade]:
        scan, model = asked.scan, self._model
        before = asked.is_answered and has_candidates(asked, model, self._candidates)
        not_made: list[NotMade] = []
        if not before:
            AnswerFiles(output, model.recipe.task, overwrite=self._overwrite).require_unchanged(scan.name)
        prediction = (
            read_answer(output, case=scan.name, grid=volume.grid, model=model)
            if before
            else self._predict(scan, volume, stamp.sha256, not_made)
        )
        answer = CaseAnswer(scan.name, prediction, model.run.classes, model.stamp, scan.path, volume, scan.series_uid)
        if not before:
            drop_answer(output, scan.name)
        not_made += save_formats(self._formats, answer, output, overwrite=self._overwrite)
        if not before:
            write_answer(prediction, output, case=scan.name, model=model, scan=stamp, overwrite=self._overwrite)
        return not_made

    def _predict(self, scan: Scan, volume: Volume, content: str, not_made: list[NotMade]) -> Prediction:
        candidates = self._candidates
        recorder = None if candidates is None else candidates.recorder()
        with self._busy:
            prediction = self._predictor.predict(volume, recorder=recorder)
        if candidates is not None and recorder is not None:
            source = self._model.record_source(scan.name, volume.grid, content=content)
            error = attempt(lambda: candidates.write(recorder, source))
            not_made += [NotMade("candidates", error, is_unsupported=False)] if error else []
        return prediction


def is_saved(
    asked: ScanToAnswer,
    output: Path,
    model: TrainedModel,
    formats: Sequence[ResultFormat],
    candidates: CandidateFolder | None,
) -> bool:
    """Whether the scan has its answer, and its forms and candidates where they are wanted."""
    made = are_saved(formats, output, asked.scan.name)
    return asked.is_answered and made and has_candidates(asked, model, candidates)


def has_candidates(asked: ScanToAnswer, model: TrainedModel, candidates: CandidateFolder | None) -> bool:
    """Whether the scan's candidates are there, where they are wanted."""
    head = None if candidates is None else candidates.find(asked.scan.name, model.stamp)
    return candidates is None or (head is not None and head.scan_sha256 == asked.content)


def _require_free(
    run: str | Path,
    scans: Sequence[Scan],
    inputs: Sequence[Path],
    output: Path,
    *,
    formats: tuple[ResultFormat, ...],
    options: AnswerOptions,
) -> None:
    """A ConfigError, before any work, where an answer would be written over what is read or what is not voxray's."""
    files = AnswerFiles(output, task_of(run), formats, options.keep_candidates, options.overwrite)
    lists = (Input(path, "the list of scans") for path in inputs if path.is_file())
    files.require_free([scan.name for scan in scans], chain(scan_inputs(scans), lists, run_inputs(run)), run=run)


def _say_unsupported(formats: Sequence[ResultFormat], scans: Sequence[Scan], progress: Progress) -> None:
    """Says before the work which forms will be missing, as they belong to DICOM series and scans are none."""
    of_dicom, lacking = lacking_dicom(formats, scans)
    if lacking:
        options = ",".join(one.option for one in of_dicom)
        progress.say(
            f"--save {options}: {len(lacking)} of {len(scans)} scans are no DICOM series and will be "
            f"without, such as {lacking[0].path}"
        )


def _candidates(model: TrainedModel, output: Location, options: AnswerOptions) -> CandidateFolder | None:
    if not options.keep_candidates:
        return None
    folder = Place.of(output).below(FOLDER)
    return CandidateFolder.of(folder, model.recipe, model.run.classes, options.keep_classes)
