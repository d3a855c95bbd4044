"""The one way in which readers refuse a file: a code of the table in `readers/README.md`, a sentence, a remedy."""

from __future__ import annotations

from pathlib import Path

from voxray.core.errors import DataError


def refusal(code: str, path: Path, sentence: str, *, remedy: str) -> DataError:
    """The error to raise: one line that starts with the path, whatever a foreign library's message held."""
    return DataError(code, one_line(f"{path}: {sentence}"), remedy=one_line(remedy))


def one_line(text: object) -> str:
    """The text with every run of white space as one space."""
    return " ".join(str(text).split())
