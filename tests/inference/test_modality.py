"""Scans that are no CT, or no volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxray.errors import DataError
from voxray.inference.modality import check_modality
from voxray.readers import read_volume
from voxray.volume import Grid, Shape, Volume


def scan(low: int, high: int, shape: Shape = (8, 9, 10)) -> Volume:
    voxels = np.random.default_rng(0).integers(low, high + 1, shape).astype(np.int16)
    voxels.flat[:2] = low, high
    return Volume(voxels, Grid(shape, (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1)))


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 4095), (1, 2)])
def test_without_a_value_below_zero_it_is_no_ct(low: int, high: int) -> None:
    with pytest.raises(DataError, match=f"from {low} to {high}") as caught:
        check_modality(scan(low, high))
    assert caught.value.code == "scan.not_hounsfield"


@pytest.mark.parametrize("shape", [(8, 9, 1), (1, 9, 8)])
def test_one_slice_is_no_volume(shape: Shape) -> None:
    with pytest.raises(DataError, match="single slice") as caught:
        check_modality(
            scan(-1000, 400, shape)
            if shape != (1, 1, 1)
            else Volume(np.zeros(shape, np.int16), scan(0, 1, shape).grid)
        )
    assert caught.value.code == "scan.one_slice"


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-3024, 900, "below -1100"), (-1000, 9000, "above 3071"), (-1000, -900, "soft tissue")]
)
def test_what_is_odd_is_a_warning(low: int, high: int, word: str) -> None:
    assert any(word in warning for warning in check_modality(scan(low, high)))


def test_a_plain_scan_passes() -> None:
    assert check_modality(scan(-1000, 1500)) == ()


@pytest.mark.data
def test_a_real_abdomen_passes(shared_data: Path) -> None:
    assert check_modality(read_volume(shared_data / "abdomen" / "TS_example_ct.nii.gz")) == ()
