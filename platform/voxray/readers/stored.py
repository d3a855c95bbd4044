"""A volume as its header describes it, and its voxels as Hounsfield units or labels.

Every format gives a `Stored`: the header is checked, no voxel is read yet. Voxels then come slice by slice and are
converted as they come, so that memory holds the answer and a few slices, also where the file stores float64.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxray.core.volume import Grid, Volume
from voxray.readers.plausibility import Fractions, judge
from voxray.readers.refusals import refusal

_Rows = NDArray[Any]
"""One slice (y x)."""

_SLICES_AT_ONCE = 16
_TOLERANCE = 1e-3
"""A stored label or HU may differ this much from a whole number, for what scaling by a float32 slope leaves."""
_HU = np.iinfo(np.int16)
AIR_HU = -1024
"""What is read where a file says that there is no image."""


class StoredSlice(NamedTuple):
    """One slice in stored values, and the way to what they mean: value = stored * slope + intercept.

    The array may be overwritten when the next slice is asked for.
    """

    values: _Rows
    slope: float = 1.0
    intercept: float = 0.0
    is_air: _Rows | None = None
    """Where Hounsfield units are `AIR_HU`, whatever is stored; None for nowhere."""
    noted: Mapping[str, int] = MappingProxyType({})
    """What is worth knowing of the slice: a sentence with ``{}`` -> the number that belongs there.

    Numbers are added up over the slices, and the sentences become warnings.
    """


@dataclass(frozen=True)
class Stored:
    """What a checked header says, and the voxels behind it, slice by slice along z."""

    path: Path
    format: str
    """Such as ``NIfTI-1`` or ``DICOM series``."""
    grid: Grid
    dtype: str
    """The stored type, by its numpy name."""
    slices: Callable[[], Iterator[StoredSlice]]
    modality: str | None = None
    """None where the format does not tell."""
    series_uid: str | None = None
    files: tuple[Path, ...] = ()
    """Every file that it is read from; none stands for `path` alone."""
    warnings: tuple[str, ...] = ()

    @property
    def num_files(self) -> int:
        """How many these are."""
        return len(self.files) or 1


def hounsfield(stored: Stored, *, accept_values: bool = False) -> Volume:
    """The volume in int16 HU, with what is to be said of it; values that can be no Hounsfield units are refused.

    Fractions are rounded with a warning. With `accept_values` all that int16 can hold is taken, with a warning.
    """
    rounding = _Rounding()
    voxels, noted = _gather(stored, np.dtype(np.int16), partial(_to_hounsfield, rounding=rounding))
    verdict = judge(voxels, Fractions(rounding.fractions / voxels.size, rounding.largest))
    if verdict.refusal and not accept_values:
        raise refusal(
            "scan.not_hounsfield",
            stored.path,
            f"{verdict.refusal}.",
            remedy="Give a CT scan in Hounsfield units (if its rescale intercept was lost, convert the DICOM again), "
            "or say that it is right as it is: --accept-values, or images.accept_values = true in a dataset's file.",
        )
    taken = [f"taken as it is, though it {verdict.refusal}"] if verdict.refusal else []
    return Volume(voxels, stored.grid, (*stored.warnings, *noted, *taken, *verdict.warnings))


def labels(stored: Stored) -> Volume:
    """The label map as uint8, or uint16 where a label is above 255; anything but whole numbers is refused."""
    voxels, noted = _gather(stored, np.dtype(np.uint16), _to_labels)
    narrow = voxels.astype(np.uint8) if voxels.max() <= np.iinfo(np.uint8).max else voxels
    return Volume(narrow, stored.grid, (*stored.warnings, *noted))


def _gather(
    stored: Stored, dtype: np.dtype[Any], convert: Callable[[StoredSlice, Path], _Rows]
) -> tuple[Any, list[str]]:
    """All slices, converted, as one C-ordered array (x y z), and what was noted of them.

    Slices are turned over in blocks, so that what is read and what is written stay in the cache.
    """
    shape_x, shape_y, shape_z = stored.grid.shape
    result = np.empty((shape_x, shape_y, shape_z), dtype)
    block = np.empty((_SLICES_AT_ONCE, shape_y, shape_x), dtype)
    noted: Counter[str] = Counter()
    filled = done = 0
    for one in stored.slices():
        block[filled] = convert(one, stored.path)
        noted.update(one.noted)
        filled += 1
        if filled == _SLICES_AT_ONCE or done + filled == shape_z:
            # In two steps, because numpy moves (z y x) to (y x z) much faster than to (x y z).
            by_row = np.ascontiguousarray(block[:filled].transpose(1, 2, 0))
            result[:, :, done : done + filled] = by_row.transpose(1, 0, 2)
            done, filled = done + filled, 0
    assert done == shape_z, (stored.path, done, shape_z)
    return result, [sentence.format(number) for sentence, number in sorted(noted.items()) if number]


@dataclass
class _Rounding:
    """Counts how far values are from whole numbers, slice by slice."""

    largest: float = 0.0
    fractions: int = 0

    def rounded(self, values: _Rows) -> _Rows:
        """The nearest whole numbers; `values` are written over."""
        nearest: _Rows = np.rint(values)
        values -= nearest
        np.abs(values, out=values)
        largest = float(values.max())
        if largest > _TOLERANCE:
            self.largest = max(self.largest, largest)
            self.fractions += int(np.count_nonzero(values > _TOLERANCE))
        return nearest


def _to_hounsfield(one: StoredSlice, path: Path, *, rounding: _Rounding) -> _Rows:
    integers = one.values.dtype.kind in "iu" and float(one.intercept).is_integer()
    short = integers and one.slope == 1.0 and one.values.dtype.itemsize <= 2 and abs(one.intercept) < 2**30
    if short and one.values.dtype == np.int16 and one.intercept == 0.0:
        return one.values if one.is_air is None else np.where(one.is_air, np.int16(AIR_HU), one.values)
    values: _Rows = np.add(one.values, np.int32(one.intercept), dtype=np.int32) if short else _scaled(one)
    if one.is_air is not None:
        values[one.is_air] = AIR_HU
    low, high = _ends(values, path)
    if low < _HU.min - 0.5 or high >= _HU.max + 0.5:
        raise refusal(
            "voxels.range",
            path,
            f"holds values from {low:.0f} to {high:.0f}; Hounsfield units must lie within {_HU.min} to {_HU.max}.",
            remedy="Check the rescale slope and intercept, or clip the values to that range before import.",
        )
    whole = integers and float(one.slope).is_integer()
    return (values if whole else rounding.rounded(values)).astype(np.int16)


def _scaled(one: StoredSlice) -> _Rows:
    if (one.slope, one.intercept) == (1.0, 0.0) and one.values.dtype.kind == "f":
        return one.values.astype(one.values.dtype.newbyteorder("="))
    # uint64 and int64 lose their last bits here; nothing that passes the range check is that large.
    values: _Rows = one.values.astype(np.float64)
    values *= one.slope
    values += one.intercept
    return values


def _ends(values: _Rows, path: Path) -> tuple[float, float]:
    """The least and the greatest value, all being numbers: NaN is the least and the greatest of what it is among."""
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise refusal(
            "voxels.not_finite",
            path,
            f"holds {np.count_nonzero(~np.isfinite(values))} NaN or infinite values in one slice; "
            "every voxel must be a number.",
            remedy="Write the scan again with those voxels set to a Hounsfield value such as -1024 (air).",
        )
    return low, high


def _to_labels(one: StoredSlice, path: Path) -> _Rows:
    if one.values.dtype == np.uint8 and (one.slope, one.intercept) == (1.0, 0.0):
        return one.values.astype(np.uint16)
    values = _scaled(one)
    _ends(values, path)
    nearest = np.rint(values)
    if np.abs(values - nearest).max() > _TOLERANCE:
        first = values[np.abs(values - nearest) > _TOLERANCE][0]
        raise refusal(
            "labels.fraction",
            path,
            f"holds the label {first:.6g}; labels must be whole numbers.",
            remedy="Resample label maps with nearest neighbour and write them as integers.",
        )
    if nearest.min() < 0:
        raise refusal(
            "labels.negative",
            path,
            f"holds the label {nearest.min():.0f}; labels must be 0 (background) or above.",
            remedy="Set negative labels to 0 or to a class of their own.",
        )
    if nearest.max() > np.iinfo(np.uint16).max:
        raise refusal(
            "labels.range",
            path,
            f"holds the label {nearest.max():.0f}; labels must be at most {np.iinfo(np.uint16).max}.",
            remedy="Number the labels 1, 2, 3 and so on.",
        )
    return nearest.astype(np.uint16)
