"""The manifest and the two tables, made from what the shards say of themselves."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64

from voxray import __version__
from voxray.core.config import to_json
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.core.volume import Grid, Shape, Vector
from voxray.core.written import require_empty
from voxray.store import histogram
from voxray.store.manifest import CaseEntry, FailedCase, Fingerprint, Manifest, ObjectSizes
from voxray.store.shards import StoredCase, is_shard, stored_case_ids

MANIFEST, TILES, OBJECTS = "manifest.json", "tiles.parquet", "objects.parquet"
ASIDE = "manifest.aside.json"
"""The last manifest while cases are being made: what it says of files that are kept still holds."""

TILES_SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("file", pa.string()),
        ("row_group", pa.int32()),
        ("start", pa.list_(pa.int32(), 3)),
        ("shape", pa.list_(pa.int32(), 3)),
        ("has_foreground", pa.bool_()),
        ("objects", pa.list_(pa.int64())),
        ("labels", pa.list_(pa.int64())),
        ("label_voxels", pa.list_(pa.int64())),
    ]
)

OBJECTS_SCHEMA = pa.schema([("case_id", pa.string()), ("class", pa.string()), ("size_mm", pa.list_(pa.float64(), 3))])


def recipe_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that shape the tiles; all others may change without a new store."""
    patch = {name: list(getattr(recipe.patch, name)) for name in ("size_vox", "margin_vox", "max_object_vox")}
    if recipe.task == "segmentation":
        del patch["max_object_vox"]
    return {"task": recipe.task, "grid": recipe.grid.model_dump(mode="json"), "patch": patch}


def recipe_digest(recipe: Recipe) -> str:
    """A digest of `recipe_fields`."""
    return hashlib.sha256(json.dumps(recipe_fields(recipe), sort_keys=True).encode()).hexdigest()[:16]


def write_manifest(
    place: Place,
    stored: Sequence[StoredCase],
    recipe: Recipe,
    *,
    dataset: Mapping[str, Any],
    failed: Mapping[str, FailedCase],
    images: Mapping[str, str] | None = None,
) -> Manifest:
    """Both tables, and then the manifest: a store whose manifest can be read is complete.

    `images` says where each case's scan lies, where that is known.
    """
    stored = sorted(stored, key=lambda one: one.summary.case_id)
    classes = list(dataset["classes"])
    place.write(TILES, _parquet(pa.Table.from_pylist(_tile_rows(stored), schema=TILES_SCHEMA)))
    place.write(OBJECTS, _parquet(pa.Table.from_pylist(_object_rows(stored, classes), schema=OBJECTS_SCHEMA)))
    manifest = Manifest(
        voxray_version=__version__,
        dataset=dict(dataset),
        recipe=recipe_fields(recipe),
        recipe_digest=recipe_digest(recipe),
        cases={one.summary.case_id: _entry(one, images or {}) for one in stored},
        failed=dict(sorted(failed.items())),
        fingerprint=_fingerprint(stored, classes),
    )
    place.write(MANIFEST, to_json(manifest).encode())
    place.remove(ASIDE)
    return manifest


def require_store_folder(place: Place) -> None:
    """A ConfigError where the folder holds files and no store, finished or not."""
    for name in (MANIFEST, ASIDE):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if "recipe_digest" in json.loads(place.read(name)):
                return
    if not any(is_shard(place, case_id) for case_id in stored_case_ids(place)):
        require_empty(place, "store")


def set_manifest_aside(place: Place) -> None:
    """From here on the store counts as unfinished, until `write_manifest`."""
    if place.exists(MANIFEST):
        place.write(ASIDE, place.read(MANIFEST))
        place.remove(MANIFEST)


def known_entries(place: Place) -> dict[str, CaseEntry]:
    """What the last manifest, set aside or not, says of each case; nothing where there is none that can be read."""
    for name in (MANIFEST, ASIDE):
        try:
            return Manifest.model_validate_json(place.read(name)).cases
        except (OSError, ValueError):
            continue
    return {}


