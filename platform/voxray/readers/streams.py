"""The bytes of a volume file, slice by slice, raw or packed, with their length and checksum verified to the end."""

from __future__ import annotations

import bz2
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from isal import igzip_lib, isal_zlib

from voxray.core.volume import Shape
from voxray.readers.refusals import refusal
from voxray.readers.stored import StoredSlice

Packing = Literal["raw", "zlib", "bzip2"]
"""`zlib` is zlib or gzip: the stream itself says which."""

_PIECE = 1 << 18
_MAX_DEFLATE_RATIO = 1032
"""No deflate stream unpacks to more than this many times its size (zlib's own bound)."""

_Damaged: Any = igzip_lib.IsalError  # which its stubs call optional


class StreamCodes(NamedTuple):
    """What a format calls its ways to be damaged."""

    truncated: str
    corrupt: str
    longer: str


@dataclass(frozen=True)
class VoxelStream:
    """Where the voxels lie: `path` from `offset`, and after unpacking from `skip`; `dtype` with its byte order."""

    path: Path
    packing: Packing
    dtype: np.dtype[Any]
    shape: Shape
    codes: StreamCodes
    offset: int = 0
    skip: int = 0
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def num_bytes(self) -> int:
        """How many bytes of voxels the header promises."""
        return int(np.prod([int(side) for side in self.shape], dtype=object)) * self.dtype.itemsize


def read_start(path: Path, num_bytes: int) -> bytes:
    """Up to `num_bytes` from the start of a file, unpacked where it is gzip; fewer where it ends or breaks."""
    with path.open("rb") as file:
        start = file.read(_PIECE)
    if not is_gzip(start):
        return start[:num_bytes]
    try:
        return isal_zlib.decompressobj(wbits=31).decompress(start, num_bytes)
    except _Damaged:
        return b""


def is_gzip(start: bytes) -> bool:
    """Whether a file that starts like this is gzip."""
    return start[:2] == b"\x1f\x8b"


def check_length(source: VoxelStream) -> None:
    """Refuses a file that cannot hold what its header promises, before anything is allocated."""
    available = source.path.stat().st_size - source.offset
    if source.packing == "raw" and available != source.num_bytes + source.skip:
        raise _wrong_length(source, max(available - source.skip, 0))
    if source.packing == "zlib" and source.num_bytes > available * _MAX_DEFLATE_RATIO:
        raise _wrong_length(source, None)


def read_slices(source: VoxelStream) -> Iterator[StoredSlice]:
    """The slices along z, in stored values; the last one comes only after the whole stream has proved sound."""
    size_x, size_y, size_z = source.shape
    held = bytearray(size_x * size_y * source.dtype.itemsize)
    rows = np.frombuffer(held, source.dtype).reshape(size_y, size_x)
    if not source.dtype.isnative:
        native = source.dtype.newbyteorder("=")
    for _ in _filled(source, held, size_z):
        values = rows if source.dtype.isnative else rows.astype(native)
        yield StoredSlice(values, source.slope, source.intercept)


def _filled(source: VoxelStream, held: bytearray, count: int) -> Iterator[None]:
    """Yields each time that `held` has the next slice; checks the end of the stream before the last."""
    to_skip, filled, done, total, promised = source.skip, 0, 0, 0, source.num_bytes
    for piece in _unpacked(source):
        view = memoryview(piece)
        if to_skip:
            dropped = min(to_skip, len(view))
            view, to_skip = view[dropped:], to_skip - dropped
        total += len(view)
        if total > promised:
            raise _wrong_length(source, total)
        while len(view):
            taken = min(len(held) - filled, len(view))
            held[filled : filled + taken] = view[:taken]
            view, filled = view[taken:], filled + taken
            if filled == len(held) and done + 1 < count:
                yield
                filled, done = 0, done + 1
            elif filled == len(held):
                break
    if total < promised:
        raise _wrong_length(source, total)
    yield


def _unpacked(source: VoxelStream) -> Iterator[bytes]:
    with source.path.open("rb") as file:
        file.seek(source.offset)
        if source.packing == "raw":
            while piece := file.read(_PIECE):
                yield piece
            return
        try:
            yield from (_inflate if source.packing == "zlib" else _unpack_bzip2)(file)
        except EOFError:
            raise refusal(
                source.codes.truncated,
                source.path,
                "ends in the middle of its compressed data.",
                remedy="Copy or download the file again.",
            ) from None
        except (_Damaged, OSError) as error:
            raise refusal(
                source.codes.corrupt,
                source.path,
                f"has damaged compressed data ({error}).",
                remedy="Copy or download the file again.",
            ) from None


def _inflate(file: BinaryIO) -> Iterator[bytes]:
    """Unpacks gzip (any number of members) or zlib; zlib itself checks CRC and length where a member ends."""
    stream, ended = isal_zlib.decompressobj(wbits=47), False
    while packed := file.read(_PIECE):
        while packed:
            if ended:
                packed = packed.lstrip(b"\0")
                if not packed:
                    break
                stream, ended = isal_zlib.decompressobj(wbits=47), False
            yield stream.decompress(packed, 4 * _PIECE)
            ended = stream.eof
            packed = stream.unused_data if ended else stream.unconsumed_tail
    while not ended:
        rest = stream.decompress(b"", 4 * _PIECE)
        ended = stream.eof
        if not rest and not ended:
            raise EOFError
        yield rest


def _unpack_bzip2(file: BinaryIO) -> Iterator[bytes]:
    with bz2.BZ2File(file) as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _wrong_length(source: VoxelStream, found: int | None) -> Exception:
    sides = " x ".join(str(side) for side in source.shape)
    promised = f"{sides} voxels of {source.dtype.name}, {source.num_bytes} bytes"
    if found is not None and found > source.num_bytes:
        return refusal(
            source.codes.longer,
            source.path,
            f"holds more bytes of voxels than its header says ({promised}).",
            remedy="The header and the data do not belong together; export the volume again.",
        )
    has = "far fewer" if found is None else str(found)
    return refusal(
        source.codes.truncated,
        source.path,
        f"has {has} bytes of voxels where its header says {promised}.",
        remedy="Copy or download the file again.",
    )
