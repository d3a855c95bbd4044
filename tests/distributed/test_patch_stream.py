"""The stream: the plan's batches, bit for bit, whatever Ray does in between."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from voxray.core.batch import PatchBatch
from voxray.core.case import Case
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.core.volume import Grid, Volume
from voxray.distributed import patch_stream as module
from voxray.distributed.patch_stream import from_table, patch_stream, to_table
from voxray.recipes import read_recipe
from voxray.sampling import Schedule
from voxray.store import PatchSource, Store, read_batches, stretches, write_case, write_manifest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

PATCH = [
    "patch.size_vox=[32,32,16]",
    "patch.margin_vox=[8,8,4]",
    "patch.max_object_vox=[20,20,12]",
    "patch.per_tile=3",
]
DETECTION = read_recipe("lung_nodule", PATCH)
SEGMENTATION = read_recipe("spleen", ["patch.size_vox=[32,32,32]", "patch.margin_vox=[8,8,8]", "patch.per_tile=3"])
SCHEDULE = Schedule(seed=5, steps_per_epoch=7, batch_size=2, num_slots=2)


def made_case(case_id: str, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    shape = (60, 50, 40)
    labels = np.zeros(shape, np.uint8)
    labels[10:20, 30:42, 5:9] = 1
    return Case(
        case_id=case_id,
        patient_id=case_id,
        image=Volume(
            rng.integers(-1024, 1500, shape).astype(np.int16),
            Grid(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)),
        ),
        boxes=np.array([[10, 30, 5, 20, 42, 9]], np.float64),
        classes=np.array([0]),
        labels=labels,
    )


def made_store(folder: Path, recipe: Recipe) -> Store:
    place = Place.of(folder)
    cases = [made_case(name, seed) for seed, name in enumerate("abcd")]
    stored = [write_case(place, case, recipe, original_grid=case.image.grid, signature="s") for case in cases]
    dataset = {"name": "made", "licence": "CC0-1.0", "classes": ["nodule"]}
    write_manifest(place, stored, recipe, dataset=dataset, failed={})
    return Store.open(folder)


@pytest.fixture(scope="module")
def detection(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of four cases with a box each."""
    return made_store(tmp_path_factory.mktemp("detection"), DETECTION)


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of four cases with labels."""
    return made_store(tmp_path_factory.mktemp("segmentation"), SEGMENTATION)


def assert_same(first: PatchBatch, second: PatchBatch) -> None:
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_a_batch_survives_its_table(segmentation: Store, detection: Store) -> None:
    for store, recipe in ((segmentation, SEGMENTATION), (detection, DETECTION)):
        source = PatchSource.of(store, recipe, store.case_ids, SCHEDULE)
        for batch in read_batches(source, range(1)):
            again = from_table(to_table(batch))
            assert_same(again, batch)
            again.voxels.add_(1)


def test_stretches_cover_each_step_once() -> None:
    whole = list(stretches(DETECTION, SCHEDULE, range(2), slots=(0,)))
    assert [(one.epoch, one.number, one.first, one.last) for one in whole[:3]] == [
        (0, 0, 0, 3),
        (0, 1, 0, 3),
        (0, 2, 0, 1),
    ]
    assert sum(one.last - one.first for one in whole) == 14
    late = list(stretches(DETECTION, SCHEDULE, range(4, 6), slots=(0,), start_step=4))
    assert [(one.epoch, one.number, one.first, one.last) for one in late[:2]] == [(4, 1, 1, 3), (4, 2, 0, 1)]


def test_several_slots_come_step_by_step(detection: Store) -> None:
    source = PatchSource.of(detection, DETECTION, detection.case_ids, replace(SCHEDULE, num_slots=3))
    apart = [list(read_batches(source, range(2), slots=(slot,), start_step=4)) for slot in (0, 2)]
    together = list(read_batches(source, range(2), slots=(0, 2), start_step=4))
    assert len(together) == 20
    for step, ones in enumerate(zip(*apart, strict=True)):
        for one, other in zip(ones, together[2 * step :], strict=False):
            assert_same(one, other)


def test_a_later_start_gives_the_same_batches(detection: Store) -> None:
    source = PatchSource.of(detection, DETECTION, detection.case_ids, SCHEDULE)
    whole = list(read_batches(source, range(3), slots=(1,)))
    assert len(whole) == 21
    for begin in (0, 1, 3, 5, 7, 10, 20):
        epoch, step = divmod(begin, 7)
        rest = list(read_batches(source, range(epoch, 3), slots=(1,), start_step=step))
        assert len(rest) == 21 - begin
        for one, other in zip(rest, whole[begin:], strict=True):
            assert_same(one, other)


def test_ranks_and_epochs_differ(detection: Store) -> None:
    source = PatchSource.of(detection, DETECTION, detection.case_ids, SCHEDULE)
    first = [[next(read_batches(source, range(epoch, 9), slots=(rank,))) for rank in (0, 1)] for epoch in (0, 1)]
    for one, other in itertools.combinations([batch for ranks in first for batch in ranks], 2):
        assert not torch.equal(one.voxels, other.voxels)


def test_every_batch_mixes_foreground_and_background(detection: Store) -> None:
    source = PatchSource.of(detection, DETECTION, detection.case_ids, SCHEDULE)
    for batch in read_batches(source, range(3)):
        assert batch.voxels.shape == (2, 32, 32, 16)
        assert batch.voxels.dtype == torch.int16
        assert (batch.classes[0] == 0).any(), "the first of two is the foreground patch"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("rank", [0, 1])
def test_the_stream_is_the_plan_bit_for_bit(detection: Store, rank: int) -> None:
    source = PatchSource.of(detection, DETECTION, ["a", "b", "c"], SCHEDULE)
    expected = list(read_batches(source, range(2, 5), slots=(rank,), start_step=2))
    found = list(
        patch_stream(
            detection, DETECTION, ["a", "b", "c"], schedule=SCHEDULE, epochs=range(2, 5), slots=(rank,), start_step=2
        )
    )
    assert len(found) == len(expected) == 19
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_the_stream_goes_on_over_segments(segmentation: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SEGMENT", 4)
    monkeypatch.setattr(module, "_LEAD", 2)
    source = PatchSource.of(segmentation, SEGMENTATION, segmentation.case_ids, SCHEDULE)
    found = patch_stream(segmentation, SEGMENTATION, segmentation.case_ids, schedule=SCHEDULE, epochs=range(5))
    for one, other in zip(found, read_batches(source, range(5)), strict=True):
        assert_same(one, other)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_a_closed_stream_leaves_no_thread(detection: Store) -> None:
    found = patch_stream(detection, DETECTION, detection.case_ids, schedule=SCHEDULE, epochs=range(10_000))
    next(found)
    assert [thread for thread in threading.enumerate() if "_drain" in thread.name]
    found.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if "_drain" in thread.name]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_damage_reaches_the_worker_as_one_sentence(tmp_path: Path) -> None:
    store = made_store(tmp_path, DETECTION)
    for path in (tmp_path / "cases").iterdir():
        path.write_bytes(b"?")
    with pytest.raises(DataError, match=r"^case [abcd]: \[store.damaged\] the store's cases/[abcd].parquet"):
        next(patch_stream(store, DETECTION, store.case_ids, schedule=SCHEDULE, epochs=range(1)))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_a_store_that_changes_under_the_stream_is_noticed(tmp_path: Path) -> None:
    store = made_store(tmp_path, DETECTION)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("CC0-1.0", "CC-BY-4.0"))
    with pytest.raises(DataError, match=r"\[store.changed\]"):
        next(patch_stream(store, DETECTION, store.case_ids, schedule=SCHEDULE, epochs=range(1)))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_readers_that_find_no_cpu_are_named(detection: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_S", 2.0)
    monkeypatch.setattr(module, "READER_CPUS", 100.0)
    with pytest.raises(ResourceError, match="no training patch has arrived for 2 s: the reading tasks find no CPU"):
        next(patch_stream(detection, DETECTION, detection.case_ids, schedule=SCHEDULE, epochs=range(1)))


def test_another_recipes_store_is_refused(detection: Store) -> None:
    with pytest.raises(ConfigError, match="was made for another recipe"):
        patch_stream(detection, SEGMENTATION, detection.case_ids, schedule=SCHEDULE, epochs=range(1))
