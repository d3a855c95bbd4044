"""What is known of each thing that is reported: its evaluation, and where they are at hand its training and scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float64

from voxray.core.evaluation import Evaluation
from voxray.core.run import Run


@dataclass(frozen=True)
class Training:
    """A run as its folder tells it."""

    run: Run
    recipe: str
    """As TOML."""
    history: tuple[Mapping[str, float], ...] = ()
    """One row of numbers for each epoch."""
    epochs_done: int = 0
    finished: bool = True
    best: str = ""
    """Which checkpoint answers, and by which value it was chosen."""
    failure: str = ""
    """Why its workers stopped."""


@dataclass(frozen=True)
class Data:
    """The dataset as its file tells it."""

    name: str
    licence: str
    about: str
    folds: str
    num_cases: int
    num_patients: int


PictureKind = Literal["hit", "false", "missed", "best", "worst"]


@dataclass(frozen=True)
class Shown:
    """A picture of a finding, an object or a case."""

    kind: PictureKind
    caption: str
    alt: str
    png: bytes
    rank: float = 0.0
    """Of its kind the lowest comes first."""


@dataclass(frozen=True)
class Scans:
    """What the scans themselves say of the true objects, and pictures of them."""

    sizes_mm: Mapping[str, Float64[np.ndarray, " n"]] = field(default_factory=dict)
    """Case -> the mean side of each object of an evaluation of detection, in its order."""
    objects_hu: Mapping[str, Float64[np.ndarray, " n"]] = field(default_factory=dict)
    """Case -> the mean intensity within each object."""
    structures_hu: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Case -> class -> the mean intensity of the true structure, of an evaluation of segmentation."""
    pictures: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One evaluation of a report and all that belongs to it."""

    label: str
    """Its name in the report, which no other entry has."""
    evaluation: Evaluation
    training: Training | None = None
    data: Data | None = None
    scans: Scans | None = None
    """None where they are not in reach."""
    remarks: tuple[str, ...] = ()
    """What the report lacks, and why."""
