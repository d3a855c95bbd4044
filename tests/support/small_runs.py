"""Runs of the small networks, as training would have left them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

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


def retold(run: Path, **fields: Any) -> None:
    """Writes other fields into the `run.json` of a run's only checkpoint, as if it had been trained with them."""
    (about,) = run.glob("checkpoints/*/run.json")
    about.write_text(json.dumps(json.loads(about.read_text()) | fields))
    state = json.loads((run / "state.json").read_text())
    state["digests"][about.parent.name]["run.json"] = hashlib.sha256(about.read_bytes()).hexdigest()
    (run / "state.json").write_text(json.dumps(state))
