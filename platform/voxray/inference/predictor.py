"""The predictor: a scan in, its answer on the scan's own grid out.

Nothing is ever held for the whole scan but the scan itself, its resampled image, and the answer: windows are cut,
answered, blended and finished in order, and what is finished goes back to the scan's grid at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.errors import ConfigError
from voxray.core.outputs import Head
from voxray.core.recipe import GridConfig, Merge, Recipe
from voxray.core.run import Run
from voxray.core.volume import Grid, Shape, Volume
from voxray.inference.memory_estimate import Computed, require_memory
from voxray.inference.sliding import Autocast, Watch, slide
from voxray.preprocess import orient, oriented_grid, require_volume, resample, resampled_grid
from voxray.runtimes.device import half_on
from voxray.runtimes.protocol import Forward, Runtime, as_runtime
from voxray.tasks import build_task
from voxray.tasks.recorder import Recorder
from voxray.windows import planned


@dataclass(frozen=True)
class Prediction:
    """A scan's answer on the scan's own grid: `detections` (edge voxels) or `labels`; the other is None."""

    grid: Grid
    detections: Detections | None = None
    labels: Volume | None = None
    warnings: tuple[str, ...] = ()
    """What is worth knowing of the scan: from its reader, and of its values."""

    @staticmethod
    def of(answer: Detections | Volume, grid: Grid, warnings: tuple[str, ...] = ()) -> Prediction:
        """A task's answer on the scan's own grid."""
        if isinstance(answer, Detections):
            return Prediction(grid, detections=answer, warnings=warnings)
        return Prediction(grid, labels=answer, warnings=warnings)

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

    A network is a torch module, or a runtime; several share the recipe's grid, intensity and windows.
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
        self.run, self.how = run, how or recipe.merge
        assert self.how.kind == recipe.merge.kind, (self.how.kind, recipe.merge.kind)
        self.device = torch.device(device)
        networks = list(model) if isinstance(model, Sequence) else [model]
        self.members = [as_runtime(one, self.device) for one in networks]
        self.recipe = _for_runtimes(recipe, self.members)
        self._modules = [one for one in networks if isinstance(one, nn.Module)]
        self.amp: Autocast = amp or self._autocast()

    def predict(self, volume: Volume, *, recorder: Recorder | None = None) -> Prediction:
        """The answer to a scan in HU as it was read, whatever its orientation and spacing."""
        self.require_memory(volume.grid)
        return self.answer(prepare_scan(volume, self.recipe.grid), recorder=recorder)

    def answer(self, scan: Prepared, *, recorder: Recorder | None = None, watch: Watch | None = None) -> Prediction:
        """The answer to a prepared scan, on the scan's own grid; `watch` is told how far it is."""
        answer = self._answered(scan.image, scan_grid=scan.grid, recorder=recorder, watch=watch)
        return Prediction.of(answer, scan.grid, scan.warnings)

    def predict_grid(self, image: Volume | Case, *, recorder: Recorder | None = None) -> Detections | Volume:
        """The answer to an image that lies on the recipe's grid already: edge voxels or labels of that grid."""
        return self._answered(image.image if isinstance(image, Case) else image, recorder=recorder)

    def require_memory(self, scan: Grid) -> None:
        """Before any work: a ResourceError where the answer to such a scan would not fit."""
        turned = oriented_grid(scan, self.recipe.grid.orientation)
        shape = resampled_grid(turned, self.recipe.grid.spacing_mm).shape
        half = self.amp != "off" or all(one.precision != "fp32" for one in self.members)
        head = self._head
        how = Computed(half, None if head is None else head.weight.shape[1])
        classes, device = len(self.run.classes), self.device
        require_memory(self._planned(shape), classes, scan=turned.shape, image=shape, device=device, how=how)

    def _answered(
        self,
        image: Volume,
        *,
        scan_grid: Grid | None = None,
        recorder: Recorder | None = None,
        watch: Watch | None = None,
    ) -> Detections | Volume:
        """The task's answer to an image on the recipe's grid, there or on the scan's own grid."""
        recipe = self._planned(image.grid.shape)
        task = build_task(recipe, self.run.classes, head=self._head)
        windows = slide(
            image.hounsfield,
            self.members,
            task,
            recipe=recipe,
            device=self.device,
            amp=self.amp,
            watch=watch,
        )
        with self._answering():
            answer: Detections | Volume = task.merge(
                windows, image.grid, self.how, scan_grid=scan_grid, recorder=recorder
            )
        return answer

    def _planned(self, shape: Shape) -> Recipe:
        """The recipe with the windows for an image of this shape."""
        return planned(self.recipe, shape, fixed=self.recipe.inference.whole_windows)

    @property
    def _head(self) -> Head | None:
        """What is left to do to blended windows; of several views the logits are averaged."""
        alone = len(self.members) == 1 and not self.recipe.inference.mirrors
        return self.members[0].head if alone else None

    def _autocast(self) -> Autocast:
        """A module's; a runtime has its own."""
        if not self._modules:
            return "off"
        if self.recipe.inference.plan == "fast":
            return half_on(self.device)
        return self.recipe.optim.amp if self.device.type == "cuda" else "off"

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Without gradients, and with every module in eval mode, which is left as it was."""
        training = [one for one in self._modules if one.training]
        for one in training:
            one.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for one in training:
                one.train()


def _for_runtimes(recipe: Recipe, members: Sequence[Runtime]) -> Recipe:
    """The recipe with the window and the batch that runtimes which take no others were built for."""
    config = recipe.inference
    fixed = {one.window_vox for one in members if one.window_vox is not None}
    if len(fixed) > 1:
        raise ConfigError(
            f"the engines were built for different windows, {sorted(fixed)}; use engines of one window."
        )
    for window in fixed:
        config = config.model_copy(update={"window_vox": window, "whole_windows": True})
    most = [one.max_batch for one in members if one.max_batch is not None]
    if min(most, default=config.batch_size) < config.batch_size:
        config = config.model_copy(update={"batch_size": min(most)})
    return recipe if config is recipe.inference else recipe.model_copy(update={"inference": config})
