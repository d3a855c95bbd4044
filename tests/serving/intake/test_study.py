"""What is known of a study: how large it is, stored and prepared."""

from __future__ import annotations

import pytest

from voxray.serving.intake.study import StudyInfo, is_small


@pytest.mark.parametrize(
    ("spacing_mm", "most_vox", "small"),
    [
        ((1.0, 1.0, 4.0), 6000, True),
        ((1.0, 1.0, 4.0), 5999, False),
        ((1.0, 1.0, 1.0), 6000, False),  # four times the voxels when prepared
        ((1.0, 1.0, 1.0), 24000, True),
        ((2.0, 2.0, 4.0), 5999, False),  # fewer when prepared, but these must be read
    ],
)
def test_a_small_scan_is_small_both_ways(spacing_mm: tuple[float, float, float], most_vox: int, small: bool) -> None:
    info = StudyInfo(
        format="NIfTI-1",
        shape=(20, 30, 10),
        spacing_mm=(1.0, 1.0, 4.0),
        origin_mm=(0.0, 0.0, 0.0),
        direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        orientation="LPS",
        num_files=1,
        modality=None,
        is_dicom=False,
        warnings=(),
        series=None,
    )
    assert is_small(info, spacing_mm, most_vox) is small
