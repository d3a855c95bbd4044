"""From stored values to Hounsfield units and labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from voxray.core.volume import Grid
from voxray.readers.stored import Stored, StoredSlice, hounsfield, labels

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def stored(voxels: NDArray[Any], slope: float = 1.0, intercept: float = 0.0) -> Stored:
    """The voxels (x y z) as a file would give them; one buffer serves all slices."""

    def slices() -> Iterator[StoredSlice]:
        buffer = np.empty(voxels.shape[1::-1], voxels.dtype)
        for z in range(voxels.shape[2]):
            buffer[:] = voxels[:, :, z].T
            yield StoredSlice(buffer, slope, intercept)

    grid = Grid((voxels.shape[0], voxels.shape[1], voxels.shape[2]), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    return Stored(Path("scan"), "test", grid, voxels.dtype.name, slices)


@pytest.mark.parametrize("depth", [1, 15, 16, 17, 40])
def test_voxels_keep_their_places(rng: np.random.Generator, depth: int) -> None:
    voxels = rng.integers(-1000, 1000, (5, 4, depth)).astype(np.int16)
    volume = hounsfield(stored(voxels))
    assert (volume.voxels == voxels).all()
    assert volume.voxels.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (1.0, -1024.0), (2.0, -1024.0), (0.5, 0.25)])
def test_every_type_is_scaled_and_rounded_to_the_nearest(dtype: str, slope: float, intercept: float) -> None:
    voxels = np.arange(120, dtype=dtype).reshape(4, 5, 6)
    wanted = [round(int(value) * slope + intercept) for value in voxels.ravel()]
    volume = hounsfield(stored(voxels, slope, intercept))
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.ravel().tolist() == wanted


def test_values_beyond_int16_are_refused_not_wrapped(refused: Any) -> None:
    edge = np.array([[[-32768, 32767]]], np.int32)
    assert hounsfield(stored(edge)).voxels.ravel().tolist() == [-32768, 32767]
    for value in (32768, -32769, 2**31 - 1):
        with refused("voxels.range"):
            hounsfield(stored(np.full((1, 1, 2), value, np.int64)))
    with refused("voxels.range"):
        hounsfield(stored(np.full((1, 1, 1), 30000, np.int16), intercept=30000.0))
    with refused("voxels.range"):
        hounsfield(stored(np.full((1, 1, 1), 1, np.uint8), slope=1e9))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(refused: Any, value: float) -> None:
    voxels = np.zeros((2, 2, 2), np.float32)
    voxels[1, 1, 1] = value
    for meaning in (hounsfield, labels):
        with refused("voxels.not_finite"):
            meaning(stored(voxels))


def test_labels_take_one_byte_where_they_fit() -> None:
    assert labels(stored(np.full((2, 2, 2), 255, np.float64))).voxels.dtype == np.uint8
    wide = labels(stored(np.full((2, 2, 2), 256, np.int16))).voxels
    assert wide.dtype == np.uint16
    assert (wide == 256).all()


def test_labels_that_were_scaled_by_a_float_are_whole() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(8, 8, 4)
    found = labels(stored(values, slope=float(np.float32(1 / 255)) * 255))
    assert (found.voxels == values).all()


def test_what_is_no_label_is_refused(refused: Any) -> None:
    for code, value in (("labels.fraction", 0.5), ("labels.negative", -1.0), ("labels.range", 65536.0)):
        voxels = np.zeros((2, 2, 2), np.float64)
        voxels[1, 0, 1] = value
        with refused(code):
            labels(stored(voxels))
