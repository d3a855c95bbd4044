"""Multipart bodies as they come in, part by part, never held as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from voxray.serving.errors import ProblemError

_HEADER_BYTES = 8192
_PARTS = 25_000


@dataclass
class FormPart:
    """A file or a field of a form."""

    field: str
    name: str
    """The client's file name; empty for a field."""
    content_type: str
    chunks: AsyncIterator[bytes]
    """To be read before the next part is asked for."""

    async def text(self, *, limit: int = 1 << 20) -> str:
        """A field's value."""
        held = bytearray()
        async for chunk in self.chunks:
            held += chunk
            if len(held) > limit:
                raise ProblemError(
                    413, "form.field_too_large", f"The field {self.field} is too large.", remedy="Shorten it."
                )
        return held.decode("utf-8", "replace")


def is_multipart(request: Request) -> bool:
    """Whether the body is a form."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def parts_of(request: Request) -> AsyncGenerator[FormPart, None]:
    """The parts of a form, one after another."""
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if not boundary:
        raise _malformed("has no boundary")
    events, stream = _Events(), _chunks(request)
    parser = MultipartParser(boundary, events.callbacks())  # type: ignore[arg-type]
    number = 0
    while await _next(events, parser, stream):
        if events.queue.popleft()[0] != "begin":
            continue
        number += 1
        if number > _PARTS:
            raise ProblemError(
                413, "upload.too_many_files", f"The form has over {_PARTS} parts.", remedy="Send a zip."
            )
        part = await _part(events, parser, stream)
        yield part
        async for _ in part.chunks:  # what was not read
            pass


async def whole_body(request: Request, name: str) -> AsyncGenerator[FormPart, None]:
    """A body that is one file."""
    yield FormPart("file", name, request.headers.get("content-type", ""), _chunks(request))


async def _chunks(request: Request) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect:
        raise ProblemError(400, "upload.broken_off", "The upload was broken off.", remedy="Send it again.") from None


@dataclass
class _Events:
    queue: deque[tuple[str, bytes]] = field(default_factory=deque)
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)

    def callbacks(self) -> dict[str, object]:
        def name(data: bytes, start: int, end: int) -> None:
            self.header += data[start:end]
            self._bounded()

        def value(data: bytes, start: int, end: int) -> None:
            self.value += data[start:end]
            self._bounded()

        def header_ends() -> None:
            self.queue.append(("header", bytes(self.header).lower() + b":" + bytes(self.value)))
            self.header.clear()
            self.value.clear()

        return {
            "on_part_begin": lambda: self.queue.append(("begin", b"")),
            "on_header_field": name,
            "on_header_value": value,
            "on_header_end": header_ends,
            "on_headers_finished": lambda: self.queue.append(("body", b"")),
            "on_part_data": lambda data, start, end: self.queue.append(("data", bytes(data[start:end]))),
            "on_part_end": lambda: self.queue.append(("end", b"")),
            "on_end": lambda: self.queue.append(("over", b"")),
        }

    def _bounded(self) -> None:
        if len(self.header) + len(self.value) > _HEADER_BYTES:
            raise _malformed("has a part with too long a header")


async def _next(events: _Events, parser: MultipartParser, stream: AsyncIterator[bytes]) -> bool:
    """Reads on until there is an event; False at the end of the form."""
    while not events.queue:
        chunk = await anext(stream, b"")
        if not chunk:
            raise _malformed("ends before its last boundary")
        try:
            parser.write(chunk)
        except FormParserError:
            raise _malformed("is not well formed") from None
    return events.queue[0][0] != "over"


async def _part(events: _Events, parser: MultipartParser, stream: AsyncIterator[bytes]) -> FormPart:
    headers: dict[bytes, bytes] = {}
    while await _next(events, parser, stream):
        kind, data = events.queue.popleft()
        if kind == "body":
            break
        key, _, value = data.partition(b":")
        headers[key] = value
    _, options = parse_options_header(headers.get(b"content-disposition", b""))

    async def chunks() -> AsyncGenerator[bytes, None]:
        while await _next(events, parser, stream):
            kind, data = events.queue.popleft()
            if kind == "end":
                return
            yield data

    return FormPart(
        field=options.get(b"name", b"").decode("utf-8", "replace"),
        name=options.get(b"filename", b"").decode("utf-8", "replace"),
        content_type=headers.get(b"content-type", b"").decode("latin-1"),
        chunks=chunks(),
    )


def _malformed(what: str) -> ProblemError:
    return ProblemError(400, "form.malformed", f"The multipart body {what}.", remedy="Send multipart/form-data.")
