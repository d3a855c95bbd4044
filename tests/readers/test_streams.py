"""Packed streams: whatever is cut off or flipped is refused, never filled with zeros."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from voxray.core.errors import DataError
from voxray.readers.streams import Packing, StreamCodes, VoxelStream, check_length, read_slices, read_start

CODES = StreamCodes("truncated", "corrupt", "longer")
VOXELS = np.random.default_rng(1).integers(-1000, 1000, (5, 7, 11)).astype(np.int16)


def source(path: Path, packing: Packing, **more: int) -> VoxelStream:
    return VoxelStream(path, packing, np.dtype("<i2"), (11, 7, 5), CODES, **more)


def read(path: Path, packing: Packing, **more: int) -> NDArray[np.int16]:
    given_source = source(path, packing, **more)
    check_length(given_source)
    return np.stack([one.values.copy() for one in read_slices(given_source)])


def code_of(path: Path, packing: Packing) -> str:
    with pytest.raises(DataError) as raised:
        read(path, packing)
    return raised.value.code


@pytest.mark.parametrize("packed", [zlib.compress, gzip.compress])
def test_zlib_and_gzip_are_told_apart_by_their_content(tmp_path: Path, packed: object) -> None:
    path = tmp_path / "a"
    path.write_bytes(packed(VOXELS.tobytes()))  # type: ignore[operator]
    assert (read(path, "zlib") == VOXELS).all()


def test_gzip_members_are_read_one_after_the_other(tmp_path: Path) -> None:
    path, data = tmp_path / "a", VOXELS.tobytes()
    path.write_bytes(gzip.compress(data[:101]) + gzip.compress(data[101:]) + bytes(16))
    assert (read(path, "zlib") == VOXELS).all()


def test_what_lies_before_the_voxels_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345" + gzip.compress(b"header" + VOXELS.tobytes()))
    assert (read(path, "zlib", offset=5, skip=6) == VOXELS).all()


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_stream_is_truncated_wherever_it_is_cut(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "a"
    for packing, data in (("raw", VOXELS.tobytes()), ("zlib", gzip.compress(VOXELS.tobytes()))):
        path.write_bytes(data[: int(len(data) * cut)])
        assert code_of(path, packing) == "truncated"  # type: ignore[arg-type]


@given(place=st.integers(0, 679), bit=st.integers(0, 7))
def test_a_flipped_bit_never_passes(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    data = bytearray(gzip.compress(VOXELS.tobytes(), mtime=0))
    assert len(data) >= 680
    data[place] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "a"
    path.write_bytes(data)
    if place < 10 and place not in (0, 1, 2, 3):
        # The gzip header's time, level and system do not bear on the voxels.
        assert (read(path, "zlib") == VOXELS).all()
    else:
        assert code_of(path, "zlib") in ("truncated", "corrupt", "longer")


def test_more_than_was_promised_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(VOXELS.tobytes() + b"x")
    assert code_of(path, "raw") == "longer"
    path.write_bytes(gzip.compress(VOXELS.tobytes() + bytes(10_000_000)))
    assert code_of(path, "zlib") == "longer"


def test_a_promise_that_no_stream_of_this_size_can_hold_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(bytes(1000)))
    promised = VoxelStream(path, "zlib", np.dtype("<i2"), (1024, 1024, 1024), CODES)
    with pytest.raises(DataError, match="far fewer"):
        check_length(promised)


def test_the_start_of_a_file_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(b"abcdef"))
    assert read_start(path, 4) == b"abcd"
    path.write_bytes(b"\x1f\x8bnothing")
    assert read_start(path, 4) == b""
