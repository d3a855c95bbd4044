"""Flow between Ray Serve's proxy and the door: a body comes no faster than the door takes it.

Ray Serve's proxy passes a body on as fast as it comes, through two queues without bounds: one in the proxy, one in
the replica. Where a disk is slower than the network both processes would hold the whole upload, and keep part of that
memory. So the proxy's half lets `WINDOW` bytes pass, and as many more as the door's half says that it has taken: in
messages of their own among those of the answer, which the proxy's half keeps to itself.

Nothing is held back where the halves do not meet: without Ray, or where the proxy was started without this.
"""

from __future__ import annotations

import asyncio
import math

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PROXY_SETTING = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""The environment variable from which Ray Serve's proxy learns what to put around itself, when Ray is started."""
PROXY_HALF = "voxray.serving.flow:around_the_proxy"

TAKEN = "voxray.taken"
"""The extension's name in a request's scope, and the type of the door's messages."""
WINDOW = 4 << 20
"""Bytes of one body on their way; a trip between the processes takes milliseconds, so that this is no brake."""
_LUMP = WINDOW // 8
_PATIENCE_S = 30.0
"""So long is a door waited for that does not say what it takes; it may be another application's."""


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
        room: float = WINDOW
        patience: float | None = self._patience_s
        taken = asyncio.Event()

        async def held_back() -> Message:
            nonlocal room
            while room <= 0:
                taken.clear()
                try:
                    async with asyncio.timeout(patience):
                        await taken.wait()
                except TimeoutError:
                    room = math.inf
            message = await receive()
            room -= len(message.get("body", b""))
            return message

        async def answer(message: Message) -> None:
            nonlocal room, patience
            if message["type"] != TAKEN:
                await send(message)
                return
            room, patience = room + message["bytes"], None
            taken.set()

        await self._app(scope, held_back, answer)


class DoorHalf:
    """ASGI middleware around the door."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if TAKEN not in scope.get("extensions", {}):
            await self._app(scope, receive, send)
            return
        untold = 0

        async def taking() -> Message:
            nonlocal untold
            message = await receive()
            untold += len(message.get("body", b""))
            if untold >= _LUMP:
                told, untold = untold, 0
                await send({"type": TAKEN, "bytes": told})
            return message

        await self._app(scope, taking, send)
