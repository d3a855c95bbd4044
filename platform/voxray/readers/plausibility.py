"""Whether a scan's values can be Hounsfield units: refused where they cannot, warned of where it is doubtful.

Air is -1000 HU, lung -850 to -500, fat -100, water 0, muscle 50, dense bone 500 to 2000. So most of a CT scan lies in
two places, around -1000 and around 0, and little above 500. Other values give themselves away by where most of them
lie: grey levels and label maps begin at 0, normalised images are narrower than noise, an offset that was lost moves
soft tissue to 1024, one that was applied twice moves it to -1024. A crop within an organ or within a lung has one of
the two places only, and passes.

All evidence comes from the least and the greatest value and from a histogram; of large scans every few lines are
counted. A single value below all others is padding outside of a scanner's view, and is not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16, Int64

FEWEST_VOX = 512
"""Smaller scans are not judged: their histogram says nothing."""
NARROW_HU = 25
"""Noise alone is wider in CT; fractions that are not cannot be kept as whole numbers."""
_NORMALISED_HU = 100
"""Images normalised by a foreground's mean and spread stay within this, and their background is a heap at its end."""
_NARROW_WHOLE_HU = 10
_COUNTED_VOX = 1 << 18
_BINS = 1 << 16
_ZERO = 1 << 15
"""The bin of 0 HU."""
_PADDING_HU, _GAP_HU = -1050, 100
"""Padding is below air, and nothing is near it."""
_OUTSIDE_HU = -1100
"""Air is -1000 HU; scanners write lower values only outside of their field of view."""
_METAL_HU = 3071
"""The most that 12 bits hold; wider scales exist, for metal."""
_SCANNER_HU = -4200
"""No scanner's scale begins below -4096."""
_ORGAN_HU = 200
"""Values within one organ, with noise and vessels, are not spread wider."""
_FEW = 1e-3


class Verdict(NamedTuple):
    """What is to be said of a scan's values: why they are no Hounsfield units, or what is doubtful."""

    refusal: str = ""
    """A sentence's end with its evidence, after the path; empty where the values may be Hounsfield units."""
    warnings: tuple[str, ...] = ()


class Fractions(NamedTuple):
    """What was rounded to make the voxels whole numbers."""

    share: float = 0.0
    """Of the voxels, further than 0.001 from a whole number."""
    largest: float = 0.0
    """The largest change."""


WHOLE = Fractions()
"""Nothing was rounded."""


def judge(voxels: Int16[np.ndarray, "x y z"], fractions: Fractions = WHOLE) -> Verdict:
    """The verdict on a scan in what should be HU."""
    low, high = int(voxels.min()), int(voxels.max())
    rounded = (_rounded(fractions),) if fractions.share else ()
    if low == high and not rounded:
        return Verdict(warnings=(*rounded, f"every voxel is {low} HU"))
    if voxels.size < FEWEST_VOX:
        return Verdict(warnings=rounded)
    values = _Histogram.of(voxels, low, high)
    if evidence := _normalised(values, fractions):
        return Verdict(evidence)
    for refuse in (_narrow, _moved_up, _starts_at_zero, _moved_down, _stretched, _of_magnetic_resonance):
        if evidence := refuse(values):
            return Verdict(evidence, rounded)
    return Verdict(warnings=(*rounded, *_doubts(values)))


@dataclass(frozen=True)
class _Histogram:
    """The least and the greatest value, and how the others are spread; padding is left out."""

    low: int
    high: int
    counts: Int64[np.ndarray, " 65536"]
    """Voxels per HU from -32768, without padding; of large scans those of every few lines."""
    padding: int
    """How many of these voxels are padding."""

    @staticmethod
    def of(voxels: Int16[np.ndarray, "x y z"], low: int, high: int) -> _Histogram:
        """The values of a scan between its least and its greatest."""
        step = max(1, math.ceil(math.sqrt(voxels.size / _COUNTED_VOX)))
        lines = voxels[::step, ::step] if min(voxels.shape[:2]) >= step else voxels
        counts = np.bincount(lines.ravel().view(np.uint16), minlength=_BINS).astype(np.int64)
        counts = np.roll(counts, _ZERO)
        first, *rest = (int(place) - _ZERO for place in np.flatnonzero(counts)[:2])
        is_padding = bool(rest) and first < _PADDING_HU and rest[0] - first >= _GAP_HU
        padding = int(counts[first + _ZERO]) if is_padding else 0
        counts[first + _ZERO] -= padding
        return _Histogram(low, high, counts, padding)

    @cached_property
    def total(self) -> int:
        """How many voxels were counted."""
        return int(self.counts.sum())

    @cached_property
    def _up_to(self) -> Int64[np.ndarray, " 65536"]:
        return np.cumsum(self.counts)

    def share(self, first: int, last: int) -> float:
        """The share of voxels from `first` to `last` HU."""
        below = int(self._up_to[first + _ZERO - 1]) if first > -_ZERO else 0
        return (int(self._up_to[last + _ZERO]) - below) / self.total

    def quantile(self, share: float) -> int:
        """The value that this share of the voxels does not exceed."""
        return int(np.searchsorted(self._up_to, share * self.total)) - _ZERO

    def below(self, value: int) -> float:
        """The share of voxels below a value."""
        return self.share(-_ZERO, value - 1)

    def above(self, value: int) -> float:
        """The share of voxels above a value."""
        return self.share(value + 1, _ZERO - 1)

    def distinct(self, first: int = -_ZERO, last: int = _ZERO - 1) -> int:
        """How many values there are from `first` to `last`."""
        return int(np.count_nonzero(self.counts[first + _ZERO : last + _ZERO + 1]))

    @property
    def run(self) -> str:
        """``run from -3 to 11``."""
        return f"run from {self.low} to {self.high}"


