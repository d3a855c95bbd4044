"""A small S3 over HTTP, which can be away and come back, and a server that refuses everything with one code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


Gate = Callable[[str, str], bool]
"""Whether a request is turned away, by its method and path."""


class Buckets:
    """The server: `make` a bucket; while it is `closed` it turns requests away as a storage does that has failed."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object) -> None:
                """Nothing."""

        app = DomainDispatcherApplication(create_backend_app)

        def gated(environ: Any, start: Any) -> Any:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.asked.append((method, path))
            if self._gate is None or not self._gate(method, path):
                pieces = list(app(environ, start))
                self.sent_bytes += sum(map(len, pieces))
                return pieces
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Service Unavailable", [("Content-Type", "application/xml")])
            return [] if method == "HEAD" else [_error("ServiceUnavailable", "come again")]

        self.asked: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self._gate: Gate | None = None
        self._server = make_server("127.0.0.1", 0, gated, threaded=True, request_handler=Quiet)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def make(self) -> str:
        """A new bucket's name."""
        name = f"bucket-{uuid4().hex[:8]}"
        self._client().create_bucket(Bucket=name)
        return name

    def names(self) -> list[str]:
        """Every bucket that there is."""
        return [one["Name"] for one in self._client().list_buckets()["Buckets"]]

    def close(self, gate: Gate = lambda _method, _path: True) -> None:
        """From now on what the gate names is turned away."""
        self._gate = gate

    def open(self) -> None:
        """It answers again."""
        self._gate = None

    def end(self) -> None:
        """Nothing listens any more."""
        self._server.shutdown()

    def _client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1")


@contextmanager
def buckets() -> Iterator[Buckets]:
    """An S3 of this process, which every library finds by the environment."""
    server = Buckets()
    with _environment(server.url):
        try:
            yield server
        finally:
            server.end()


@dataclass
class Refusal:
    """What an S3 answers everything with."""

    status: int = 403
    code: str = "AccessDenied"
    message: str = "no"


@contextmanager
def refusing() -> Iterator[Refusal]:
    """An S3, the one that the environment names meanwhile, that answers everything with an error of one's choice."""
    said = Refusal()

    class Refuse(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # clients ask whether they may send the body, and wait for the answer

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = _error(said.code, said.message)
            self.send_response(said.status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return self._answer
            raise AttributeError(name)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with _environment(f"http://127.0.0.1:{server.server_port}"):
        try:
            yield said
        finally:
            server.shutdown()
            server.server_close()


@contextmanager
def _environment(url: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in KEYS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", url)
        forget()
        try:
            yield
        finally:
            forget()


def _error(code: str, message: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def forget() -> None:
    """s3fs keeps what it has opened, with the address that it had then."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
