"""Receiving: streams of bytes onto the disk, counted as they come, under names of our own. Nothing is parsed here."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from voxray.core.errors import DataError
from voxray.readers.dicom_file import START_BYTES
from voxray.serving.intake.disk import disk_full, in_thread, remove
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.study import RECEIVED
from voxray.serving.intake.uploaded_files import (
    UploadedFile,
    is_foreign_archive,
    is_no_nifti,
    not_nifti,
    not_zip,
    uploaded_file,
    write_list,
)

_BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class UploadPart:
    """One file on its way to us: the name that its sender gave it, and its bytes."""

    name: str
    chunks: AsyncIterator[bytes]


class Received(NamedTuple):
    """How much came."""

    num_files: int
    num_bytes: int


async def receive(parts: AsyncIterator[UploadPart], folder: Path, limits: Limits) -> Received:
    """Writes what is sent into the study's folder, for `parse`; on refusal or cancellation that folder goes.

    A sender's file names reach neither the disk nor any error: see `items`.
    """
    assert not (folder / RECEIVED).exists(), "a study's folder takes one upload"
    try:
        await in_thread((folder / RECEIVED).mkdir, parents=True, mode=0o700)
        return await _receive(parts, folder / RECEIVED, limits)
    except OSError as error:
        await remove(folder)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full() from None
        raise
    except BaseException:
        await remove(folder)
        raise


async def _receive(parts: AsyncIterator[UploadPart], folder: Path, limits: Limits) -> Received:
    items: list[UploadedFile] = []
    total = 0
    async for part in parts:
        if len(items) == limits.entries:
            raise too_many_files(limits)
        item = uploaded_file(len(items) + 1, part.name)
        items.append(item)
        total += await _store(part, item, folder, _Allowance(limits, total))
    if total == 0:
        raise DataError("upload.empty", "The upload holds no bytes.", remedy="Send the files of one CT scan.")
    await in_thread(write_list, folder, items)
    return Received(len(items), total)


class _Allowance(NamedTuple):
    limits: Limits
    spent: int

    def check(self, num_bytes: int) -> None:
        if self.spent + num_bytes > self.limits.upload_bytes:
            raise DataError(
                "upload.too_large",
                f"The upload holds more than {self.limits.upload_bytes} bytes.",
                remedy="Send one scan alone, packed (.nii.gz or zip), or ask who runs the service for more.",
            )


async def _store(part: UploadPart, item: UploadedFile, folder: Path, allowance: _Allowance) -> int:
    """Writes one part; the number of its bytes."""
    start, batch, batch_bytes, total = b"", list[bytes](), 0, 0
    async for chunk in _lively(part.chunks, allowance.limits.idle_s):
        total += len(chunk)
        allowance.check(total)
        if len(start) < START_BYTES:
            start += chunk[: START_BYTES - len(start)]
            if len(start) == START_BYTES:
                _check_start(start, item)
        batch.append(chunk)
        batch_bytes += len(chunk)
        if batch_bytes >= _BATCH_BYTES:
            await in_thread(_append, folder / item.file, batch)
            batch, batch_bytes = [], 0
    _check_start(start, item)
    await in_thread(_append, folder / item.file, batch)
    return total


async def _lively(chunks: AsyncIterator[bytes], idle_s: float) -> AsyncIterator[bytes]:
    """The chunks, as long as none of them is waited for too long."""
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DataError(
                "upload.stalled", f"Nothing came for {idle_s:g} seconds.", remedy="Send the upload again."
            ) from None
        yield chunk


def _check_start(start: bytes, item: UploadedFile) -> None:
    if is_foreign_archive(start, item.suffix):
        raise not_zip(item)
    if len(start) == START_BYTES and is_no_nifti(start, item.suffix):
        raise not_nifti(item)


def _append(path: Path, pieces: Sequence[bytes]) -> None:
    # Opened anew each time, so that a receiver that is cancelled leaves no file open.
    with path.open("ab") as file:
        file.writelines(pieces)


def too_many_files(limits: Limits) -> DataError:
    """The refusal of more files than may come."""
    return DataError(
        "upload.too_many_files",
        f"The upload holds more than {limits.entries} files.",
        remedy="Send the files of one series alone.",
    )
