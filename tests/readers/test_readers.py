"""The table of readers, and what `describe` tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxray.core.volume import Grid, Volume
from voxray.readers import READERS, describe, read_label_map, read_volume, write_nifti

GRID = Grid((4, 3, 2), (0.7, 0.8, 2.5), (-30.0, 12.0, 400.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
VOXELS = np.arange(24, dtype=np.int16).reshape(4, 3, 2) - 3


def test_longer_suffixes_come_first() -> None:
    for place, suffix in enumerate(READERS):
        assert not any(suffix.endswith(earlier) for earlier in list(READERS)[:place])


def test_a_scan_is_described_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(Volume(VOXELS, GRID), path)
    info = describe(path)
    assert (info.path, info.format, info.num_files, info.dtype) == (str(path), "NIfTI-1", 1, "int16")
    assert (info.shape, info.orientation, info.modality, info.series_uid) == ((4, 3, 2), "LPS", None, None)
    assert info.spacing_mm == pytest.approx((0.7, 0.8, 2.5))
    assert info.origin_mm == pytest.approx((-30, 12, 400))
    assert info.range_hu is None
    assert describe(path, pixels=True).range_hu == (-3, 20)


def test_a_description_is_json(write_series: Any) -> None:
    found = describe(write_series(VOXELS), pixels=True).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["range_hu"] == [-1027, -1004]
    assert (found["modality"], found["series_uid"], found["num_files"]) == ("CT", "1.2.3", 2)


def test_paths_that_cannot_be_read_are_refused(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "a.txt").write_text("nothing")
    (tmp_path / "a.nrrd").symlink_to("/proc/self/mem")
    for read in (read_volume, read_label_map, describe):
        with refused("path.missing"):
            read(tmp_path / "b.nii.gz")
        with refused("path.unknown_format"):
            read(tmp_path / "a.txt")
        with refused("path.unreadable"):
            read(tmp_path / "a.nrrd")


def test_a_refusal_is_one_line_whatever_the_path(tmp_path: Path, refused: Any) -> None:
    with refused("path.missing"):
        read_volume(tmp_path / "two\nlines.nii")
