"""Flow between Ray Serve's proxy and an HTTP replica: a body comes and goes no faster than its end takes it.

Ray Serve's proxy passes a request's body on as fast as it comes, and the replica its answer's, through queues without
bounds in both processes: where a disk is slower than the network, or a client slower than the disk, both would hold
the whole of it, and keep part of that memory. So each half of this lets `WINDOW` bytes pass, and as many more as the
other half says that its end has taken: in messages of their own among the others, which the halves keep.

Nothing is held back where the halves do not meet: without Ray, or where the proxy was started without this.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PROXY_SETTING = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""The environment variable from which Ray Serve's proxy learns what to put around itself, when Ray is started."""
PROXY_HALF = "voxray.serving.flow:around_the_proxy"

TAKEN = "voxray.taken"
"""The extension's name in a request's scope, and the type of the messages that say what was taken, either way."""
WINDOW = 4 << 20
"""Bytes of one body on their way; a trip between the processes takes milliseconds, so that this is no brake."""
_LUMP = WINDOW // 8
_PATIENCE_S = 30.0
"""So long is a replica waited for that does not say what it takes; it may be another application's."""


def around_the_proxy() -> list[Middleware]:
    """What Ray Serve puts around its proxy."""
    return [Middleware(ProxyHalf)]


class ProxyHalf:
    """ASGI middleware around Ray Serve's proxy."""

    def __init__(self, app: ASGIApp, *, patience_s: float = _PATIENCE_S) -> None:
        self._app, self._patience_s = app, patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["extensions"] = {**scope.get("extensions", {}), TAKEN: {}}
        room, told = _Room(self._patience_s), _Told()

        async def held_back() -> Message:
            await room.wait()
            message = await receive()
            room.less(message)
            return message

        async with _inbox(held_back) as inbox:

            async def answer(message: Message) -> None:
                if message["type"] == TAKEN:
                    room.more(message)
                    return
                await send(message)
                for lump in told.of(message):
                    inbox.put_nowait(lump)

            await self._app(scope, inbox.get, answer)


class ReplicaHalf:
    """ASGI middleware around the application in a replica."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if TAKEN not in scope.get("extensions", {}):
            await self._app(scope, receive, send)
            return
        room, told = _Room(None), _Told()

        async def arriving() -> Message:
            while (message := await receive())["type"] == TAKEN:
                room.more(message)
            if message["type"] == "http.disconnect":
                room.open()
            return message

        async with _inbox(arriving) as inbox:

            async def taking() -> Message:
                message = await inbox.get()
                if message["type"] == "http.disconnect":
                    inbox.put_nowait(message)  # it is said as often as it is asked for
                for lump in told.of(message):
                    await send(lump)
                return message

            async def held_back(message: Message) -> None:
                await room.wait()
                room.less(message)
                await send(message)

            await self._app(scope, taking, held_back)


class _Room:
    """How many bytes of a body may still pass."""

    def __init__(self, patience_s: float | None) -> None:
        """After `patience_s` in which nobody said what was taken, all may pass; None: whoever takes says so."""
        self._bytes: float = WINDOW
        self._patience_s = patience_s
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Until something may pass."""
        while self._bytes <= 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._changed.wait()
            except TimeoutError:
                self.open()

    def less(self, message: Message) -> None:
        """By a message that passes."""
        self._bytes -= len(message.get("body", b""))

    def more(self, message: Message) -> None:
        """By what the other half says."""
        self._bytes, self._patience_s = self._bytes + message["bytes"], None
        self._changed.set()

    def open(self) -> None:
        """Lets everything pass."""
        self._bytes = math.inf
        self._changed.set()


class _Told:
    """What the other half has to be told, in lumps."""

    def __init__(self) -> None:
        self._untold = 0

    def of(self, message: Message) -> tuple[Message, ...]:
        """The message to send once this one was taken; mostly none."""
        self._untold += len(message.get("body", b""))
        if self._untold < _LUMP:
            return ()
        told, self._untold = self._untold, 0
        return ({"type": TAKEN, "bytes": told},)


@contextlib.asynccontextmanager
async def _inbox(receive: Receive) -> AsyncIterator[asyncio.Queue[Message]]:
    """What `receive` gives, taken as it comes, up to the disconnect; other messages may be put among it."""
    inbox: asyncio.Queue[Message] = asyncio.Queue()

    async def fill() -> None:
        message: Message = {"type": ""}
        try:
            while message["type"] != "http.disconnect":
                message = await receive()
                inbox.put_nowait(message)
        except Exception:
            inbox.put_nowait({"type": "http.disconnect"})
            raise

    filling = asyncio.create_task(fill())
    try:
        yield inbox
    finally:
        filling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await filling
