"""Small HTTP servers in the tests' own process."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from typing import Any

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]
Page = tuple[int, str, bytes]
"""Status, media type, body."""


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The address of a server on loopback that answers every GET and POST as told."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def pages(page: Callable[[str, Message], Page]) -> contextlib.AbstractContextManager[str]:
    """The same for one that has whole pages, by the request's path and headers."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        status, kind, body = page(handler.path, handler.headers)
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return serving(answer)
