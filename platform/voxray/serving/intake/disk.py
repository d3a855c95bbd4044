"""Work that waits for the disk, or for another process, beside the event loop."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from voxray.core.errors import ResourceError

P = ParamSpec("P")
T = TypeVar("T")


def disk_full() -> ResourceError:
    """The refusal for want of room on the service's own disk."""
    return ResourceError("The service's disk is full; try again later, or ask who runs it.")


async def remove(folder: Path) -> None:
    """The folder goes with all that it holds, if it is there; also where the caller is cancelled meanwhile."""
    await in_thread(shutil.rmtree, folder, ignore_errors=True)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of work that waits for the disk; when cancelled it first sees that work end."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
