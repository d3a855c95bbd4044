"""A private PostgreSQL server for tests, where its programs are found."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from support.services import free_port

PASSWORD = "a-password"
_FASTER = "-c fsync=off -c full_page_writes=off"
_OWNER = ("nobody", "nogroup")


def programs() -> Path | None:
    """The folder of PostgreSQL's own programs, the newest version's."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


@dataclass(frozen=True)
class Server:
    """A server of its own in a folder of its own."""

    programs: Path
    folder: Path
    port: int

    def url(self, database: str) -> str:
        """The address of one of its databases."""
        return f"postgresql+psycopg://voxray:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The address of a new, empty one."""
        name = f"test_{uuid4().hex}"
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as db:
            db.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url(name)

    def start(self) -> None:
        """Starts it; it answers when this returns."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 {_FASTER}"
        self._control("start", "-o", options, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        """Ends it at once, breaking off whoever is connected."""
        self._control("stop", "-m", "immediate")

    def _control(self, action: str, *more: str) -> None:
        run_as_nobody([str(self.programs / "pg_ctl"), "-w", "-D", str(self.folder / "data"), action, *more])


@contextmanager
def postgresql() -> Iterator[Server]:
    """A server while the block lasts; skips where there is none, or nobody who may run it."""
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL; `make tools` installs it")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="voxray_pg_", dir="/tmp"))  # short, for its socket
    if os.getuid() == 0:
        shutil.chown(folder, *_OWNER)
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    server = Server(found, folder, free_port())
    options = ["-A", "scram-sha-256", "-U", "voxray", f"--pwfile={password}", "-E", "UTF8", "--no-sync"]
    try:
        run_as_nobody([str(found / "initdb"), "-D", str(folder / "data"), *options])
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_as_nobody(command: Sequence[str]) -> None:
    """Runs a program that root may not run."""
    who = {"user": _OWNER[0], "group": _OWNER[1], "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryFile() as said:  # what stays running holds on to it
        done = subprocess.run(command, stdout=said, stderr=said, cwd="/", check=False, timeout=120, **who)  # type: ignore[call-overload]
        said.seek(0)
        assert done.returncode == 0, said.read().decode()
