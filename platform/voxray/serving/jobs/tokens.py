"""Tokens: who may ask. They are 256 random bits, shown once; the job store holds their SHA-256 only."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time

from voxray.core.errors import ConfigError
from voxray.serving.jobs.store import JobStore

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")
_FRESH_S = 2.0


def digest_of(token: str) -> str:
    """What is kept of a token; being random, it needs no salt and no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def make_token(store: JobStore, name: str) -> str:
    """A new token for a client of this name, to be shown once."""
    if not _NAME.match(name):
        raise ConfigError(f"token {name!r}: a name has 1 to 64 letters, digits, and . _ @ -.")
    token = "vx_" + secrets.token_urlsafe(32)
    if not store.add_token(name, digest_of(token)):
        raise ConfigError(f"token {name}: there is one of that name; remove it first, or choose another name.")
    return token


class Tokens:
    """The tokens of a job store, looked up again every two seconds: one that is removed is shut out."""

    def __init__(self, store: JobStore) -> None:
        self._store, self._read_at = store, -_FRESH_S
        self._known: dict[str, str] = {}

    async def refresh(self) -> None:
        """Looks them up where that is due, beside the event loop: the database may be far."""
        if time.monotonic() - self._read_at >= _FRESH_S:
            await asyncio.to_thread(self._fresh)

    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._fresh())

    def owner_of(self, token: str) -> str | None:
        """The name that a token was made for."""
        digest = digest_of(token)
        found = None
        for known, name in self._fresh().items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _fresh(self) -> dict[str, str]:
        now = time.monotonic()
        if now - self._read_at >= _FRESH_S:
            self._known = {row.digest: row.name for row in self._store.tokens()}
            self._read_at = now
        return self._known
