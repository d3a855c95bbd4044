"""Aliases: the ids that clients give their images, kept so that they cannot be read.

A plugin calls an image what its user called it, which may be the patient's name. What is kept is an HMAC of it under
a key that lies in the service's folder: who holds the database alone cannot even try names.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

import sqlalchemy as sa

from voxray.core.errors import ResourceError
from voxray.core.storage import sync
from voxray.serving.jobs.database import create_tables, put
from voxray.serving.jobs.store import TABLES

ALIASES = sa.Table(
    "aliases",
    TABLES,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("study", sa.ForeignKey("studies.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("created", sa.Double, nullable=False),
)
KEY = "aliases.key"
_KEY_BYTES = 32
_WAIT_S = 5.0


class Aliases:
    """Each owner's names for studies; a study that goes takes its names with it."""

    def __init__(self, engine: sa.Engine, folder: Path) -> None:
        self._engine, self._key = engine, key_in(folder)
        create_tables(engine, TABLES)

    def give(self, owner: str, name: str, study: str) -> None:
        """From now on the owner's name stands for this study."""
        row = {"owner": owner, "digest": self._digest(owner, name), "study": study, "created": time.time()}
        with self._engine.begin() as db:
            put(db, ALIASES, [row])

    def study(self, owner: str, name: str) -> str | None:
        """The study that the owner's name stands for."""
        with self._engine.connect() as db:
            found = db.scalar(sa.select(ALIASES.c.study).where(self._is(owner, name)))
        return None if found is None else str(found)

    def _is(self, owner: str, name: str) -> sa.ColumnElement[bool]:
        return sa.and_(ALIASES.c.owner == owner, ALIASES.c.digest == self._digest(owner, name))

    def _digest(self, owner: str, name: str) -> str:
        text = f"{owner}\0{name}".encode("utf-8", "surrogateescape")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()


def key_in(folder: Path) -> bytes:
    """The key that lies in a folder; made by whoever comes first, while others wait until it is whole."""
    path = folder / KEY
    with contextlib.suppress(FileExistsError):
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            os.write(file, secrets.token_bytes(_KEY_BYTES))
            os.fsync(file)
        finally:
            os.close(file)
        sync(folder)
    until = time.monotonic() + _WAIT_S
    while len(key := path.read_bytes()) != _KEY_BYTES:
        if time.monotonic() > until:
            raise ResourceError(f"{path}: is no key of {_KEY_BYTES} bytes; remove it, and another is made.")
        time.sleep(0.01)
    return key
