"""Predict: scans in, findings or label maps out, one file set per scan. A rerun answers only what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from voxray.errors import VoxrayError
from voxray.pipelines.answers import Engine, is_answered, open_engine, write_answer
from voxray.pipelines.progress import Progress
from voxray.pipelines.scans import Scan, find_scans
from voxray.pipelines.spread import hire, spread
from voxray.readers import read_volume


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


def predict(
    run: str | Path,
    inputs: Sequence[Path],
    output: Path,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    workers: int = 1,
    progress: Progress,
) -> PredictReport:
    """The run's answers to every scan among the inputs, under `output`; one bad scan does not stop the rest.

    With more than one worker the scans are spread over Ray; inputs and output must then be in reach of every node.
    """
    begin = time.monotonic()
    scans = find_scans(inputs)
    with hire(workers, device=device) as crew:
        engine = open_engine(run, overrides=overrides, device=crew.device)
        output.mkdir(parents=True, exist_ok=True)
        skipped = [scan for scan in scans if is_answered(scan, output, engine.stamp)]
        todo = [scan for scan in scans if scan not in skipped]
        outcomes = []
        with progress.track("predict", total=len(todo), unit="scans") as advance:
            for outcome in spread(partial(Answerer, engine, output), todo, crew):
                outcomes.append(outcome)
                advance(1)
    return PredictReport(
        output=output,
        done=tuple(outcome.name for outcome in outcomes if not outcome.error),
        skipped=tuple(scan.name for scan in skipped),
        failed={outcome.name: outcome.error for outcome in outcomes if outcome.error},
        seconds=time.monotonic() - begin,
    )


class Answerer:
    """Reads, answers and writes one scan after another; what fails becomes a sentence, not an end."""

    def __init__(self, engine: Engine, output: Path) -> None:
        self._engine, self._output, self._predictor = engine, output, engine.predictor()

    def __call__(self, scan: Scan) -> Outcome:
        """What became of the scan."""
        return Outcome(scan.name, attempt(lambda: self._answer(scan)))

    def _answer(self, scan: Scan) -> None:
        prediction = self._predictor.predict(read_volume(scan.path))
        write_answer(prediction, self._output, case=scan.name, engine=self._engine)


def attempt(action: Callable[[], Any]) -> str:
    """Runs the action; what a single scan can fail from as one sentence, or an empty text."""
    try:
        action()
    except VoxrayError as error:
        return str(error)
    except (MemoryError, OSError, ValueError, RuntimeError, ArithmeticError) as error:
        return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0][:300]}"
    return ""
