"""Scans that are read, though a reader has something to say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from voxray.core.progress import SilentProgress

DISAGREE = "qform and sform place the volume differently; the sform was followed"


def contradict(path: Path) -> None:
    """Moves a NIfTI file's qform by 40 mm, and leaves its sform as it was."""
    nifti: Any = nibabel
    image = nifti.load(path)
    moved = image.affine.copy()
    moved[2, 3] += 40.0
    changed = nifti.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
    changed.set_sform(image.affine, 1)
    changed.set_qform(moved, 1)
    nifti.save(changed, path)


class Lines(SilentProgress):
    """A progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        """Keeps the line."""
        self.said.append(line)
