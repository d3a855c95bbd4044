"""The node's cache of shards: fetched once, whole, checked, bounded, and safe for who reads what goes."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.buckets import Buckets, buckets
from support.tiny_training import made_store, segmentation_recipe
from voxray.core.batch import PatchBatch
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.sampling import Schedule
from voxray.store import PatchSource, Store, read_batches
from voxray.store.reading import forget_opened
from voxray.store.shard_cache import FOLDER, SIZE, ChangedShardError, ShardCache, node_cache


def _content(number: int, size: int = 1000) -> bytes:
    return bytes([number]) * size


def _key(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Far:
    """Storage that counts how often it is asked, and takes its time."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, 0
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> None:
        with self._lock:
            self.asked += 1
        path.write_bytes(self.data[: len(self.data) // 2])
        time.sleep(0.05)  # others come meanwhile
        path.write_bytes(self.data)


def _names(cache: ShardCache) -> set[str]:
    return {path.name.removesuffix(".parquet") for path in cache.folder.glob("*.parquet")}


def test_many_readers_fetch_a_file_once_and_none_sees_half_of_it(tmp_path: Path) -> None:
    cache, far = ShardCache(tmp_path, 10_000), Far(_content(1))

    def read(_: int) -> bytes:
        found = cache.open(_key(far.data), len(far.data), far)
        assert found is not None
        return bytes(found.read())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(16))) == {far.data}
    assert far.asked == 1
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".unfinished")]


def test_what_was_not_used_for_longest_goes_and_who_reads_it_keeps_it(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3000)
    datas = [_content(number) for number in range(4)]
    opened = [cache.open(_key(data), len(data), Far(data)) for data in datas[:3]]
    for at, name in enumerate(map(_key, datas[:3])):
        os.utime(tmp_path / f"{name}.parquet", (at + 1.0, at + 1.0))
    assert cache.open(_key(datas[0]), 1000, Far(b"")) is not None, "it is used again"
    cache.open(_key(datas[3]), 1000, Far(datas[3]))
    assert _names(cache) == {_key(datas[0]), _key(datas[2]), _key(datas[3])}
    assert opened[1] is not None
    assert opened[1].read() == datas[1]


def test_a_store_larger_than_the_cache_keeps_what_came_first_instead_of_turning_over(tmp_path: Path) -> None:
    """Each of its shards would push out another, fetched whole for one tile; the rest is read by ranges."""
    cache, fars = ShardCache(tmp_path, 2000), [Far(_content(number)) for number in range(3)]
    for _ in range(3):
        opened = [cache.open(_key(far.data), 1000, far) for far in fars]
    assert [one is not None for one in opened] == [True, True, False]
    assert [far.asked for far in fars] == [1, 1, 0]


def test_what_does_not_fit_is_not_kept_and_nothing_goes_for_it(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1500)
    cache.open(_key(_content(1)), 1000, Far(_content(1)))
    large = Far(_content(2, 2000))
    assert cache.open(_key(large.data), 2000, large) is None
    assert large.asked == 0
    assert _names(cache) == {_key(_content(1))}


def test_another_content_than_the_manifests_is_refused_and_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10_000)
    with pytest.raises(ChangedShardError):
        cache.open(_key(b"wanted"), 1000, Far(_content(1)))

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ResourceError("the storage is away.")

    with pytest.raises(ResourceError, match="away"):
        cache.open(_key(b"wanted"), 1000, fail)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_folder_that_was_tidied_away_is_made_again(tmp_path: Path) -> None:
    cache, far = ShardCache(tmp_path / "cache", 10_000), Far(_content(1))
    for _ in range(2):
        assert cache.open(_key(far.data), 1000, far) is not None
        shutil.rmtree(cache.folder)
    assert far.asked == 2


def test_what_a_killed_process_left_unfinished_goes_after_an_hour(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10_000)
    old, new = tmp_path / ".a.parquet.0.unfinished", tmp_path / ".b.parquet.1.unfinished"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    cache.open(_key(_content(1)), 1000, Far(_content(1)))
    assert (old.exists(), new.exists()) == (False, True)


