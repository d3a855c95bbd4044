"""The data file that a header names: a bare file name in the header's own folder, and nothing else."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from voxray.core.text import on_disk
from voxray.readers.refusals import refusal


def data_file(name: str, header: Path, *, outside: str, missing: str) -> Path:
    """The named file beside `header`, whatever the normal form of its name.

    Paths, lists and patterns are refused, so that no other file can be read.
    """
    if not is_bare(name):
        raise refusal(
            outside,
            header,
            f"names {name!r} as its data file; only the name of one file in the same folder is allowed.",
            remedy="Put the data file beside the header and name it there, or write one file (.mha, .nrrd).",
        )
    path = on_disk(header.with_name(name))
    if not path.is_file():
        raise refusal(
            missing,
            header,
            f"names the data file {name!r}, which is not there.",
            remedy="Copy it into the same folder as the header.",
        )
    return path


def is_bare(name: str) -> bool:
    """Whether it is the name of one file, and no path, list or pattern."""
    bare = name == PurePosixPath(name).name == PureWindowsPath(name).name and name not in ("", ".", "..")
    return (
        bare and name.split()[:1] != [] and name.split()[0].upper() != "LIST" and "%" not in name and "\0" not in name
    )
