"""Names that patterns find elsewhere are those that they find on a disk."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from voxray.core.errors import ConfigError
from voxray.core.storage import Place
from voxray.loading.listing import names_matching

NAMES = (
    "a.nii.gz",
    "images/b.nii.gz",
    "images/c.nii",
    "images/.hidden.nii.gz",
    ".hidden/d.nii.gz",
    "s1/ct.nii.gz",
    "s1/masks/liver.nii.gz",
    "s2/ct.nii.gz",
    "deep/one/two/e.nii.gz",
    "brackets/[1].nii.gz",
)
PATTERNS = (
    "*.nii.gz",
    "images/*",
    "images/*.nii.gz",
    "s?/ct.nii.gz",
    "s*",
    "s[2-9]/*.nii.gz",
    "**/*.nii.gz",
    "deep/**/e.nii.gz",
    "**/ct.nii.gz",
    "brackets/[[]1].nii.gz",
    "none/*.nii.gz",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_finds_what_it_finds_on_a_disk(tmp_path: Path, pattern: str) -> None:
    place = Place.of(f"memory://listing-{uuid4().hex}/data")
    for name in NAMES:
        place.write(name, b"1")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    there = (path.relative_to(tmp_path) for path in tmp_path.glob(pattern))
    assert names_matching(place.uri, [pattern]) == sorted(
        path.as_posix() for path in there if not any(part.startswith(".") for part in path.parts)
    )


def test_a_pattern_that_leads_out_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"images.glob: \.\./\*: give patterns relative to root"):
        names_matching("memory://somewhere/data", ["../*"])