def test_its_size_and_folder_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    monkeypatch.setenv(SIZE, "0.5")
    assert node_cache() == ShardCache(tmp_path / "cache", 1 << 29)
    monkeypatch.delenv(SIZE)
    found = node_cache()
    assert found is not None
    assert 0 < found.limit_bytes <= 20 << 30
    monkeypatch.setenv(SIZE, "0")
    assert node_cache() is None
    for text in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv(SIZE, text)
        with pytest.raises(ConfigError, match=rf"{SIZE}={text}: must be a number of GiB from 0"):
            node_cache()
    monkeypatch.setenv(SIZE, "1")
    monkeypatch.setenv(FOLDER, "cache")
    with pytest.raises(ConfigError, match="must be a full path"):
        node_cache()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="file: cannot be used"):
        node_cache()


@pytest.fixture(scope="module")
def s3() -> Iterator[Buckets]:
    with buckets() as server:
        yield server


@pytest.fixture
def recipe() -> Recipe:
    return segmentation_recipe("optim.batch_size=1", "patch.per_tile=1")


@pytest.fixture
def far_store(s3: Buckets, tmp_path: Path, recipe: Recipe) -> tuple[Store, Store]:
    """A store in a bucket, and the same in a folder."""
    beside, far = made_store(tmp_path / "store", recipe), Place.of(f"s3://{s3.make()}/store")
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            far.put(path.relative_to(tmp_path / "store").as_posix(), path)
    return Store.open(far.uri), beside


def _epoch(store: Store, recipe: Recipe, epoch: int) -> list[PatchBatch]:
    """The batches of an epoch that reads each tile once, by a process that has opened nothing yet."""
    forget_opened()
    schedule = Schedule(seed=1, steps_per_epoch=len(store.tiles), batch_size=1, num_slots=1)
    return list(read_batches(PatchSource.of(store, recipe, store.case_ids, schedule), range(epoch, epoch + 1)))


def _asked(s3: Buckets) -> list[str]:
    """The requests since the last look, of shards."""
    found = [method for method, path in s3.asked if "/cases/" in path]
    s3.asked.clear()
    return found


def test_the_first_epoch_asks_once_for_each_shard_and_the_second_for_none(
    s3: Buckets,
    far_store: tuple[Store, Store],
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, beside = far_store
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    monkeypatch.setenv(SIZE, "1")
    shards = sum(len(entry.files) for entry in store.manifest.cases.values())
    _asked(s3)
    first = _epoch(store, recipe, 0)
    assert 0 < len(_asked(s3)) <= 2 * shards
    second = _epoch(store, recipe, 1)
    assert _asked(s3) == []
    for epoch, batches in enumerate((first, second)):
        for batch, wanted in zip(batches, _epoch(beside, recipe, epoch), strict=True):
            assert batch.voxels.equal(wanted.voxels)


def test_without_a_cache_row_groups_are_read_in_ranges(
    s3: Buckets, far_store: tuple[Store, Store], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, beside = far_store
    monkeypatch.setenv(SIZE, "0")
    _asked(s3)
    before = s3.sent_bytes
    batches = _epoch(store, recipe, 0)
    sent = s3.sent_bytes - before
    for batch, wanted in zip(batches, _epoch(beside, recipe, 0), strict=True):
        assert batch.voxels.equal(wanted.voxels)
    files = [file for entry in store.manifest.cases.values() for file in entry.files]
    assert 0 < len(_asked(s3)) <= 2 * len(files) + len(store.tiles)
    footers = 64 << 10  # what Parquet's reader takes of a file's end, to find out what is in it
    assert sent <= sum(file.bytes + min(file.bytes, footers) for file in files) + 4096, "nothing is read ahead"


def test_a_shard_that_was_changed_is_refused(
    far_store: tuple[Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = far_store
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    forget_opened()
    name = store.tiles["file"][0].as_py()
    data = store.place.read(name)
    store.place.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match="has another checksum than the manifest"):
        store.read_tile(0)
