"""Answers and truth whose cases are named in other normal forms are of one case."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxray.core.volume import Grid, Volume
from voxray.readers import write_nifti
from voxray.scoring.answer_files import cases_of, read_answers
from voxray.scoring.truth_files import read_truth

GRID = Grid((4, 3, 2), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_label_maps_find_their_truth(tmp_path: Path, forms: Any) -> None:
    for folder, form in zip(("truth é", "answers é"), forms, strict=True):
        (tmp_path / unicodedata.normalize(form, folder)).mkdir()
        path = tmp_path / unicodedata.normalize(form, f"{folder}/Zoë.nii.gz")
        write_nifti(Volume(np.ones(GRID.shape, np.uint8), GRID), path)
    # Each folder is asked for in the form that it is not in.
    truth = read_truth(tmp_path / unicodedata.normalize(forms[1], "truth é"))
    answers = read_answers(tmp_path / unicodedata.normalize(forms[0], "answers é"), trust_pickle=False)
    assert cases_of(answers, truth) == ({"Zoë": "Zoë"}, [])
