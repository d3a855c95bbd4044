"""The files in datasets/, and the README's examples, which are executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from voxray.annotations.object_tables import read_boxes_json
from voxray.dataset import num_folds, read_dataset, split
from voxray.dataset.truth import MaskFolder
from voxray.loading import list_cases, load_case

FOLDER = Path(__file__).resolve().parents[2] / "datasets"
FILES = sorted(FOLDER.glob("*.toml")) + sorted((FOLDER.parent / "tests" / "datasets").glob("*.toml"))
SECTIONS = re.split(r"^## ", (FOLDER / "README.md").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_descriptor_is_valid(path: Path, tmp_path: Path) -> None:
    dataset = read_dataset(path, root=tmp_path)
    assert dataset.name == path.stem
    assert dataset.licence


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_the_readme_names_every_descriptor(path: Path) -> None:
    assert f"`{path.name}`" in SECTIONS[0]


def test_the_classes_of_totalsegmentator(tmp_path: Path) -> None:
    # Golden places from TotalSegmentator's class maps total_v1 and total.
    first = read_dataset(FOLDER / "totalsegmentator.toml", root=tmp_path).classes
    second = read_dataset(FOLDER / "totalsegmentator_v2.toml", root=tmp_path).classes
    assert (len(first), len(second)) == (104, 117)
    places = {1: "spleen", 7: "aorta", 18: "vertebrae_L5", 41: "vertebrae_C1", 44: "heart_myocardium"}
    places |= {50: "brain", 58: "rib_left_1", 81: "rib_right_12", 93: "face", 104: "urinary_bladder"}
    assert {number: first[number - 1] for number in places} == places
    places = {1: "spleen", 7: "pancreas", 26: "vertebrae_S1", 51: "heart", 90: "brain", 91: "skull"}
    places |= {92: "rib_left_1", 115: "rib_right_12", 116: "sternum", 117: "costal_cartilages"}
    assert {number: second[number - 1] for number in places} == places
    gone = {"face", "pulmonary_artery"} | {name for name in first if name.startswith("heart_")}
    assert set(first) - set(second) == gone
    assert len(set(second) - set(first)) == 20


def test_version_2_masks_are_read_by_the_104_names(tmp_path: Path) -> None:
    for name, side in (("ct", 0), ("segmentations/pancreas", 1), ("segmentations/sternum", 2)):
        voxels = np.zeros((4, 4, 4), np.int16 if name == "ct" else np.uint8)
        voxels[side] = 1
        path = tmp_path / "s0001" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(path))
    dataset = read_dataset(FOLDER / "totalsegmentator.toml", root=tmp_path)
    assert isinstance(dataset.annotations[0], MaskFolder)
    (source,) = list_cases(dataset)
    labels = load_case(dataset, source).labels
    assert labels is not None
    assert np.unique(labels).tolist() == [0, 10]


@pytest.mark.parametrize("section", [s for s in SECTIONS if "```files" in s], ids=lambda s: s.partition("\n")[0])
def test_the_examples_of_the_readme_work(section: str, tmp_path: Path) -> None:
    for kind, name, text in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL):
        if kind == "files":
            for line in text.split():
                _write_scan(tmp_path / line)
        else:
            (tmp_path / name).write_text(text)
    dataset = read_dataset(tmp_path / "dataset.toml")
    sources = list_cases(dataset)
    assert len(sources) >= 2
    cases = [load_case(dataset, source) for source in sources]
    assert sum(len(case.boxes) for case in cases) >= 2
    for fold in range(num_folds(dataset.folds)):
        assert split(sources, dataset.folds, fold).val
    if (tmp_path / "boxes.json").exists():
        found = read_boxes_json((tmp_path / "boxes.json").read_text(), dataset.classes, where="boxes.json")
        assert not found.problems
        assert len(found.boxes) == 2


def _write_scan(path: Path) -> None:
    """An image, or a mask where the path says so, with voxels of 1 mm whose first corner is at -15 -15 2."""
    mask = path.parent.name in ("labels", "segmentations")
    voxels = np.zeros((16, 14, 14), np.uint8 if mask else np.int16)
    voxels[3:6, 4:9, 5:8] = 1
    if not mask:
        voxels = voxels * 140 - np.int16(90)
    image: Any = SimpleITK.GetImageFromArray(voxels)
    image.SetOrigin((-14.5, -14.5, 2.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
