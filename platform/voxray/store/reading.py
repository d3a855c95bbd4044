"""Store: a finished store, opened for reading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from voxray.core.case import Case, Tile, row_to_tile
from voxray.core.config import parse
from voxray.core.errors import ConfigError, DataError
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.core.volume import Grid, Volume
from voxray.sampling import TileIndex
from voxray.store.manifest import SCHEMA_VERSION, CaseEntry, CaseSummary, Manifest
from voxray.store.shard_cache import ChangedShardError, node_cache
from voxray.store.shards import damaged, read_summary, sha256_in
from voxray.store.tables import MANIFEST, TILES, recipe_digest, recipe_fields

_OPEN_FILES = 32
_OPEN_RANGES = 1024
"""Of these only the footers are kept, which are small, and asking for one takes two requests."""
_LOOKS = 16
_DIGEST_DIGITS = 16

_READ_ERRORS = (OSError, pa.ArrowException, RuntimeError, ValueError, KeyError, IndexError, TypeError)


@dataclass(frozen=True, slots=True)
class TileFile:
    """Where a tile lies: all that reading it needs of the manifest and the table of tiles."""

    case_id: str
    file: str
    row_group: int
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Store:
    """The manifest, the index of all tiles, and the way to each of them; small, and can travel to workers.

    Not for several threads at once: they would share open files.
    """

    place: Place
    manifest: Manifest
    tiles: pa.Table
    """One row per tile: `voxray.store.tables.TILES_SCHEMA`."""
    digest: str
    """Of the manifest: another one is another store."""

    @staticmethod
    def open(uri: str | Path) -> Store:
        """The store at a path or URI; one that is not there or not finished is a ConfigError."""
        place = Place.of(uri)
        if not place.exists(MANIFEST):
            raise ConfigError(f"{uri}: holds no finished store (no {MANIFEST}); make one with `voxray ingest`.")
        manifest, digest = _manifest(place)
        try:
            tiles = place.reading(TILES, pq.read_table)
        except (OSError, pa.ArrowException):
            raise _damaged_table(TILES) from None
        return Store(place, manifest, tiles, digest)

    @property
    def uri(self) -> str:
        """Where it is."""
        return self.place.uri

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The cases that it holds, in ascending order."""
        return tuple(self.manifest.cases)

    def require(self, recipe: Recipe) -> None:
        """A ConfigError where the store was made for other tiles than the recipe wants."""
        if self.manifest.recipe_digest == recipe_digest(recipe):
            return
        mine, wanted = self.manifest.recipe, recipe_fields(recipe)
        what = "; ".join(
            f"{name} is {mine.get(name)} there and {wanted[name]} in the recipe"
            for name in wanted
            if mine.get(name) != wanted[name]
        )
        raise ConfigError(f"{self.uri}: was made for another recipe: {what}. Run `voxray ingest` with this recipe.")

    def read_tile(self, row: int) -> Tile:
        """The tile in that row of `tiles`."""
        return tile_at(self.place, self.tile_file(row))

    def tile_file(self, row: int) -> TileFile:
        """Where the tile in that row of `tiles` lies."""
        case_id, name = self.tiles["case_id"][row].as_py(), self.tiles["file"][row].as_py()
        file = next(file for file in self._entry(case_id).files if file.name == name)
        return TileFile(case_id, name, self.tiles["row_group"][row].as_py(), file.sha256, file.bytes)

    def read_case(self, case_id: str) -> Case:
        """The whole case on the recipe's grid, put together from its tiles."""
        entry = self._entry(case_id)
        summary = read_summary(self.place, case_id)
        grid = Grid.from_dict(entry.grid)
        image = np.empty(grid.shape, np.int16)
        labels = np.empty(grid.shape, np.uint8) if self.manifest.recipe["task"] == "segmentation" else None
        unlabelled = False
        for row in self._rows([case_id]):
            tile = self.read_tile(int(row))
            region = tuple(slice(a, a + n) for a, n in zip(tile.start, tile.voxels.shape, strict=True))
            image[region] = tile.voxels
            if labels is not None and tile.labels is not None:
                labels[region] = tile.labels
            unlabelled |= tile.labels is None
        return Case(
            case_id=case_id,
            patient_id=entry.patient_id,
            image=Volume(image, grid),
            boxes=np.asarray(summary.boxes, np.float64).reshape(-1, 6),
            classes=np.asarray(summary.classes, np.int64),
            labels=None if unlabelled else labels,
            warnings=entry.warnings,
        )

    def summaries(self, case_ids: Sequence[str]) -> tuple[CaseSummary, ...]:
        """What the shards of these cases say of them: objects, tiles and labels, without a voxel."""
        for case_id in case_ids:
            self._entry(case_id)
        with ThreadPoolExecutor(_LOOKS) as pool:
            return tuple(pool.map(lambda case_id: read_summary(self.place, case_id), case_ids))

    def index(self, case_ids: Sequence[str]) -> TileIndex:
        """What an epoch's plan must know of these cases' tiles."""
        for case_id in case_ids:
            self._entry(case_id)
        rows = self._rows(case_ids)
        tiles = self.tiles.take(pa.array(rows))
        names = {name: number for number, name in enumerate(sorted(set(case_ids)))}
        case = np.array([names[name] for name in tiles["case_id"].to_pylist()], np.int64)
        object_tile, local_id = _flat(tiles["objects"])
        label_tile, label_value = _flat(tiles["labels"])
        most = int(local_id.max(initial=0)) + 1
        return TileIndex(
            row=rows,
            case=case,
            object_tile=object_tile,
            object_id=case[object_tile] * most + local_id,
            label_tile=label_tile,
            label_value=label_value,
            label_voxels=_flat(tiles["label_voxels"])[1],
        )

    def verify(self) -> Iterator[DataError]:
        """Every file that is missing or whose checksum is not the manifest's."""
        for case_id, entry in self.manifest.cases.items():
            for file in entry.files:
                problem = wrong_file(self.place, file.name, file.bytes, file.sha256)
                if problem:
                    yield damaged(case_id, problem)

    def _entry(self, case_id: str) -> CaseEntry:
        if case_id not in self.manifest.cases:
            failed = self.manifest.failed.get(case_id)
            why = f"it was set aside: {failed.message}" if failed else "the store does not hold it."
            raise DataError("store.no_case", why, remedy="Run `voxray ingest` again, or exclude it.", case_id=case_id)
        return self.manifest.cases[case_id]

    def _rows(self, case_ids: Sequence[str]) -> Int64[np.ndarray, " n"]:
        mask = pc.is_in(self.tiles["case_id"], value_set=pa.array(list(case_ids), pa.string()))
        return np.flatnonzero(mask.to_numpy())


