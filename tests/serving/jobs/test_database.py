"""Databases that cannot be used, and a service that loses its own for a while."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support.databases import PASSWORD, Server
from support.services import free_port, in_process, small_scan, upload
from voxray.core.errors import ConfigError, ResourceError, VoxrayError
from voxray.serving.jobs.database import parse_url
from voxray.serving.jobs.store import JobStore

SECRET = "hush-hush"


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        f"postgresql://ann:{SECRET}@db:port/name",
        f"postgresql://ann:x@{SECRET}@db/name",
        f"mysql://ann:{SECRET}@db/name",
        f"postgresql+asyncpg://ann:{SECRET}@db/name",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_url_that_is_none_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigError, match=r"postgresql\+psycopg://user@host|%40|sqlite:////") as refused:
        JobStore(url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_names_of_postgresql(scheme: str) -> None:
    assert parse_url(f"{scheme}://ann@db/name").render_as_string() == "postgresql+psycopg://ann@db/name"


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be used"):
        JobStore(f"sqlite:///{tmp_path / 'file' / 'service.db'}")


def test_server_that_is_not_there() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ResourceError, match="refused") as refused:
        JobStore(f"postgresql://ann:{SECRET}@127.0.0.1:{free_port()}/name")
    assert_one_clear_sentence(refused.value)


@pytest.mark.parametrize("wrong", ["password", "in the query", "database"])
def test_server_that_does_not_let_us_in(postgres: Server, wrong: str) -> None:
    right = postgres.url("nowhere" if wrong == "database" else "postgres")
    url = right if wrong == "database" else right.replace(PASSWORD, SECRET)
    if wrong == "in the query":
        url = url.replace(f":{SECRET}", "") + f"?password={SECRET}"
    with pytest.raises(ResourceError, match="does not exist" if wrong == "database" else "password") as refused:
        JobStore(url)
    assert_one_clear_sentence(refused.value)


def assert_one_clear_sentence(error: VoxrayError) -> None:
    """It names the database, and nothing that is secret."""
    text = str(error)
    assert text.startswith("database postgresql+psycopg://")
    assert "\n" not in text
    assert SECRET not in text
    assert PASSWORD not in text


def test_service_on_postgresql_outlasts_its_database(postgres: Server, tmp_path: Path) -> None:
    """While the server is gone clients are told so; a job that was accepted ends when it is back."""
    url = postgres.new_database()

    async def served() -> None:
        async with in_process(tmp_path, database=url, times={"lease_s": 4.0}) as client:
            study = (await upload(client, small_scan(tmp_path / "scan.nii.gz")))["study_id"]
            body = {"study_id": study, "model": "organs"}
            done = (await client.post("/v1/jobs?wait=60", json=body)).json()
            assert done["state"] == "done", done
            assert not (tmp_path / "service" / "service.db").exists()
            accepted = [(await client.post("/v1/jobs", json=body)).json()["job_id"] for _ in range(3)]
            await asyncio.to_thread(postgres.stop)
            try:
                refused = await client.get(f"/v1/jobs/{accepted[0]}")
                assert (refused.status_code, refused.json()["code"]) == (503, "service.database"), refused.text
                assert refused.headers["retry-after"]
                assert PASSWORD not in refused.text
                assert (await client.post("/v1/jobs", json=body)).status_code == 503
            finally:
                await asyncio.to_thread(postgres.start)
            for job in accepted:
                ended = (await client.get(f"/v1/jobs/{job}?wait=60")).json()
                assert ended["state"] == "done", ended
                assert ended["result"]["labels"] == done["result"]["labels"]

    asyncio.run(served())
