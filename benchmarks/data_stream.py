"""Training patches per second and peak memory: the stream against MONAI's CacheDataset and DataLoader.

Both sides cut the same number of patches of one size from the same cases, half of them around an object, and augment
them as the recipe says: the peer as its bundles do, in two loader processes per training worker; voxray in reading
tasks and, where a GPU would stand, on the worker's share of the cores. Each measurement runs in processes of its own;
memory is the proportional set size of the whole tree of processes, Ray's own included, at its peak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from process_tree import watched_memory
from scans import enlarged, with_noise
from table import Row, options, show

from voxray.core.case import Case
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.core.volume import Shape, Volume
from voxray.preprocess import orient
from voxray.recipes import read_recipe
from voxray.store import write_case, write_manifest

QUICK = ("patch.size_vox=[96,96,48]", "patch.margin_vox=[16,16,16]", "patch.max_object_vox=[32,32,24]")
QUICK_OF = {"lung_nodule": QUICK, "spleen": ("patch.size_vox=[64,64,64]", "patch.margin_vox=[16,16,16]")}


def main() -> None:
    """Measures and prints the table."""
    asked = options(__doc__ or "")
    shape: Shape = (160, 160, 96) if asked.quick else (384, 384, 192)
    few, seconds = (3, 8.0) if asked.quick else (4, 40.0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("lung_nodule", "spleen"):
            overrides = QUICK_OF[name] if asked.quick else ()
            recipe = read_recipe(name, overrides)
            stores = {number: str(Path(folder) / f"{name}_{number}") for number in (few, 4 * few)}
            for number, store in stores.items():
                _write_store(store, recipe, number, shape)
            rows += _compare(name, overrides, stores, seconds)
    show(rows, title=f"patches to the training worker, {os.cpu_count()} cores", json_file=asked.json)


def _compare(name: str, overrides: tuple[str, ...], stores: dict[int, str], seconds: float) -> list[Row]:
    few, many = stores
    found = {
        (side, number, workers): _measure(side, name, overrides, stores[number], workers, seconds)
        for side in ("monai", "voxray")
        for number, workers in ((few, 1), (few, 2), (many, 1))
    }
    rate = {key: pair[0] for key, pair in found.items()}
    peak = {key: pair[1] for key, pair in found.items()}
    rows = [
        Row(
            f"{name}: {workers} training worker{'s'[: workers - 1]}",
            rate["monai", few, workers],
            rate["voxray", few, workers],
            "patches/s",
            aim=1.5,
        )
        for workers in (1, 2)
    ]
    least, many_cases, two = (few, 1), (many, 1), (few, 2)
    title = f"{name}: peak memory, {few} cases"
    rows.append(Row(title, peak["monai", *least], peak["voxray", *least], "MiB", aim=0, less_is_better=True))
    for what, key, limit in ((f"{many} cases against {few}", many_cases, 1.1), ("2 workers against 1", two, 1.2)):
        theirs, ours = (peak[side, *key] / peak[side, *least] for side in ("monai", "voxray"))
        title = f"{name}: memory, {what}"
        rows.append(Row(title, theirs, ours, "times", aim=limit, less_is_better=True, aim_of="voxray"))
    return rows


def _measure(
    side: str, name: str, overrides: tuple[str, ...], store: str, workers: int, seconds: float
) -> tuple[float, float]:
    """(patches per second over all workers, peak memory in MiB) of one side, in a process tree of its own."""
    job = {
        "side": side,
        "recipe": name,
        "overrides": overrides,
        "store": store,
        "workers": workers,
        "seconds": seconds,
    }
    script = str(Path(__file__).with_name("stream_sides.py"))
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", script, json.dumps(job)], stdout=subprocess.PIPE, text=True
    )
    with watched_memory(child.pid) as peak:
        output, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"{side} failed; its errors stand above")
    return float(output.strip().splitlines()[-1]), peak[0]


def _write_store(uri: str, recipe: Recipe, number: int, shape: Shape) -> None:
    image, organ = enlarged(shape, recipe.grid.spacing_mm)
    image, organ = orient(image, "RAS"), orient(organ, "RAS")
    place, stored = Place.of(uri), []
    for index in range(number):
        boxes = _boxes(np.random.default_rng(index), shape)
        case = Case(
            case_id=f"case_{index:03d}",
            patient_id=f"case_{index:03d}",
            image=Volume(with_noise(image, index).voxels, image.grid),
            boxes=boxes,
            classes=np.zeros(len(boxes), np.int64),
            labels=organ.voxels,
        )
        stored.append(write_case(place, case, recipe, original_grid=image.grid, signature=str(index)))
    write_manifest(
        place, stored, recipe, dataset={"name": "made", "licence": "unknown", "classes": ["one"]}, failed={}
    )


def _boxes(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Three boxes of 6 to 24 voxels a side."""
    sides = rng.integers(6, 25, (3, 3))
    low = rng.integers(0, np.subtract(shape, sides))
    return np.concatenate([low, low + sides], axis=1).astype(np.float64)


if __name__ == "__main__":
    main()
