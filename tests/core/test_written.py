"""What bears voxray's mark, and what is written over or removed: that alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from voxray.core.errors import ConfigError
from voxray.core.storage import Place
from voxray.core.volume import Grid, Volume
from voxray.core.written import (
    ANSWERS,
    IMAGE,
    LABEL_MAP,
    PICTURE,
    RECORD,
    SCORES,
    is_own,
    mark_of,
    recorded,
    remove_own,
    require_empty,
    require_own,
)
from voxray.readers import write_nifti
from voxray.results.pictures import draw_curves

GRID = Grid((4, 3, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize(("kind", "mark"), [(np.uint8, LABEL_MAP), (np.uint16, LABEL_MAP), (np.int16, IMAGE)])
def test_label_maps_are_told_from_images(tmp_path: Path, name: str, kind: type[np.generic], mark: str) -> None:
    write_nifti(Volume(np.zeros(GRID.shape, kind), GRID), tmp_path / name)
    assert mark_of(tmp_path / name) == mark
    assert is_own(tmp_path / name, ANSWERS) is (mark == LABEL_MAP)


def test_pictures_and_json_bear_a_mark(tmp_path: Path) -> None:
    (tmp_path / "curve.png").write_bytes(draw_curves({"loss": [(0, 1.0), (1, 0.5)]}))
    assert mark_of(tmp_path / "curve.png") == PICTURE
    (tmp_path / "a.json").write_text(json.dumps({"schema": "voxray-findings/1", "case": "a"}, indent=2))
    assert is_own(tmp_path / "a.json", ANSWERS)
    assert not is_own(tmp_path / "a.json", SCORES), "a finding is no score"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"case": "voxray-findings/1"}',
        b'["schema", "voxray-findings/1"]',
        b"\x1f\x8bcut",
        b"PAR1",
        b"\x89PNG\r\n",
    ],
)
def test_what_others_wrote_bears_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert mark_of(path) == ""
    with pytest.raises(ConfigError, match=r"a\.json: is there already.*--overwrite"):
        require_own([path], ANSWERS)
    require_own([path], ANSWERS, overwrite=True)
    remove_own(path, ANSWERS)
    assert path.read_bytes() == content


def test_a_record_knows_files_without_a_mark_until_they_are_changed(tmp_path: Path) -> None:
    path = tmp_path / "luna16.csv"
    for text in ("one", "two", "two"):
        with recorded(path) as beside:
            beside.write_text(text)
    assert path.read_text() == "two"
    assert is_own(path, ())
    path.write_text("two, corrected by hand")
    with pytest.raises(ConfigError, match="or was changed since"), recorded(path) as beside:
        beside.write_text("three")
    assert path.read_text() == "two, corrected by hand"
    with recorded(path, overwrite=True) as beside:
        beside.write_text("three")
    assert is_own(path, ())


def test_what_a_kill_leaves_is_known(tmp_path: Path) -> None:
    path = tmp_path / "luna16.csv"
    with recorded(path) as beside:
        beside.write_text("one")
    kept = path.read_bytes()
    with pytest.raises(FileNotFoundError), recorded(path) as beside:
        beside.with_name("gone").read_text()
    assert path.read_bytes() == kept
    with (tmp_path / RECORD).open("a") as record:  # noted, and not yet put in place
        record.write(f"{'0' * 64}  luna16.csv\n0123")
    assert is_own(path, ())
    with recorded(path) as beside:
        beside.write_text("two")
    assert is_own(path, ())


def test_a_mark_does_not_outweigh_the_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with recorded(path) as beside:
        beside.write_text('{"schema": "voxray-findings/1"}')
    path.write_text('{"schema": "voxray-findings/1", "note": "corrected"}')
    assert not is_own(path, ANSWERS)


def test_folders_and_links_are_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "ct.nii.gz").mkdir()
    (tmp_path / "ct.json").symlink_to(tmp_path / "nowhere")
    for name, overwrite in (("ct.nii.gz", False), ("ct.nii.gz", True), ("ct.json", False)):
        with pytest.raises(ConfigError, match=name):
            require_own([tmp_path / name], ANSWERS, overwrite=overwrite)


def test_a_folder_that_is_made_anew_is_empty(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "store")
    require_empty(place, "store")
    (tmp_path / "store" / "cases").mkdir(parents=True)
    (tmp_path / "store" / ".DS_Store").touch()
    (tmp_path / "store" / "cases" / ".a.parquet.0123.unfinished").touch()
    require_empty(place, "store")
    (tmp_path / "store" / "cases" / "mine.parquet").touch()
    with pytest.raises(ConfigError, match=r"such as cases/mine\.parquet, and is no store that voxray made"):
        require_empty(place, "store")
    with pytest.raises(ConfigError, match="is a file"):
        require_empty(Place.of(tmp_path / "store" / "cases" / "mine.parquet"), "store")
