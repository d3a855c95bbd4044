"""The predictor: a scan in, its answer on the scan's own grid out.

Nothing is ever held for the whole scan but the scan itself, its resampled image, and the answer: windows are cut,
answered, blended and finished in order, and what is finished goes back to the scan's grid at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from voxray.case import Case
from voxray.detections import Detections
from voxray.inference.restore import axis_map, detections_on, labels_on, shares_on
from voxray.inference.sliding import Network, Precision, slide
from voxray.preprocess import orient, resample
from voxray.recipe import Merge, Recipe, SegmentationMerge
from voxray.run import Run
from voxray.tasks import build_task
from voxray.tasks.segmentation import SegmentationTask
from voxray.volume import Grid, Shape, Volume

FEW_CLASSES = 7
"""Up to so many foreground classes, their probabilities go back to the scan's own grid, not their labels."""


@dataclass(frozen=True)
class Prediction:
    """A scan's answer on the scan's own grid: `detections` (edge voxels) or `labels`; the other is None."""

    grid: Grid
    detections: Detections | None = None
    labels: Volume | None = None

    @property
    def world(self) -> Detections:
        """The detections in LPS mm."""
        assert self.detections is not None
        return self.detections.to_world(self.grid)


class Predictor:
    """A run's network, or several that answer together, ready for scans on one device; `how` replaces the merge.

    A network is a torch module, or a runtime's engine; several share the recipe's grid, intensity and windows.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        model: Network | Sequence[Network],
        device: torch.device | str = "cpu",
        *,
        how: Merge | None = None,
        amp: Precision | None = None,
    ) -> None:
        self.run, self.recipe, self.how = run, recipe, how or recipe.merge
        assert self.how.kind == recipe.merge.kind, (self.how.kind, recipe.merge.kind)
        self.device = torch.device(device)
        members = list(model) if isinstance(model, Sequence) else [model]
        self.members = [one.to(self.device) if isinstance(one, nn.Module) else one for one in members]
        self.task = build_task(recipe, run.classes)
        self.amp: Precision = amp or (recipe.optim.amp if self.device.type == "cuda" else "off")

    def predict(self, volume: Volume) -> Prediction:
        """The answer to a scan in HU as it was read, whatever its orientation and spacing."""
        image = resample(orient(volume, self.recipe.grid.orientation), self.recipe.grid.spacing_mm)
        if isinstance(self.task, SegmentationTask) and self._interpolates(image.grid, volume.grid):
            return Prediction(volume.grid, labels=self._interpolated(self.task, image, volume.grid))
        answer = self.predict_grid(image)
        if isinstance(answer, Detections):
            return Prediction(volume.grid, detections=detections_on(answer, image.grid, volume.grid))
        return Prediction(volume.grid, labels=labels_on(answer, volume.grid))

    def predict_grid(self, image: Volume | Case) -> Detections | Volume:
        """The answer to an image that lies on the recipe's grid already: edge voxels or labels of that grid."""
        volume = image.image if isinstance(image, Case) else image
        with self._answering():
            answer: Any = self.task.merge(self._windows(volume), volume.grid, self.how)
        return answer if isinstance(answer, Detections | Volume) else Volume(np.asarray(answer), volume.grid)

    def _interpolates(self, source: Grid, target: Grid) -> bool:
        """Whether classes' shares, not labels, go back to the scan's grid."""
        if self.recipe.inference.restore == "labels" or np.allclose(np.abs(axis_map(target, source).scale), 1.0):
            return False
        return self.recipe.inference.restore == "shares" or len(self.run.classes) <= FEW_CLASSES

    def _interpolated(self, task: SegmentationTask, image: Volume, target: Grid) -> Volume:
        assert isinstance(self.how, SegmentationMerge)
        with self._answering():
            shares = task.shares(self._windows(image), image.grid)
            labels = shares_on(shares, image.grid, target, axis=int(np.argmax(image.grid.shape)))
        return task.finish(labels, self.how)

    def _windows(self, volume: Volume) -> Iterator[tuple[Shape, Any]]:
        return slide(volume.hounsfield, self.members, self.task, recipe=self.recipe, device=self.device, amp=self.amp)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Without gradients, and with every network in eval mode, which is left as it was."""
        training = [one for one in self.members if isinstance(one, nn.Module) and one.training]
        for one in training:
            one.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for one in training:
                one.train()
