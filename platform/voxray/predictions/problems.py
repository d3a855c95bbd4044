"""How a file of predictions is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

from voxray.errors import DataError


def problem(code: str, message: str, remedy: str) -> DataError:
    """The refusal of a file of predictions."""
    return DataError(f"predictions.{code}", message, remedy=remedy)


def read_text(path: Path) -> str:
    """The text of a file, unpacked where its name ends in .gz; an empty one is refused."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise problem("missing", f"{path}: no such file.", "Give the path of an existing file.") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise problem(
            "unreadable", f"{path}: cannot be read ({error}).", "Give a readable UTF-8 text file."
        ) from None
    if not text.strip():
        raise problem("empty", f"{path}: is empty.", "Give the file that the detector wrote.")
    return text
