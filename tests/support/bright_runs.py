"""A run folder whose network answers "bright", and datasets of bright spheres to run it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from support.bright_scans import BrightConfig, bright_recipe, bright_run, sphere_scan
from voxray.core.progress import SilentProgress
from voxray.core.recipe import Recipe
from voxray.core.volume import Volume
from voxray.models import MODELS
from voxray.readers import write_nifti
from voxray.training.checkpoint import Checkpoint, write_checkpoint

TURNS = (np.eye(3), np.diag([-1.0, 1.0, -1.0]), np.eye(3)[[1, 2, 0]])


class Heard(SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """One line."""
        self.lines.append(line)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the network one of voxray's for a test, as a line in MODELS would."""
    monkeypatch.setitem(cast(dict[str, Any], MODELS), "bright", BrightConfig)


def write_run(folder: str | Path, task: str, *, threshold: float | None = None, **fields: Any) -> Recipe:
    """A run with its checkpoint; `fields` go into run.json."""
    recipe = bright_recipe(task)
    model = BrightConfig().build(recipe, 1)
    weights = model.state_dict()
    if threshold is not None:
        weights["threshold"] = weights["threshold"] * 0 + threshold
    run = bright_run(recipe).model_copy(update=fields)
    write_checkpoint(folder, Checkpoint(run=run, weights=weights, epochs_done=0))
    return recipe


def write_spheres(folder: Path, count: int = 3) -> Path:
    """A dataset: scans in images/, label maps in labels/, the spheres' centres and sides in boxes.csv; its file."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rows = ["case,class,x,y,z,w,h,d"]
    for index in range(count):
        scan, centre = sphere_scan(TURNS[index % 3], angles_deg=(5.0 * index, 0.0, -8.0 * index))
        write_nifti(scan, folder / "images" / f"s{index}.nii.gz")
        write_nifti(Volume((scan.voxels > 0).astype(np.uint8), scan.grid), folder / "labels" / f"s{index}.nii.gz")
        rows.append(f"s{index},bright,{centre[0]},{centre[1]},{centre[2]},19.0,19.0,19.0")
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    path = folder / "dataset.toml"
    path.write_text(DATASET)
    return path


DATASET = """
name = "spheres"
licence = "CC0-1.0"
classes = ["bright"]

[images]
glob = "images/*.nii.gz"

[[annotations]]
kind = "boxes_csv"
file = "boxes.csv"
frame = "LPS"
form = "center_size"
box_columns = ["x", "y", "z", "w", "h", "d"]

[[annotations]]
kind = "labels"
file = "labels/{case}.nii.gz"
objects = "none"

[folds]
kind = "kfold"
num_folds = 3
"""
