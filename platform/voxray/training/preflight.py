"""What can be learnt at all, judged before the first step from a recipe and from what the shards say of their cases.

A setting under which nothing can be learnt is fatal: a training would end with a loss of 0 and nothing learnt. One
under which much of the data cannot be is a warning with numbers. No voxel is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from voxray.core.errors import ConfigError
from voxray.core.recipe import DetectionLoss, Recipe, SegmentationLoss
from voxray.core.text import first_few
from voxray.sampling import Schedule, num_rounds
from voxray.sampling.targets import (
    LEAST_IOU,
    POOR_IOU,
    Targets,
    TiledObjects,
    largest_sides_vox,
    patch_levels,
    possible_targets,
)
from voxray.store import CaseSummary
from voxray.training.optim import rate_at

ENOUGH = 0.9
"""Of a class's objects: where fewer can be targets, the recall that training can lead to is cut by more than the
intervals of a score on some hundred scans are wide."""

NO_RATE = 1e-12
"""A rate below which float32 weights stay what they are."""

_EPOCHS_LOOKED_AT = 2000


@dataclass(frozen=True)
class PreflightFinding:
    """Something that keeps a training from learning; where it is fatal, from learning anything."""

    text: str
    is_fatal: bool = False


@dataclass(frozen=True)
class SplitSummaries:
    """The cases that train and that validate, as their shards describe them."""

    classes: tuple[str, ...]
    train: tuple[CaseSummary, ...]
    val: tuple[CaseSummary, ...] = ()
    validates: bool = True
    """Whether a fold was asked for, so that cases should validate."""


def judged(findings: Sequence[PreflightFinding], where: str) -> tuple[str, ...]:
    """The findings as warnings; a ConfigError with the first that is fatal."""
    for finding in findings:
        if finding.is_fatal:
            raise ConfigError(f"{where}: nothing can be learnt: {finding.text}")
    return as_warnings(findings)


def as_warnings(findings: Sequence[PreflightFinding]) -> tuple[str, ...]:
    """The findings in words, where nothing is trained yet."""
    return tuple(
        f"warning: {'with this recipe nothing can be learnt: ' * one.is_fatal}{one.text}" for one in findings
    )


def recipe_findings(recipe: Recipe) -> list[PreflightFinding]:
    """What the recipe alone shows."""
    return [*_loss_findings(recipe), *_rate_findings(recipe)]


def data_findings(recipe: Recipe, sides: SplitSummaries, schedule: Schedule | None = None) -> list[PreflightFinding]:
    """What recipe and cases show together; with the schedule also what its batches hold."""
    found = _object_findings(recipe, sides) if recipe.task == "detection" else _label_findings(sides)
    if any(one.is_fatal for one in found):
        return found
    if sides.validates and not sides.val:
        text = "no case validates, so that no checkpoint is chosen by its score and the last counts as the best."
        found.append(PreflightFinding(text))
    return [*found, *(_batch_findings(recipe, sides, schedule) if schedule else ())]


def _loss_findings(recipe: Recipe) -> Iterator[PreflightFinding]:
    match recipe.loss:
        case SegmentationLoss(dice_weight=0, ce_weight=0):
            yield PreflightFinding(
                "loss.dice_weight and loss.ce_weight are both 0; give one of them a weight.", is_fatal=True
            )
        case DetectionLoss(class_weight=0, box_weight=0):
            yield PreflightFinding(
                "loss.class_weight and loss.box_weight are both 0; give both a weight.", is_fatal=True
            )
        case DetectionLoss() as loss:
            if int(loss.anchors_per_patch * loss.positive_fraction) == 0:
                text = (
                    f"loss.anchors_per_patch {loss.anchors_per_patch} times loss.positive_fraction "
                    f"{loss.positive_fraction:g} is less than one anchor with an object; raise them."
                )
                yield PreflightFinding(text, is_fatal=True)
            for field, what in (("class_weight", "scores"), ("box_weight", "boxes")):
                if getattr(loss, field) == 0:
                    yield PreflightFinding(f"loss.{field} is 0, so that {what} are not learnt.")


def _rate_findings(recipe: Recipe) -> Iterator[PreflightFinding]:
    optim = recipe.optim
    looked_at = np.unique(np.linspace(0, optim.epochs - 1, min(optim.epochs, _EPOCHS_LOOKED_AT)).astype(int))
    rates = np.array([rate_at(optim, int(epoch)) for epoch in looked_at])
    if rates.max() < NO_RATE:
        text = (
            f"the learning rate is {rates.max():.2g} at most in {optim.epochs} epochs (optim.rate {optim.rate:g}, "
            f"optim.warmup_epochs {optim.warmup_epochs}), which leaves the weights what they are; raise optim.rate."
        )
        yield PreflightFinding(text, is_fatal=True)
    elif optim.warmup_epochs > optim.epochs:
        yield PreflightFinding(
            f"optim.warmup_epochs {optim.warmup_epochs} is longer than the training of {optim.epochs} epochs, in "
            f"which the learning rate rises to {rates.max():.2g} and never to optim.rate {optim.rate:g}."
        )
    elif (still := float((rates < NO_RATE).mean())) > 1 - ENOUGH:
        yield PreflightFinding(
            f"the learning rate is below {NO_RATE:g} in {still:.0%} of the epochs, which change nothing; mend "
            f"optim.decay_epochs and optim.decay_factor.".replace("%", " %")
        )


def _object_findings(recipe: Recipe, sides: SplitSummaries) -> list[PreflightFinding]:
    in_train, in_val = _counts(sides.train), _counts(sides.val)
    if not in_train:
        text = (
            f"none of the {len(sides.train)} training cases holds an object; see that the dataset's annotations give "
            f"objects (`voxray check` counts them)."
        )
        return [PreflightFinding(text, is_fatal=True)]
    classes = np.concatenate([np.asarray(case.classes, np.int64) for case in sides.train])
    targets = possible_targets(tiled_objects(sides.train), len(classes), recipe)
    sizes = np.concatenate([_boxes(case) for case in sides.train])
    sizes = sizes[:, 3:] - sizes[:, :3]
    if not targets.possible.any():
        return [PreflightFinding(_of_class("", targets, sizes, np.ones(len(classes), bool), recipe), is_fatal=True)]
    found = []
    for index, name in enumerate(sides.classes):
        chosen = classes == index
        if chosen.any() and targets.possible[chosen].mean() < ENOUGH:
            found.append(PreflightFinding(_of_class(name, targets, sizes, chosen, recipe)))
    known = targets.possible
    if (targets.iou[known] < POOR_IOU).mean() > 0.5:
        found.append(PreflightFinding(_poor_anchors(targets.iou[known], sizes[known], recipe)))
    found += _absent_classes(sides, in_train, in_val, "object")
    return found + _blind_validation(sides, in_val, "object")


def _of_class(
    name: str, targets: Targets, sizes: Float64[np.ndarray, "n 3"], chosen: Bool[np.ndarray, " n"], recipe: Recipe
) -> str:
    """How many of the chosen objects can be targets, and why the others cannot."""
    number, possible = int(chosen.sum()), int(targets.possible[chosen].sum())
    of_class = f" of class {name}" if name else ""
    cut, unmatched = chosen & targets.is_tiled & ~targets.is_kept, chosen & targets.is_kept & ~targets.possible
    reasons = []
    if outside := int((chosen & ~targets.is_tiled).sum()):
        reasons.append(f"{outside} lie in no tile of the store: make it again with `voxray ingest`")
    if cut.any():
        reasons.append(_why_cut(sizes[cut], recipe))
    if unmatched.any():
        reasons.append(
            f"{int(unmatched.sum())} have no anchor that overlaps them to an IoU of {LEAST_IOU:g} (median "
            f"{_sides(np.median(sizes[unmatched], axis=0))} voxels; anchors have {_anchors(recipe)}): change "
            f"anchors.base_shapes_vox or anchors.level_scales"
        )
    count = f"{possible} of {number} object{'s' * (number != 1)}{of_class} ({100 * possible / number:.1f} %)"
    return f"{count} can be targets: {'; '.join(reasons)}."


def _why_cut(sizes: Float64[np.ndarray, "n 3"], recipe: Recipe) -> str:
    patch, spacing = recipe.patch, np.array(recipe.grid.spacing_mm)
    median = np.median(sizes, axis=0)
    text = (
        f"{len(sizes)} do not fit a patch of {_sides(patch.size_vox)} voxels (median {_sides(median)} voxels, "
        f"{_sides(median * spacing)} mm)"
    )
    largest = largest_sides_vox(recipe)
    if largest is None:
        return text
    return (
        f"{text}, of which half must lie in it, so that the largest sides allowed are {_sides(largest)} voxels "
        f"({_sides(largest * spacing)} mm): enlarge patch.size_vox, or make grid.spacing_mm coarser"
    )


def _poor_anchors(iou: Float64[np.ndarray, " n"], sizes: Float64[np.ndarray, "n 3"], recipe: Recipe) -> str:
    poor = int((iou < POOR_IOU).sum())
    return (
        f"the best anchor overlaps {poor} of {len(iou)} objects to an IoU below {POOR_IOU:g} (median "
        f"{np.median(iou):.2g}): objects have {_sides(np.median(sizes, axis=0))} voxels in the median, anchors "
        f"{_anchors(recipe)}; change anchors.base_shapes_vox or anchors.level_scales."
    )


def _anchors(recipe: Recipe) -> str:
    """The smallest and the largest anchor."""
    halves = [half for level in patch_levels(recipe) for half in level.half_sides_vox]
    smallest, *_, largest = sorted([*halves, *halves], key=lambda half: half[0] * half[1] * half[2])
    return f"{_sides(np.multiply(smallest, 2))} to {_sides(np.multiply(largest, 2))} voxels"


def _label_findings(sides: SplitSummaries) -> list[PreflightFinding]:
    in_train, in_val = _counts(sides.train), _counts(sides.val)
    if not in_train:
        outside = sum(bool(case.label_voxels) for case in sides.train)
        what = f"; {outside} of them have labelled voxels, which lie in no tile" if outside else ""
        text = (
            f"no tile of the {len(sides.train)} training cases holds a labelled voxel{what}; see that the dataset's "
            f"annotations give label maps with these classes (`voxray check` counts them)."
        )
        return [PreflightFinding(text, is_fatal=True)]
    return _absent_classes(sides, in_train, in_val, "labelled voxel") + _blind_validation(
        sides, in_val, "labelled voxel"
    )


def _absent_classes(
    sides: SplitSummaries, in_train: Counter[int], in_val: Counter[int], what: str
) -> list[PreflightFinding]:
    """Classes that no training case holds."""
    absent = [index for index in range(len(sides.classes)) if index not in in_train]
    nowhere = [sides.classes[index] for index in absent if index not in in_val]
    held_out = [f"{sides.classes[index]} ({in_val[index]} that validate)" for index in absent if index in in_val]
    found = []
    if nowhere:
        cases = len(sides.train) + len(sides.val)
        found.append(f"{_classes(nowhere, len(sides.classes))} no {what} in any of the {cases} cases")
    if held_out:
        text = f"no {what} in the {len(sides.train)} training cases, but in cases that validate"
        found.append(f"{_classes(held_out, len(sides.classes))} {text}")
    return [PreflightFinding(f"{text}, and cannot be learnt.") for text in found]


def _classes(names: Sequence[str], number: int) -> str:
    return f"{len(names)} of {number} classes ({first_few(names, 5)}) {'has' if len(names) == 1 else 'have'}"


def _blind_validation(sides: SplitSummaries, in_val: Counter[int], what: str) -> list[PreflightFinding]:
    if in_val or not sides.val:
        return []
    text = f"none of the {len(sides.val)} cases that validate holds a {what}, so that their score says nothing."
    return [PreflightFinding(text.replace("a object", "an object"))]


def _batch_findings(recipe: Recipe, sides: SplitSummaries, schedule: Schedule) -> Iterator[PreflightFinding]:
    """Batches that repeat the same few tiles, and epochs without a foreground patch."""
    tiles = sum(len(case.tiles) for case in sides.train)
    if schedule.batch_size > tiles:
        yield PreflightFinding(
            f"a batch of {schedule.batch_size} patches is cut from only {tiles} tile{'s' * (tiles != 1)}, some of "
            f"them several times; lower optim.batch_size."
        )
    drawn = num_rounds(schedule, recipe.patch) * schedule.num_slots * schedule.batch_size
    share = recipe.patch.foreground
    if share > 0 and int(drawn * share + 1e-9) == 0:
        yield PreflightFinding(
            f"patch.foreground {share:g} of the {drawn} tiles of an epoch is less than one, so that no patch is "
            f"centred on foreground; raise it, or optim.steps_per_epoch."
        )


def _counts(cases: Sequence[CaseSummary]) -> Counter[int]:
    """In how many cases each class has an object, or a labelled voxel in a tile."""
    found: Counter[int] = Counter()
    for case in cases:
        found.update({*case.classes, *(label - 1 for tile in case.tiles for label in tile.label_voxels)})
    return found


def tiled_objects(cases: Sequence[CaseSummary]) -> TiledObjects:
    """The objects of all cases, numbered through, in the tiles that hold them."""
    number: list[int] = []
    boxes: list[Float64[np.ndarray, " 6"]] = []
    shapes: list[tuple[int, int, int]] = []
    first = 0
    for case in cases:
        own = _boxes(case)
        for tile in case.tiles:
            number += [first + index for index in tile.objects]
            boxes += [own[index] - np.tile(tile.start, 2) for index in tile.objects]
            shapes += [tile.shape] * len(tile.objects)
        first += len(own)
    return TiledObjects(_array(number), np.asarray(boxes, np.float64).reshape(-1, 6), _array(shapes).reshape(-1, 3))


def _array(values: Sequence[object]) -> Int64[np.ndarray, "*n"]:
    return np.asarray(values, np.int64)


def _boxes(case: CaseSummary) -> Float64[np.ndarray, "n 6"]:
    return np.asarray(case.boxes, np.float64).reshape(-1, 6)


def _sides(values: Sequence[float] | Float64[np.ndarray, " 3"]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
