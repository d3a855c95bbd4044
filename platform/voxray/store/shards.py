"""Writing a case as a shard, and reading back what a shard says of itself."""

from __future__ import annotations

import errno
import hashlib
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64, UInt8
from pydantic import ValidationError

from voxray.core.case import TILE_SCHEMA, Case, Tile, label_counts, tile_to_row
from voxray.core.detections import Box
from voxray.core.errors import DataError
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.core.volume import Grid
from voxray.sampling import cut_tiles, own_objects
from voxray.store.histogram import foreground_histogram, to_text
from voxray.store.manifest import CaseEntry, CaseSummary, ShardFile, TileEntry

FOLDER = "cases"
_SUMMARY = b"voxray"
_FILE_BYTES = 256 << 20
_SUFFIX = ".parquet"
_PART = re.compile(r"~[0-9]+$")
_FULL = re.compile(r"No space left on device|Disk quota exceeded")


@dataclass(frozen=True)
class StoredCase:
    """A case's summary and its files."""

    summary: CaseSummary
    files: tuple[ShardFile, ...]


def write_case(place: Place, case: Case, recipe: Recipe, *, original_grid: Grid, signature: str) -> StoredCase:
    """The tiles of a case on the recipe's grid, as one shard; nothing of it is seen before all of it is there.

    The first file appears last: where it is, the others are.
    """
    entries: list[TileEntry] = []
    files: list[_File] = []
    with ExitStack() as stack:
        for tile, objects in zip(cut_tiles(case, recipe), own_objects(case, recipe), strict=True):
            if not files or files[-1].payload_bytes >= _FILE_BYTES:
                files.append(_File.opened(stack, place, file_name(case.case_id, len(files))))
            files[-1].add(tile)
            entries.append(_describe(tile, objects))
        truth = case.for_task(recipe.task)
        summary = CaseSummary(
            case_id=case.case_id,
            patient_id=case.patient_id,
            signature=signature,
            grid=case.image.grid.to_dict(),
            original_grid=original_grid.to_dict(),
            boxes=tuple(_six(box) for box in truth.boxes),
            classes=tuple(truth.classes.tolist()),
            label_voxels=_label_voxels(truth.labels),
            tiles=tuple(entries),
            tiles_per_file=tuple(file.num_tiles for file in files),
            foreground_hu=to_text(foreground_histogram(case)),
            warnings=case.warnings,
        )
        files[0].writer.add_key_value_metadata({_SUMMARY: summary.model_dump_json()})
        return StoredCase(summary, tuple(file.closed() for file in files))


def read_stored_case(place: Place, case_id: str) -> StoredCase:
    """What the shard of a case says of itself, and the checksums of its files as they are now."""
    summary = read_summary(place, case_id)
    files = []
    for part in range(len(summary.tiles_per_file)):
        name = file_name(case_id, part)
        size = place.size(name)
        if not size:
            raise damaged(case_id, f"{name} is missing")
        files.append(ShardFile(name=name, bytes=size, sha256=place.reading(name, sha256_in)))
    return StoredCase(summary, tuple(files))


def sha256_in(file: IO[bytes]) -> str:
    """The checksum of an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def read_summary(place: Place, case_id: str) -> CaseSummary:
    """The footer of the case's first file."""
    name = file_name(case_id, 0)
    try:
        metadata = place.reading(name, lambda file: pq.read_metadata(file).metadata) or {}
        return CaseSummary.model_validate_json(metadata[_SUMMARY])
    except FileNotFoundError:
        raise damaged(case_id, f"{name} is missing") from None
    except (OSError, KeyError, pa.ArrowException, ValidationError) as error:
        raise damaged(case_id, f"{name} cannot be read ({type(error).__name__})") from None


