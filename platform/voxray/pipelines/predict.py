"""Predict: scans in, findings or label maps out, one file set per scan. A rerun answers only what is missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from voxray.errors import VoxrayError
from voxray.pipelines.answers import Engine, is_answered, open_engine, write_answer
from voxray.pipelines.forms import PREVIEW, chosen_forms, gather, write_preview
from voxray.pipelines.progress import Progress
from voxray.pipelines.scans import Scan, find_scans
from voxray.pipelines.spread import hire, spread
from voxray.readers import read_volume

AT_ONCE = 2
"""Scans under way in each worker: while one is answered, the next is read and the last is written."""


@dataclass(frozen=True)
class PredictReport:
    """What became of every scan."""

    output: Path
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    """Answered earlier by the same model with the same settings."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Name -> what went wrong, in a sentence."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of one scan; `error` is empty where all went well."""

    name: str
    error: str = ""


@dataclass(frozen=True)
class AnswerOptions:
    """How scans are answered, and what is saved of the answers."""

    overrides: Sequence[str] = ()
    """Of ``merge.`` and ``inference.`` fields."""
    device: str = "auto"
    runtime: str | None = None
    """One of `inference.runtimes.RUNTIMES`, or ``auto``; None: torch for a run, and what a package was made for."""
    precision: str = "auto"
    save: str = ""
    """Further forms, as ``preview,csv-luna16``."""
    workers: int = 1


def predict(
    run: str | Path,
    inputs: Sequence[Path],
    output: Path,
    options: AnswerOptions | None = None,
    *,
    progress: Progress,
) -> PredictReport:
    """The run's or package's answers to every scan among the inputs; one bad scan does not stop the rest.

    With more than one worker the scans are spread over Ray; inputs and output must then be in reach of every node.
    """
    begin, options = time.monotonic(), options or AnswerOptions()
    scans = find_scans(inputs)
    with hire(options.workers, device=options.device) as crew:
        engine = open_engine(
            run,
            overrides=options.overrides,
            device=crew.device,
            runtime=options.runtime,
            precision=options.precision,
        )
        forms = chosen_forms(options.save, engine.recipe.task)
        if engine.choice is not None:
            progress.say(engine.choice.why)
        output.mkdir(parents=True, exist_ok=True)
        skipped = [scan for scan in scans if is_saved(scan, output, engine, forms)]
        todo = [scan for scan in scans if scan not in skipped]
        outcomes = []
        with progress.track("predict", total=len(todo), unit="scans") as advance:
            for outcome in spread(partial(Answerer, engine, output, forms), todo, crew, at_once=AT_ONCE):
                outcomes.append(outcome)
                advance(1)
        gather(forms, scans, output, engine.run.classes)
    return PredictReport(
        output=output,
        done=tuple(outcome.name for outcome in outcomes if not outcome.error),
        skipped=tuple(scan.name for scan in skipped),
        failed={outcome.name: outcome.error for outcome in outcomes if outcome.error},
        seconds=time.monotonic() - begin,
    )


class Answerer:
    """Reads, answers and writes scans; what fails becomes a sentence, not an end.

    It may be called for several scans at once: they are read and written side by side, and answered one by one.
    """

    def __init__(self, engine: Engine, output: Path, forms: Sequence[str] = ()) -> None:
        self._engine, self._output, self._forms = engine, output, forms
        self._predictor, self._busy = engine.predictor(), threading.Lock()

    def __call__(self, scan: Scan) -> Outcome:
        """What became of the scan."""
        return Outcome(scan.name, attempt(lambda: self._answer(scan)))

    def _answer(self, scan: Scan) -> None:
        volume = read_volume(scan.path)
        with self._busy:
            prediction = self._predictor.predict(volume)
        if PREVIEW in self._forms:
            path = self._output / f"{scan.name}.png"
            write_preview(volume, prediction, path, case=scan.name, classes=self._engine.run.classes)
        write_answer(prediction, self._output, case=scan.name, engine=self._engine)


def is_saved(scan: Scan, output: Path, engine: Engine, forms: Sequence[str]) -> bool:
    """Whether the scan has its answer, and its picture where one is wanted."""
    drawn = PREVIEW not in forms or (output / f"{scan.name}.png").exists()
    return drawn and is_answered(scan, output, engine.stamp)


def attempt(action: Callable[[], Any]) -> str:
    """Runs the action; what a single scan can fail from as one sentence, or an empty text."""
    try:
        action()
    except VoxrayError as error:
        return str(error)
    except (MemoryError, OSError, ValueError, RuntimeError, ArithmeticError) as error:
        return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0][:300]}"
    return ""
