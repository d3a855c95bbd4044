"""A store: what is written is what is read, whole or not at all, and damage is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from support.buckets import buckets
from voxray.core.case import Case
from voxray.core.errors import ConfigError, DataError
from voxray.core.storage import Place
from voxray.core.volume import Grid, Volume
from voxray.recipes import read_recipe
from voxray.sampling import Schedule, cut_patch, cut_tiles, epoch_plan
from voxray.store import (
    FailedCase,
    Store,
    StoredCase,
    is_disk_full,
    is_shard,
    read_stored_case,
    remove_case,
    require_store_folder,
    shards,
    stored_case_ids,
    write_case,
    write_manifest,
)

PATCH = ["patch.size_vox=[32,32,16]", "patch.margin_vox=[8,8,4]", "patch.max_object_vox=[20,20,12]"]
DETECTION = read_recipe("lung_nodule", PATCH)
SEGMENTATION = read_recipe("spleen", ["patch.size_vox=[32,32,32]", "patch.margin_vox=[8,8,8]"])
DATASET = {"name": "made", "licence": "CC0-1.0", "classes": ["nodule", "mass"]}


def made_case(case_id: str, *, seed: int = 0, shape: tuple[int, int, int] = (70, 60, 30)) -> Case:
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[10:20, 30:42, 5:9] = 1
    labels[50:55, 10:20, 20:24] = 2
    grid = Grid(shape, (0.7, 0.7, 1.25), (3.0, -4.0, 5.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    return Case(
        case_id=case_id,
        patient_id=f"patient of {case_id}",
        image=Volume(rng.integers(-1024, 1500, shape).astype(np.int16), grid),
        boxes=np.array([[10, 30, 5, 20, 42, 9], [50, 10, 20, 55, 20, 24.5]], np.float64),
        classes=np.array([0, 1]),
        labels=labels,
    )


def made_store(uri: str | Path, cases: list[Case], recipe: object = DETECTION) -> Store:
    assert recipe in (DETECTION, SEGMENTATION)
    chosen = DETECTION if recipe is DETECTION else SEGMENTATION
    place = Place.of(uri)
    stored = [write_case(place, case, chosen, original_grid=case.image.grid, signature="s") for case in cases]
    failed = {"broken": FailedCase(code="nifti.truncated", message="too short.")}
    write_manifest(place, stored, chosen, dataset=DATASET, failed=failed)
    return Store.open(uri)


@pytest.mark.parametrize("recipe", [DETECTION, SEGMENTATION])
@pytest.mark.parametrize("where", ["folder", "memory"])
def test_cases_and_tiles_come_back_as_they_went(tmp_path: Path, recipe: object, where: str) -> None:
    uri = str(tmp_path / "store") if where == "folder" else f"memory://store_{id(recipe)}"
    cases = [made_case("b/../odd ~1 id"), made_case("a", seed=1, shape=(20, 61, 16))]
    store = made_store(uri, cases, recipe)
    assert store.case_ids == ("a", "b/../odd ~1 id")
    for case in cases:
        found = store.read_case(case.case_id)
        np.testing.assert_array_equal(found.image.voxels, case.image.voxels)
        assert found.image.grid == case.image.grid
        assert found.patient_id == case.patient_id
        if recipe is DETECTION:
            np.testing.assert_array_equal(found.boxes, case.boxes)
            np.testing.assert_array_equal(found.classes, case.classes)
            assert found.labels is None
        else:
            np.testing.assert_array_equal(found.labels, case.labels)
    tiles = list(cut_tiles(cases[1], DETECTION if recipe is DETECTION else SEGMENTATION))
    np.testing.assert_array_equal(store.read_tile(0).voxels, tiles[0].voxels)
    np.testing.assert_array_equal(store.read_tile(len(tiles) - 1).cut_boxes, tiles[-1].cut_boxes)
    assert not list(store.verify())
    if where == "folder":
        assert {path.name for path in tmp_path.iterdir()} == {"store"}
        assert not [path for path in (tmp_path / "store").rglob("*") if "unfinished" in path.name]


def test_the_index_knows_each_tiles_objects_and_labels(tmp_path: Path) -> None:
    detection = made_store(tmp_path / "d", [made_case("a"), made_case("b", seed=2)])
    index = detection.index(["b"])
    assert len(set(index.object_id.tolist())) == 2
    for place, one in zip(index.object_tile, index.object_id, strict=True):
        tile = detection.read_tile(int(index.row[place]))
        assert tile.case_id == "b"
        assert int(one) % 2 in tile.classes.tolist()
    plan = epoch_plan(index, DETECTION.patch, Schedule(seed=0, steps_per_epoch=8, batch_size=2), 0)
    for read in (read for ranks in plan for reads in ranks for read in reads if read.foreground):
        patch = cut_patch(
            detection.read_tile(read.tile), DETECTION, np.random.default_rng(read.seed), foreground=True
        )
        assert (patch.classes >= 0).any()
    segmentation = made_store(tmp_path / "s", [made_case("a")], SEGMENTATION)
    index = segmentation.index(["a"])
    for place, label, voxels in zip(index.label_tile, index.label_value, index.label_voxels, strict=True):
        labels = segmentation.read_tile(int(index.row[place])).labels
        assert labels is not None
        assert int((labels == label).sum()) == voxels


def test_the_fingerprint_is_that_of_the_cases(tmp_path: Path) -> None:
    cases = [made_case("a"), made_case("b", seed=2)]
    store = made_store(tmp_path / "s", cases, SEGMENTATION)
    print = store.manifest.fingerprint
    assert print.label_voxels == {"nodule": 2 * 480, "mass": 2 * 200}
    values = np.concatenate([case.image.voxels[case.labels > 0] for case in cases if case.labels is not None])
    assert print.foreground_hu is not None
    assert print.foreground_hu.mean == pytest.approx(values.mean())
    assert print.foreground_hu.std == pytest.approx(values.std())
    assert print.foreground_hu.median == pytest.approx(np.percentile(values, 50, method="inverted_cdf"))
    assert print.foreground_hu.percentile_99_5 == pytest.approx(np.percentile(values, 99.5, method="inverted_cdf"))
    detection = made_store(tmp_path / "d", cases)
    sizes = detection.manifest.fingerprint.objects["mass"]
    assert sizes.count == 2
    assert sizes.largest_mm == pytest.approx((3.5, 7.0, 5.625))
    assert pq.read_table(tmp_path / "d" / "objects.parquet").num_rows == 4
    assert detection.manifest.failed["broken"].code == "nifti.truncated"


def test_large_cases_are_split_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_FILE_BYTES", 200_000)
    case = made_case("a~b")
    store = made_store(tmp_path, [case])
    files = store.manifest.cases["a~b"].files
    assert len(files) > 1
    np.testing.assert_array_equal(store.read_case("a~b").image.voxels, case.image.voxels)
    assert stored_case_ids(store.place) == ["a~b"]
    assert read_stored_case(store.place, "a~b").files == files
    remove_case(store.place, "a~b")
    assert not list((tmp_path / "cases").iterdir())


def test_row_groups_hold_one_tile_without_compression_or_statistics(tmp_path: Path) -> None:
    store = made_store(tmp_path, [made_case("a")])
    metadata = pq.read_metadata(tmp_path / "cases" / "a.parquet")
    assert metadata.num_row_groups == store.manifest.cases["a"].num_tiles
    column = metadata.row_group(0).column(3)
    assert column.compression == "UNCOMPRESSED"
    assert not column.is_stats_set


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    case = made_case("a")
    bad = Case("a", "a", case.image, case.boxes, np.array([0, -1]), None)
    with pytest.raises(ValueError, match="classes"):
        write_case(Place.of(tmp_path), bad, DETECTION, original_grid=case.image.grid, signature="s")
    assert stored_case_ids(Place.of(tmp_path)) == []
    assert not list((tmp_path / "cases").iterdir())


@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    store = made_store(tmp_path, [made_case("a"), made_case("b", seed=4)])
    path = tmp_path / "cases" / "a.parquet"
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 3] ^= 0xFF
        path.write_bytes(data)
    (problem,) = store.verify()
    assert problem.code == "store.damaged"
    assert str(problem).startswith("case a: [store.damaged] the store's cases/a.parquet ")
    assert "voxray ingest" in str(problem)
    if damage != "changed":
        with pytest.raises(DataError, match=r"case a: \[store.damaged\]"):
            Store.open(tmp_path).read_tile(0)
    assert store.read_case("b").case_id == "b"


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no finished store .*voxray ingest"):
        Store.open(tmp_path)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Place.of("nosuch://bucket/store")
    made_store(tmp_path, [made_case("a")])
    (tmp_path / "tiles.parquet").write_bytes(b"?")
    with pytest.raises(DataError, match=r"tiles.parquet cannot be read"):
        Store.open(tmp_path)
    data = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**data, "schema_version": 99}))
    with pytest.raises(ConfigError, match="schema_version is 99"):
        Store.open(tmp_path)


def test_a_recipe_with_other_tiles_is_refused(tmp_path: Path) -> None:
    store = made_store(tmp_path, [made_case("a")])
    store.require(read_recipe("lung_nodule", [*PATCH, "optim.rate=0.5", "patch.foreground=0.25"]))
    with pytest.raises(ConfigError, match=r"patch is .*Run `voxray ingest` with this recipe"):
        store.require(read_recipe("lung_nodule", [*PATCH[1:], "patch.size_vox=[64,32,16]"]))


def test_a_case_that_was_set_aside_says_why(tmp_path: Path) -> None:
    store = made_store(tmp_path, [made_case("a")])
    with pytest.raises(DataError, match=r"case broken: .*it was set aside: too short"):
        store.read_case("broken")
    with pytest.raises(DataError, match="does not hold it"):
        store.index(["a", "other"])


def test_a_store_travels(tmp_path: Path) -> None:
    store = made_store(tmp_path, [made_case("a")])
    store.read_tile(0)
    again: Store = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.read_tile(0).voxels, store.read_tile(0).voxels)


def test_unfinished_files_are_swept(tmp_path: Path) -> None:
    made_store(tmp_path, [made_case("a")])
    left = tmp_path / "cases" / ".b.parquet.1234.unfinished"
    left.write_bytes(b"half")
    place = Place.of(tmp_path)
    assert stored_case_ids(place) == ["a"]
    place.sweep("cases")
    assert not left.exists()


def test_a_full_disk_is_told_apart() -> None:
    full = RuntimeError("writing failed")
    full.__cause__ = OSError(28, "No space left on device")
    assert is_disk_full(full)
    assert is_disk_full(OSError("[Errno 28] Error writing bytes to file. Detail: No space left on device"))
    assert not is_disk_full(OSError(13, "Permission denied"))


def test_summaries_can_be_read_without_the_manifest(tmp_path: Path) -> None:
    store = made_store(tmp_path, [made_case("a")])
    stored: StoredCase = read_stored_case(Place.of(tmp_path), "a")
    assert stored.files == store.manifest.cases["a"].files
    assert stored.summary.patient_id == "patient of a"
    assert len(stored.summary.tiles) == store.tiles.num_rows


@pytest.fixture(autouse=True)
def _clean_memory() -> None:
    fsspec.filesystem("memory").store.clear()


def test_a_store_is_made_only_where_there_is_nothing_or_a_store(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    place = Place.of(folder)
    require_store_folder(place)
    (folder / "cases").mkdir(parents=True)
    (folder / ".voxray_can_write").touch()
    require_store_folder(place)
    (folder / "manifest.json").write_text('{"name": "of some web page"}')
    (folder / "cases" / "mine.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"such as manifest\.json, and is no store that voxray made"):
        require_store_folder(place)
    (folder / "manifest.json").unlink()
    case = made_case("a", shape=(20, 61, 16))
    made = write_case(place, case, SEGMENTATION, original_grid=case.image.grid, signature="x")
    require_store_folder(place)
    assert is_shard(place, made.summary.case_id)
    assert not is_shard(place, "mine")


def test_on_s3_a_shard_that_comes_late_is_no_damage() -> None:
    """Where it was taken for damaged its case was ingested again, or the store for somebody else's folder."""
    with buckets() as s3:
        uri, case = f"s3://{s3.make()}/store", made_case("a")
        store = made_store(uri, [case])
        asked: list[str] = []

        def first(_: str, path: str) -> bool:
            asked.append(path)
            return len(asked) == 1

        for read in (
            lambda: shards.read_summary(store.place, "a"),
            lambda: store.read_tile(0),
            lambda: Store.open(uri),
        ):
            asked.clear()
            s3.close(first)
            read()
            assert len(asked) > 1
        s3.open()
        assert np.array_equal(store.read_case("a").image.voxels, case.image.voxels)
