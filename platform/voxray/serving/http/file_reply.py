"""A file as a reply, which is open before the reply begins: who deletes it meanwhile breaks nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi.responses import StreamingResponse

from voxray.serving.errors import ProblemError

_CHUNK = 256 << 10


def file_reply(path: Path, *, media_type: str, name: str) -> StreamingResponse:
    """The file to download as `name`; a Problem where it is gone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        text = "The file was deleted at this moment."
        raise ProblemError(404, "result.gone", text, remedy="It may have expired; ask for it again.") from None
    headers = {
        "content-length": str(os.fstat(file.fileno()).st_size),
        "content-disposition": f'attachment; filename="{name}"',
    }
    return StreamingResponse(_chunks(file), media_type=media_type, headers=headers)


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
