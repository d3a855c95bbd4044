"""Files as replies: alone, or as MONAI Label's clients read them, in a form beside JSON.

A file is open before its reply begins, so that who deletes it meanwhile breaks nothing.

The plugin of 3D Slicer hands the bare socket to `cgi.FieldStorage`, and OHIF's searches the text of a form for
``Content-Type: application/json``: so the length is given and the body never chunked, the boundary is a bare token,
the headers are few and written in just this way, and the JSON comes first.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from voxray.serving.errors import ProblemError

_CHUNK = 256 << 10


def file_reply(path: Path, *, media_type: str, name: str) -> StreamingResponse:
    """The file to download as `name`; a ProblemError where it is gone."""
    file, size = _opened(path)
    headers = {"content-length": str(size), "content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_pieces(b"", file, b""), media_type=media_type, headers=headers)


def form_reply(
    params: Mapping[str, Any], path: Path, *, name: str, content_type: str, after: BackgroundTask | None = None
) -> StreamingResponse:
    """The parts ``params`` and ``image``, the latter a file that is sent under `name`."""
    head, tail, boundary = wrapping(params, name=name, content_type=content_type)
    file, size = _opened(path)
    return StreamingResponse(
        _pieces(head, file, tail),
        headers={"Content-Length": str(len(head) + size + len(tail))},
        media_type=f"multipart/form-data; boundary={boundary}",
        background=after,
    )


def wrapping(params: Mapping[str, Any], *, name: str, content_type: str) -> tuple[bytes, bytes, str]:
    """What comes before and after the file in a form, and the boundary."""
    assert not set(name) & set('"\r\n\\'), name
    boundary = f"voxray-{secrets.token_hex(16)}"
    lines = (
        f"--{boundary}",
        'Content-Disposition: form-data; name="params"',
        "Content-Type: application/json",
        "",
        json.dumps(params, allow_nan=False),
        f"--{boundary}",
        f'Content-Disposition: form-data; name="image"; filename="{name}"',
        f"Content-Type: {content_type}",
        "",
        "",
    )
    return "\r\n".join(lines).encode(), f"\r\n--{boundary}--\r\n".encode(), boundary


def _opened(path: Path) -> tuple[BinaryIO, int]:
    """The file and its size."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        text = "The file was deleted at this moment."
        raise ProblemError(404, "result.gone", text, remedy="It may have expired; ask for it again.") from None
    return file, os.fstat(file.fileno()).st_size


async def _pieces(head: bytes, file: BinaryIO, tail: bytes) -> AsyncIterator[bytes]:
    with file:
        if head:
            yield head
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
        if tail:
            yield tail
