"""Labels from probabilities: the most probable class, or every class from a threshold of its own up."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from voxray.core.errors import ConfigError
from voxray.core.recipe import SegmentationMerge, Selection


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


def labels_above(
    shares: Shaped[Tensor, "c x y z"], thresholds: Sequence[float | None], *, whole: float = 1.0
) -> UInt8[Tensor, "x y z"]:
    """Labels from classes' shares of `whole`, background first; ``thresholds[k]`` is that of label k + 1.

    A class with a threshold is there where its share is higher, however much background has; one without where its
    share is the largest of those without and background. Of several the one with the largest share, of equal ones the
    first.
    """
    labels = torch.zeros(shares.shape[1:], dtype=torch.uint8, device=shares.device)
    best = shares[0].clone()
    order = sorted(range(1, len(shares)), key=lambda label: thresholds[label - 1] is not None)
    for label in order:
        share, threshold = shares[label], thresholds[label - 1]
        wins = share > best
        if threshold is not None:
            wins = (share > threshold * whole) & (wins | (labels == 0))
        labels.masked_fill_(wins, label)
        best = torch.where(wins, share, best)
    return labels


def _require_class(name: str, classes: Sequence[str], *, field: str) -> None:
    if name in classes:
        return
    near = difflib.get_close_matches(name, classes, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"classes are {', '.join(classes[:10])}."
    raise ConfigError(f"{field}: no class is named '{name}'; {hint}")
