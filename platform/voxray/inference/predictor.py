"""The plain predictor: a scan in, its answer on the scan's own grid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from voxray.case import Case
from voxray.detections import Detections
from voxray.inference.restore import detections_on, labels_on
from voxray.inference.sliding import Precision, slide
from voxray.preprocess import orient, resample
from voxray.recipe import Merge, Recipe
from voxray.run import Run
from voxray.tasks import build_task
from voxray.volume import Grid, Volume


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
    """A run's network, ready to answer scans on one device; `how` replaces the recipe's own merge."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        model: nn.Module,
        device: torch.device | str = "cpu",
        *,
        how: Merge | None = None,
        amp: Precision | None = None,
    ) -> None:
        self.run, self.recipe, self.how = run, recipe, how or recipe.merge
        assert self.how.kind == recipe.merge.kind, (self.how.kind, recipe.merge.kind)
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.task = build_task(recipe, run.classes)
        self.amp: Precision = amp or (recipe.optim.amp if self.device.type == "cuda" else "off")

    def predict(self, volume: Volume) -> Prediction:
        """The answer to a scan in HU as it was read, whatever its orientation and spacing."""
        image = resample(orient(volume, self.recipe.grid.orientation), self.recipe.grid.spacing_mm)
        answer = self.predict_grid(image)
        if isinstance(answer, Detections):
            return Prediction(volume.grid, detections=detections_on(answer, image.grid, volume.grid))
        return Prediction(volume.grid, labels=labels_on(answer, volume.grid))

    def predict_grid(self, image: Volume | Case) -> Detections | Volume:
        """The answer to an image that lies on the recipe's grid already: edge voxels or labels of that grid."""
        volume = image.image if isinstance(image, Case) else image
        if not self.model.training:
            return self._merged(volume)
        self.model.eval()
        try:
            return self._merged(volume)
        finally:
            self.model.train()

    @torch.inference_mode()
    def _merged(self, volume: Volume) -> Detections | Volume:
        windows = slide(
            volume.hounsfield, self.model, self.task, recipe=self.recipe, device=self.device, amp=self.amp
        )
        answer: Any = self.task.merge(windows, volume.grid, self.how)
        if isinstance(answer, Detections | Volume):
            return answer
        return Volume(np.asarray(answer), volume.grid)
