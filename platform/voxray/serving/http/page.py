"""The page for people: `/` and the files under `/page/`. All of it lies in the package; nothing comes from elsewhere.

The files hold no data, so that `AuthMiddleware` lets them pass without a token. `/` answers a browser that has none
with the sign-in page and 401.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from voxray.serving.errors import ProblemError
from voxray.serving.http.auth import NOBODY, PAGE, PAGE_FILES, owner_of
from voxray.serving.http.document import files, refused
from voxray.serving.jobs.service import Service

# niivue draws its letters and its shading from data: pictures; it needs no worker, no WebAssembly and no eval.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Vary": "Accept-Encoding",
}
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
INDEX, SIGN_IN = "index.html", "sign_in.html"
SIGNED_IN = "index.html, signed in"
"""The page with a button to sign out."""


class PageFile(NamedTuple):
    """A file of the page as it is sent."""

    plain: bytes
    gzipped: bytes
    media_type: str
    etag: str
    """Of the content, with quotes."""
    kept: bool
    """Whether its name says its version, so that a browser may keep it for good."""


def router(_service: Service) -> APIRouter:
    """The routes of the page, which asks the native API as any other client."""
    routes = APIRouter()

    shown = {**files("text/html", description="The page"), 401: {"description": "A page to sign in"}}

    @routes.get(PAGE, response_class=Response, responses=shown)
    @routes.head(PAGE, response_class=Response, responses=shown)
    def page(request: Request) -> Response:
        """The page for people."""
        known = owner_of(request)
        if not known:
            headers = {"WWW-Authenticate": "Bearer", "Cache-Control": "no-store"}
            return _reply(request, page_files()[SIGN_IN], status=401, headers=headers)
        name = INDEX if known == NOBODY else SIGNED_IN
        return _reply(request, page_files()[name], headers={"Cache-Control": "no-cache"})

    one = {**files(*_TYPES.values(), description="A file of the page"), **refused(404)}

    @routes.get(PAGE_FILES + "{name}", response_class=Response, responses=one)
    @routes.head(PAGE_FILES + "{name}", response_class=Response, responses=one)
    def file(request: Request, name: str) -> Response:
        """A file of the page."""
        found = page_files().get(name)
        if found is None or name in (INDEX, SIGNED_IN, SIGN_IN):
            raise ProblemError(
                404, "page.unknown", "The page has no such file.", remedy="Open the service's address: /."
            )
        kept = "public, max-age=31536000, immutable" if found.kept else "no-cache"
        return _reply(request, found, headers={"Cache-Control": kept})

    return routes


@cache
def page_files() -> dict[str, PageFile]:
    """Name -> file, of all files of the page; nothing else can be asked for."""
    folder = resources.files("voxray.serving") / "page"
    found = {entry.name: entry.read_bytes() for entry in folder.iterdir() if _suffix(entry.name) in _TYPES}
    found[SIGNED_IN] = found[INDEX].replace(b'data-signed-in="no"', b'data-signed-in="yes"')
    return {name: _page_file(name, plain) for name, plain in sorted(found.items())}


def _suffix(name: str) -> str:
    return name.split(",")[0].rpartition(".")[2]


def _page_file(name: str, plain: bytes) -> PageFile:
    return PageFile(
        plain=plain,
        gzipped=gzip.compress(plain, 6, mtime=0),
        media_type=_TYPES[_suffix(name)],
        etag=f'"{hashlib.sha256(plain).hexdigest()[:32]}"',
        kept=name.startswith("niivue-"),
    )


def _reply(request: Request, file: PageFile, *, headers: dict[str, str], status: int = 200) -> Response:
    headers = _HEADERS | headers | {"ETag": file.etag}
    if status == 200 and _holds(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    body = file.plain
    if "gzip" in request.headers.get("accept-encoding", ""):
        # Two encodings of one content: a weak tag says just that.
        body, headers = file.gzipped, headers | {"Content-Encoding": "gzip", "ETag": f"W/{file.etag}"}
    if request.method == "HEAD":
        headers, body = headers | {"Content-Length": str(len(body))}, b""
    return Response(body, status_code=status, headers=headers, media_type=file.media_type)


def _holds(tags: str, etag: str) -> bool:
    return etag in (tag.strip().removeprefix("W/") for tag in tags.split(","))
