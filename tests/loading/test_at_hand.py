"""Cases of a dataset elsewhere: the same voxels, truth and content as on a disk, and no copy is left."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from numpy.typing import NDArray

from voxray.core.errors import DataError
from voxray.core.storage import Place
from voxray.dataset import Dataset, read_dataset
from voxray.loading import case_content, examine, list_cases, load_case, survey

Write = Callable[..., Path]
Block = Callable[..., NDArray[np.uint8]]

HEAD = """
name = "d"
licence = "CC0"
classes = ["liver", "spleen"]
[images]
glob = ["images/*.nii.gz", "images/*.mhd"]
"""
KINDS = {
    "labels": ('kind = "labels"\nfile = "labels/{case}.nii.gz"', ("labels/a.nii.gz", "labels/b.nii.gz")),
    "headers": ('kind = "labels"\nfile = "labels/{case}.mhd"', ("labels/a.mhd", "labels/b.mhd")),
    "masks": (
        'kind = "mask_folder"\nfile = "masks/{case}/{class}.nii.gz"\nunlisted = "background"',
        ("masks/a/liver.nii.gz", "masks/a/kidney.nii.gz", "masks/b/spleen.nii.gz"),
    ),
}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def moved(folder: Path) -> Place:
    """A copy of the folder elsewhere."""
    place = Place.of(f"memory://moved-{uuid4().hex}/luna")
    for path in folder.rglob("*"):
        if path.is_file() and "scratch" not in path.parts:
            place.put(path.relative_to(folder).as_posix(), path)
    return place


@pytest.fixture(params=KINDS)
def both(request: Any, tmp_path: Path, write: Write, block: Block) -> tuple[Dataset, Dataset]:
    """A dataset on this machine, and the same elsewhere."""
    annotations, files = KINDS[request.param]
    for name in ("images/a.nii.gz", "images/b.mhd"):
        write(name)
    for number, name in enumerate(files):
        write(name, block((1, (slice(2, 4 + number), slice(2, 5), slice(2, 6)))))
    (tmp_path / "dataset.toml").write_text(f"{HEAD}[annotations]\n{annotations}\n")
    return read_dataset(tmp_path / "dataset.toml"), read_dataset(f"{moved(tmp_path).uri}/dataset.toml")


def test_a_case_elsewhere_is_the_case_on_this_machine(both: tuple[Dataset, Dataset], scratch: Path) -> None:
    here, there = both
    assert there.root.startswith("memory://")
    pairs = list(zip(list_cases(here), list_cases(there), strict=True))
    assert [one.case_id for one, _ in pairs] == ["a", "b"]
    for one, other in pairs:
        assert other.image == one.image.replace(here.root, there.root)
        assert case_content(here, one) == case_content(there, other)
        first, second = load_case(here, one), load_case(there, other)
        np.testing.assert_array_equal(first.image.hounsfield, second.image.hounsfield)
        np.testing.assert_array_equal(first.labels, second.labels)
        np.testing.assert_array_equal(first.boxes, second.boxes)
        assert first.warnings == second.warnings
    assert list(scratch.iterdir()) == []


def test_what_is_missing_is_its_cases_problem_and_is_named_by_its_address(
    both: tuple[Dataset, Dataset], scratch: Path
) -> None:
    there = both[1]
    a, b = list_cases(there)
    Place.of(there.root).remove("images/b.raw" if Place.of(there.root).exists("images/b.raw") else "images/b.zraw")
    Place.of(there.root).remove("images/a.nii.gz")
    for source, code in ((a, "path.missing"), (b, "metaimage.missing_data")):
        problem = examine(there, source).problems[0]
        assert (problem.code, problem.case_id) == (code, source.case_id)
        assert problem.message.startswith(f"{source.image}: ")
        assert str(scratch) not in str(problem)
        with pytest.raises(DataError) as caught:
            case_content(there, source)
        assert source.image in str(caught.value)
        assert str(scratch) not in str(caught.value)
    assert list(scratch.iterdir()) == []


def test_a_table_and_a_label_map_that_are_missing_are_named_by_their_addresses(tmp_path: Path, write: Write) -> None:
    write("images/a.nii.gz")
    table = 'kind = "boxes_csv"\nfile = "boxes.csv"\nframe = "LPS"'
    (tmp_path / "boxes.csv").write_text(
        "case,class,x1,y1,z1,x2,y2,z2\na,liver,-14,-14,4,-12,-12,8\nz,liver,0,0,0,1,1,1\n"
    )
    (tmp_path / "dataset.toml").write_text(f"{HEAD}[annotations]\n{table}\n")
    (tmp_path / "maps.toml").write_text(f"{HEAD}[annotations]\n{KINDS['labels'][0]}\n")
    place = moved(tmp_path)
    data = read_dataset(f"{place.uri}/dataset.toml")
    found = survey(data)
    assert f"{place.uri}/boxes.csv: has rows of 1 cases without an image" in str(found.problems[0])
    assert len(load_case(data, found.cases[0]).boxes) == 1
    maps = read_dataset(f"{place.uri}/maps.toml")
    assert f"{place.uri}/labels/a.nii.gz: no such file" in str(examine(maps, list_cases(maps)[0]).problems[0])