def find_stored_case(place: Place, case_id: str, signature: str, *, entry: CaseEntry | None) -> StoredCase | None:
    """The case's shard if it is there, whole and with that signature; `entry` is what the last manifest says of it.

    Where that says nothing, because the shard's writer was stopped, the files are read for their checksums.
    """
    try:
        summary = read_summary(place, case_id)
        if summary.signature != signature:
            return None
        if entry is None or entry.signature != signature:
            return read_stored_case(place, case_id)
        if any(place.size(file.name) != file.bytes for file in entry.files):
            return None
        return StoredCase(summary, entry.files)
    except DataError:
        return None


def stored_case_ids(place: Place) -> list[str]:
    """The cases whose shards are complete, whether the manifest knows them or not."""
    names = (name.removesuffix(_SUFFIX) for name in place.names(FOLDER) if name.endswith(_SUFFIX))
    return [unquote(name) for name in names if not _PART.search(name)]


def is_shard(place: Place, case_id: str) -> bool:
    """Whether the case's first file is one that `write_case` wrote."""
    try:
        read_summary(place, case_id)
    except DataError:
        return False
    return True


def remove_case(place: Place, case_id: str) -> None:
    """All files of a case go, the one that makes it complete first."""
    place.remove(file_name(case_id, 0))
    stem = file_name(case_id, 0).rsplit("/", 1)[-1].removesuffix(_SUFFIX)
    for name in place.names(FOLDER):
        if _PART.sub("", name.removesuffix(_SUFFIX)) == stem:
            place.remove(f"{FOLDER}/{name}")


def file_name(case_id: str, part: int) -> str:
    """The name of a case's file below the store's root; whatever an id holds, it names one file of that folder."""
    return f"{FOLDER}/{quote(case_id, safe='').replace('~', '%7E')}{f'~{part}' if part else ''}{_SUFFIX}"


def damaged(case_id: str, what: str) -> DataError:
    """The error for a shard that is not what the manifest says."""
    return DataError(
        "store.damaged",
        f"the store's {what}.",
        remedy="Delete what is left of it and run `voxray ingest` again: only this case is made anew.",
        case_id=case_id,
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that no space is left where the store is."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and (seen.errno in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(str(seen))):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@dataclass
class _File:
    """A shard file that is being written."""

    name: str
    path: Path
    writer: Any
    payload_bytes: int = 0
    num_tiles: int = 0

    @staticmethod
    def opened(stack: ExitStack, place: Place, name: str) -> _File:
        path = stack.enter_context(place.writing(name))
        writer = pq.ParquetWriter(path, TILE_SCHEMA, compression="none", use_dictionary=False, write_statistics=False)
        stack.callback(writer.close)
        return _File(name, path, writer)

    def add(self, tile: Tile) -> None:
        """One row group more."""
        row = tile_to_row(tile)
        self.writer.write_table(pa.Table.from_pylist([row], schema=TILE_SCHEMA))
        self.payload_bytes += len(row["voxels"]) + len(row["labels"] or b"")
        self.num_tiles += 1

    def closed(self) -> ShardFile:
        """The file as it is on disk."""
        self.writer.close()
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ShardFile(name=self.name, bytes=self.path.stat().st_size, sha256=digest)


def _describe(tile: Tile, objects: Int64[np.ndarray, " n"]) -> TileEntry:
    x, y, z = tile.voxels.shape
    return TileEntry(
        start=tile.start,
        shape=(x, y, z),
        objects=tuple(objects.tolist()),
        num_cut=len(tile.cut_boxes),
        label_voxels=_label_voxels(tile.labels),
    )


def _label_voxels(labels: UInt8[np.ndarray, "x y z"] | None) -> dict[int, int]:
    """Voxels of each label but 0."""
    counts = np.zeros(256, np.int64) if labels is None else label_counts(labels)
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts) if label}


def _six(box: Float64[np.ndarray, " 6"]) -> Box:
    x1, y1, z1, x2, y2, z2 = box.tolist()
    return x1, y1, z1, x2, y2, z2
