"""The predictor: a scan in, its answer on the scan's own grid out.

Nothing is ever held for the whole scan but the scan itself, its resampled image, and the answer: windows are cut,
answered, blended and finished in order, and what is finished goes back to the scan's grid at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.errors import ConfigError
from voxray.core.outputs import Head
from voxray.core.recipe import DetectionMerge, GridConfig, Merge, Recipe, SegmentationMerge
from voxray.core.run import Run
from voxray.core.volume import Grid, Shape, Volume
from voxray.inference.candidates.file import merge_candidates
from voxray.inference.candidates.recorder import Recorder
from voxray.inference.fast_windows import half_on, planned
from voxray.inference.memory_estimate import Computed, require_memory
from voxray.inference.restore import FEW_CLASSES, axis_map, detections_on, labels_on, shares_on
from voxray.inference.sliding import Autocast, Forward, Watch, slide
from voxray.preprocess import orient, oriented_grid, require_volume, resample, resampled_grid
from voxray.tasks import Task, build_task
from voxray.tasks.detection import DetectionTask
from voxray.tasks.segmentation import SegmentationTask

_Windows = Iterator[tuple[Shape, Any]]


@dataclass(frozen=True)
class Prediction:
    """A scan's answer on the scan's own grid: `detections` (edge voxels) or `labels`; the other is None."""

    grid: Grid
    detections: Detections | None = None
    labels: Volume | None = None
    warnings: tuple[str, ...] = ()
    """What is worth knowing of the scan: from its reader, and of its values."""

    @property
    def world(self) -> Detections:
        """The detections in LPS mm."""
        assert self.detections is not None
        return self.detections.to_world(self.grid)


@dataclass(frozen=True)
class Prepared:
    """A scan on a recipe's grid, which a network can answer, and where it came from."""

    image: Volume
    grid: Grid
    """The scan's own, as its file stores it."""
    warnings: tuple[str, ...] = ()


def prepare_scan(volume: Volume, grid: GridConfig) -> Prepared:
    """The scan turned and resampled for a recipe; a DataError where it is a single slice."""
    require_volume(volume.grid)
    turned = orient(volume, grid.orientation)
    return Prepared(resample(turned, grid.spacing_mm), volume.grid, volume.warnings)


