"""Before every route: who asks, how often, how much; what was asked is counted and written down.

Without tokens the service is open, but to this machine's own pages and programs only: a browser that was led here by
another site (its Origin) or by a name that points here (its Host) is refused.
"""

from __future__ import annotations

import logging
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voxray.serving.config import LOOPBACK, ServeConfig
from voxray.serving.errors import ProblemError, fault, no_database
from voxray.serving.http.errors import refusal_app
from voxray.serving.jobs.database import UnreachableError
from voxray.serving.jobs.metrics import Metrics
from voxray.serving.jobs.store import new_id
from voxray.serving.jobs.tokens import Tokens

COOKIE = "voxray_session"
NOBODY = "local"
"""The owner of everything where there are no tokens."""
OPEN_PATHS = ("/livez", "/auth", "/auth/", "/auth/token", "/auth/token/", "/v1/session")
PAGE, PAGE_FILES = "/", "/page/"
"""The page for people: its files hold no data, and it asks who has no token to sign in."""
_BODY_BYTES = 1 << 20
_UPLOADS = ("/v1/studies", "/v1/answers", "/session", "/datastore", "/infer", "/v2/")

log = logging.getLogger("voxray.serving")


class AuthMiddleware:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, *, config: ServeConfig, tokens: Tokens, metrics: Metrics) -> None:
        self._app, self._config, self._tokens, self._metrics = app, config, tokens, metrics
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._all = RateLimitItemPerMinute(config.quota.requests_per_minute)
        self._uploads = RateLimitItemPerMinute(config.quota.uploads_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, started, request_id = time.monotonic(), 500, False, new_id()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def answer(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers.setdefault("Cache-Control", "no-store")
                if (origin := Headers(scope=scope).get("origin")) in self._config.cors:
                    headers["Access-Control-Allow-Origin"] = str(origin)  # of our own refusals here, too
                    headers.add_vary_header("Origin")
            await send(message)

        try:
            try:
                await self._tokens.refresh()
                state["owner"] = self._owner(scope)
                app: ASGIApp = self._app
                receive = self._counted(scope, receive)
            except ProblemError as problem:
                app = refusal_app(problem)
            await app(scope, receive, answer)
        except UnreachableError:
            log.exception("the database did not answer", extra={"fields": {"request_id": request_id}})
            if not started:
                await refusal_app(no_database())(scope, receive, answer)
        except Exception:
            log.exception("a request failed", extra={"fields": {"request_id": request_id}})
            if not started:
                await refusal_app(fault())(scope, receive, answer)
        finally:
            self._note(scope, status, time.monotonic() - begin)

    def _owner(self, scope: Scope) -> str:
        """Whose request it is; a Problem where it is refused."""
        headers, path = Headers(scope=scope), scope["path"]
        self._check_origin(headers)
        if not needs_token(self._config, self._tokens):
            self._check_host(headers)
            owner = NOBODY
        elif path == PAGE:
            owner = self._tokens.owner_of(token_in(headers)) or ""
        elif path in OPEN_PATHS or path.startswith(PAGE_FILES) or self._is_preflight(scope["method"], headers):
            owner = ""
        else:
            found = self._tokens.owner_of(token_in(headers))
            if found is None:
                self._metrics.add("voxray_refused_total", reason="token")
                self._limit(scope, stranger_of(scope))
                raise ProblemError(
                    401,
                    "token.wrong" if token_in(headers) else "token.missing",
                    "The request has no token that is known." if token_in(headers) else "The request has no token.",
                    remedy="Send the header Authorization: Bearer TOKEN.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            owner = found
        if path != "/livez":
            self._limit(scope, owner or stranger_of(scope))
        return owner

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or origin in self._config.cors:
            return
        if urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise ProblemError(
                403,
                "request.origin",
                "Pages of other sites may not call the service.",
                remedy="Name the site's origin in cors.",
            )

    def _is_preflight(self, method: str, headers: Headers) -> bool:
        """A browser's question whether a page may ask; it never holds a token, and CORSMiddleware answers it."""
        asks = method == "OPTIONS" and "access-control-request-method" in headers
        return asks and headers.get("origin") in self._config.cors

    def _check_host(self, headers: Headers) -> None:
        name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if name not in (*LOOPBACK, self._config.host):
            raise ProblemError(
                403,
                "request.host",
                "The service is called by a name that is not this machine's own.",
                remedy="Call it as 127.0.0.1 or localhost, or make a token.",
            )

    def _limit(self, scope: Scope, owner: str) -> None:
        upload = scope["method"] in ("POST", "PUT") and is_upload(scope["path"])
        for name, item in (("requests", self._all), *((("uploads", self._uploads),) if upload else ())):
            if not self._limiter.hit(item, name, owner):
                reset = self._limiter.get_window_stats(item, name, owner).reset_time
                self._metrics.add("voxray_refused_total", reason="rate")
                raise ProblemError(
                    429,
                    "quota.rate",
                    f"More than {item.amount} {name} in a minute.",
                    remedy="Wait, then go on.",
                    headers={"Retry-After": str(max(1, round(reset - time.time())))},
                )

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """The body, refused where it says, or turns out, to be too long."""
        most = self._config.limits.upload_bytes if is_upload(scope["path"]) else _BODY_BYTES
        most += _BODY_BYTES if is_upload(scope["path"]) else 0  # a form's headers
        said = Headers(scope=scope).get("content-length", "")
        if said.isdigit() and int(said) > most:
            raise too_large(most)
        held = 0

        async def counted() -> Message:
            nonlocal held
            message = await receive()
            held += len(message.get("body", b""))
            if held > most:
                raise too_large(most)
            return message

        return counted

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "") or "unknown"
        state = scope["state"]
        if route in ("/livez", "/readyz", "/metrics") and status < 400:
            return
        self._metrics.add("voxray_requests_total", method=scope["method"], route=route, status=str(status))
        self._metrics.observe("voxray_request_seconds", seconds, route=route)
        fields = {"request_id": state["request_id"], "method": scope["method"], "route": route, "status": status}
        log.info("request", extra={"fields": fields | {"ms": round(1000 * seconds, 1)}})


def owner_of(request: Request) -> str:
    """Whose request it is, as `AuthMiddleware` found."""
    return str(request.state.owner)


def needs_token(config: ServeConfig, tokens: Tokens) -> bool:
    """Whether only those with a token may ask."""
    wanted = config.require_token
    return not config.is_loopback or (tokens.any() if wanted is None else wanted)


def stranger_of(scope: Scope) -> str:
    """Whoever asks without a token, by address; no token's owner has a name with a space."""
    return f"stranger {(scope.get('client') or ('', 0))[0]}"


def is_upload(path: str) -> bool:
    """Whether scans are sent there."""
    return path.startswith(_UPLOADS)


def too_large(most: int) -> ProblemError:
    """A body over the limit."""
    return ProblemError(
        413,
        "upload.too_large",
        f"The body has more than {most:,} bytes.",
        remedy="Send less, or raise limits.upload_bytes.",
    )


def token_in(headers: Headers) -> str:
    """The token of the Authorization header, or of the session cookie; empty where there is none."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token:
        return token.strip()
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