def tile_at(place: Place, tile: TileFile) -> Tile:
    """A tile of the store at `place`; a shard that is not what the manifest says is a DataError."""
    try:
        return place.insist(lambda: _read(place, tile))
    except FileNotFoundError:
        raise damaged(tile.case_id, f"{tile.file} is missing") from None
    except ChangedShardError:
        raise damaged(tile.case_id, f"{tile.file} has another checksum than the manifest") from None
    except _READ_ERRORS as error:
        raise damaged(tile.case_id, f"{tile.file} cannot be read ({type(error).__name__})") from None


def wrong_file(place: Place, name: str, size: int, sha256: str) -> str | None:
    """What is wrong with a file, if anything: it is missing, shorter or longer, or its checksum differs."""
    found = place.size(name)
    if found is None:
        return f"{name} is missing"
    if found != size:
        return f"{name} has {found} bytes instead of {size}"
    digest = place.reading(name, sha256_in)
    return None if digest == sha256 else f"{name} has another checksum than the manifest"


def _manifest(place: Place) -> tuple[Manifest, str]:
    try:
        text = place.read(MANIFEST)
        data = json.loads(text)
    except (OSError, ValueError):
        raise _damaged_table(MANIFEST) from None
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{place.uri}: schema_version is {data.get('schema_version')}, this voxray reads {SCHEMA_VERSION}; "
            f"run `voxray ingest` into an empty folder."
        )
    return parse(Manifest, data, where=f"{place.uri}/{MANIFEST}"), hashlib.sha256(text).hexdigest()[:_DIGEST_DIGITS]


def manifest_digest(place: Place) -> str | None:
    """What `Store.digest` would be, without parsing the manifest; None where there is none."""
    try:
        return place.reading(MANIFEST, sha256_in)[:_DIGEST_DIGITS]
    except FileNotFoundError:
        return None
    except OSError:
        raise _damaged_table(MANIFEST) from None


def _damaged_table(name: str) -> DataError:
    return DataError(
        "store.damaged", f"the store's {name} cannot be read.", remedy="Run `voxray ingest` again: it makes it anew."
    )


def forget_opened() -> None:
    """Closes the shards that this process keeps open."""
    _open_shard.cache_clear()
    _open_ranges.cache_clear()


@lru_cache(maxsize=_OPEN_FILES)
def _open_shard(place: Place, name: str, sha256: str, num_bytes: int) -> pq.ParquetFile | None:
    """The shard, or of a store elsewhere that of this node's cache, kept open; None where it is read there.

    The checksum is part of its name, so one that is made anew is opened anew.
    """
    if place.is_local:
        return pq.ParquetFile(place.path(name))
    cache = node_cache()
    kept = None if cache is None else cache.open(sha256, num_bytes, partial(place.fetch, name))
    return None if kept is None else pq.ParquetFile(kept)


@lru_cache(maxsize=_OPEN_RANGES)
def _open_ranges(place: Place, name: str, sha256: str) -> pq.ParquetFile:
    """The shard where it lies elsewhere, of which each row group is read in one range of bytes."""
    del sha256
    return pq.ParquetFile(place.open(name), pre_buffer=True)


def _read(place: Place, tile: TileFile) -> Tile:
    try:
        shard = _open_shard(place, tile.file, tile.sha256, tile.bytes)
        return _tile_in(shard or _open_ranges(place, tile.file, tile.sha256), tile.row_group)
    except Exception:
        if not place.is_local:
            forget_opened()  # what was opened of a file that was replaced stays of no use
        raise


def _tile_in(shard: pq.ParquetFile, row_group: int) -> Tile:
    table = shard.read_row_group(row_group)
    row: dict[str, Any] = {
        name: table[name][0].as_buffer()
        if pa.types.is_large_binary(kind) and table[name][0].is_valid
        else table[name][0].as_py()
        for name, kind in zip(table.schema.names, table.schema.types, strict=True)
    }
    return row_to_tile(row)


def _flat(column: pa.ChunkedArray) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """A list column as (row of each value, value)."""
    values = column.combine_chunks()
    lengths = np.diff(values.offsets.to_numpy())
    return np.repeat(np.arange(len(values)), lengths), values.flatten().to_numpy(zero_copy_only=False).astype(
        np.int64
    )
