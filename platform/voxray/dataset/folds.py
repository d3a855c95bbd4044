"""Which cases train, validate and test: always whole patients, always the same for the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from voxray.core.config import Config
from voxray.core.errors import ConfigError
from voxray.dataset.lists import (
    SplitIds,
    by_ids,
    count_lists,
    read_csv_sides,
    read_sides,
    read_subsets,
    subset_of,
    tests_rotate,
)
from voxray.dataset.paths import RootedPath
from voxray.dataset.source import CaseSource

_Share = Annotated[float, Field(ge=0, lt=1)]


class KFold(Config):
    """Patients shuffled by the seed and dealt into `num_folds`; fold k validates."""

    kind: Literal["kfold"] = "kfold"
    num_folds: Annotated[int, Field(ge=2)] = 5
    seed: NonNegativeInt = 0
    test_share: _Share = 0.0
    """This share of the patients is set aside first, and is the test set of every fold: 60/20/20 with a hold-out is
    four folds and a share of 0.2."""
    rotating_test: bool = False
    """The part after the validating one is the test set of that fold: no network has seen it, nor was any chosen by
    it. Five folds are 60/20/20, as in the Medical Detection Toolkit."""

    @model_validator(mode="after")
    def _one_test_set(self) -> KFold:
        if self.rotating_test and self.test_share > 0:
            raise ValueError("test_share and rotating_test are two ways to a test set; give one of them")
        if self.rotating_test and self.num_folds < 3:
            raise ValueError(f"rotating_test needs num_folds of 3 or more, got {self.num_folds}")
        return self


class Holdout(Config):
    """One fold: shares of the shuffled patients."""

    kind: Literal["holdout"] = "holdout"
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_share: _Share = 0.0
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _something_trains(self) -> Holdout:
        if self.val_share + self.test_share >= 1:
            raise ValueError(
                f"val_share and test_share must leave cases to train, got {self.val_share}, {self.test_share}"
            )
        return self


class SortedTail(Config):
    """One fold: the last `num_val` case ids in sorted order validate, as in MONAI's Task09 bundle."""

    kind: Literal["sorted_tail"] = "sorted_tail"
    num_val: PositiveInt = 9


class Lists(Config):
    """Case ids from a JSON file: ``{"train": [...], "val": [...], "test": [...]}``, or a list of these.

    The latter is ``splits_final.json`` of nnU-Net and nnDetection. MONAI's data lists (`training`, `validation`) read
    the same; where each entry has a `fold`, fold k validates. `{fold}` in the path stands for the number.
    """

    kind: Literal["lists"] = "lists"
    file: RootedPath
    partial: bool = False
    """Whether the lists may name cases that are not there, and leave out cases that are."""


class CsvSides(Config):
    """One fold: a CSV column says train, val or test, as TotalSegmentator's meta.csv does."""

    kind: Literal["csv"] = "csv"
    file: RootedPath
    case_column: str = "case"
    side_column: str = "split"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    partial: bool = False


class Luna16Subsets(Config):
    """LUNA16's ten subsets: fold k holds out subset k."""

    kind: Literal["luna16_subsets"] = "luna16_subsets"
    file: RootedPath | None = None
    """JSON ``{"subset0": [series ids], ...}``; None: the folder subsetN that the image lies in."""
    val_share: _Share = 0.0
    """0: subset k validates. Above: subset k is the test set, and this share of the other patients validates."""
    seed: NonNegativeInt = 0


class NoFolds(Config):
    """No split: every case trains at once, or the dataset only scores runs of another."""

    kind: Literal["none"] = "none"


Folds = Annotated[
    KFold | Holdout | SortedTail | Lists | CsvSides | Luna16Subsets | NoFolds, Field(discriminator="kind")
]


