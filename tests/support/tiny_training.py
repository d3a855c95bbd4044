"""A store of a few small cases, recipes that train on it in seconds, and a training to be stopped from outside."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from support.tiny_task import tiny_recipe
from voxray.commands.train import train
from voxray.core.case import Case
from voxray.core.errors import TerminatedError
from voxray.core.progress import PlainProgress, Progress, SilentProgress
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.core.volume import Grid, Volume
from voxray.distributed.training import TrainOptions, TrainReport
from voxray.store import Store, write_case, write_manifest
from voxray.training.checkpoint import read_state

SIDE = 28
DATASET: dict[str, Any] = {
    "name": "balls",
    "licence": "CC0-1.0",
    "classes": ["ball"],
    "folds": {"kind": "kfold", "num_folds": 3},
}


def segmentation_recipe(*overrides: str) -> Recipe:
    """A UNet of two levels with a step of everything random."""
    return tiny_recipe(
        "patch.margin_vox=[4,4,4]",
        "patch.per_tile=2",
        "optim.steps_per_epoch=3",
        "optim.epochs=3",
        "network.dropout=0.1",
        "augment.flip_p=0.5",
        "augment.noise_p=0.5",
        *overrides,
    )


def detection_recipe(*overrides: str) -> Recipe:
    """A RetinaNet as small as they come."""
    return tiny_recipe(
        "patch.margin_vox=[4,4,4]",
        "patch.max_object_vox=[12,12,12]",
        "patch.per_tile=2",
        "optim.steps_per_epoch=3",
        "optim.epochs=2",
        'network={kind="retinanet", backbone="resnet10", width=4, channels=8, norm_groups=2, stem_kernel=[3,3,3], '
        "stem_stride=[1,1,1]}",
        "anchors={base_shapes_vox=[[8,8,8]], level_scales=[1,2,4]}",
        'loss={kind="detection"}',
        'merge={kind="detection"}',
        *overrides,
    )


def ball_case(index: int) -> Case:
    """A noisy cube with a bright ball, its label map and its box."""
    rng = np.random.default_rng(index)
    centre = rng.uniform(9, SIDE - 9, 3)
    axes = np.stack(np.meshgrid(*[np.arange(SIDE) + 0.5] * 3, indexing="ij"))
    inside = np.sqrt(((axes - centre.reshape(3, 1, 1, 1)) ** 2).sum(axis=0)) < 5
    voxels = np.where(inside, 500, -500) + rng.normal(0, 50, inside.shape)
    grid = Grid((SIDE,) * 3, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    return Case(
        case_id=f"case_{index}",
        patient_id=f"case_{index}",
        image=Volume(voxels.astype(np.int16), grid),
        boxes=np.concatenate([centre - 5, centre + 5])[None],
        classes=np.zeros(1, np.int64),
        labels=inside.astype(np.uint8),
    )


def without_ball(case: Case) -> Case:
    """The same scan, in which nothing is to be found."""
    assert case.labels is not None
    return replace(case, boxes=case.boxes[:0], classes=case.classes[:0], labels=np.zeros_like(case.labels))


def made_store(folder: Path, recipe: Recipe, *, num_cases: int = 6, empty: bool = False, **changes: Any) -> Store:
    """The store of some balls for a recipe, or of scans without one."""
    place = Place.of(folder)
    cases = [without_ball(ball_case(index)) if empty else ball_case(index) for index in range(num_cases)]
    stored = [write_case(place, case, recipe, original_grid=case.image.grid, signature="s") for case in cases]
    write_manifest(place, stored, recipe, dataset=DATASET | changes, failed={})
    return Store.open(folder)


def train_silently(
    source: str | Path, recipe: Recipe, run: str | Path, *, progress: Progress | None = None, **options: Any
) -> TrainReport:
    """A training with these fields of `TrainOptions`."""
    return train(source, recipe, run, TrainOptions(**options), progress=progress or SilentProgress())


def last_weights(run: Path) -> bytes:
    """The last checkpoint's weights."""
    return (run / "checkpoints" / read_state(run).last / "weights.safetensors").read_bytes()


def main(store: str, run: str, workers: str, *overrides: str) -> None:
    """A training in a process of its own; exit code 130 after Ctrl-C, 143 after SIGTERM."""
    try:
        recipe, progress = segmentation_recipe(*overrides), PlainProgress(sys.stderr)
        print(train_silently(store, recipe, run, progress=progress, workers=int(workers)))
    except KeyboardInterrupt as end:
        sys.exit(143 if isinstance(end, TerminatedError) else 130)


if __name__ == "__main__":
    main(*sys.argv[1:])
