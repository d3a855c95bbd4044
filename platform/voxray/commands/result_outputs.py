"""The files that a score is written to, and what must hold before anything is scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from voxray.core.answer_json import LabelsFile, read_file
from voxray.core.apart import Input, keep_apart, require_folder
from voxray.core.config import read_mapping
from voxray.core.evaluation import EVALUATION
from voxray.core.written import SCORES, require_own
from voxray.dataset import Dataset, read_dataset
from voxray.loading.inputs import dataset_inputs
from voxray.scoring.answer_files import Answers
from voxray.scoring.luna16_official import official_names


@dataclass(frozen=True)
class ResultFiles:
    """Where a score goes: a folder, a file that is named, or both."""

    output: Path | None
    json_file: Path | None = None
    official: str | None = None
    """The name of the answers, where LUNA16's official files are written to the folder in place of `EVALUATION`."""
    overwrite: bool = False

    @property
    def scores(self) -> list[Path]:
        """The files that bear voxray's mark."""
        named = [] if self.json_file is None else [self.json_file]
        return named if self.output is None or self.official else [*named, self.output / EVALUATION]

    @property
    def tables(self) -> list[Path]:
        """The files that a record in the folder knows."""
        if self.output is None or self.official is None:
            return []
        return [self.output / name for name in official_names(self.official)]

    def require_free(self, read: Iterable[Input]) -> None:
        """A ConfigError where anything that is read, or that somebody else wrote, would be written over."""
        if self.output is not None:
            require_folder(self.output, "-o")
        if self.json_file is not None:
            require_folder(self.json_file.parent, "--json")
        keep_apart([*self.scores, *self.tables], read, instead="give another place with -o or --json")
        require_own(self.scores, SCORES, overwrite=self.overwrite)
        require_own(self.tables, overwrite=self.overwrite)


def given_inputs(answers: Answers, path: Path) -> Iterator[Input]:
    """The files that hold answers."""
    yield Input(path, "the answers")
    for file in answers.files.values():
        yield Input(file, "an answer")
        if answers.format == "labels":
            yield Input(file.parent / read_file(LabelsFile, file).file, "an answer's label map")


def truth_inputs(truth: Path, *, root: Path | None) -> Iterator[Input]:
    """The files of the truth: a dataset's, those of a folder, or the one file."""
    yield Input(truth, "the truth")
    if truth.is_dir():
        yield from (Input(path, "a file of the truth") for path in chain(truth.glob("*"), truth.glob("*/*")))
    elif (data := _as_dataset(truth, root)) is not None:
        yield from dataset_inputs(data)


def named_inputs(paths: Sequence[Path | None]) -> Iterator[Input]:
    """What is compared with, a file or the folder that holds it."""
    for path in paths:
        if path is not None:
            yield Input(path / EVALUATION if path.is_dir() else path, "what is compared with")


def _as_dataset(truth: Path, root: Path | None) -> Dataset | None:
    if truth.suffix not in (".toml", ".json") or "boxes" in read_mapping(truth):
        return None
    return read_dataset(truth, root=root)
