"""Padding becomes air, and tissue stays what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from voxray.readers import describe, read_volume
from voxray.readers.dicom_padding import split_padding

WIDE = 40
OUTSIDE = np.hypot(*(np.indices((WIDE, WIDE)) - WIDE / 2 + 0.5)) > WIDE / 2 - 1


def image(rng: np.random.Generator, padding: int, *, low: int = 24, high: int = 1400) -> NDArray[np.int64]:
    """Three slices of a circular view (x y z) with padding around it."""
    values = rng.integers(low, high, (WIDE, WIDE, 3))
    values[OUTSIDE] = padding
    return values


def warned(folder: Any) -> str:
    return " / ".join(describe(folder, pixels=True).warnings)


@pytest.mark.parametrize(
    ("dtype", "padding", "intercept", "changes"),
    [
        (np.uint16, 63536, -1024, {"PixelPaddingValue": 63536}),
        (np.int16, -2000, 0, {"PixelPaddingValue": -2000}),
        (np.int16, -2000, -1024, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}),
        (np.uint16, 63536, -1024, {"PixelPaddingValue": 63536, "BitsStored": 12, "HighBit": 11}),
        (np.int16, -2000, -1024, {"PixelPaddingValue": 2096, "BitsStored": 12, "HighBit": 11}),
        (np.int16, -2000, -1024, {"PixelPaddingValue": -2000, "BitsStored": 12, "HighBit": 11}),
        (np.uint16, 60005, -1024, {"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 60010}),
        (np.uint16, 60005, -1024, {"PixelPaddingValue": 60010, "PixelPaddingRangeLimit": 60000}),
        (np.int16, 1064, -1024, {"PixelPaddingValue": 1064}),
        (np.int16, 0, 0, {"PixelPaddingValue": 0}),
    ],
)
def test_padding_around_the_view_becomes_air(
    write_series: Any, rng: np.random.Generator, dtype: Any, padding: int, intercept: int, changes: dict[str, int]
) -> None:
    low = 24 if intercept else 1
    stored = image(rng, padding, low=low)
    stored[~OUTSIDE] += stored[~OUTSIDE] == padding
    volume = read_volume(write_series(stored.astype(dtype), RescaleIntercept=intercept, **changes))
    assert (volume.voxels[OUTSIDE] == -1024).all()
    assert (volume.voxels[~OUTSIDE] == stored[~OUTSIDE] + intercept).all()
    assert f"{3 * np.count_nonzero(OUTSIDE)} pixels of padding (Pixel Padding Value) are read as air, -1024 HU" in (
        volume.warnings
    )


def test_padding_that_is_air_already_is_left_and_not_told(write_series: Any, rng: np.random.Generator) -> None:
    for padding in (0, 24):
        stored = image(rng, padding, low=0).astype(np.uint16)
        folder = write_series(stored, PixelPaddingValue=padding)
        assert (read_volume(folder).voxels == stored.astype(int) - 1024).all()
        assert "padding" not in warned(folder)


def test_tissue_of_the_padding_value_is_kept_and_counted(write_series: Any, rng: np.random.Generator) -> None:
    stored = image(rng, 1064, high=1000).astype(np.uint16)
    stored[20:22, 20, 1] = 1064
    folder = write_series(stored, PixelPaddingValue=1064)
    voxels = read_volume(folder).voxels
    assert (voxels[20:22, 20, 1] == 40).all()
    assert (voxels[OUTSIDE] == -1024).all()
    assert "2 pixels within the image have the Pixel Padding Value" in warned(folder)


def test_a_value_that_no_tissue_has_is_padding_wherever_it_lies() -> None:
    values = np.full((4, 4), 100)
    values[1, 2] = 63536
    is_air, kept = split_padding(values, values == 63536, slope=1.0, intercept=-1024.0)
    assert is_air.sum() == is_air[1, 2] == 1
    assert kept == 0


def test_without_a_padding_value_nothing_is_padding(write_series: Any, rng: np.random.Generator) -> None:
    stored = image(rng, -2000).astype(np.int16)
    folder = write_series(stored, RescaleIntercept=0)
    volume = read_volume(folder, accept_values=True)
    assert (volume.voxels == stored).all()
    assert "Pixel Padding Value" not in " ".join(volume.warnings)