class Split(NamedTuple):
    """The cases of one fold, each side in the order of its case ids."""

    train: tuple[CaseSource, ...]
    val: tuple[CaseSource, ...]
    test: tuple[CaseSource, ...]

    @property
    def train_ids(self) -> tuple[str, ...]:
        """The case ids that train."""
        return tuple(case.case_id for case in self.train)

    @property
    def val_ids(self) -> tuple[str, ...]:
        """The case ids that validate."""
        return tuple(case.case_id for case in self.val)

    @property
    def test_ids(self) -> tuple[str, ...]:
        """The case ids that test."""
        return tuple(case.case_id for case in self.test)


def num_folds(folds: Folds) -> int:
    """How many folds there are; 0 where the dataset is not split."""
    if isinstance(folds, KFold):
        return folds.num_folds
    if isinstance(folds, Luna16Subsets):
        return 10
    if isinstance(folds, NoFolds):
        return 0
    return count_lists(folds.file) if isinstance(folds, Lists) else 1


def scored_side(folds: Folds) -> Literal["val", "test"]:
    """Where a fold's unseen cases are that, over all folds, make each case's out-of-fold answer.

    ``test`` where every fold has a test set of its own, else ``val``: a test set that all folds share stays unseen.
    """
    match folds:
        case KFold():
            rotates = folds.rotating_test
        case Luna16Subsets():
            rotates = folds.val_share > 0
        case Lists():
            rotates = tests_rotate(folds.file)
        case _:
            rotates = False
    return "test" if rotates else "val"


def cross_splits(cases: Sequence[CaseSource], folds: Folds, chosen: Sequence[int]) -> dict[int, Split]:
    """The chosen folds of a cross-validation; each holds out cases, and no patient is held out twice."""
    side = scored_side(folds)
    found = {fold: split(cases, folds, fold) for fold in chosen}
    seen: dict[str, tuple[int, str]] = {}
    for fold, part in found.items():
        held_out: tuple[CaseSource, ...] = getattr(part, side)
        if not held_out:
            raise ConfigError(
                f"fold {fold}: no case {'validates' if side == 'val' else 'tests'}, so nothing would be scored; hold "
                f"cases out in it, or leave it out."
            )
        for case in held_out:
            other, name = seen.setdefault(case.patient_id, (fold, case.case_id))
            if other != fold:
                raise ConfigError(
                    f"folds: patient {case.patient_id} is held out in fold {other} (case {name}) and in fold {fold} "
                    f"(case {case.case_id}); a cross-validation scores each patient once."
                )
    return found


def split(cases: Sequence[CaseSource], folds: Folds, fold: int | None) -> Split:
    """The sides of one fold; no patient is on two of them. `fold` None trains on all but a test set of all folds."""
    allowed = num_folds(folds)
    if fold is not None and allowed == 0:
        raise ConfigError(f"fold {fold}: folds.kind 'none' has no folds; give no fold, or describe folds.")
    if fold is not None and not 0 <= fold < allowed:
        names = "0" if allowed == 1 else f"0 to {allowed - 1}"
        raise ConfigError(f"fold {fold}: folds.kind '{folds.kind}' has the fold{'s' * (allowed > 1)} {names}.")
    ordered = sorted(cases, key=lambda case: case.case_id)
    found = _sides(ordered, folds, fold or 0)
    if fold is None:
        test = frozenset[str]() if scored_side(folds) == "test" else found.test
        found = SplitIds(train=(found.train | found.val | found.test) - test, val=frozenset(), test=test)
    result = Split(*(tuple(case for case in ordered if case.case_id in side) for side in found))
    _refuse_shared_patients(result)
    if not result.train:
        raise ConfigError(f"fold {fold}: no case is left to train; there are {len(cases)} cases in all.")
    if fold is not None and not result.val and not result.test:
        raise ConfigError(f"fold {fold}: no case is held out; add the scans of this fold, or take another.")
    return result


