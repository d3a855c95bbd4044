from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from voxray.core.errors import DataError
from voxray.scoring.foreign import read_monai
from voxray.scoring.foreign.monai import is_monai

BOX = [-100.0, 60.0, -230.0, 6.0, 6.0, 8.0]


def _text(**changes: Any) -> str:
    entry = {"image": "a/b.nii.gz", "box": [BOX], "label": [0], "label_scores": [0.5]}
    return json.dumps([entry | changes])


def test_the_bundles_list_and_the_tutorials_table() -> None:
    bundle = read_monai(_text(), where="r.json")["a/b.nii.gz"]
    entry = {"image": "a/b.nii.gz", "box": [BOX], "label": [0], "score": [0.5]}
    tutorial = read_monai(json.dumps({"validation": [entry]}), where="r.json")["a/b.nii.gz"]
    for found in (bundle, tutorial):
        assert found.frame == "LPS"
        np.testing.assert_allclose(found.boxes, [[-103, 57, -234, -97, 63, -226]])
        assert (found.scores.tolist(), found.classes.tolist()) == ([0.5], [0])


def test_findings_come_highest_score_first_and_an_image_may_have_none() -> None:
    found = read_monai(_text(box=[BOX, BOX], label=[0, 1], label_scores=[0.2, 0.9]), where="r")["a/b.nii.gz"]
    assert (found.scores.tolist(), found.classes.tolist()) == (pytest.approx([0.9, 0.2]), [1, 0])
    assert len(read_monai(_text(box=[], label=[], label_scores=[]), where="r")["a/b.nii.gz"]) == 0


def test_its_form_is_recognised() -> None:
    assert is_monai(json.loads(_text()))
    assert is_monai({"validation": [{"image": "a", "box": [], "label": [], "score": []}]})
    assert not is_monai({"training": [{"image": "a", "box": [], "label": []}]})
    assert not is_monai({"frame": "LPS", "boxes": []})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label_scores": [float("nan")]}, r"r\[0\] \(a/b.nii.gz\): score 0 is not a finite number"),
        ({"box": [[0, 0, 0, 5, -1, 5]]}, "box 0 has no size: -2.5 0.5 -2.5 2.5 -0.5 2.5"),
        ({"box": [[0, 0, 0, 5]]}, "box must be rows of six numbers"),
        ({"label": []}, "has 1 boxes, 1 scores and 0 classes"),
        ({"label": [0.5]}, "classes must be whole numbers from 0"),
        ({"image": None}, "names no image"),
        ({"label_scores": None}, "must have box, label and label_scores"),
    ],
)
def test_what_cannot_be_used(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_monai(_text(**changes), where="r")


def test_an_image_twice_and_broken_json() -> None:
    twice = json.dumps([*json.loads(_text()), *json.loads(_text())])
    with pytest.raises(DataError, match=r"r\[1\]: image a/b.nii.gz again"):
        read_monai(twice, where="r")
    with pytest.raises(DataError, match="not valid JSON"):
        read_monai("[", where="r")