class Predictor:
    """A run's network, or several that answer together, ready for scans on one device; `how` replaces the merge.

    A network is a torch module, or a runtime's engine; several share the recipe's grid, intensity and windows.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        model: Forward | Sequence[Forward],
        device: torch.device | str = "cpu",
        *,
        how: Merge | None = None,
        amp: Autocast | None = None,
    ) -> None:
        self.run, self.recipe, self.how = run, recipe, how or recipe.merge
        assert self.how.kind == recipe.merge.kind, (self.how.kind, recipe.merge.kind)
        self.device = torch.device(device)
        members = list(model) if isinstance(model, Sequence) else [model]
        self.recipe = _for_engines(self.recipe, members)
        self.members = [one.to(self.device) if isinstance(one, nn.Module) else one for one in members]
        self.amp: Autocast = amp or self._precision()

    def predict(self, volume: Volume, *, recorder: Recorder | None = None) -> Prediction:
        """The answer to a scan in HU as it was read, whatever its orientation and spacing; `recorder` takes notes."""
        self.require_memory(volume.grid)
        return self.answer(prepare_scan(volume, self.recipe.grid), recorder=recorder)

    def answer(self, scan: Prepared, *, recorder: Recorder | None = None, watch: Watch | None = None) -> Prediction:
        """The answer to a prepared scan, on the scan's own grid; `watch` is told how far it is."""
        task, windows = self._prepared(scan.image, watch)
        if isinstance(task, SegmentationTask):
            labels = self._segmented(task, windows, scan.image.grid, scan.grid, recorder)
            return Prediction(scan.grid, labels=labels, warnings=scan.warnings)
        answer = self._merged(task, windows, scan.image.grid, recorder)
        assert isinstance(answer, Detections)
        found = detections_on(answer, scan.image.grid, scan.grid)
        return Prediction(scan.grid, detections=found, warnings=scan.warnings)

    def predict_grid(self, image: Volume | Case, *, recorder: Recorder | None = None) -> Detections | Volume:
        """The answer to an image that lies on the recipe's grid already: edge voxels or labels of that grid."""
        volume = image.image if isinstance(image, Case) else image
        return self._merged(*self._prepared(volume), volume.grid, recorder)

    def require_memory(self, scan: Grid) -> None:
        """Before any work: a ResourceError where the answer to such a scan would not fit."""
        turned = oriented_grid(scan, self.recipe.grid.orientation)
        shape = resampled_grid(turned, self.recipe.grid.spacing_mm).shape
        recipe = planned(self.recipe, shape, fixed=self.recipe.inference.whole_windows)
        classes, engines = len(self.run.classes), [getattr(one, "precision", "fp32") for one in self.members]
        half = self.amp != "off" or "fp32" not in engines
        head = self._head()
        how = Computed(half, None if head is None else head.weight.shape[1])
        require_memory(recipe, classes, scan=turned.shape, image=shape, device=self.device, how=how)

    def _head(self) -> Head | None:
        """What is left to do to blended windows; of several views the logits are averaged."""
        alone = len(self.members) == 1 and not self.recipe.inference.mirrors
        head: Head | None = getattr(self.members[0], "head", None) if alone else None
        return head

    def _prepared(self, image: Volume, watch: Watch | None = None) -> tuple[Task[Any, Any, Any], _Windows]:
        """The task and its windows over the image, with the recipe that is planned for it."""
        recipe = planned(self.recipe, image.grid.shape, fixed=self.recipe.inference.whole_windows)
        task = build_task(recipe, self.run.classes)
        if isinstance(task, SegmentationTask):
            task.head = self._head()
        windows = slide(
            image.hounsfield, self.members, task, recipe=recipe, device=self.device, amp=self.amp, watch=watch
        )
        return task, windows

    def _merged(
        self, task: Task[Any, Any, Any], windows: _Windows, grid: Grid, recorder: Recorder | None
    ) -> Detections | Volume:
        how = self.how
        with self._answering():
            if recorder is None:
                answer: Any = task.merge(windows, grid, how)
            elif isinstance(task, DetectionTask):
                assert isinstance(how, DetectionMerge)
                recorder.candidates(task.place(windows, grid), grid)
                answer = merge_candidates(recorder.required, grid, how)
            else:
                assert isinstance(task, SegmentationTask)
                assert isinstance(how, SegmentationMerge)
                recorder.begin(grid)
                answer = task.finish(task.blend(windows, grid, how, keep=recorder.block), how)
        return answer if isinstance(answer, Detections | Volume) else Volume(np.asarray(answer), grid)

    def _interpolates(self, source: Grid, target: Grid) -> bool:
        """Whether classes' shares, not labels, go back to the scan's grid."""
        if self.recipe.inference.restore == "labels" or np.allclose(np.abs(axis_map(target, source).scale), 1.0):
            return False
        return self.recipe.inference.restore == "shares" or len(self.run.classes) <= FEW_CLASSES

    def _segmented(
        self, task: SegmentationTask, windows: _Windows, source: Grid, target: Grid, recorder: Recorder | None
    ) -> Volume:
        """The label map on the scan's own grid, where its components are judged."""
        how = self.how
        assert isinstance(how, SegmentationMerge)
        if recorder is not None:
            recorder.begin(source)
        with self._answering():
            if self._interpolates(source, target):
                axis, named = int(np.argmax(source.shape)), partial(task.labels_from, how=how)
                slabs = task.shares(windows, source)
                slabs = slabs if recorder is None else recorder.slabs(slabs, axis)
                labels = shares_on(slabs, source, target, axis=axis, named=named)
            else:
                block = None if recorder is None else recorder.block
                labels = labels_on(task.blend(windows, source, how, keep=block), target)
        return task.finish(labels, how)

    def _precision(self) -> Autocast:
        """A module's; a runtime has its own."""
        if not any(isinstance(one, nn.Module) for one in self.members):
            return "off"
        if self.recipe.inference.plan == "fast":
            return half_on(self.device)
        return self.recipe.optim.amp if self.device.type == "cuda" else "off"

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


def _for_engines(recipe: Recipe, members: Sequence[Forward]) -> Recipe:
    """The recipe with the window and the batch that engines which take no others were built for."""
    config = recipe.inference
    fixed = {window for window in (getattr(one, "window_vox", None) for one in members) if window is not None}
    if len(fixed) > 1:
        raise ConfigError(
            f"the engines were built for different windows, {sorted(fixed)}; use engines of one window."
        )
    for window in fixed:
        config = config.model_copy(update={"window_vox": window, "whole_windows": True})
    most = [batch for batch in (getattr(one, "max_batch", None) for one in members) if batch is not None]
    if min(most, default=config.batch_size) < config.batch_size:
        config = config.model_copy(update={"batch_size": min(most)})
    return recipe if config is recipe.inference else recipe.model_copy(update={"inference": config})
