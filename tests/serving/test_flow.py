"""Bodies through Ray Serve's proxy: no more of one is held than a window."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voxray.serving.flow import WINDOW, DoorHalf, ProxyHalf

CHUNK = 64 << 10
BODY = 5 * WINDOW


def as_ray_does(app: ASGIApp) -> ASGIApp:
    """Between the halves, as Ray Serve passes bodies on: a queue that takes all there is at once."""

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        queue: asyncio.Queue[Message] = asyncio.Queue()

        async def fetch() -> None:
            while True:
                await queue.put(await receive())

        fetching = asyncio.create_task(fetch())
        try:
            await app(scope, queue.get, send)
        finally:
            fetching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await fetching

    return between


class Exchange:
    """A client's upload to an application that reads it slowly and then answers."""

    def __init__(self) -> None:
        self.sent = self.read = self.most_held = 0
        self.answer: list[Message] = []

    async def receive(self) -> Message:
        """The client's next chunk, which is always there."""
        size = min(CHUNK, BODY - self.sent)
        self.sent += size
        self.most_held = max(self.most_held, self.sent - self.read)
        if not size:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": bytes(size), "more_body": self.sent < BODY}

    async def send(self, message: Message) -> None:
        """What reaches the client."""
        self.answer.append(message)

    async def app(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """The reader of the body."""
        more = True
        while more:
            message = await receive()
            self.read += len(message["body"])
            more = message["more_body"]
            await asyncio.sleep(0.0005)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def exchanged(stack: Callable[[ASGIApp], ASGIApp], kind: str = "http") -> Exchange:
    """What an upload through these layers was like."""
    exchange = Exchange()

    async def run() -> None:
        async with asyncio.timeout(60):
            await stack(exchange.app)({"type": kind}, exchange.receive, exchange.send)

    asyncio.run(run())
    assert exchange.read == BODY
    assert [message["type"] for message in exchange.answer] == ["http.response.start", "http.response.body"]
    return exchange


def test_a_window_is_held_however_slow_the_door_is() -> None:
    found = exchanged(lambda app: ProxyHalf(as_ray_does(DoorHalf(app))))
    assert found.most_held <= WINDOW + WINDOW // 8 + CHUNK


def test_without_it_all_is_held() -> None:
    """The control: what Ray Serve does by itself."""
    assert exchanged(as_ray_does).most_held > BODY - WINDOW


def test_an_application_that_does_not_say_what_it_takes_still_gets_all() -> None:
    assert exchanged(lambda app: ProxyHalf(as_ray_does(app), patience_s=0.05)).read == BODY


@pytest.mark.parametrize("stack", [lambda app: DoorHalf(as_ray_does(app)), DoorHalf], ids=["proxy", "no Ray"])
def test_a_door_alone_says_nothing(stack: Callable[[ASGIApp], ASGIApp]) -> None:
    assert exchanged(stack).read == BODY
