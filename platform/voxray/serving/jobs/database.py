"""The database behind the job store: SQLite for one machine, PostgreSQL where several share it.

What differs between the two lies here; every other statement is the same for both. A password is never shown.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from voxray.core.errors import ConfigError, ResourceError

UnreachableError = (sa.exc.OperationalError, sa.exc.InterfaceError)
"""What a question raises while the database cannot be reached, or broke it off: it may be asked again."""

TABLES_LOCK, JOBS_LOCK = 0x76786C01, 0x76786C02
"""Numbers of PostgreSQL's advisory locks, which hold until a transaction ends."""

_DRIVERS = {"sqlite": "sqlite", "sqlite+pysqlite": "sqlite"} | dict.fromkeys(
    ("postgres", "postgresql", "postgresql+psycopg"), "postgresql+psycopg"
)
_PATIENCE = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "application_name": "voxray",
}
"""libpq's settings, where the URL has none of its own: a server that is gone is given up after seconds, not hours."""
_SUCH_AS = "sqlite:////folder/service.db or postgresql+psycopg://user@host/name"


def open_database(url: str, tables: sa.MetaData) -> sa.Engine:
    """The database of that URL with these tables in it; a sentence where it cannot be used."""
    parsed = parse_url(url)
    try:
        engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)
        create_tables(engine, tables)
    except ImportError:
        raise ResourceError(f"database {shown(parsed)}: wants a driver; pip install 'voxray[postgres]'.") from None
    except (sa.exc.SQLAlchemyError, OSError) as error:
        raise ResourceError(
            f"database {shown(parsed)}: cannot be used ({_said(error, parsed)}); give the URL of a database that can "
            "be reached and written."
        ) from None
    return engine


def parse_url(url: str) -> sa.URL:
    """A URL of a database that voxray knows; a ConfigError, which quotes none of it, where it is none."""
    try:
        parsed = sa.engine.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(
            f"database: is not a URL; give one such as {_SUCH_AS}; @ : / ? # in a password are %40 %3A %2F %3F %23."
        ) from None
    if parsed.drivername not in _DRIVERS:
        raise ConfigError(f"database {parsed.drivername}://: is not known; give one such as {_SUCH_AS}.")
    parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
    if "@" in (parsed.host or ""):
        raise ConfigError("database: the password holds an @, which is written %40 in a URL.")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError("database sqlite://: names no file; give one such as sqlite:////folder/service.db.")
    return parsed


def shown(url: sa.URL) -> str:
    """The URL without what is secret."""
    return url.set(query={}).render_as_string(hide_password=True)


def create_tables(engine: sa.Engine, tables: sa.MetaData) -> None:
    """Makes the tables that are missing; who comes second waits for who came first."""
    with engine.begin() as db:
        lock(db, TABLES_LOCK)
        tables.create_all(db, checkfirst=True)


def lock(db: sa.Connection, number: int) -> None:
    """Until the transaction ends, others wait here; in SQLite every writer already waits for the last."""
    if db.dialect.name == "postgresql":
        db.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))


def now(engine: sa.Engine) -> sa.ColumnElement[float]:
    """Seconds since 1970, as an expression: by the server's clock where machines, whose clocks differ, share one."""
    if engine.dialect.name == "postgresql":
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
    return sa.literal(time.time(), sa.Double)


def put(
    db: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    add: str | None = None,
) -> None:
    """Inserts rows, or replaces those with the same primary key; of `add` the sum is kept instead.

    In the order of their keys, so that two who put the same rows wait for each other, and not both.
    """
    keys = [column.name for column in table.primary_key]
    insert: Any = (postgresql if db.dialect.name == "postgresql" else sqlite).insert(table)
    fresh = {name: insert.excluded[name] for name in table.columns.keys() if name not in keys}  # noqa: SIM118
    if add is not None:
        fresh[add] = table.c[add] + insert.excluded[add]
    for row in sorted(rows, key=lambda one: [one[key] for key in keys]):
        db.execute(insert.values(dict(row)).on_conflict_do_update(index_elements=keys, set_=fresh))


def _sqlite(url: sa.URL) -> sa.Engine:
    assert url.database is not None
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin as they should: for writing, at once
        for pragma in ("busy_timeout=30000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        _keep_a_journal(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        options = connection.get_execution_options()
        if options.get("reading"):
            connection.exec_driver_sql("BEGIN")
            return
        connection.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if options.get('passing') else 'FULL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _keep_a_journal(connection: Any) -> None:
    """Readers and a writer side by side; SQLite does not wait by itself for others who ask for it at this moment."""
    until = time.monotonic() + 30.0
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _postgresql(url: sa.URL) -> sa.Engine:
    """Read committed, whatever the server's default: an update that waited looks at its row again."""
    patience = {name: value for name, value in _PATIENCE.items() if name not in url.query}
    return sa.create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED", connect_args=patience)


def _said(error: Exception, url: sa.URL) -> str:
    """The first line of a driver's message, without a password."""
    text = str(getattr(error, "orig", None) or error).splitlines()[0]
    secrets = [url.password, *(value for name, value in url.query.items() if "pass" in name)]
    for secret in secrets:
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return text
