"""Segmentation: label maps from logits, stitched from windows in slabs so that no class is ever whole in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage
from torch import Tensor

from voxray.batch import Batch
from voxray.case import Case
from voxray.errors import ConfigError
from voxray.losses import Reduce
from voxray.losses.segmentation import segmentation_loss
from voxray.metrics.dice import confusion, dice
from voxray.outputs import SegmentationOutput
from voxray.recipe import Recipe, SegmentationLoss, SegmentationMerge
from voxray.tasks.stitch import Window, label_slabs
from voxray.volume import Grid, Volume

MAX_CLASSES = 255
"""A label map holds uint8, and 0 is background."""

_TOUCHING = np.ones((3, 3, 3))
"""Voxels that share a corner belong to one component."""


class SegmentationTask:
    """The segmentation `Task`: logits are blended and argmax'd; softmax would change nothing but the memory."""

    primary_metric = "dice"

    def __init__(self, recipe: Recipe, classes: Sequence[str]) -> None:
        if len(classes) > MAX_CLASSES:
            raise ConfigError(f"a label map holds at most {MAX_CLASSES} classes, got {len(classes)}; train fewer.")
        assert isinstance(recipe.loss, SegmentationLoss), recipe.loss.kind
        self.recipe, self.classes, self._loss = recipe, tuple(classes), recipe.loss

    def loss(self, output: SegmentationOutput, batch: Batch, reduce: Reduce) -> dict[str, Tensor]:
        """The ``dice`` and ``ce`` parts, already weighted."""
        assert batch.labels is not None, "segmentation trains on label maps"
        return segmentation_loss(output.logits, batch.labels, self._loss, reduce)

    def decode(self, output: SegmentationOutput) -> list[Tensor]:
        """Each window's logits (classes x y z), as they are."""
        return list(output.logits.unbind(0))

    def merge(self, windows: Iterable[Window], grid: Grid, how: SegmentationMerge) -> Volume:
        """The label map on `grid`; windows come in the order of their first voxel along the grid's longest axis."""
        labels = np.zeros(grid.shape, np.uint8)
        longest = int(np.argmax(grid.shape))
        planes = np.moveaxis(labels, longest, 0)
        for first, slab in label_slabs(windows, grid.shape, axis=longest, blend=self.recipe.inference.blend):
            planes[first : first + len(slab)] = slab.cpu().numpy()
        if how.min_component_mm3 > 0:
            smallest_vox = how.min_component_mm3 / float(np.prod(grid.spacing_mm))
            labels = without_small_components(labels, smallest_vox=smallest_vox)
        return Volume(labels, grid)

    def score(self, found: Sequence[Volume], truth: Sequence[Case]) -> dict[str, float]:
        """Mean Dice of each class over the cases that have it (``dice/spleen``), and the mean of those (``dice``).

        A class without truth in any case has no key; `metrics.dice.classes_without_truth` lists it. Without any
        truth ``dice`` is nan.
        """
        per_case = np.full((len(truth), len(self.classes)), np.nan)
        for row, answer, case in zip(per_case, found, truth, strict=True):
            assert case.labels is not None, f"case {case.case_id} has no label map"
            row[:] = dice(confusion(answer.voxels, case.labels, num_labels=len(self.classes) + 1))
        judged = [index for index in range(len(self.classes)) if np.isfinite(per_case[:, index]).any()]
        means = {f"dice/{self.classes[index]}": float(np.nanmean(per_case[:, index])) for index in judged}
        return {"dice": float(np.mean(list(means.values()))) if means else float("nan")} | means


def without_small_components(
    labels: UInt8[np.ndarray, "x y z"], *, smallest_vox: float
) -> UInt8[np.ndarray, "x y z"]:
    """The label map with every connected component of a class below so many voxels as background."""
    result = labels.copy()
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        if place is None:
            continue
        components, _ = ndimage.label(labels[place] == label, structure=_TOUCHING)
        small = np.bincount(components.ravel()) < smallest_vox
        small[0] = False
        result[place][small[components]] = 0
    return result
