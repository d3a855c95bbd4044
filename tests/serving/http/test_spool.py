"""Packed bodies, unpacked as they come."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxray.serving.errors import ProblemError
from voxray.serving.http.spool import unpacked

PACK: dict[str, Callable[[bytes], bytes]] = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}


def unpack(data: bytes, encoding: str, *, size: int = 7, limit: int = 1 << 24) -> bytes:
    """What comes out where the body comes in chunks of a size."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    async def joined() -> bytes:
        return b"".join([piece async for piece in unpacked(chunks(), encoding, limit=limit)])

    return asyncio.run(joined())


@given(data=st.binary(max_size=500), encoding=st.sampled_from(sorted(PACK)), size=st.integers(1, 600))
def test_what_was_packed_comes_out(data: bytes, encoding: str, size: int) -> None:
    assert unpack(PACK[encoding](data), encoding, size=size) == data


def test_much_from_little_comes_in_pieces_and_stops_at_the_limit() -> None:
    bomb = gzip.compress(bytes(20 << 20))
    assert unpack(bomb, "gzip", size=len(bomb), limit=20 << 20) == bytes(20 << 20)
    with pytest.raises(ProblemError, match=r"upload\.too_large"):
        unpack(bomb, "gzip", size=len(bomb), limit=(20 << 20) - 1)


DAMAGED = {
    "nothing": b"nothing",
    "cut": gzip.compress(b"whole")[:-1],
    "more": gzip.compress(b"whole") + b"more",
    "empty": b"",
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_whole_gzip_is_refused(damage: bytes) -> None:
    with pytest.raises(ProblemError, match=r"request\.encoding"):
        unpack(damage, "gzip")
