"""nnDetection's pickles: its box convention, its axes, and that nothing of a pickle runs in this process."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from voxray.core.errors import ConfigError, DataError
from voxray.scoring.foreign import read_pickles
from voxray.scoring.foreign.nndetection import edges_of

DIRECTION = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def _fields(**changes: Any) -> dict[str, Any]:
    """One object at array voxels z 2-4, y 5-6, x 10-19, as nnDetection writes its box."""
    return {
        "pred_boxes": np.array([[1, 4, 5, 7, 9, 20]], np.float32),
        "pred_scores": np.array([0.75], np.float32),
        "pred_labels": np.array([0]),
        "restore": True,
        "original_size_of_raw_data": np.array([30, 40, 50]),
        "itk_origin": (10.0, 20.0, 30.0),
        "itk_spacing": (0.5, 1.0, 2.0),
        "itk_direction": DIRECTION,
    } | changes


def _write(folder: Path, fields: Any, name: str = "case_1_boxes.pkl") -> Path:
    (folder / name).write_bytes(pickle.dumps(fields))
    return folder / name


def test_its_boxes_in_edge_coordinates() -> None:
    """nnDetection's own example: voxels 2 to 4 on an axis are [1, 5]; half-open edges are [2, 5]."""
    np.testing.assert_array_equal(edges_of(np.array([[1, 4, 5, 7, 9, 20]])), [[10, 5, 2, 20, 7, 5]])


def test_the_box_in_world_is_where_itk_says(tmp_path: Path) -> None:
    found = read_pickles([_write(tmp_path, _fields())], trusted=True)["case_1"]
    itk: Any = SimpleITK
    image = itk.Image(50, 40, 30, itk.sitkUInt8)
    image.SetOrigin((10.0, 20.0, 30.0))
    image.SetSpacing((0.5, 1.0, 2.0))
    image.SetDirection(DIRECTION)
    corners = [
        image.TransformContinuousIndexToPhysicalPoint((x - 0.5, y - 0.5, z - 0.5))
        for x in (10, 20) for y in (5, 7) for z in (2, 5)
    ]  # fmt: skip
    expected = [*np.min(corners, axis=0), *np.max(corners, axis=0)]
    np.testing.assert_allclose(found.boxes[0], expected, atol=1e-5)
    assert (found.frame, found.scores.tolist(), found.classes.tolist()) == ("LPS", [0.75], [0])


def test_a_case_without_findings_and_several_cases(tmp_path: Path) -> None:
    empty = _fields(pred_boxes=np.zeros((0, 6)), pred_scores=np.zeros(0), pred_labels=np.zeros(0, int))
    paths = [_write(tmp_path, _fields(), "a_boxes.pkl"), _write(tmp_path, empty, "b_boxes.pkl")]
    found = read_pickles(paths, trusted=True)
    assert {name: len(one) for name, one in found.items()} == {"a": 1, "b": 0}


class Harm:
    """What a hostile pickle does: runs a command when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_without_trust_nothing_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path, Harm(tmp_path / "harm"))
    with pytest.raises(ConfigError, match=r"is a pickle, which can run any code .* add --trust-pickle"):
        read_pickles([path], trusted=False)
    assert not (tmp_path / "harm").exists()


class Marks:
    """A pickle that changes the process that reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, ("VOXRAY_PICKLE_WAS_HERE", "1")


def test_with_trust_it_runs_in_a_child_that_hands_back_arrays_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "s3cret")
    path = _write(tmp_path, _fields(pred_labels=[Marks()]))
    with pytest.raises(DataError, match="a field holds object where numbers are wanted"):
        read_pickles([path], trusted=True)
    assert os.system('test -z "$VOXRAY_PICKLE_WAS_HERE"') == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"restore": False}, "its boxes lie on the preprocessed grid"),
        ({"pred_scores": np.array([np.nan])}, "score 0 is not a finite number"),
        ({"pred_boxes": np.array([[5, 4, 5, 7, 9, 20]])}, "box 0 has no size"),
        ({"pred_boxes": np.array([[5, 4, 5, 7]])}, "pred_boxes must be rows of six numbers"),
        ({"itk_spacing": (1.0, 1.0)}, "give no 3D grid"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_pickles([_write(tmp_path, _fields(**changes))], trusted=True)


def test_files_that_are_no_such_pickle(tmp_path: Path) -> None:
    fields = _fields()
    del fields["pred_scores"]
    with pytest.raises(DataError, match="has no pred_scores"):
        read_pickles([_write(tmp_path, fields)], trusted=True)
    broken = tmp_path / "x_boxes.pkl"
    broken.write_bytes(b"no pickle at all")
    with pytest.raises(DataError, match=r"a pickle cannot be read: x_boxes\.pkl: UnpicklingError"):
        read_pickles([broken], trusted=True)