def _sides(cases: Sequence[CaseSource], folds: Folds, fold: int) -> SplitIds:
    match folds:
        case KFold():
            return _deal(cases, folds, fold)
        case Holdout():
            train, val, test = _draw(cases, (folds.val_share, folds.test_share), folds.seed)
            return SplitIds(train=train, val=val, test=test)
        case SortedTail():
            return _tail(cases, folds.num_val)
        case Lists():
            return by_ids(cases, read_sides(folds.file, fold), where=folds.file, partial=folds.partial)
        case CsvSides():
            sides = read_csv_sides(folds.file, folds.case_column, folds.side_column, folds.delimiter)
            return by_ids(cases, sides, where=folds.file, partial=folds.partial)
        case Luna16Subsets():
            return _hold_out_subset(cases, folds, fold)
        case NoFolds():
            return SplitIds(train=frozenset(case.case_id for case in cases), val=frozenset(), test=frozenset())


def _deal(cases: Sequence[CaseSource], folds: KFold, fold: int) -> SplitIds:
    rest, test, _ = _draw(cases, (folds.test_share, 0.0), folds.seed)
    patients = _shuffled_patients([case for case in cases if case.case_id in rest], folds.seed + 1)
    if len(patients) < folds.num_folds:
        raise ConfigError(
            f"folds.num_folds: {folds.num_folds} folds need as many patients, there are {len(patients)}."
        )

    def part(number: int) -> frozenset[str]:
        held_out = set(patients[number % folds.num_folds :: folds.num_folds])
        return frozenset(case.case_id for case in cases if case.case_id in rest and case.patient_id in held_out)

    val = part(fold)
    if folds.rotating_test:
        test = part(fold + 1)
    return SplitIds(train=rest - val - test, val=val, test=test)


def _hold_out_subset(cases: Sequence[CaseSource], folds: Luna16Subsets, fold: int) -> SplitIds:
    subsets = None if folds.file is None else read_subsets(folds.file)
    numbers = {case.case_id: subset_of(case, subsets, folds.file) for case in cases}
    held_out = frozenset(case_id for case_id, number in numbers.items() if number == fold)
    rest = [case for case in cases if case.case_id not in held_out]
    if folds.val_share == 0:
        return SplitIds(train=frozenset(case.case_id for case in rest), val=held_out, test=frozenset())
    train, val, _ = _draw(rest, (folds.val_share, 0.0), folds.seed + fold)
    return SplitIds(train=train, val=val, test=held_out)


def _tail(cases: Sequence[CaseSource], num_val: int) -> SplitIds:
    names = [case.case_id for case in cases]
    if len(names) <= num_val:
        raise ConfigError(f"folds.num_val: {num_val} of {len(names)} cases leave none to train; give fewer.")
    return SplitIds(train=frozenset(names[:-num_val]), val=frozenset(names[-num_val:]), test=frozenset())


def _draw(
    cases: Sequence[CaseSource], shares: tuple[float, float], seed: int
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The rest, and two sides of about these shares of the patients; a share above 0 is at least one patient."""
    patients = _shuffled_patients(cases, seed)
    counts = [max(1, round(share * len(patients))) if share > 0 else 0 for share in shares]
    if sum(counts) >= len(patients) > 0:
        raise ConfigError(f"folds: {len(patients)} patients are too few for these shares; give more scans.")
    first, second = set(patients[: counts[0]]), set(patients[counts[0] : sum(counts)])
    sides: tuple[set[str], set[str], set[str]] = (set(), set(), set())
    for case in cases:
        sides[1 if case.patient_id in first else 2 if case.patient_id in second else 0].add(case.case_id)
    return frozenset(sides[0]), frozenset(sides[1]), frozenset(sides[2])


def _shuffled_patients(cases: Sequence[CaseSource], seed: int) -> list[str]:
    patients = sorted({case.patient_id for case in cases})
    return [patients[index] for index in np.random.default_rng(seed).permutation(len(patients))]


def _refuse_shared_patients(result: Split) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for side, cases in zip(Split._fields, result, strict=True):
        for case in cases:
            other_side, other_id = seen.setdefault(case.patient_id, (side, case.case_id))
            if other_side != side:
                raise ConfigError(
                    f"folds: patient {case.patient_id} is in {other_side} (case {other_id}) and in {side} "
                    f"(case {case.case_id}); put all scans of a patient on one side."
                )
