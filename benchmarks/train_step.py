"""The share of a training step that is spent waiting for patches: the stream against reading between steps.

The peer reads, decodes and cuts each batch in the training process, as a loader without workers does; voxray's stream
does so in reading tasks while the network works. Both train the same small networks on the same patches of generated
scans, through `voxray train` itself; the first epoch, in which readers start, is left out on both sides.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from table import Row, options, show

from voxray.commands.ingest import ingest
from voxray.commands.train import train
from voxray.core.progress import SilentProgress
from voxray.core.recipe import Recipe
from voxray.dataset import read_dataset
from voxray.distributed.cluster import connect
from voxray.distributed.training import TrainOptions
from voxray.phantoms import write_toy
from voxray.recipes import read_recipe

AIM_PERCENT = 5.0

_GRID = (
    "grid.spacing_mm=[2.0,2.0,2.0]",
    "optim.optimizer='adamw'",
    "optim.schedule='cosine'",
    "optim.decay_epochs=[]",
)
SETTINGS = {
    "lung_nodule": (
        "thorax",
        *_GRID,
        "patch.size_vox=[64,64,48]",
        "patch.margin_vox=[16,16,16]",
        "patch.max_object_vox=[20,20,20]",
        "network.backbone='resnet10'",
        "network.width=16",
        "network.channels=32",
        "inference.window_vox=[96,96,64]",
    ),
    "spleen": (
        "abdomen",
        *_GRID,
        "patch.size_vox=[64,64,64]",
        "patch.margin_vox=[16,16,16]",
        "network.channels=[16,32,64]",
        "network.strides=[2,2]",
        "inference.window_vox=[64,64,64]",
    ),
    "whole_body": (
        "abdomen",
        *_GRID,
        "patch.size_vox=[64,64,64]",
        "patch.margin_vox=[16,16,16]",
        "network.init_filters=8",
        "inference.window_vox=[64,64,64]",
    ),
}


def main() -> None:
    """Measures and prints the table."""
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is loaded; training workers have it too
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    asked = options(__doc__ or "")
    epochs, steps, cases = (3, 15, 4) if asked.quick else (5, 40, 8)
    with tempfile.TemporaryDirectory() as folder, connect():
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        rows = [_compare(name, Path(folder), epochs, steps, cases) for name in SETTINGS]
    title = f"waiting for patches while training, {os.cpu_count()} cores, {epochs - 1} epochs of {steps} steps"
    show(rows, title=title, json_file=asked.json)


def _compare(name: str, folder: Path, epochs: int, steps: int, cases: int) -> Row:
    kind, *overrides = SETTINGS[name]
    overrides += [f"optim.epochs={epochs}", f"optim.steps_per_epoch={steps}", "optim.batch_size=2"]
    recipe = read_recipe(name, overrides)
    dataset = write_toy(folder / kind, kind=kind, num_cases=cases)
    if name == "spleen":
        dataset = dataset.with_name("dataset_spleen.toml")
    store = str(folder / f"{name}_store")
    ingest(read_dataset(dataset), recipe, store, progress=SilentProgress())
    here, streamed = (_waiting(store, recipe, folder / f"{name}_{workers}", workers) for workers in (0, 1))
    return Row(
        f"{name}: {recipe.patch.size_vox[0]} x {recipe.patch.size_vox[1]} x {recipe.patch.size_vox[2]}",
        here,
        streamed,
        "% of a step",
        aim=AIM_PERCENT,
        less_is_better=True,
        aim_of="voxray",
    )


def _waiting(store: str, recipe: Recipe, run: Path, workers: int) -> float:
    """Per cent of the steps' time, over all epochs but the first; nothing is validated."""
    train(store, recipe, run, TrainOptions(fold=None, workers=workers), progress=SilentProgress())
    history = json.loads((run / "history.json").read_text())[1:]
    seconds = np.array([row["step_s"] for row in history])
    return float(100 * (seconds * [row["wait_share"] for row in history]).sum() / seconds.sum())


if __name__ == "__main__":
    main()