def _rounded(fractions: Fractions) -> str:
    return (
        f"{_percent(fractions.share)} of voxels were no whole numbers and were rounded to whole Hounsfield units, by "
        f"{fractions.largest:.2g} at most"
    )


def _percent(share: float) -> str:
    """A share in so many digits that it is not 0 %."""
    return f"{100 * share:.1f} %" if share >= _FEW else f"{100 * share:.2g} %"


def _normalised(values: _Histogram, fractions: Fractions) -> str:
    """Fractions within fewer HU than noise has, or within a few more that begin with a background."""
    low, high = values.quantile(_FEW), values.quantile(1 - _FEW)
    spread = high - low
    background = values.share(-_ZERO, low + spread // 10)
    if not fractions.share or spread > _NORMALISED_HU or (spread > NARROW_HU and background < 0.05):
        return ""
    why = (
        "noise alone spreads Hounsfield units wider"
        if spread <= NARROW_HU
        else f"{_percent(background)} of them in the lowest tenth, as a background is, but air is -1000 HU"
    )
    return (
        f"holds fractions, as normalised images do: {_percent(fractions.share)} of its voxels are no whole numbers, "
        f"and 99.8 % of its values, which {values.run}, lie within {low} to {high}; {why}, and rounding would leave "
        f"{values.distinct()} values"
    )


def _narrow(values: _Histogram) -> str:
    """Label maps, and normalised images that were rounded: nearly all voxels within fewer HU than noise has."""
    low, high = values.quantile(_FEW), values.quantile(1 - _FEW)
    if high - low > _NARROW_WHOLE_HU or values.high - values.low > 100 * _NARROW_WHOLE_HU:
        return ""
    return (
        f"holds values that {values.run}, 99.8 % of them within {low} to {high}, as label maps and "
        f"normalised images do; noise alone spreads Hounsfield units wider"
    )


def _starts_at_zero(values: _Histogram) -> str:
    """Grey levels, MR, label maps, stored values: none below 0, where CT has fat, lung and air."""
    if values.below(0) >= _FEW or _within_an_organ(values):
        return ""
    below = values.below(0)
    where = _percent(below) if below else "none" if values.low >= 0 else "none but padding"
    return (
        f"holds values that {values.run}, {where} of them below 0; Hounsfield units of a body go below 0 "
        f"(fat, lungs, air)"
    )


def _within_an_organ(values: _Histogram) -> bool:
    """One heap of values between water and enhanced vessels, which does not begin with a background."""
    low, middle, high = (values.quantile(share) for share in (0.005, 0.5, 0.995))
    background = values.share(max(values.low, 0), max(values.low, 0) + 2)
    return high - low <= _ORGAN_HU and -20 <= middle <= 350 and background < 0.01


def _moved_up(values: _Histogram) -> str:
    """Stored values whose intercept of -1024 was lost: soft tissue lies around 1024, and air around 0."""
    counts = values.counts.copy()
    first, second = (int(place) for place in np.flatnonzero(counts)[:2])
    if second - first >= _GAP_HU:
        counts[first] = 0
    total = max(1, int(counts.sum()))
    moved, tissue, below = (
        int(counts[start + _ZERO : end + _ZERO].sum()) / total
        for start, end in ((874, 1175), (30, 201), (_PADDING_HU, -50))
    )
    inside = int(counts[201 + _ZERO :].sum()) / total
    if moved < 0.05 or moved < min(tissue, 0.15) or moved < inside / 3 or below > moved / 5:
        return ""
    return (
        f"holds values that {values.run}, {_percent(moved)} of them within 150 of 1024 and {_percent(tissue)} from "
        f"30 to 200, where soft tissue is; an offset of 1024 was added, or an intercept of -1024 lost"
    )


def _moved_down(values: _Histogram) -> str:
    """An intercept of -1024 that was applied twice: soft tissue lies around -1024, and air around -2024."""
    deep, air, soft = values.share(-2150, -1201), values.share(-1174, -874), values.share(-150, 150)
    if deep < max(0.15, 0.8 * values.below(-1200)) or values.distinct(-2150, -1201) < 20:
        return ""
    if soft > 0.1 or 3 * soft > air:
        return ""
    return (
        f"holds values that {values.run}, {_percent(deep)} of them from -2150 to -1201 HU, where no tissue is, and "
        f"{_percent(soft)} within 150 of 0, where soft tissue is; an intercept of -1024 was applied twice"
    )


def _stretched(values: _Histogram) -> str:
    """Values times ten and the like: far below any scanner's scale."""
    far = values.below(_SCANNER_HU)
    if far < 0.005 or values.distinct(last=_SCANNER_HU - 1) < 20:
        return ""
    return (
        f"holds values that {values.run}, {_percent(far)} of them below {_SCANNER_HU}, where no scanner's scale "
        f"begins; air is -1000 HU"
    )


def _of_magnetic_resonance(values: _Histogram) -> str:
    """A background of 0 with values far above it and next to none below, but for what interpolation overshoots."""
    background, fat = values.share(-5, 5), values.below(-50)
    bright, dense = values.above(150), values.above(500)
    wide = values.quantile(0.99) - max(0, values.quantile(0.01)) > _ORGAN_HU
    if background < 0.15 or not wide or fat > min(0.02, bright / 10):
        return ""
    return (
        f"holds values that {values.run}: {_percent(background)} of them are a background within 5 of 0, "
        f"{_percent(bright)} lie above 150 and {_percent(dense)} above 500, and only {_percent(fat)} below -50, "
        f"where CT has fat, lung and air"
    )


def _doubts(values: _Histogram) -> list[str]:
    found = []
    every = values.total + values.padding
    outside, metal = (values.below(_OUTSIDE_HU) * values.total + values.padding) / every, values.above(_METAL_HU)
    if outside > _FEW:
        found.append(
            f"{_percent(outside)} of voxels lie below {_OUTSIDE_HU} HU (down to {values.low}), as outside of a "
            f"scanner's view"
        )
    if metal > _FEW:
        found.append(f"{_percent(metal)} of voxels lie above {_METAL_HU} HU (up to {values.high}), as in metal")
    if values.below(-50) < _FEW:
        found.append(
            f"values {values.run}, next to none below -50 HU (fat, lung, air): a crop within an organ, or no "
            f"Hounsfield units"
        )
    elif values.share(-150, 150) < _FEW:
        found.append(
            f"hardly any voxel is soft tissue (-150 to 150 HU; values {values.run}); check that the values are "
            f"Hounsfield units"
        )
    return found + _heaps(values)


def _heaps(values: _Histogram) -> list[str]:
    """Doubts from heaps where CT has none."""
    found = []
    dense, fat = values.above(500), values.below(-50)
    if dense > 0.25 and fat < dense / 3:
        found.append(
            f"{_percent(dense)} of voxels lie above 500 HU (dense bone, metal) and only {_percent(fat)} below -50 HU "
            f"(fat, lung, air)"
        )
    least, most = values.share(values.low, values.low), values.share(values.high, values.high)
    heap = values.share(values.low, values.low + 10)
    if least > 0.01 and most > 0.005 and values.low > -900:
        found.append(
            f"{_percent(least)} of voxels are exactly {values.low} and {_percent(most)} exactly {values.high}, as of "
            f"grey levels, or of values that were clipped to a window"
        )
    elif heap > 0.2 and values.low > -900:
        found.append(
            f"{_percent(heap)} of voxels are {values.low} to {values.low + 10} HU, the least there is: a background "
            f"that is not air (-1000 HU)"
        )
    zeros = values.share(-5, 5)
    if zeros > 0.15 and fat < 0.02:
        found.append(f"{_percent(zeros)} of voxels lie within 5 of 0, as a background of 0 does; air is -1000 HU")
    if values.low == -128 and values.high <= 127:
        found.append(f"values {values.run}, as signed bytes do")
    step = _step(values)
    if step > 4 and values.distinct() > 64:
        found.append(f"every value is a multiple of {step}, as of values that were scaled")
    return found


def _step(values: _Histogram) -> int:
    """The greatest common divisor of all values."""
    return int(np.gcd.reduce(np.flatnonzero(values.counts) - _ZERO))
