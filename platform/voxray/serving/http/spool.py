"""A request's body on disk, to be looked into anywhere without holding it: bodies have the size of scans."""

from __future__ import annotations

import asyncio
import mmap
import tempfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from starlette.requests import ClientDisconnect, Request

from voxray.serving.errors import ProblemError
from voxray.serving.intake.disk import in_thread

_BATCH = 1 << 20
_WBITS = {"gzip": 31, "deflate": 15}


async def spooled(request: Request, folder: Path, *, limit: int, idle_s: float) -> memoryview:
    """The body, unpacked where it says that it is packed; its disk is free again when the view is gone."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", *_WBITS):
        raise ProblemError(
            415, "request.encoding", "The body's Content-Encoding is not known.", remedy="Send it as it is, or gzip."
        )
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        total = 0
        async for piece in unpacked(_chunks(request, idle_s), encoding, limit=limit):
            total += len(piece)
            if total > limit:
                raise _too_large(limit)
            await in_thread(_write, file, piece)
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if total else b"")


async def unpacked(chunks: AsyncIterator[bytes], encoding: str, *, limit: int) -> AsyncIterator[bytes]:
    """The bytes that the chunks stand for, never many at once."""
    if encoding not in _WBITS:
        async for chunk in chunks:
            yield chunk
        return
    stream, total = zlib.decompressobj(_WBITS[encoding]), 0
    async for chunk in chunks:
        left = chunk
        while left:
            try:
                piece = stream.decompress(left, _BATCH)
            except zlib.error:
                raise _broken(encoding) from None
            total += len(piece)
            if total > limit:
                raise _too_large(limit)
            left = stream.unconsumed_tail
            if stream.unused_data:
                raise _broken(encoding)
            yield piece
    if not stream.eof:
        raise _broken(encoding)


def _write(file: IO[bytes], piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


async def _chunks(request: Request, idle_s: float) -> AsyncIterator[bytes]:
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout(idle_s):
                chunk = await anext(stream, None)
            if chunk is None:
                return
            yield chunk
    except TimeoutError:
        raise ProblemError(
            408, "upload.stalled", f"Nothing came for {idle_s:g} seconds.", remedy="Send the upload again."
        ) from None
    except ClientDisconnect:
        raise ProblemError(400, "upload.broken_off", "The upload was broken off.", remedy="Send it again.") from None


def _too_large(limit: int) -> ProblemError:
    return ProblemError(
        413, "upload.too_large", f"The body has more than {limit:,} bytes.", remedy="Send one scan, packed (.nii.gz)."
    )


def _broken(encoding: str) -> ProblemError:
    return ProblemError(
        400, "request.encoding", f"The body is no whole {encoding}.", remedy="Send it again, or unpacked."
    )
