"""Bodies through Ray Serve's proxy, either way: no more of one is held than a window."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voxray.serving.flow import WINDOW, ProxyHalf, ReplicaHalf

CHUNK = 64 << 10
BODY = 5 * WINDOW


def as_ray_does(app: ASGIApp) -> ASGIApp:
    """Between the halves, as Ray Serve passes bodies on: queues that take all there is at once."""

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        coming: asyncio.Queue[Message] = asyncio.Queue()
        going: asyncio.Queue[Message | None] = asyncio.Queue()

        async def fetch() -> None:
            while True:
                await coming.put(await receive())

        async def deliver() -> None:
            while (message := await going.get()) is not None:
                await send(message)

        fetching, delivering = asyncio.create_task(fetch()), asyncio.create_task(deliver())
        try:
            await app(scope, coming.get, going.put)
            await going.put(None)
            await delivering
        finally:
            for task in (fetching, delivering):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

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
    found = exchanged(lambda app: ProxyHalf(as_ray_does(ReplicaHalf(app))))
    assert found.most_held <= WINDOW + WINDOW // 8 + CHUNK


def test_without_it_all_is_held() -> None:
    """The control: what Ray Serve does by itself."""
    assert exchanged(as_ray_does).most_held > BODY - WINDOW


def test_an_application_that_does_not_say_what_it_takes_still_gets_all() -> None:
    assert exchanged(lambda app: ProxyHalf(as_ray_does(app), patience_s=0.05)).read == BODY


@pytest.mark.parametrize("stack", [lambda app: ReplicaHalf(as_ray_does(app)), ReplicaHalf], ids=["proxy", "no Ray"])
def test_a_door_alone_says_nothing(stack: Callable[[ASGIApp], ASGIApp]) -> None:
    assert exchanged(stack).read == BODY


class Download:
    """An application's answer, which is there at once, to a client that takes it slowly, or goes away."""

    def __init__(self, leaves_after: float = float("inf")) -> None:
        self.sent = self.taken = self.most_held = 0
        self.leaves_after = leaves_after
        self.asked, self.left = False, asyncio.Event()

    async def receive(self) -> Message:
        """A request without a body, and the client's leaving."""
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """What reaches the client, or nobody."""
        if self.left.is_set():
            return
        self.taken += len(message.get("body", b""))
        if self.taken > self.leaves_after:
            self.left.set()
        await asyncio.sleep(0.0005)

    async def app(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """The sender of the answer."""
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(BODY // CHUNK):
            await send({"type": "http.response.body", "body": bytes(CHUNK), "more_body": True})
            self.sent += CHUNK
            self.most_held = max(self.most_held, self.sent - self.taken)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def downloaded(stack: Callable[[ASGIApp], ASGIApp], download: Download) -> Download:
    """What a download through these layers was like."""

    async def run() -> None:
        async with asyncio.timeout(60):
            await stack(download.app)({"type": "http"}, download.receive, download.send)

    asyncio.run(run())
    return download


def test_a_window_is_held_however_slow_the_client_is() -> None:
    found = downloaded(lambda app: ProxyHalf(as_ray_does(ReplicaHalf(app))), Download())
    assert found.taken == BODY
    assert found.most_held <= WINDOW + WINDOW // 8 + CHUNK


def test_without_it_all_of_an_answer_is_held() -> None:
    """The control."""
    found = downloaded(as_ray_does, Download())
    assert found.taken == BODY
    assert found.most_held > BODY - WINDOW


def test_a_client_that_leaves_holds_nobody_up() -> None:
    found = downloaded(lambda app: ProxyHalf(as_ray_does(ReplicaHalf(app))), Download(leaves_after=WINDOW // 2))
    assert found.sent == BODY
    assert WINDOW // 2 < found.taken < BODY


@pytest.mark.parametrize(
    "stack", [lambda app: ReplicaHalf(as_ray_does(app)), ReplicaHalf, lambda app: ProxyHalf(as_ray_does(app))]
)
def test_half_of_it_lets_an_answer_pass(stack: Callable[[ASGIApp], ASGIApp]) -> None:
    assert downloaded(stack, Download()).taken == BODY
