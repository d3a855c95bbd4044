"""A folder of phantoms: readable as datasets, the same bytes each time, gone on with, never written over others."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from voxray.core.detections import boxes_to_voxel
from voxray.core.errors import ConfigError
from voxray.dataset import num_folds, read_dataset
from voxray.loading import list_cases, load_case
from voxray.phantoms import KINDS, draw_phantom, write_toy


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "cubes", kind="cubes", num_cases=3, seed=5).parent


def _bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", KINDS)
def test_every_view_reads_back_as_it_was_drawn(kind: str, tmp_path: Path) -> None:
    main = write_toy(tmp_path / "toy", kind=kind, num_cases=2)
    phantoms = [draw_phantom(kind, index) for index in range(2)]
    views = sorted(path.name for path in main.parent.glob("*.toml"))
    expected = {
        "thorax": ["dataset.toml", "dataset_labels.toml"],
        "abdomen": ["dataset.toml", "dataset_spleen.toml"],
        "cubes": ["dataset.toml", "dataset_labels.toml"],
    }
    assert views == expected[kind]
    for name in views:
        dataset = read_dataset(main.parent / name)
        sources = list_cases(dataset)
        assert [source.case_id for source in sources] == ["toy_000", "toy_001"]
        assert num_folds(dataset.folds) == 2
        for drawn, source in zip(phantoms, sources, strict=True):
            case = load_case(dataset, source)
            np.testing.assert_array_equal(case.image.voxels, drawn.image.voxels)
            assert case.image.grid.is_close(drawn.image.grid, tolerance_mm=0.02)
            if case.labels is None:
                np.testing.assert_allclose(case.boxes, boxes_to_voxel(drawn.boxes_mm, drawn.image.grid), atol=0.02)
                np.testing.assert_array_equal(case.classes, drawn.classes)
            elif name == "dataset_spleen.toml":
                np.testing.assert_array_equal(case.labels, drawn.labels == 2)
            else:
                np.testing.assert_array_equal(case.labels, drawn.labels)


def test_the_same_words_give_the_same_bytes(cubes: Path, tmp_path: Path) -> None:
    again = write_toy(tmp_path / "again", kind="cubes", num_cases=3, seed=5).parent
    assert _bytes(again) == _bytes(cubes)
    with gzip.open(again / "images" / "toy_000.nii.gz") as stream:
        assert int.from_bytes(stream.read(4), "little") == 348


def test_an_interrupted_run_goes_on_to_the_same_bytes(cubes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "toy"

    class StoppedError(Exception):
        pass

    def stop(_: float) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        write_toy(folder, kind="cubes", num_cases=3, seed=5, progress=stop)
    first = folder / "images" / "toy_000.nii.gz"
    written = first.stat().st_mtime_ns
    assert not (folder / "dataset.toml").exists()
    done: list[float] = []
    write_toy(folder, kind="cubes", num_cases=3, seed=5, progress=done.append)
    assert done == [1, 1, 1]
    assert first.stat().st_mtime_ns == written
    assert _bytes(folder) == _bytes(cubes)


def test_a_lost_file_is_made_again_and_a_dataset_can_grow(cubes: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(cubes, tmp_path / "toy")
    (folder / "labels" / "toy_001.nii.gz").unlink()
    write_toy(folder, kind="cubes", num_cases=4, seed=5)
    assert (folder / "labels" / "toy_001.nii.gz").read_bytes() == (cubes / "labels" / "toy_001.nii.gz").read_bytes()
    assert len(json.loads((folder / "boxes.json").read_text())["boxes"]) == 4
    with pytest.raises(ConfigError, match="holds 4 cases already"):
        write_toy(folder, kind="cubes", num_cases=2, seed=5)


def test_a_folder_of_others_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and was not made by voxray toy"):
        write_toy(tmp_path, kind="cubes", num_cases=2)
    assert _bytes(tmp_path) == {"thesis.tex": b"mine"}
    with pytest.raises(ConfigError, match="is a file"):
        write_toy(tmp_path / "thesis.tex", kind="cubes", num_cases=2)


def test_other_phantoms_in_the_folder_are_refused(cubes: Path) -> None:
    with pytest.raises(ConfigError, match=r"seed 5.*seed 6"):
        write_toy(cubes, kind="cubes", num_cases=3, seed=6)


@pytest.mark.parametrize(("kind", "num_cases"), [("heads", 4), ("cubes", 1), ("cubes", 1001)])
def test_what_cannot_be_is_refused_before_anything_is_written(kind: str, num_cases: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_toy(tmp_path / "toy", kind=kind, num_cases=num_cases)
    with pytest.raises(ConfigError):
        write_toy(tmp_path / "toy", kind="cubes", num_cases=2, size="huge")
    assert not (tmp_path / "toy").exists()


def test_a_description_that_was_changed_by_hand_stays(cubes: Path, tmp_path: Path) -> None:
    shutil.copytree(cubes, tmp_path / "toy")
    path = tmp_path / "toy" / "dataset.toml"
    mine = path.read_text() + "seed = 3\n"
    path.write_text(mine)
    with pytest.raises(ConfigError, match=r"dataset\.toml: was changed since"):
        write_toy(tmp_path / "toy", kind="cubes", num_cases=4, seed=5)
    assert path.read_text() == mine
    path.unlink()
    write_toy(tmp_path / "toy", kind="cubes", num_cases=4, seed=5)
    assert "num_folds = 4" in path.read_text()


def test_a_writer_that_was_stopped_before_its_mark_leaves_a_folder_that_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "toy" / "images").mkdir(parents=True)
    (tmp_path / "toy" / ".toy.json.0123.unfinished").touch()
    assert write_toy(tmp_path / "toy", kind="cubes", num_cases=2).exists()
