"""Recorded cases with crowds of candidates around objects, some of which are true."""

from __future__ import annotations

import numpy as np
import torch

from support.bright_scans import bright_recipe, bright_run
from voxray.core.answer_json import stamp
from voxray.core.volume import Grid
from voxray.inference.candidates.file import RecordedCase, RecordedHeader, RecordedTruth, with_truth
from voxray.tasks.candidates import Placed
from voxray.windows import lattice

SHAPE, WINDOW = (160, 160, 96), (64, 64, 64)
PLACES = lattice(SHAPE, window=WINDOW, overlap=0.5, stride=(4, 4, 4)).places
CLASSES = ("nodule", "node")


def crowded_case(
    seed: int,
    *,
    count: int = 300,
    num_views: int = 2,
    num_places: int = 14,
    classes: tuple[str, ...] = CLASSES,
) -> RecordedCase:
    """A case of patient ``p<seed // 2>``; about a third of its places hold an object, and score a little higher."""
    rng = np.random.default_rng(seed)
    places, sides = rng.uniform(10, np.array(SHAPE) - 10, (num_places, 3)), rng.uniform(4, 9, (num_places, 1))
    true = np.arange(num_places) % 3 == 0
    kinds = rng.integers(0, len(classes), num_places)
    which = rng.integers(0, num_places, count)
    centre = places[which] + rng.normal(0, 1.5, (count, 3))
    half = sides[which] * np.exp(rng.normal(0, 0.15, (count, 3)))
    boxes = np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, [*SHAPE, *SHAPE])
    placed = Placed(
        torch.from_numpy(boxes).float(),
        scores=torch.from_numpy(np.clip(rng.beta(1.2, 3, count) + 0.15 * true[which], 0.021, 0.99)).float(),
        classes=torch.from_numpy(kinds[which]),
        views=torch.from_numpy(rng.integers(0, num_views, count)),
        tiles=torch.from_numpy(rng.integers(0, len(PLACES), count)),
        starts=torch.tensor(PLACES),
        window=WINDOW,
        num_views=num_views,
    )
    grid = Grid(SHAPE, (0.8, 0.8, 1.2), (0, 0, 0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    recipe = bright_recipe("detection")
    head = RecordedHeader(
        case=f"case_{seed}",
        patient=f"p{seed // 2}",
        classes=classes,
        model=stamp(bright_run(recipe), recipe, sha256="0" * 64),
        grid=grid.to_dict(),
        scan_grid=grid.to_dict(),
        window_vox=WINDOW,
        starts_vox=tuple(PLACES),
        mirrors=((), (0,))[:num_views],
    )
    truth = np.concatenate([places - sides, places + sides], axis=1)[true]
    return with_truth(RecordedCase(head, placed=placed), RecordedTruth(truth, kinds[true]))
