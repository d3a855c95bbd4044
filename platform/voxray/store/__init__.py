"""A store: tiles of many cases as Parquet shards in a folder or bucket, with a manifest that says what they are.

    manifest.json            dataset, recipe fields, checksums, fingerprint, cases that were set aside
    tiles.parquet            one row per tile: where it is, and what it holds
    objects.parquet          one row per object: case, class, size in mm
    cases/<case>.parquet     the tiles of one case, one row group each (split above 256 MB: <case>.1.parquet, ...)

A shard describes itself in its footer, so the manifest and the two tables can be made again from the shards.
"""

from __future__ import annotations

from voxray.store.contents import Changes, Contents, counted, number_of_cases
from voxray.store.manifest import CaseEntry, CaseSummary, FailedCase, Fingerprint, Manifest, ShardFile, TileEntry
from voxray.store.reading import Store, manifest_digest
from voxray.store.rounds import PatchSource, Round, StretchReads, read_batches, step_by_step, stretches
from voxray.store.shards import (
    StoredCase,
    find_stored_case,
    is_disk_full,
    is_shard,
    read_stored_case,
    remove_case,
    stored_case_ids,
    write_case,
)
from voxray.store.tables import (
    known_entries,
    recipe_digest,
    recipe_fields,
    require_store_folder,
    set_manifest_aside,
    write_manifest,
)

__all__ = [
    "CaseEntry",
    "CaseSummary",
    "Changes",
    "Contents",
    "FailedCase",
    "Fingerprint",
    "Manifest",
    "PatchSource",
    "Round",
    "ShardFile",
    "Store",
    "StoredCase",
    "StretchReads",
    "TileEntry",
    "counted",
    "find_stored_case",
    "is_disk_full",
    "is_shard",
    "known_entries",
    "manifest_digest",
    "number_of_cases",
    "read_batches",
    "read_stored_case",
    "recipe_digest",
    "recipe_fields",
    "remove_case",
    "require_store_folder",
    "set_manifest_aside",
    "step_by_step",
    "stored_case_ids",
    "stretches",
    "write_case",
    "write_manifest",
]
