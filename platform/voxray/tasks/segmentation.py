"""Segmentation: label maps from logits, stitched from windows in blocks so that no class is ever whole in memory."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from voxray.core.batch import Batch
from voxray.core.case import Case
from voxray.core.errors import ConfigError
from voxray.core.outputs import Head, SegmentationFeatures, SegmentationOutput
from voxray.core.recipe import Recipe, SegmentationLoss, SegmentationMerge, Selection
from voxray.core.volume import Grid, Shape, Volume
from voxray.losses import Reduce
from voxray.losses.segmentation import segmentation_loss
from voxray.metrics.dice import confusion, dice
from voxray.tasks.finite import require_finite
from voxray.tasks.labels import labels_above, labels_of, tidy
from voxray.tasks.mirror import swapped_sides
from voxray.tasks.recorder import Recorder
from voxray.tasks.restore import FEW_CLASSES, axis_map, labels_on, shares_on
from voxray.tasks.stitch import WindowValues, blocks, corner, slabs
from voxray.windows import Lattice, windows_over

MAX_CLASSES = 255
"""A label map holds uint8, and 0 is background."""

KeepShares = Callable[[Shape, Float[Tensor, "c x y z"]], None]
"""Takes the first voxel and all classes' probabilities, background first, of each finished block."""

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class SegmentationTask:
    """The segmentation `Task`: logits are blended and argmax'd; softmax would change nothing but the memory."""

    recipe: Recipe
    classes: Sequence[str]
    head: Head | None = None
    """What windows have still to go through, where they are a head's features and no logits."""
    primary_metric: ClassVar[str] = "dice"

    def __post_init__(self) -> None:
        if len(self.classes) > MAX_CLASSES:
            raise ConfigError(
                f"a label map holds at most {MAX_CLASSES} classes, got {len(self.classes)}; train fewer."
            )
        assert isinstance(self.recipe.loss, SegmentationLoss), self.recipe.loss.kind
        if isinstance(self.recipe.merge, SegmentationMerge):
            self._require_classes(self.recipe.merge)

    def loss(self, output: SegmentationOutput, batch: Batch, reduce: Reduce) -> dict[str, Tensor]:
        """The ``dice`` and ``ce`` parts, already weighted."""
        assert batch.labels is not None, "segmentation trains on label maps"
        assert isinstance(self.recipe.loss, SegmentationLoss)
        return segmentation_loss(output.logits, batch.labels, self.recipe.loss, reduce)

    def decode(self, output: SegmentationOutput | SegmentationFeatures) -> list[Tensor]:
        """Each window's logits (classes x y z), or features, as they are."""
        return list(output[0].unbind(0))

    def mirror(self, decoded: Tensor, axes: Sequence[int], window: Shape) -> Tensor:
        """The logits of a window that the network saw mirrored, turned back; left and right change places on x."""
        del window
        turned = decoded.flip([axis + 1 for axis in axes])
        return turned[self._sides] if 0 in axes and self._sides is not None else turned

    def combine(self, so_far: Tensor, other: Tensor, *, number: int) -> Tensor:
        """The mean of `number` views' logits, from that of all but one of them and the last; in place."""
        return so_far.lerp_(other, 1 / number)

    def merge(
        self,
        windows: Iterable[WindowValues],
        grid: Grid,
        how: SegmentationMerge,
        *,
        scan_grid: Grid | None = None,
        recorder: Recorder | None = None,
    ) -> Volume:
        """The label map on `grid`, or on the scan's own, from the windows of the recipe's lattice in its order.

        Components are judged on the grid of the answer.
        """
        if recorder is not None:
            recorder.begin(grid)
        if scan_grid is not None and self._interpolates(grid, scan_grid):
            axis, slabs = int(np.argmax(grid.shape)), self.shares(windows, grid)
            slabs = slabs if recorder is None else recorder.slabs(slabs, axis)
            labels = shares_on(slabs, grid, scan_grid, axis=axis, named=partial(self.labels_from, how=how))
        else:
            labels = self.blend(windows, grid, how, keep=None if recorder is None else recorder.block)
            labels = labels if scan_grid is None else labels_on(labels, scan_grid)
        return self.finish(labels, how)

    def blend(
        self, windows: Iterable[WindowValues], grid: Grid, how: SegmentationMerge, *, keep: KeepShares | None = None
    ) -> Volume:
        """The label map on `grid` before `finish`, which may wait for another grid; `keep` sees all shares."""
        places, labels = windows_over(grid.shape, self.recipe), np.zeros(grid.shape, np.uint8)
        thresholds = thresholds_of(how, self.classes)
        if thresholds is None and keep is None:
            for place, sums in self._blocks(windows, places, ones=self.head is not None):
                labels[corner(place, sums)] = labels_of(sums, self.head).cpu().numpy()
                del sums
            return Volume(labels, grid)
        for place, sums in self._blocks(windows, places, ones=True):
            found = self._labels_of(sums) if thresholds is None else None
            shares = self._shares(sums)
            if keep is not None:
                keep(place, shares)
            if thresholds is not None:
                found = labels_above(shares, thresholds)
            assert found is not None
            labels[corner(place, shares)] = found.cpu().numpy()
            del sums, shares, found
        return Volume(labels, grid)

    def shares(self, windows: Iterable[WindowValues], grid: Grid) -> Iterator[tuple[int, Float[Tensor, "k x y z"]]]:
        """First plane and what may be interpolated of each finished slab across the grid's longest axis.

        With one class that is its probability, as ``2 p - 1``, whose sign is exact where nothing is interpolated;
        with more, every class's probability, background first.
        """
        places = windows_over(grid.shape, self.recipe)
        seen = _differences(windows) if self._is_two else windows
        summed = self._blocks(seen, places, ones=True)
        return slabs(((place, self._shares(sums, two=self._is_two)) for place, sums in summed), places)

    def labels_from(self, shares: Float[Tensor, "k x y z"], how: SegmentationMerge) -> UInt8[Tensor, "x y z"]:
        """The labels of what `shares` gives, interpolated or not."""
        thresholds = thresholds_of(how, self.classes)
        if len(shares) == 1:
            least = 0.5 if thresholds is None or thresholds[0] is None else thresholds[0]
            return (shares[0] > 2 * least - 1).to(torch.uint8)
        return labels_of(shares) if thresholds is None else labels_above(shares, thresholds)

    def finish(self, labels: Volume, how: SegmentationMerge) -> Volume:
        """The label map with its holes filled and without the components that `how` does not want."""
        largest = selected(how.largest_only, self.classes, field="merge.largest_only")
        filled = selected(how.fill_holes, self.classes, field="merge.fill_holes")
        if how.min_component_mm3 <= 0 and not largest and not filled:
            return labels
        smallest_vox = how.min_component_mm3 / float(np.prod(labels.grid.spacing_mm))
        voxels = tidy(labels.voxels, smallest_vox=smallest_vox, largest_only=largest, fill_holes=filled)
        return Volume(voxels, labels.grid)

    def _require_classes(self, how: SegmentationMerge) -> None:
        """A ConfigError where `how` names a class that is none of the task's."""
        thresholds_of(how, self.classes)
        selected(how.largest_only, self.classes, field="merge.largest_only")
        selected(how.fill_holes, self.classes, field="merge.fill_holes")

    @staticmethod
    def recorded_labels(classes: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
        """The labels of the wanted classes, or of all where there are few."""
        if wanted:
            return tuple(selected(tuple(wanted), classes, field="--keep-classes"))
        if len(classes) > FEW_CLASSES:
            raise ConfigError(
                f"--keep-candidates: {len(classes)} classes are too many to keep the probabilities of; name up to "
                f"{FEW_CLASSES}, as --keep-classes {classes[0]},{classes[1]}."
            )
        return tuple(range(1, len(classes) + 1))

    @property
    def is_recordable(self) -> bool:
        """Whether the probabilities of all classes may be recorded."""
        return len(self.classes) <= FEW_CLASSES

    def _interpolates(self, grid: Grid, scan_grid: Grid) -> bool:
        """Whether classes' shares, not labels, go back to the scan's grid."""
        restore = self.recipe.inference.restore
        if restore == "labels" or np.allclose(np.abs(axis_map(scan_grid, grid).scale), 1.0):
            return False
        return restore == "shares" or len(self.classes) <= FEW_CLASSES

    @cached_property
    def _sides(self) -> list[int] | None:
        """Where each label is found in a window that was mirrored on x; None where that changes nothing."""
        swapped = [0, *(index + 1 for index in swapped_sides(self.classes))]
        return None if swapped == sorted(swapped) else swapped

    @property
    def _is_two(self) -> bool:
        """Whether the difference of two classes' logits is all that matters."""
        return len(self.classes) == 1 and self.head is None

    def _blocks(
        self, windows: Iterable[WindowValues], places: Lattice, *, ones: bool
    ) -> Iterator[tuple[Shape, Tensor]]:
        config = self.recipe.inference
        return blocks(windows, places, blend=config.blend, accumulate=_TYPES[config.accumulate], ones=ones)

    def _labels_of(self, sums: Float[Tensor, "c x y z"]) -> UInt8[Tensor, "x y z"]:
        """The labels of weighted sums whose last channel is the sum of weights."""
        return labels_of(sums[:-1]) if self.head is None else labels_of(sums, self.head)

    def _shares(self, sums: Float[Tensor, "c x y z"], *, two: bool = False) -> Float[Tensor, "k x y z"]:
        """The shares of weighted sums whose last channel is the sum of weights; in place."""
        mean = (sums[:-1] if self.head is None else self.head.sums(sums)).div_(sums[-1:])
        require_finite(mean)
        return torch.tanh(mean.mul_(0.5), out=mean) if two else torch.softmax(mean, 0, out=mean)

    def score(self, found: Sequence[Volume], truth: Sequence[Case]) -> dict[str, float]:
        """Mean Dice of each class over the cases that have it (``dice/spleen``), and the mean of those (``dice``).

        A class without truth in any case has no key; without any truth ``dice`` is nan.
        """
        per_case = np.full((len(truth), len(self.classes)), np.nan)
        for row, answer, case in zip(per_case, found, truth, strict=True):
            assert case.labels is not None, f"case {case.case_id} has no label map"
            row[:] = dice(confusion(answer.voxels, case.labels, num_labels=len(self.classes) + 1))
        judged = [index for index in range(len(self.classes)) if np.isfinite(per_case[:, index]).any()]
        means = {f"dice/{self.classes[index]}": float(np.nanmean(per_case[:, index])) for index in judged}
        return {"dice": float(np.mean(list(means.values()))) if means else float("nan")} | means


def _differences(windows: Iterable[WindowValues]) -> Iterator[WindowValues]:
    """How much more the second of two classes has, as the one channel."""
    for place, logits in windows:
        yield place, logits[1:] - logits[:1]
        del logits


def thresholds_of(how: SegmentationMerge, classes: Sequence[str]) -> list[float | None] | None:
    """Each class's threshold, None where it has none; None where no class has one."""
    for name in how.thresholds:
        _require_class(name, classes, field="merge.thresholds")
    found = [how.thresholds.get(name, how.threshold) for name in classes]
    return None if all(one is None for one in found) else found


def selected(wanted: Selection, classes: Sequence[str], *, field: str) -> list[int]:
    """The labels of the classes that a merge's field names."""
    if isinstance(wanted, bool):
        return list(range(1, len(classes) + 1)) if wanted else []
    for name in wanted:
        _require_class(name, classes, field=field)
    return [classes.index(name) + 1 for name in wanted]


def _require_class(name: str, classes: Sequence[str], *, field: str) -> None:
    if name in classes:
        return
    near = difflib.get_close_matches(name, classes, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"classes are {', '.join(classes[:10])}."
    raise ConfigError(f"{field}: no class is named '{name}'; {hint}")
