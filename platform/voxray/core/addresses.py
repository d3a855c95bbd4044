"""Paths and addresses: which is which, and the one way from a path to a URL and back.

In a URL ``?`` begins options, ``#`` begins a fragment and ``%25`` is a percent sign; in a folder's name they are
characters like all others. So no path is ever put into a URL as it is.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import quote, unquote

from voxray.core.errors import ConfigError

Location = str | Path
"""A path, or an address with a scheme that fsspec knows."""

_ADDRESS = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]+://")
"""How an address begins; what comes before ``::`` is a file system around another one, as fsspec chains them."""
_SQUASHED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_LOCAL = ("file", "local")
_ELSEWHERE = frozenset(
    ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory", "http", "https", "hdfs", "ftp", "sftp", "oss")
)
"""Schemes that are never taken for a folder's name."""
_NOT_IN_A_DATABASE_URL = re.compile(r"[%?#\x00-\x1f\x7f]")
_SQLITE_OPTIONS = frozenset(
    (
        *("timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"),
        *("uri", "mode", "cache", "nolock", "immutable", "vfs"),
    )
)


def local_path(location: Location) -> Path | None:
    """The path on this machine that a location is; None for an address elsewhere, such as ``s3://bucket/run``.

    ``file:///a%20b`` is the path ``/a b``, as in every URL; ``~`` is the home folder.
    """
    if isinstance(location, Path):
        return location
    match = _ADDRESS.match(location)
    if match is None:
        return Path(location).expanduser() if location == "~" or location.startswith("~/") else Path(location)
    return _path_of_url(location) if location.partition("://")[0] in _LOCAL else None


def below(root: str, text: str) -> str:
    """What a path or address is when it is read relative to `root`, itself a path or an address."""
    if _ADDRESS.match(text):
        path = local_path(text)
        return text if path is None else str(path)
    if local_path(root) is not None or text.startswith("/"):
        return str(Path(root) / text)
    head, sign, rest = root.rpartition("://")
    joined = posixpath.normpath(f"{rest}/{text}")
    if joined.split("/")[0] in ("..", "."):
        raise ConfigError(f"{text}: leads out of {root}; give a path below it, or an address.")
    return f"{head}{sign}{joined}"


def at_home(value: object) -> object:
    """An option's value, whose paths are on this machine; an address in place of one is a ConfigError.

    ``Path`` takes one slash from ``s3://bucket``, so that it would become a folder here.
    """
    if isinstance(value, list):
        return [at_home(item) for item in value]
    match = _SQUASHED.match(str(value)) if isinstance(value, Path) else None
    if match is None or (match.group(1) not in _ELSEWHERE and Path(f"{match.group(1)}:").is_dir()):
        return value
    scheme, path = match.groups()
    if scheme in _LOCAL:
        return _path_of_url(f"{scheme}:///{path}")
    raise ConfigError(f"{scheme}://{path}: is not on this machine; give a file or folder that is.")


def require_address(location: Location) -> None:
    """A ConfigError where an address was made a path, which takes one of its slashes: it would be a folder here."""
    match = _SQUASHED.match(str(location)) if isinstance(location, Path) else None
    if match is not None and match.group(1) in _ELSEWHERE:
        scheme, path = match.groups()
        raise ConfigError(f"{location}: is an address that was made a path; give it as text, {scheme}://{path}.")


def file_url(path: Path) -> str:
    """The ``file://`` URL of a path."""
    return path.absolute().as_uri()


def sqlite_url(path: Path) -> str:
    """SQLAlchemy's URL of an SQLite file.

    Where it is not the path itself the driver is named, too: MLflow makes the folder that a ``sqlite:///`` URL names
    as it is written, and not as it is read.
    """
    text = str(path.absolute())
    escaped = _NOT_IN_A_DATABASE_URL.sub(lambda match: quote(match.group(), safe=""), text)
    return f"{'sqlite' if escaped == text else 'sqlite+pysqlite'}:///{escaped}"


def sqlite_path(url: str) -> Path | None:
    """The file that an SQLite URL names; None for another database's URL, or another kind of address."""
    if url.partition("://")[0] not in ("sqlite", "sqlite+pysqlite"):
        return None
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    options = (option.partition("=")[0] for option in url.partition("?")[2].split("&"))
    unknown = [option for option in options if option not in ("", *_SQLITE_OPTIONS)]
    if unknown:
        raise ConfigError(
            f"{url}: options come after the ?, and {unknown[0]} is none of SQLite's; a ? in a folder's name is "
            f"written %3F, and a % is %25."
        )
    if parsed.database in (None, "", ":memory:"):
        raise ConfigError(f"{url}: names no file; give one such as {sqlite_url(Path('mlflow.db'))}.")
    return Path(str(parsed.database))


def _path_of_url(url: str) -> Path:
    """The path that a ``file://`` URL names."""
    host, slash, path = url.partition("://")[2].partition("/")
    if host not in ("", "localhost") or not slash:
        raise ConfigError(f"{url}: a file URL names a full path, as file:///folder/run does; give that, or the path.")
    if "?" in path or "#" in path:
        raise ConfigError(f"{url}: in a file URL a ? is written %3F, a # is %23 and a % is %25; or give the path.")
    return Path(unquote(f"/{path}"))
