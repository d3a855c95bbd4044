"""The child that reads pickles: ``python -m voxray.scoring.foreign.unpickle FIELD...`` with paths on standard input.

A pickle may run any code, so this process holds nothing: its memory is bounded, its environment bare, and it hands
back plain arrays of numbers, which its parent reads without unpickling.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

MEMORY_BYTES = 8 * 2**30


def main() -> int:
    """Writes one npz of the named fields of all files to standard output, as ``<index>/<field>``."""
    _bound_memory()
    arrays: dict[str, Any] = {}
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    for index, path in enumerate(sys.stdin.read().splitlines()):
        try:
            with Path(path).open("rb") as stream:
                data = pickle.load(stream)
            arrays |= {f"{index}/{name}": _plain(data[name]) for name in sys.argv[1:] if name in data}
        except Exception as error:
            print(f"{Path(path).name}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    out.write(packed.getvalue())
    return 0


def _plain(value: Any) -> Any:
    """The value as an array of numbers; a tensor gives its own."""
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"a field holds {array.dtype} where numbers are wanted")
    return array


def _bound_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    sys.exit(main())
