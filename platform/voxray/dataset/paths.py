"""Paths as a dataset file writes them: below its root, with ``${VARIABLES}`` of the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from voxray.core.addresses import below
from voxray.core.text import same

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr", ".dcm", ".npy")


def expand_variables(text: str) -> str:
    """The text with each ``${NAME}`` replaced from the environment; a ValueError names one that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if not os.environ.get(name):
            raise ValueError(f"environment variable {name} is not set; set it to a folder, as in export {name}=DIR")
        return os.environ[name]

    return _VARIABLE.sub(value, text)


def _below_root(value: str, info: ValidationInfo) -> str:
    text = expand_variables(value)
    root = (info.context or {}).get("root")
    return text if root is None else below(root, text)


RootedPath = Annotated[str, AfterValidator(_below_root)]
"""A path relative to the dataset's root, or an address; absolute once the file has been read.

May hold ``{case}`` and the like."""


def file_stem(path: str | Path) -> str:
    """The last part of a path without the suffixes of image files: ``a/scan.1.nii.gz`` -> ``scan.1``.

    It is spelled as names are compared, whatever the normal form of the path.
    """
    name = same(Path(path).name)
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def fill(template: str, **parts: str) -> str:
    """The template with ``{name}`` replaced by each part; braces that name none of them stay."""
    for name, part in parts.items():
        template = template.replace("{" + name + "}", part)
    return template