def _entry(stored: StoredCase, images: Mapping[str, str]) -> CaseEntry:
    summary = stored.summary
    return CaseEntry(
        patient_id=summary.patient_id,
        image=images.get(summary.case_id, ""),
        signature=summary.signature,
        grid=summary.grid,
        original_grid=summary.original_grid,
        num_tiles=len(summary.tiles),
        num_objects=len(summary.boxes),
        files=stored.files,
        warnings=summary.warnings,
    )


def _tile_rows(stored: Sequence[StoredCase]) -> list[dict[str, Any]]:
    return [
        {
            "case_id": one.summary.case_id,
            "file": name,
            "row_group": group,
            "start": list(tile.start),
            "shape": list(tile.shape),
            "has_foreground": bool(tile.objects or tile.label_voxels),
            "objects": list(tile.objects),
            "labels": list(tile.label_voxels),
            "label_voxels": list(tile.label_voxels.values()),
        }
        for one in stored
        for tile, (name, group) in zip(one.summary.tiles, _row_groups(one), strict=True)
    ]


def _row_groups(stored: StoredCase) -> list[tuple[str, int]]:
    """Where each of a case's tiles lies: its file and the row group in it."""
    numbers = zip(stored.files, stored.summary.tiles_per_file, strict=True)
    return [(file.name, group) for file, number in numbers for group in range(number)]


def _object_rows(stored: Sequence[StoredCase], classes: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for one in stored:
        boxes = np.asarray(one.summary.boxes, np.float64).reshape(-1, 6)
        sizes = (boxes[:, 3:] - boxes[:, :3]) * np.asarray(one.summary.grid["spacing_mm"])
        for index, size in zip(one.summary.classes, sizes.tolist(), strict=True):
            rows.append({"case_id": one.summary.case_id, "class": classes[index], "size_mm": size})
    return rows


def _fingerprint(stored: Sequence[StoredCase], classes: Sequence[str]) -> Fingerprint:
    summaries = [one.summary for one in stored]
    objects = _object_rows(stored, classes)
    sizes = {name: np.array([row["size_mm"] for row in objects if row["class"] == name]) for name in classes}
    voxels: Counter[int] = Counter()
    for one in summaries:
        voxels.update(one.label_voxels)
    turned = [_along_patient(Grid.from_dict(one.original_grid)) for one in summaries]
    return Fingerprint(
        num_cases=len(summaries),
        num_patients=len({one.patient_id for one in summaries}),
        spacing_mm=tuple(spacing for spacing, _ in turned),
        shape=tuple(shape for _, shape in turned),
        foreground_hu=histogram.describe([histogram.from_text(one.foreground_hu) for one in summaries]),
        objects={name: _sizes(found) for name, found in sizes.items() if len(found)},
        cases_without_objects=sum(not one.boxes for one in summaries),
        label_voxels={classes[label - 1]: count for label, count in sorted(voxels.items())},
    )


def _along_patient(grid: Grid) -> tuple[Vector, Shape]:
    """Spacing and shape along right-left, front-back and up-down, whichever way the scan was stored."""
    x, y, z = (next(i for i, letter in enumerate(grid.orientation) if letter in pair) for pair in ("RL", "AP", "SI"))
    spacing, shape = grid.spacing_mm, grid.shape
    return (spacing[x], spacing[y], spacing[z]), (shape[x], shape[y], shape[z])


def _sizes(sides_mm: Float64[np.ndarray, "n 3"]) -> ObjectSizes:
    smallest, median, largest = (
        tuple(np.round(found, 3).tolist())
        for found in (sides_mm.min(axis=0), np.median(sides_mm, axis=0), sides_mm.max(axis=0))
    )
    return ObjectSizes(count=len(sides_mm), smallest_mm=smallest, median_mm=median, largest_mm=largest)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
