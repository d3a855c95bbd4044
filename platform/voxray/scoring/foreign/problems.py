"""How a file of predictions is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

from voxray.core.errors import DataError
from voxray.core.text import TextError, on_disk, same, text_in


def problem(code: str, message: str, remedy: str) -> DataError:
    """The refusal of a file of predictions."""
    return DataError(f"predictions.{code}", message, remedy=remedy)


def read_text(path: Path) -> str:
    """The text of a file, its names as they are compared, unpacked if it ends in .gz; an empty one is refused."""
    try:
        data = on_disk(path).read_bytes()
        text = text_in(gzip.decompress(data) if path.suffix == ".gz" else data)
    except FileNotFoundError:
        raise problem("missing", f"{path}: no such file.", "Give the path of an existing file.") from None
    except (OSError, EOFError, TextError) as error:
        raise problem(
            "unreadable", f"{path}: cannot be read ({error}).", "Give a readable UTF-8 text file."
        ) from None
    if not text.strip():
        raise problem("empty", f"{path}: is empty.", "Give the file that the detector wrote.")
    return same(text)
