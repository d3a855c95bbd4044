"""Scans of balls on disk with a dataset's file, a store of them, and what training on them tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.tiny_training import ball_case, made_store, segmentation_recipe
from voxray.core.progress import Advance
from voxray.core.volume import Volume
from voxray.dataset import read_dataset
from voxray.readers import write_nifti
from voxray.store import Store

RECIPE = segmentation_recipe("optim.epochs=2", "optim.steps_per_epoch=2", "inference.window_vox=[32,32,32]")

DATASET = """
name = "balls"
licence = "CC0-1.0"
classes = ["ball"]

[images]
glob = "images/*.nii.gz"

[annotations]
kind = "labels"
file = "labels/{case}.nii.gz"

[folds]
kind = "kfold"
num_folds = 2
"""


def write_balls(folder: Path, count: int = 4) -> Path:
    """A dataset of noisy scans with a ball each; its file."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        case = ball_case(index)
        assert case.labels is not None
        write_nifti(case.image, folder / "images" / f"{case.case_id}.nii.gz")
        write_nifti(Volume(case.labels, case.image.grid), folder / "labels" / f"{case.case_id}.nii.gz")
    path = folder / "dataset.toml"
    path.write_text(DATASET)
    return path


def store_of(file: Path, folder: Path, count: int = 4) -> Store:
    """The store that ingesting the dataset would make."""
    return made_store(folder, RECIPE, num_cases=count, **read_dataset(file).model_dump(mode="json"))


class Teller:
    """A progress that remembers what it was told, and may stop the work as Ctrl-C does."""

    def __init__(self, stop_at: Callable[[str], bool] = lambda _: False) -> None:
        self.lines: list[str] = []
        self._stop_at = stop_at

    @contextmanager
    def track(self, name: str, *, total: float | None, unit: str = "") -> Iterator[Advance]:
        """Nothing is counted."""
        del name, total, unit

        def advance(amount: float = 1, /) -> None:
            del amount

        yield advance

    def say(self, line: str) -> None:
        """Remembers the line."""
        self.lines.append(line)
        if self._stop_at(line):
            raise KeyboardInterrupt


def weights_of(run: Path) -> dict[str, bytes]:
    """Every file of weights of a run, or of the runs below a folder."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("weights.safetensors")}


def told(lines: list[str], begin: str) -> list[str]:
    """The lines that begin so."""
    return [line for line in lines if line.startswith(begin)]


Fields = dict[str, Any]
