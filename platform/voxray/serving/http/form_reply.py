"""A reply of two parts, JSON and a file, as MONAI Label's clients read it.

The plugin of 3D Slicer hands the bare socket to `cgi.FieldStorage`, and OHIF's searches the decoded text for
``Content-Type: application/json``: so the length is given and the body never chunked, the boundary is a bare token,
the headers are few and written in just this way, and the JSON comes first.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
from starlette.background import BackgroundTask
from starlette.responses import StreamingResponse

_CHUNK = 1 << 20


def form_reply(
    params: Mapping[str, Any], path: Path, *, name: str, content_type: str, after: BackgroundTask | None = None
) -> StreamingResponse:
    """The parts ``params`` and ``image``, the latter a file that is sent under `name`."""
    head, tail, boundary = wrapping(params, name=name, content_type=content_type)
    return StreamingResponse(
        _pieces(head, path, tail),
        headers={"Content-Length": str(len(head) + path.stat().st_size + len(tail))},
        media_type=f"multipart/form-data; boundary={boundary}",
        background=after,
    )


def wrapping(params: Mapping[str, Any], *, name: str, content_type: str) -> tuple[bytes, bytes, str]:
    """What comes before and after the file, and the boundary."""
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


async def _pieces(head: bytes, path: Path, tail: bytes) -> AsyncIterator[bytes]:
    yield head
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(_CHUNK):
            yield chunk
    yield tail
