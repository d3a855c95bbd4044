"""Runs of the small networks, as training would have left them."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from support.small_networks import CLASSES, small_network, small_recipe
from voxray.core.config import to_json
from voxray.core.run import Run
from voxray.training.checkpoint import Checkpoint, write_checkpoint


def write_small_run(folder: Path, kind: str, *, module: nn.Module | None = None) -> Path:
    """A run folder with the small network's weights, or with those of a module like it."""
    recipe = small_recipe(kind)
    run = Run(
        name=f"small {kind}",
        dataset="nothing",
        licence="CC0-1.0",
        classes=CLASSES,
        recipe=json.loads(to_json(recipe)),
        commit="0123456",
        voxray_version="0",
    )
    write_checkpoint(folder, Checkpoint(run=run, weights=(module or small_network(kind)).state_dict(), epochs_done=0))
    return folder
