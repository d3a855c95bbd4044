"""Receiving: streamed, counted, under our own names, and gone when refused."""

from __future__ import annotations

import asyncio
import os
import resource
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving.intake.conftest import PLANTED, chunks_of, parts_of
from voxray.core.errors import DataError
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.receive import UploadPart, receive
from voxray.serving.intake.uploaded_files import read_list


def refused(parts: AsyncIterator[UploadPart], folder: Path, limits: Limits) -> DataError:
    with pytest.raises(DataError) as raised:
        asyncio.run(receive(parts, folder, limits))
    assert not folder.exists()
    return raised.value


def test_files_lie_under_our_own_names(tmp_path: Path) -> None:
    files = {f"C:\\scans\\{PLANTED}.NII.GZ": b"abc", f"../../{PLANTED}.raw": b"de" * 1_500_000, "": b""}
    got = asyncio.run(receive(parts_of(files), tmp_path / "study", Limits()))
    assert got == (3, 3_000_003)
    folder = tmp_path / "study" / "received"
    assert sorted(path.name for path in folder.iterdir()) == ["000001", "000002", "000003", "list.json"]
    assert [(folder / f"00000{n}").read_bytes() for n in (1, 2, 3)] == list(files.values())
    assert [item.suffix for item in read_list(folder)] == [".nii.gz", "", ""]
    assert PLANTED not in (folder / "list.json").read_text()
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_what_is_no_nifti_is_refused_before_it_has_come(tmp_path: Path, name: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield bytes(1 << 16)

    async def one() -> AsyncIterator[UploadPart]:
        yield UploadPart(name, endless())

    assert refused(one(), tmp_path / "study", Limits()).code == "nifti.not_nifti"
    assert sent == 1 << 16


@pytest.mark.parametrize(
    "start", [b"\x1f\x8b", b"PK\x03\x04", b"NRRD0004", b"\x5c\x01\0\0", b"\0\0\x02\x1c", bytes(128) + b"DICM"]
)
def test_a_wrong_name_alone_refuses_nothing(tmp_path: Path, start: bytes) -> None:
    files = {"scan.nii": start + bytes(1000)}
    assert asyncio.run(receive(parts_of(files), tmp_path / "study", Limits())).num_files == 1


def test_nothing_and_no_bytes_are_refused(tmp_path: Path) -> None:
    assert refused(parts_of({}), tmp_path / "a", Limits()).code == "upload.empty"
    assert refused(parts_of({"scan.nii": b""}), tmp_path / "b", Limits()).code == "upload.empty"


def test_two_gigabytes_are_refused_at_the_limit_in_flat_memory(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        piece = bytes(1 << 20)
        for _ in range(2048):
            sent += len(piece)
            yield piece

    async def one() -> AsyncIterator[UploadPart]:
        yield UploadPart("scan.raw", endless())

    limit = 96 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(one(), tmp_path / "study", Limits(upload_bytes=limit)).code == "upload.too_large"
    assert sent == limit + (1 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_the_limit_counts_all_parts_together_and_is_met_exactly(tmp_path: Path) -> None:
    files = {"a.dcm": bytes(600), "b.dcm": bytes(400)}
    assert asyncio.run(receive(parts_of(files), tmp_path / "whole", Limits(upload_bytes=1000))).num_bytes == 1000
    assert refused(parts_of(files), tmp_path / "less", Limits(upload_bytes=999)).code == "upload.too_large"


def test_files_are_counted(tmp_path: Path) -> None:
    files = {f"{n}.dcm": b"x" for n in range(4)}
    assert asyncio.run(receive(parts_of(files), tmp_path / "four", Limits(entries=4))).num_files == 4
    assert refused(parts_of(files), tmp_path / "three", Limits(entries=3)).code == "upload.too_many_files"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("scan.tar", b"x" * 2000),
        ("scan.tgz", b"\x1f\x8b" + b"x" * 2000),
        ("scan", b"\0" * 257 + b"ustar\0" + b"\0" * 300),
        ("scan", b"7z\xbc\xaf\x27\x1c" + b"x" * 600),
        ("scan", b"Rar!\x1a\x07\x01\0"),
    ],
)
def test_other_archives_are_refused_while_they_come(tmp_path: Path, name: str, data: bytes) -> None:
    seen = 0

    async def slowly() -> AsyncIterator[bytes]:
        nonlocal seen
        async for chunk in chunks_of(data, 100):
            seen += len(chunk)
            yield chunk

    async def one() -> AsyncIterator[UploadPart]:
        yield UploadPart(name, slowly())

    error = refused(one(), tmp_path / "study", Limits())
    assert error.code == "upload.not_zip"
    assert seen <= 600


def test_a_sender_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(30)

    async def one() -> AsyncIterator[UploadPart]:
        yield UploadPart("scan.nii", silent())

    assert refused(one(), tmp_path / "study", Limits(idle_s=0.05)).code == "upload.stalled"


def test_a_cancelled_upload_leaves_nothing(tmp_path: Path) -> None:
    async def forever() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 19)
            await asyncio.sleep(0)

    async def one() -> AsyncIterator[UploadPart]:
        yield UploadPart("scan.raw", forever())

    async def cancelled(after_s: float) -> None:
        task = asyncio.create_task(receive(one(), tmp_path / "study", Limits()))
        await asyncio.sleep(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not (tmp_path / "study").exists()

    for after_s in (0.0, 0.001, 0.003, 0.01, 0.05):
        asyncio.run(cancelled(after_s))


def test_a_sender_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"first"
        raise ConnectionError("the sender has gone")

    async def one() -> AsyncIterator[UploadPart]:
        yield UploadPart("scan.nii", broken())

    with pytest.raises(ConnectionError):
        asyncio.run(receive(one(), tmp_path / "study", Limits()))
    assert not (tmp_path / "study").exists()


@pytest.mark.timeout(30)
def test_the_event_loop_goes_on_while_the_disk_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "study" / "received" / "000001"

    async def piece() -> AsyncIterator[bytes]:
        # Whoever opens a pipe for writing waits until someone reads it: a disk that takes its time.
        os.mkfifo(file)
        yield b"slow"

    async def one() -> AsyncIterator[UploadPart]:
        yield UploadPart("scan.nii", piece())

    async def main() -> bytes:
        task = asyncio.create_task(receive(one(), tmp_path / "study", Limits()))
        await asyncio.sleep(0.1)
        assert not task.done()
        end = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        await task
        try:
            return os.read(end, 10)
        finally:
            os.close(end)

    assert asyncio.run(main()) == b"slow"


def test_memory_does_not_grow_with_the_upload(tmp_path: Path) -> None:
    async def many() -> AsyncIterator[bytes]:
        for _ in range(512):
            yield bytes(1 << 18)

    async def one() -> AsyncIterator[UploadPart]:
        yield UploadPart("scan.raw", many())

    tracemalloc.start()
    asyncio.run(receive(one(), tmp_path / "study", Limits()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
